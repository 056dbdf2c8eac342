//! A part of a disk as a disk of its own.

use super::partitions::{Bytes, Partition};
use crate::error::{Error, Result};
use crate::units::{GuestOffset, length};

/// A run of bytes of a disk, counted from its own first one.
#[derive(Clone, Copy, Debug)]
pub struct Window<B> {
    disk: B,
    start: GuestOffset,
    len: u64,
}

impl<B: Bytes> Window<B> {
    /// The bytes of `partition`, which is one of `disk`'s.
    ///
    /// # Errors
    /// `Invalid` when the disk ends before the partition does.
    pub fn new(disk: B, partition: &Partition) -> Result<Self> {
        let number = partition.number;
        Self::at(disk, partition.start, partition.len)
            .map_err(|error| error.at(format!("partition {number}")))
    }

    /// The `len` bytes of `disk` from `start` on.
    ///
    /// # Errors
    /// `Invalid` when they do not lie inside the disk.
    pub fn at(disk: B, start: GuestOffset, len: u64) -> Result<Self> {
        match start.0.checked_add(len) {
            Some(end) if end <= disk.size() => Ok(Self { disk, start, len }),
            _ => Err(Error::invalid(format!("{len} bytes at {start} reach past the end of the disk"))),
        }
    }

    pub(super) fn disk(&self) -> &B {
        &self.disk
    }

    /// Where `len` bytes from `at` on lie on the disk.
    pub(super) fn place(&self, at: GuestOffset, len: usize) -> Result<GuestOffset> {
        match at.0.checked_add(length(len)) {
            Some(end) if end <= self.len => Ok(self.start + at.0),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {at} reach past the end of the filesystem's place"
            ))),
        }
    }
}

impl<B: Bytes> Bytes for Window<B> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        self.disk.read(buf, self.place(at, buf.len())?)
    }
}
