//! Which parts of a file are holes, asked once for each run.

use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::HostOffset;
use std::ops::Range;

/// The run that the host was asked about last: places are asked for in order, and a run can be long to find the end of.
#[derive(Debug, Default)]
pub(super) struct Holes {
    known: Range<u64>,
    data: bool,
}

impl Holes {
    /// Whether `len` bytes of the file are a hole: a table of zeros that need not be read.
    pub(super) fn is_hole(&mut self, storage: &dyn Storage, at: HostOffset, len: u64) -> Result<bool> {
        if !self.known.contains(&at.0) {
            let run = storage.run_at(at).map_err(|e| Error::io("asking for the holes of the image", e))?;
            self.known = at.0..at.0.saturating_add(run.len);
            self.data = run.data;
        }
        Ok(!self.data && self.known.end - at.0 >= len)
    }
}
