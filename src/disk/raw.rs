//! A raw file as a layer: its bytes are the disk's.

use crate::error::{Error, Kind, Result};
use crate::qcow2::{Piece, Reader, Source};
use crate::storage::{Latch, Storage};
use crate::units::{GuestOffset, HostOffset};
use std::sync::Arc;

/// A raw file.
#[derive(Debug)]
pub struct RawLayer {
    storage: Latch,
    size: u64,
    writable: bool,
}

impl RawLayer {
    /// A layer over `storage`, as long as the file is now.
    ///
    /// # Errors
    /// The host's.
    pub fn new(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        let size = storage.len().map_err(|e| Error::io("reading the length of a raw image", e))?;
        Ok(Self { storage: Latch::new(storage), size, writable })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn read_to(&self, reader: &mut dyn Reader, at: GuestOffset, len: u64) -> Result<()> {
        let (file, at) = (&self.storage, HostOffset(at.0));
        reader.take(Piece::Stored { file, at, len, doing: "reading a raw image" })
    }

    fn writable(&self) -> Result<&Latch> {
        if self.writable {
            Ok(&self.storage)
        } else {
            Err(Error::new(Kind::ReadOnly, "the raw image is open for reading only"))
        }
    }

    pub(super) fn write(&self, data: &[u8], at: GuestOffset) -> Result<()> {
        self.writable()?.write_at(data, HostOffset(at.0)).map_err(|e| Error::io("writing a raw image", e))
    }

    pub(super) fn write_zeroes(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.writable()?.punch(HostOffset(at.0), len).map_err(|e| Error::io("punching a raw image", e))
    }

    pub(super) fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.storage.sync().map_err(|e| Error::io("syncing a raw image", e))
    }

    pub(super) fn extent(&self, at: GuestOffset) -> Result<(u64, Source)> {
        let run = self
            .storage
            .run_at(HostOffset(at.0))
            .map_err(|e| Error::io("asking for the holes of a raw image", e))?;
        let source =
            if run.data { Source::Data(HostOffset(at.0)) } else { Source::Zero { allocated: false } };
        Ok((run.len, source))
    }
}
