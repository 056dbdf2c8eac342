//! Check: the structure of all files of a clone.

use crate::error::{Kind, Result};
use crate::qcow2::{self, CheckReport};
use crate::store::{Access, CloneFile, Name, Refusals, Store};
use crate::units::length;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Its own qcow2 files: the disk first, then the checkpoints by number.
    pub layers: Vec<LayerReport>,
    /// Why the clone cannot be opened, when it cannot: a base that is missing or changed, a header that names another.
    pub refused: Option<String>,
    /// Why checkpoints cannot be opened, where that is not the reason in `refused`; also of those that the present
    /// state does not stand on.
    pub refused_checkpoints: Vec<String>,
}

impl CloneReport {
    /// Damages over all layers, each refusal counted as one.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.layers.iter().map(|layer| layer.report.error_count).sum::<u64>()
            + u64::from(self.refused.is_some())
            + length(self.refused_checkpoints.len())
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
pub fn check_clone(store: &Store, name: &Name, repair: bool) -> Result<CloneReport> {
    let files = store.clone_files(name, if repair { Access::Write } else { Access::Read })?;
    let mut layers = Vec::new();
    for (number, layer) in files.layers.iter().enumerate() {
        let report = match repair && number == 0 {
            true => repaired(layer).map_err(|error| error.at(format!("clone {name}")))?,
            false => qcow2::check(Arc::clone(&layer.storage)).unwrap_or_else(|error| unreadable(&error)),
        };
        layers.push(LayerReport { file: layer.file.clone(), report });
    }
    // While this holds the locks the clone can be opened without any.
    let Refusals { clone: refused, checkpoints: refused_checkpoints } = store.refusals(name)?;
    Ok(CloneReport { name: name.clone(), layers, refused, refused_checkpoints })
}

/// A host that fails is no damage of the file, and a repair that was not made is not one.
fn repaired(layer: &CloneFile) -> Result<CheckReport> {
    match qcow2::repair(Arc::clone(&layer.storage)) {
        Err(error) if matches!(error.kind(), Kind::Io | Kind::NoSpace | Kind::Latched) => Err(error),
        other => Ok(other.unwrap_or_else(|error| unreadable(&error))),
    }
}

/// A file of which not even the header can be read is one damage.
fn unreadable(error: &crate::Error) -> CheckReport {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    CheckReport { errors: vec![format!("{error}{cause}")], error_count: 1, ..CheckReport::default() }
}
