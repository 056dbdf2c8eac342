//! A queue at work: threads that wait for the driver's kicks and do its requests.
//!
//! Each thread takes a request under the ring's lock, does it without, and gives it back under the lock again; so one
//! slow request keeps no other one from being done. With more than one thread answers come out of order.
//! [`Watch`] says who looks for the next one, and who sleeps.

use super::memory::Memory;
use super::request::Worker;
use super::ring::{Nonsense, Places, Ring};
use super::watch::{Rest, Taken, Watch};
use crate::serve::Export;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, RwLock};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a thread looks for a request before it sleeps: about what it takes to be woken.
const MOMENT: Duration = Duration::from_micros(50);
/// Milliseconds after which a thread that dozes looks whether a request waits behind those that are at work.
const DOZE: u8 = 1;

/// The memory that all queues of a front end use. A thread holds it for one request, so that who changes it knows that
/// the old one is not used any more.
pub(super) type Shared = Arc<RwLock<Memory>>;

/// A descriptor that tells the front end something, exchanged at any time.
pub(super) type Signal = Arc<Mutex<Option<File>>>;

/// Writes to an event descriptor of the front end.
pub(super) fn signal(to: &Signal) {
    if let Some(file) = &*to.lock() {
        // It can only be full, or gone with the front end: nothing is lost either way.
        let _ = (&*file).write(&1_u64.to_ne_bytes());
    }
}

/// What the threads of a queue share.
#[derive(Debug)]
struct Running {
    number: u16,
    watch: Mutex<Watch>,
    memory: Shared,
    export: Arc<Export>,
    /// Answers are there.
    call: Signal,
    /// The ring makes no sense.
    error: Signal,
    epoll: Epoll,
    /// Wakes one more thread.
    more: EventFd,
    stop: AtomicBool,
}

/// What a queue is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) number: u16,
    pub(super) ring: Ring,
    pub(super) memory: Shared,
    pub(super) export: Arc<Export>,
    pub(super) call: Signal,
    pub(super) error: Signal,
}

/// A queue with its threads; [`Queue::stop`] ends them.
#[derive(Debug)]
pub(super) struct Queue {
    running: Arc<Running>,
    threads: Vec<JoinHandle<()>>,
}

impl Queue {
    /// Starts `threads` threads that are woken by `kick`.
    pub(super) fn start(parts: Parts, kick: &File, threads: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let more = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        // Edges, each of which wakes one thread: the counters are never read.
        let edge = || EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(kick, edge())?;
        epoll.add(&more, edge())?;
        let Parts { number, ring, memory, export, call, error } = parts;
        let (watch, stop) = (Mutex::new(Watch::new(ring, threads)), AtomicBool::new(false));
        let running = Running { number, watch, memory, export, call, error, epoll, more, stop };
        let mut queue = Self { running: Arc::new(running), threads: Vec::new() };
        for _ in 0..threads {
            let running = queue.running.clone();
            let name = format!("queue-{number}");
            match thread::Builder::new().name(name).spawn(move || running.run()) {
                Ok(thread) => queue.threads.push(thread),
                Err(error) => {
                    queue.stop();
                    return Err(error);
                }
            }
        }
        // A killed server may have given answers without a word.
        signal(&queue.running.call);
        Ok(queue)
    }

    /// Ends the threads, each after its request; the position of the next request.
    pub(super) fn stop(&mut self) -> u16 {
        self.running.stop.store(true, Ordering::SeqCst);
        self.running.wake();
        for thread in self.threads.drain(..) {
            // A panic in it is on standard error already.
            let _ = thread.join();
        }
        self.running.watch.lock().ring().next()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    fn wake(&self) {
        // It fails only when it is full, and then it has woken enough.
        let _ = self.more.write(1);
    }

    fn run(&self) {
        let mut worker = Worker::new(&self.export);
        let mut rest = Rest::Sleep;
        loop {
            match self.drain(&mut worker, rest) {
                Ok(next) => rest = next,
                Err(Nonsense(why)) => self.give_up(why),
            }
            if self.stop.load(Ordering::SeqCst) {
                self.wake();
                return;
            }
            self.wait(rest);
        }
    }

    /// Sleeps until there may be something to do.
    fn wait(&self, rest: Rest) {
        let timeout = if rest == Rest::Doze { DOZE.into() } else { EpollTimeout::NONE };
        let mut events = [EpollEvent::empty()];
        // A signal, or a descriptor that is no good: the ring is looked at, then the next wait follows.
        let _ = self.epoll.wait(&mut events, timeout);
    }

    /// A ring that makes no sense is left alone until the front end sets it up anew.
    fn give_up(&self, why: &str) {
        if !self.stop.swap(true, Ordering::SeqCst) {
            self.export.tell(format_args!("queue {} is stopped: {why}", self.number));
            signal(&self.error);
        }
    }

    /// Does requests until there is none, and how to rest then.
    fn drain(&self, worker: &mut Worker<'_>, rest: Rest) -> Result<Rest, Nonsense> {
        // Always the memory first, then the ring.
        let memory = self.memory.read();
        self.watch.lock().come(&memory, rest)?;
        drop(memory);
        loop {
            let memory = self.memory.read();
            let Taken { head, places, wake } = match self.take(&memory)? {
                Ok(taken) => taken,
                Err(rest) => return Ok(rest),
            };
            if wake {
                self.wake();
            }
            let written = worker.handle(&memory, places.table, places.size, head);
            if self.watch.lock().give_back(&memory, head, written)? {
                signal(&self.call);
            }
        }
    }

    /// The next request, which is looked for for a moment if it is likely to come; else how this thread is to rest.
    fn take(&self, memory: &Memory) -> Result<std::result::Result<Taken, Rest>, Nonsense> {
        let mut patient = true;
        while !self.stop.load(Ordering::Relaxed) {
            let mut watch = self.watch.lock();
            if let Some(taken) = watch.take(memory)? {
                return Ok(Ok(taken));
            }
            if patient && watch.is_worth_it() {
                let (places, next) = (watch.ring().places(), watch.ring().next());
                drop(watch);
                patient = self.look(memory, places, next)?;
                continue;
            }
            match watch.leave(memory)? {
                Rest::None => {}
                rest => return Ok(Err(rest)),
            }
        }
        Ok(Err(Rest::Sleep))
    }

    /// Whether the request at position `next` comes within a moment.
    fn look(&self, memory: &Memory, places: Places, next: u16) -> Result<bool, Nonsense> {
        let until = Instant::now() + MOMENT;
        while places.available_index(memory)? == next {
            if Instant::now() >= until || self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
        Ok(true)
    }
}
