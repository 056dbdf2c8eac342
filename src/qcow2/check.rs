//! The check: counts every reference in the file and compares with the refcounts. It collects all damage.

use super::header::Header;
use super::image::read_l1;
use super::layout::incompatible;
use super::refcounts::Refcounts;
use super::references::References;
use super::report::CheckReport;
use super::walk::Walk;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::HostOffset;
use std::sync::Arc;

/// Everything that the check learns, for the repair to use.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) header: Header,
    pub(super) report: CheckReport,
    /// References found, per host cluster.
    pub(super) references: References,
    /// The refcounts as stored.
    pub(super) refcounts: Refcounts,
    /// Entries of the refcount table that cannot be used.
    pub(super) bad_blocks: bool,
    /// Entries whose COPIED bit is wrong: place in the file and the right word.
    pub(super) copied: Vec<(HostOffset, u64)>,
    /// Damage that counting again cannot repair.
    pub(super) beyond_repair: u64,
    /// Whether the image only says of itself that it is corrupt.
    pub(super) only_marked: bool,
}

/// Checks the whole image and collects all damage.
///
/// # Errors
/// `Corrupt` or `Unsupported` when the header cannot be used at all; the host's errors.
pub fn check(storage: Arc<dyn Storage>) -> Result<CheckReport> {
    survey(&*storage).map(|survey| survey.report)
}

/// One pass over the image.
pub(super) fn survey(storage: &dyn Storage) -> Result<Survey> {
    let header = Header::read(storage)?;
    let l1 = read_l1(header.l1_offset, header.l1_entries, storage)?;
    let file_end = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    let mut walk = Walk::new(&header, storage, file_end)?;
    walk.structures()?;
    walk.report.total_clusters = header.geometry.clusters();
    walk.l1_table(&l1, header.l1_offset, true);
    for (offset, entries) in walk.snapshots()? {
        walk.snapshot(offset, entries)?;
    }
    walk.l2_tables()?;
    walk.compare()?;
    walk.check_copied(&l1)?;
    let Walk { mut report, references, refcounts, copied, bad_blocks, beyond_repair, .. } = walk;
    report.image_end = references.end() << header.geometry.cluster_bits;
    let only_marked = report.is_consistent();
    if header.incompatible & incompatible::CORRUPT != 0 {
        report.error("the image is marked as corrupt");
    }
    Ok(Survey { header, report, references, refcounts, bad_blocks, copied, beyond_repair, only_marked })
}
