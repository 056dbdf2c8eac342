//! One partition as a disk of its own.

use super::partitions::{Bytes, Partition};
use crate::error::{Error, Result};
use crate::units::{GuestOffset, length};

/// A partition of a disk, readable from its own first byte on.
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
        let end = partition.start.0.checked_add(partition.len);
        if end.is_none_or(|end| end > disk.size()) {
            let number = partition.number;
            return Err(Error::invalid(format!("partition {number} reaches past the end of the disk")));
        }
        Ok(Self { disk, start: partition.start, len: partition.len })
    }
}

impl<B: Bytes> Bytes for Window<B> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        if at.0.checked_add(length(buf.len())).is_none_or(|end| end > self.len) {
            return Err(Error::invalid(format!("a read at {at} reaches past the end of the partition")));
        }
        self.disk.read(buf, self.start + at.0)
    }
}
