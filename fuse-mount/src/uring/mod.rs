//! The kernel's requests over `io_uring` instead of `/dev/fuse`.
//!
//! The kernel has a queue for each processor that may come up, and a request goes to the queue of the processor it was made
//! on. Rings give entries to a queue; each entry takes one request at a time, and handing over its answer takes the next one
//! in the same call. `/dev/fuse` stays open beside the rings: the kernel greets there, and forgets and interrupts there.
//!
//! From the greeting until every queue has an entry the kernel lets requests wait, without end. So all that may fail is made
//! before the greeting, and what fails after it ends the mount.

mod abi;
mod answers;
mod fields;
mod front;
mod more;
mod offer;
mod ring;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use fuser::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Source;
use crate::requests::MAX_TRANSFER;
use crate::view::View;
use more::{More, Queue};
pub(crate) use offer::queues;
use ring::Ring;

/// Threads of each queue, at least: a request that takes long, such as a flush, holds up nobody else.
const LEAST: usize = 2;

/// Threads that serve rings, each one ring.
pub(crate) struct Rings {
    threads: Vec<Served>,
    more: Arc<More>,
    said: Receiver<io::Result<()>>,
}

struct Served {
    /// Sends a word for each step that the thread may take. Dropped, the thread ends.
    go: Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Rings {
    /// Makes the rings for `device`, with `threads` threads shared out among `queues` queues.
    pub(crate) fn new<S: Source>(
        view: &Arc<View<S>>,
        device: &OwnedFd,
        queues: u16,
        threads: usize,
    ) -> io::Result<Self> {
        let each = threads.div_ceil(usize::from(queues)).max(LEAST);
        let device = Arc::new(device.try_clone()?);
        let (say, said) = channel();
        let more = Arc::new(More::new(device.clone()));
        let mut rings = Rings { threads: Vec::new(), more, said };
        for number in 0..queues {
            let queue = Arc::new(Queue::new(number, each, rings.more.clone()));
            for _ in 0..each {
                let (go, steps) = channel();
                let (view, queue, device, say) = (view.clone(), queue.clone(), device.clone(), say.clone());
                let builder = thread::Builder::new().name(format!("ring-{number}"));
                let thread = builder.spawn(move || {
                    stay_on(number);
                    let ring = Ring::new(device.as_fd(), number, MAX_TRANSFER as usize);
                    drop(device);
                    serve(&view, ring, &queue, &steps, &say)
                });
                match thread {
                    Ok(thread) => rings.threads.push(Served { go, thread }),
                    Err(error) => return Err(rings.give_up(error)),
                }
            }
        }
        // So that nobody waits for the word of a thread that died.
        drop(say);
        match rings.all_said() {
            Ok(()) => Ok(rings),
            Err(error) => Err(rings.give_up(error)),
        }
    }

    /// Ends the threads, none of which has an entry. Their files are closed then: who mounts without rings may need the room.
    fn give_up(self, error: io::Error) -> io::Error {
        for Served { go, thread } in self.threads {
            drop(go);
            let _ = thread.join();
        }
        error
    }

    /// Offers the rings to the kernel, which has been greeted. When this returns without an error, it sends requests there.
    pub(crate) fn open(&self) -> io::Result<()> {
        self.step();
        self.all_said()?;
        self.step();
        Ok(())
    }

    /// Waits until the connection has ended and each request that came is done with; the first error of a ring.
    pub(crate) fn join(self) -> io::Result<()> {
        let died = |_| io::Error::other("a thread of the rings panicked");
        let threads = self.threads.into_iter().map(|served| served.thread);
        // Threads of these have made the others, and have ended when it is their turn.
        let threads = threads.chain(std::iter::from_fn(|| self.more.pop()));
        let ends: Vec<_> = threads.map(|thread| thread.join().map_err(died)).collect();
        ends.into_iter().try_for_each(|end| end?)
    }

    fn step(&self) {
        for served in &self.threads {
            // A thread that has gone says so by itself.
            let _ = served.go.send(());
        }
    }

    fn all_said(&self) -> io::Result<()> {
        let gone = |_| io::Error::other("a thread of the rings ended");
        self.threads.iter().try_for_each(|_| self.said.recv().map_err(gone)?)
    }
}

/// The life of a thread: its ring, then its entry, then requests; each when it may.
fn serve<S: Source>(
    view: &Arc<View<S>>,
    ring: io::Result<Ring>,
    queue: &Arc<Queue>,
    steps: &Receiver<()>,
    say: &Sender<io::Result<()>>,
) -> io::Result<()> {
    // Whoever does not listen, or gives no word, has ended the mount.
    let may_go_on = |what: io::Result<()>| {
        let failed = what.is_err();
        say.send(what).is_ok() && !failed && steps.recv().is_ok()
    };
    let (ring, made) = match ring {
        Ok(ring) => (Some(ring), Ok(())),
        Err(error) => (None, Err(error)),
    };
    let (true, Some(mut ring)) = (may_go_on(made), ring) else { return Ok(()) };
    if !may_go_on(ring.register()) {
        return Ok(());
    }
    answer(view, ring, queue)
}

/// Answers what comes through a ring, until the connection has ended.
fn answer<S: Source>(view: &Arc<View<S>>, ring: Ring, queue: &Arc<Queue>) -> io::Result<()> {
    ring.serve(|request| {
        let all_busy = queue.begin();
        if all_busy && view.pace.waits() {
            queue.grow(view);
        }
        let answer = catch_unwind(AssertUnwindSafe(|| front::answer(view, request)));
        queue.end();
        answer.unwrap_or(Err(Errno::EIO))
    })
}

/// Keeps this thread on the processor whose requests it serves: woken there, it answers before anybody else has moved. Where
/// it may not be, it stays where it may.
fn stay_on(processor: u16) {
    let (this, processor) = (Pid::from_raw(0), usize::from(processor));
    let allowed = sched_getaffinity(this).and_then(|allowed| allowed.is_set(processor));
    let mut only = CpuSet::new();
    if allowed == Ok(true) && only.set(processor).is_ok() {
        // One that is switched off serves nobody.
        let _ = sched_setaffinity(this, &only);
    }
}
