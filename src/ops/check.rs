//! Check: the structure of all files of a clone.

use crate::error::Result;
use crate::qcow2::CheckReport;
use crate::store::{Name, Store};
use std::path::PathBuf;

/// What checking one layer found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerReport {
    /// Its file, relative to the store.
    pub file: PathBuf,
    /// What was found, after the repair if there was one.
    pub report: CheckReport,
}

/// What checking a clone found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneReport {
    /// The clone.
    pub name: Name,
    /// Its own qcow2 files: the disk first, then the checkpoints by number; then qcow2 bases below.
    pub layers: Vec<LayerReport>,
    /// Why the clone cannot be opened, when it cannot: a base that is missing or changed, a header that names another.
    pub refused: Option<String>,
}

impl CloneReport {
    /// Damages over all layers, a refusal counted as one.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.layers.iter().map(|layer| layer.report.error_count).sum::<u64>()
            + u64::from(self.refused.is_some())
    }

    /// Leaked clusters over all layers.
    #[must_use]
    pub fn leaks(&self) -> u64 {
        self.layers.iter().map(|layer| layer.report.leaks).sum()
    }
}

/// Checks a clone; with `repair` leaks and counts of its active layer are put right first.
///
/// # Errors
/// `NotFound`, `Busy` while somebody writes to it (with `repair`: has it open), the host's.
pub fn check_clone(_store: &Store, _name: &Name, _repair: bool) -> Result<CloneReport> {
    todo!()
}
