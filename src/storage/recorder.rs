//! Writes down every change of a file, for tests that build the states a power cut could leave.

use super::{Run, Storage};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::HostOffset;
use std::io;
use std::sync::Arc;

/// What one operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Bytes were written.
    Write(HostOffset, Vec<u8>),
    /// A range was made to read as zeros: place and length.
    Punch(HostOffset, u64),
    /// The length was set.
    SetLen(u64),
    /// A sync.
    Sync,
}

/// One operation on the file, in the order of its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it began: a tick that all events of one recorder share.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// What it did.
    pub effect: Effect,
    /// Whether it succeeded.
    pub ok: bool,
}

/// A storage that passes everything on and keeps a log.
#[derive(Debug)]
pub struct Recorder {
    inner: Arc<dyn Storage>,
    clock: AtomicU64,
    log: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Records what happens to `inner` from now on.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, clock: AtomicU64::new(0), log: Mutex::new(Vec::new()) }
    }

    /// Everything recorded so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.log.lock().clone()
    }

    /// How many operations are recorded so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.log.lock().len()
    }

    fn record(&self, effect: Effect, run: impl FnOnce(&dyn Storage) -> io::Result<()>) -> io::Result<()> {
        let start = self.clock.fetch_add(1, Ordering::SeqCst);
        let result = run(&*self.inner);
        // In one step: who counts the events must not miss one that ended before another one that is there.
        let mut log = self.log.lock();
        let end = self.clock.fetch_add(1, Ordering::SeqCst);
        log.push(Event { start, end, effect, ok: result.is_ok() });
        drop(log);
        result
    }
}

impl Storage for Recorder {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.record(Effect::Write(at, data.to_vec()), |inner| inner.write_at(data, at))
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.record(Effect::Punch(at, len), |inner| inner.punch(at, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.record(Effect::Sync, |inner| inner.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Effect::SetLen(len), |inner| inner.set_len(len))
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        self.inner.run_at(at)
    }
}
