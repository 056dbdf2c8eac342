//! Export: a disk becomes one flat image file.

use super::Progress;
use crate::error::Result;
use crate::store::{DiskFormat, Store, Target};
use std::path::PathBuf;

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// A clone or a base.
    pub target: Target,
    /// The file to make.
    pub out: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Whether a file that is there may be replaced.
    pub force: bool,
}

/// Writes the guest-visible disk into one file, sparse; the file appears when it is complete and durable.
///
/// # Errors
/// `Exists`, `Busy` while somebody writes to the clone, `NoSpace`, `Interrupted`, the gate's, the host's.
pub fn export(_store: &Store, _request: &ExportRequest, _progress: &dyn Progress) -> Result<()> {
    todo!()
}
