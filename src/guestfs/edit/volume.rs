//! The part of a disk that holds one filesystem.

use crate::disk::Disk;
use crate::error::Result;
use crate::guestfs::Window;
use crate::guestfs::partitions::Bytes;
use crate::units::GuestOffset;

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

impl Volume for Window<&Disk> {
    fn write(&self, data: &[u8], at: GuestOffset) -> Result<()> {
        self.disk().write(data, self.place(at, data.len())?)
    }

    fn flush(&self) -> Result<()> {
        self.disk().flush()
    }
}
