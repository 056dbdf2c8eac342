//! A chain of layers as one block device.

use crate::error::Result;
use crate::qcow2::Image;
use crate::storage::Storage;
use crate::units::GuestOffset;
use std::sync::Arc;

/// One layer of a chain.
#[derive(Debug)]
pub enum Layer {
    /// A raw file.
    Raw(RawLayer),
    /// A qcow2 image.
    Qcow2(Image),
}

/// A raw file as a layer.
#[derive(Debug)]
pub struct RawLayer {
    _storage: Arc<dyn Storage>,
}

impl RawLayer {
    /// A layer of `size` bytes (the file's length) over `storage`.
    ///
    /// # Errors
    /// The host's.
    pub fn new(storage: Arc<dyn Storage>, _writable: bool) -> Result<Self> {
        Ok(Self { _storage: storage })
    }
}

/// Where the bytes of a run of a disk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskExtent {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Whether a layer stores bytes for it; otherwise it reads as zeros.
    pub data: bool,
    /// The layer that decides, 0 for the top; `None` when no layer says anything (it reads as zeros).
    pub depth: Option<usize>,
    /// Place in that layer's file, when its bytes are stored as they are.
    pub host: Option<crate::units::HostOffset>,
    /// Whether it is compressed.
    pub compressed: bool,
}

/// A chain as one block device, shared by many threads.
#[derive(Debug)]
pub struct Disk {}

impl Disk {
    /// A disk over `layers`, the top first.
    ///
    /// # Errors
    /// `Invalid` when there is no layer.
    pub fn new(_layers: Vec<Layer>) -> Result<Self> {
        todo!()
    }
    /// The layers, top first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        todo!()
    }
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// Reads; the range must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn read(&self, _buf: &mut [u8], _at: GuestOffset) -> Result<()> {
        todo!()
    }
    /// Writes into the top layer.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn write(&self, _data: &[u8], _at: GuestOffset) -> Result<()> {
        todo!()
    }
    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn write_zeroes(&self, _at: GuestOffset, _len: u64) -> Result<()> {
        todo!()
    }
    /// Frees a range; it reads as zeros afterwards.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn discard(&self, _at: GuestOffset, _len: u64) -> Result<()> {
        todo!()
    }
    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn flush(&self) -> Result<()> {
        todo!()
    }
    /// Flushes and gives reserved clusters back.
    ///
    /// # Errors
    /// As [`Image::close`].
    pub fn close(&self) -> Result<()> {
        todo!()
    }
    /// The run that starts at `at`, which must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::extent`].
    pub fn extent(&self, _at: GuestOffset) -> Result<DiskExtent> {
        todo!()
    }
}
