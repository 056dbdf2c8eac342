//! The part of a disk that holds one filesystem.

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, length};

/// Bytes that can be changed.
pub trait Volume: Bytes {
    /// Writes `data` at `at`; the range lies inside.
    ///
    /// # Errors
    /// Whatever writing the disk gives.
    fn write(&self, data: &[u8], at: GuestOffset) -> Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// Whatever flushing the disk gives.
    fn flush(&self) -> Result<()>;
}

/// A run of bytes of a disk, counted from its own start.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    disk: &'a Disk,
    start: GuestOffset,
    len: u64,
}

impl<'a> Window<'a> {
    /// The `len` bytes of `disk` from `start` on.
    ///
    /// # Errors
    /// `Invalid` when they do not lie inside the disk.
    pub fn new(disk: &'a Disk, start: GuestOffset, len: u64) -> Result<Self> {
        match start.0.checked_add(len) {
            Some(end) if end <= disk.size() => Ok(Self { disk, start, len }),
            _ => Err(Error::invalid(format!("{len} bytes at {start} reach past the end of the disk"))),
        }
    }

    fn place(&self, at: GuestOffset, len: usize) -> Result<GuestOffset> {
        match at.0.checked_add(length(len)) {
            Some(end) if end <= self.len => Ok(self.start + at.0),
            _ => Err(Error::invalid(format!("{len} bytes at {at} reach past the filesystem's place"))),
        }
    }
}

impl Bytes for Window<'_> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        self.disk.read(buf, self.place(at, buf.len())?)
    }
}

impl Volume for Window<'_> {
    fn write(&self, data: &[u8], at: GuestOffset) -> Result<()> {
        self.disk.write(data, self.place(at, data.len())?)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }
}
