//! The check: counts every reference in the file and compares with the refcounts. It collects all damage.

use super::header::Header;
use super::layout::incompatible;
use super::references::Counted;
use super::report::CheckReport;
use super::walk::{Claim, Walk};
use crate::error::Result;
use crate::storage::Storage;
use crate::units::HostCluster;
use std::sync::Arc;

/// Everything that the check learns, for the repair to use.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) header: Header,
    pub(super) report: CheckReport,
    /// The refcount structures are damaged themselves, or lack a place for a count that has to be raised.
    pub(super) needs_new_structures: bool,
    /// Entries whose COPIED bit is wrong for the references that there are.
    pub(super) wrong_copied: u64,
    /// Damage that counting again cannot repair.
    pub(super) beyond_repair: u64,
    /// Whether the image only says of itself that it is corrupt.
    pub(super) only_marked: bool,
    /// One past the last host cluster with a reference.
    pub(super) end: u64,
}

/// Checks the whole image and collects all damage, with at most 256 MiB of memory.
///
/// # Errors
/// `Corrupt` or `Unsupported` when the header cannot be used at all; the host's errors.
pub fn check(storage: Arc<dyn Storage>) -> Result<CheckReport> {
    survey(&*storage).map(|survey| survey.report)
}

/// One look at the whole image.
pub(super) fn survey(storage: &dyn Storage) -> Result<Survey> {
    let header = Header::read(storage)?;
    let mut walk = Walk::new(&header, storage)?;
    let mut found = Findings::default();
    walk.each_window(|walk, references| found.compare(walk, references))?;
    let Walk { mut report, bad_blocks, beyond_repair, .. } = walk;
    report.total_clusters = header.geometry.clusters();
    report.image_end = found.end << header.geometry.cluster_bits;
    let only_marked = report.is_consistent();
    if header.incompatible & incompatible::CORRUPT != 0 {
        report.error("the image is marked as corrupt");
    }
    Ok(Survey {
        report,
        needs_new_structures: bad_blocks || found.blocks_shared || found.uncounted,
        wrong_copied: found.wrong_copied,
        beyond_repair,
        only_marked,
        end: found.end,
        header,
    })
}

/// What comparing references with counts shows.
#[derive(Debug, Default)]
struct Findings {
    wrong_copied: u64,
    /// A refcount block, or the table of them, is used for something else as well.
    blocks_shared: bool,
    /// A cluster in use has no refcount block.
    uncounted: bool,
    end: u64,
}

impl Findings {
    /// Holds the references of a window against the stored counts, and the stored counts against the references.
    fn compare(&mut self, walk: &mut Walk<'_>, references: &Counted) -> Result<()> {
        self.end = self.end.max(references.end());
        let storage = walk.storage;
        for (cluster, found) in references.iter() {
            self.uncounted |= !walk.refcounts.covers(HostCluster(cluster));
            let stored = walk.refcounts.get(HostCluster(cluster), storage)?;
            if stored < found {
                walk.report.error(format!(
                    "host cluster {cluster:#x} is used {found} times and counted {stored} times"
                ));
                walk.beyond_repair += u64::from(found > walk.refcounts.width().max());
            }
        }
        let (leaks, mut counted) = (&mut walk.report.leaks, references.in_order());
        walk.refcounts.each_stored(references.window(), storage, |_, cluster, stored| {
            *leaks += u64::from(stored > counted(cluster.0));
            Ok(())
        })?;
        let geometry = walk.header.geometry;
        let blocks = walk.refcounts.table().iter().filter(|entry| **entry != 0);
        let table = walk.header.refcount_table_clusters * geometry.cluster_size();
        let mut blocks = blocks
            .map(|entry| entry >> geometry.cluster_bits)
            .chain(walk.clusters(walk.header.refcount_table, table));
        self.blocks_shared |=
            blocks.any(|cluster| references.window().contains(&cluster) && references.get(cluster) != 1);
        walk.shared_tables(references)?;
        walk.claims(references, |walk, claim| self.check_claim(walk, references, claim))
    }

    /// COPIED says that the count is one, and says so whenever it is.
    fn check_claim(&mut self, walk: &mut Walk<'_>, references: &Counted, claim: Claim) -> Result<()> {
        let only = walk.refcounts.get(claim.cluster, walk.storage)? == 1;
        if only != claim.is_owned() {
            let says = if only { "not its" } else { "its" };
            walk.report.error(format!(
                "the entry {:#018x} at {} says that its cluster is {says} alone, against its refcount",
                claim.word, claim.place
            ));
        }
        self.wrong_copied += u64::from(claim.is_wrong(references));
        Ok(())
    }
}
