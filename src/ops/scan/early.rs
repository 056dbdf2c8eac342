//! A sink whose bytes the host writes to its medium while the scan goes on, so that the sync at the end waits for less.

use super::Sink;
use crate::error::Result;
use crate::storage::{Advice, Storage};
use crate::units::{MIB, length};
use std::sync::atomic::{AtomicU64, Ordering};

/// From so many bytes on it is worth the host's while to begin to write them.
const WORTH_WRITING: u64 = 8 * MIB;

/// The same as `sink`, but the host is told now and then to write what is there of the file that the bytes go to.
pub(in crate::ops) struct Early<'a> {
    sink: &'a dyn Sink,
    file: &'a dyn Storage,
    /// Bytes that the host was not yet told to write.
    waiting: AtomicU64,
}

impl<'a> Early<'a> {
    pub(in crate::ops) fn new(sink: &'a dyn Sink, file: &'a dyn Storage) -> Self {
        Self { sink, file, waiting: AtomicU64::new(0) }
    }
}

impl Sink for Early<'_> {
    fn put(&self, data: &[u8], at: u64) -> Result<()> {
        self.waiting.fetch_add(length(data.len()), Ordering::Relaxed);
        self.sink.put(data, at)
    }

    fn grain(&self) -> usize {
        self.sink.grain()
    }

    fn ordered(&self) -> bool {
        self.sink.ordered()
    }

    fn more(&self) {
        if self.waiting.load(Ordering::Relaxed) >= WORTH_WRITING {
            self.waiting.store(0, Ordering::Relaxed);
            self.file.advise(Advice::Write);
        }
    }
}
