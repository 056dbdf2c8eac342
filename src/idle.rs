//! Flushes written disks that their users leave alone: idle data become durable, and discarded space comes back.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex, size};
use crate::units::length;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often unflushed disks are looked at.
const TICK: Duration = Duration::from_millis(250);
/// A disk that did not change for so long is flushed, in milliseconds.
const IDLE: u64 = length(size(750, 0));
/// A disk that changes all the time is flushed this often, in milliseconds.
const BUSY: u64 = 5000;

/// A disk whose changes may be unflushed.
pub(crate) trait Lazy: Debug + Send + Sync {
    /// When it changed since its last flush.
    fn changes(&self) -> &Changes;

    /// Flushes. A failure is the disk's to report, and latches it: its users get it at their next flush.
    fn flush_idle(&self);
}

/// When a disk changed since its last flush, on the queue's clock, which never shows 0.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// 0 when nothing is unflushed.
    first: AtomicU64,
    last: AtomicU64,
}

impl Changes {
    /// Notes a change that was made; whether it is the first one since the last flush.
    fn mark(&self, now: u64) -> bool {
        self.last.store(now, Ordering::Release);
        self.first.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Called before a flush: what changes later is marked again.
    pub(crate) fn clear(&self) {
        self.first.store(0, Ordering::Release);
    }

    /// When the oldest and the newest unflushed change were made; `None` when all is flushed.
    pub(crate) fn unflushed(&self) -> Option<(u64, u64)> {
        let first = self.first.load(Ordering::Acquire);
        (first != 0).then(|| (first, self.last.load(Ordering::Acquire)))
    }
}

/// The disks with unflushed changes, and the clock by which changes are dated.
#[derive(Debug)]
pub(crate) struct Queue {
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    unflushed: Vec<Weak<dyn Lazy>>,
    stop: bool,
}

impl Queue {
    /// Milliseconds since some time before the first change; never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Notes that `disk` was changed.
    pub(crate) fn mark<D: Lazy + 'static>(&self, disk: &Arc<D>) {
        if disk.changes().mark(self.now()) {
            let disk: Arc<dyn Lazy> = disk.clone();
            self.push(&disk);
        }
    }

    /// Adds a disk whose first unflushed change was just made.
    fn push(&self, disk: &Arc<dyn Lazy>) {
        let mut state = self.state.lock();
        let address = Arc::as_ptr(disk).cast::<()>();
        if !state.unflushed.iter().any(|known| known.as_ptr().cast::<()>() == address) {
            state.unflushed.push(Arc::downgrade(disk));
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
        for disk in all {
            let Some((first, last)) = disk.changes().unflushed() else { continue };
            if now.saturating_sub(last) >= IDLE || now.saturating_sub(first) >= BUSY {
                disk.flush_idle();
            }
        }
        let still =
            |known: &Weak<dyn Lazy>| known.upgrade().is_some_and(|disk| disk.changes().unflushed().is_some());
        self.state.lock().unflushed.retain(still);
    }
}

/// The thread that flushes; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Flusher {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(crate) fn start() -> io::Result<Self> {
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

    pub(crate) fn queue(&self) -> Arc<Queue> {
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
