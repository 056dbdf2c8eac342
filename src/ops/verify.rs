//! Verify: reads a base again and names what is damaged.

use super::Progress;
use crate::error::Result;
use crate::store::{Base, BaseRef, Store};
use serde::Serialize;

/// A damaged part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedRange {
    /// First byte, a multiple of 64 KiB.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What reading a base again showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// `NAME@V`.
    pub base: String,
    /// Damaged ranges in order, neighbours merged.
    pub damaged: Vec<DamagedRange>,
    /// Whether the content is what was sealed.
    pub digest_ok: bool,
    /// Whether the file is untouched (inode, size, times).
    pub fingerprint_ok: bool,
    /// Whether the list of block sums is what was sealed; when it is not, `damaged` is empty.
    pub sums_ok: bool,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.digest_ok && self.fingerprint_ok && self.sums_ok && self.damaged.is_empty()
    }
}

/// Reads a base version again.
///
/// # Errors
/// `NotFound`, `Interrupted`, the host's. Damage is no error: it is in the report.
pub fn verify(_store: &Store, _base: &BaseRef, _progress: &dyn Progress) -> Result<VerifyReport> {
    todo!()
}

/// Accepts a base whose content is still right though its file was touched (copied, restored, moved).
///
/// # Errors
/// `Changed` when the content is not what was sealed; as [`verify()`].
pub fn reseal(_store: &Store, _base: &BaseRef, _progress: &dyn Progress) -> Result<Base> {
    todo!()
}
