//! The disk, which tells a failure of the host from damage that the guest has made.

use crate::error::Result;
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, length};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A disk that remembers that it could not be read.
pub(super) struct Source<'a, B> {
    disk: &'a B,
    failed: AtomicBool,
}

impl<'a, B: Bytes> Source<'a, B> {
    pub(super) fn new(disk: &'a B) -> Self {
        Self { disk, failed: AtomicBool::new(false) }
    }

    /// What a reader found, or the reason why it did not: an error only when it was the host's.
    pub(super) fn judge<T>(&self, found: Result<T>) -> Result<Result<T, String>> {
        match found {
            Ok(found) => Ok(Ok(found)),
            Err(error) if self.failed.load(Ordering::Relaxed) => Err(error),
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}

impl<B: Bytes> Bytes for Source<'_, B> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        self.disk.read(buf, at).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }
}

/// Bytes that remember which of them were read.
///
/// What had to be read to learn what is free cannot be free itself: a mount reads it as well.
pub(super) struct Watched<'a, B> {
    bytes: &'a B,
    /// `None` once that was asked for.
    read: Mutex<Option<Vec<Range<u64>>>>,
}

impl<'a, B: Bytes> Watched<'a, B> {
    pub(super) fn new(bytes: &'a B) -> Self {
        Self { bytes, read: Mutex::new(Some(Vec::new())) }
    }

    /// Counts the bytes from `start` to `end` as read.
    pub(super) fn note(&self, start: u64, end: u64) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(read) = &mut *read else { return };
        match read.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ if start < end => read.push(start..end),
            _ => (),
        }
    }

    /// A byte that was read until now and lies in one of `free`, which are in order. What is read later is not noted.
    pub(super) fn read_in(&self, free: &[Range<u64>]) -> Option<u64> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        read.iter().find_map(|read| {
            let next = free.get(free.partition_point(|range| range.end <= read.start))?;
            (next.start < read.end).then_some(next.start.max(read.start))
        })
    }
}

impl<B: Bytes> Bytes for Watched<'_, B> {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        self.note(at.0, at.0 + length(buf.len()));
        self.bytes.read(buf, at)
    }
}
