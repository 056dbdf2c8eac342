//! A queue at work: threads that wait for the driver's kicks and do its requests.
//!
//! Each thread takes a request under the ring's lock, does it without, and gives it back under the lock again; so one
//! slow request keeps no other one from being done. With more than one thread answers come out of order.

use super::memory::Memory;
use super::request::Worker;
use super::ring::{Nonsense, Ring};
use crate::serve::Export;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, RwLock};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

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
    ring: Mutex<Ring>,
    memory: Shared,
    export: Arc<Export>,
    /// Answers are there.
    call: Signal,
    /// The ring makes no sense.
    error: Signal,
    epoll: Epoll,
    /// Wakes one more thread.
    more: EventFd,
    waiting: AtomicUsize,
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
        let (waiting, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let ring = Mutex::new(ring);
        let running = Running { number, ring, memory, export, call, error, epoll, more, waiting, stop };
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
        self.running.ring.lock().next()
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
        loop {
            match self.drain(&mut worker) {
                Ok(()) => self.wait(),
                Err(Nonsense(why)) => self.give_up(why),
            }
            if self.stop.load(Ordering::SeqCst) {
                self.wake();
                return;
            }
        }
    }

    /// Sleeps until there may be something to do.
    fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut events = [EpollEvent::empty()];
        // A signal, or a descriptor that is no good: the ring is looked at, then the next wait follows.
        let _ = self.epoll.wait(&mut events, EpollTimeout::NONE);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// A ring that makes no sense is left alone until the front end sets it up anew.
    fn give_up(&self, why: &str) {
        if !self.stop.swap(true, Ordering::SeqCst) {
            self.export.tell(format_args!("queue {} is stopped: {why}", self.number));
            signal(&self.error);
        }
    }

    /// Does requests until there is none.
    fn drain(&self, worker: &mut Worker<'_>) -> Result<(), Nonsense> {
        // Always the memory first, then the ring.
        let memory = self.memory.read();
        self.ring.lock().be_busy(&memory)?;
        drop(memory);
        while !self.stop.load(Ordering::Relaxed) {
            let memory = self.memory.read();
            let (head, places) = {
                let mut ring = self.ring.lock();
                let Some(head) = ring.pop(&memory)? else {
                    if ring.rest(&memory)? {
                        continue;
                    }
                    return Ok(());
                };
                if self.waiting.load(Ordering::SeqCst) > 0 && ring.waiting(&memory)? > 0 {
                    self.wake();
                }
                (head, ring.places())
            };
            let written = worker.handle(&memory, places.table, places.size, head);
            let mut ring = self.ring.lock();
            ring.push(&memory, head, written)?;
            if ring.wants_call(&memory)? {
                drop(ring);
                signal(&self.call);
            }
        }
        Ok(())
    }
}
