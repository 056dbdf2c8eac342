//! Flushes written disks that their users leave alone: idle data become durable, and discarded space comes back.

use super::shared::Shared;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex, size};
use crate::units::length;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often unflushed disks are looked at.
const TICK: Duration = Duration::from_millis(250);
/// A disk that did not change for so long is flushed, in milliseconds.
const IDLE: u64 = length(size(750, 0));
/// A disk that changes all the time is flushed this often, in milliseconds.
const BUSY: u64 = 5000;

/// The disks with unflushed changes, and the clock by which changes are dated.
#[derive(Debug)]
pub(super) struct Queue {
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    unflushed: Vec<Weak<Shared>>,
    stop: bool,
}

impl Queue {
    /// Milliseconds since some time before the first change; never 0.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Adds a disk whose first unflushed change was just made.
    pub(super) fn push(&self, shared: &Arc<Shared>) {
        let mut state = self.state.lock();
        if !state.unflushed.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(shared))) {
            state.unflushed.push(Arc::downgrade(shared));
            self.changed.notify_one();
        }
    }

    /// Waits until there is something to flush, then a tick longer. False when the thread shall end.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while state.unflushed.is_empty() && !state.stop {
            self.changed.wait(&mut state);
        }
        if !state.stop {
            self.changed.wait_for(&mut state, TICK);
        }
        !state.stop
    }

    fn flush_due(&self) {
        let now = self.now();
        let all: Vec<_> = self.state.lock().unflushed.iter().filter_map(Weak::upgrade).collect();
        for shared in all {
            let Some((first, last)) = shared.unflushed() else { continue };
            if now.saturating_sub(last) >= IDLE || now.saturating_sub(first) >= BUSY {
                // A failure is on standard error already, and latches the disk: its users get it at their next flush.
                let _ = shared.flush();
            }
        }
        let still = |known: &Weak<Shared>| known.upgrade().is_some_and(|shared| shared.unflushed().is_some());
        self.state.lock().unflushed.retain(still);
    }
}

/// The thread that flushes; dropping it ends it.
#[derive(Debug)]
pub(super) struct Flusher {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start() -> io::Result<Self> {
        let queue =
            Arc::new(Queue { start: Instant::now(), state: Mutex::default(), changed: Condvar::new() });
        let own = queue.clone();
        let thread = thread::Builder::new().name("flush".to_owned()).spawn(move || {
            while own.wait() {
                own.flush_due();
            }
        })?;
        Ok(Self { queue, thread: Some(thread) })
    }

    pub(super) fn queue(&self) -> Arc<Queue> {
        self.queue.clone()
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.queue.state.lock().stop = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it is on standard error already.
            let _ = thread.join();
        }
    }
}
