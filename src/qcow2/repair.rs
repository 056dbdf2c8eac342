//! The repair: counts again, and never makes things worse.
//!
//! Counts that are too low are raised and made durable first: from then on no cluster in use can be given away.
//! Then COPIED bits are corrected, and only then are leaks given back. Where the refcount structures themselves
//! are damaged, new ones are built behind the file's end and the header is switched to them by one write.

use super::check::{Survey, survey};
use super::header::MAX_REFCOUNT_TABLE;
use super::image::is_owned;
use super::layout::{AUTOCLEAR_FIELD, INCOMPATIBLE_FIELD, REFCOUNT_TABLE_FIELD, incompatible};
use super::refcounts::Refcounts;
use super::report::CheckReport;
use super::walk::each_count;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, HostOffset, index, length};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Gives leaked clusters back and corrects refcounts. Returns the report of a check made afterwards.
///
/// # Errors
/// `Corrupt` when there is damage that counting again cannot mend: nothing is changed then. The host's errors.
pub fn repair(storage: Arc<dyn Storage>) -> Result<CheckReport> {
    let mut found = survey(&*storage)?;
    if found.beyond_repair > 0 {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "{} errors cannot be repaired without losing data, the first: {}; nothing was changed. \
                 Go back to a checkpoint, or export what can be read",
                found.beyond_repair,
                found.report.errors.first().map_or("unknown", String::as_str)
            ),
        ));
    }
    let stale = found.header.incompatible & (incompatible::DIRTY | incompatible::CORRUPT) != 0;
    if found.report.is_consistent() && found.report.leaks == 0 && found.copied.is_empty() && !stale {
        return Ok(found.report);
    }
    void_log(&found, &*storage)?;
    if needs_new_structures(&found) {
        rebuild(&found, &*storage)?;
    } else {
        raise(&mut found, &*storage)?;
    }
    set_copied(&found, &*storage, false)?;
    let mut found = survey(&*storage)?;
    give_leaks_back(&mut found, &*storage)?;
    set_copied(&found, &*storage, true)?;
    let found = survey(&*storage)?;
    clear_marks(found, &*storage)
}

/// A log that was not replayed may name clusters that nothing in the file points to, and that are leaks here.
fn void_log(found: &Survey, storage: &dyn Storage) -> Result<()> {
    if found.header.log_nonce() == 0 {
        return Ok(());
    }
    let others = found.header.autoclear & u64::from(u32::MAX);
    put(storage, &others.to_be_bytes(), AUTOCLEAR_FIELD)?;
    sync(storage)
}

/// Whether the stored structures are damaged themselves, or lack a place for a count that has to be raised.
fn needs_new_structures(found: &Survey) -> bool {
    let overlap = |entry: &u64| found.references.get(*entry >> found.header.geometry.cluster_bits) != 1;
    found.bad_blocks
        || found.refcounts.table().iter().filter(|entry| **entry != 0).any(overlap)
        || found.references.iter().any(|(cluster, _)| !found.refcounts.covers(HostCluster(cluster)))
}

/// Raises counts that are too low; durable when it returns.
fn raise(found: &mut Survey, storage: &dyn Storage) -> Result<()> {
    for (cluster, times) in found.references.iter() {
        if found.refcounts.get(HostCluster(cluster), storage)? < times {
            found.refcounts.set(HostCluster(cluster), times, storage)?;
        }
    }
    found.refcounts.write_dirty(storage)?;
    sync(storage)
}

/// Lowers counts that are too high; durable when it returns.
fn give_leaks_back(found: &mut Survey, storage: &dyn Storage) -> Result<()> {
    let references = &found.references;
    each_count(&mut found.refcounts, storage, |refcounts, cluster, stored| {
        let right = references.get(cluster.0);
        if stored > right { refcounts.set(cluster, right, storage) } else { Ok(()) }
    })?;
    found.refcounts.write_dirty(storage)?;
    sync(storage)
}

/// Corrects COPIED bits: takes them away while counts are still too high, sets them once the counts are exact.
fn set_copied(found: &Survey, storage: &dyn Storage, set: bool) -> Result<()> {
    for (place, word) in found.copied.iter().filter(|(_, word)| is_owned(*word) == set) {
        put(storage, &word.to_be_bytes(), *place)?;
    }
    sync(storage)
}

/// New refcount structures behind everything that the file holds.
fn rebuild(found: &Survey, storage: &dyn Storage) -> Result<()> {
    let size = found.header.geometry.cluster_size();
    let per_block = found.refcounts.per_block();
    let file_len = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    let start = found.references.end().max(file_len.div_ceil(size));
    let layout = layout(found, start)?;
    let mut table = vec![0_u64; index(layout.table_clusters * size / 8)];
    for (n, number) in (0_u64..).zip(&layout.blocks) {
        let place = (start + n) * size;
        table[index(*number)] = place;
        let mut block = vec![0; index(size)];
        let own = (start..start + layout.clusters()).map(|cluster| (cluster, 1));
        let counts = number * per_block..(number + 1) * per_block;
        for (cluster, times) in found.references.range(counts.clone()).chain(own) {
            if counts.contains(&cluster) {
                if times > found.refcounts.width().max() {
                    return Err(Error::unsupported(format!(
                        "{times} references do not fit the image's refcount width"
                    )));
                }
                found.refcounts.width().set(&mut block, index(cluster % per_block), times);
            }
        }
        put(storage, &block, HostOffset(place))?;
    }
    let place = HostOffset((start + length(layout.blocks.len())) * size);
    put(storage, &table.iter().flat_map(|entry| entry.to_be_bytes()).collect::<Vec<u8>>(), place)?;
    sync(storage)?;
    let clusters =
        u32::try_from(layout.table_clusters).map_err(|_| Error::corrupt("the refcount table is too long"))?;
    let field = [&place.0.to_be_bytes()[..], &clusters.to_be_bytes()].concat();
    put(storage, &field, REFCOUNT_TABLE_FIELD)?;
    sync(storage)
}

/// What a rebuild writes, from its first cluster on: the blocks with these numbers, then the table.
struct Layout {
    blocks: BTreeSet<u64>,
    table_clusters: u64,
}

impl Layout {
    fn clusters(&self) -> u64 {
        length(self.blocks.len()) + self.table_clusters
    }
}

fn layout(found: &Survey, start: u64) -> Result<Layout> {
    let size = found.header.geometry.cluster_size();
    let per_block = found.refcounts.per_block();
    let blocks = found.references.iter().map(|(cluster, _)| cluster / per_block).collect();
    let mut layout = Layout { blocks, table_clusters: 1 };
    // The structures count themselves, so more of them may be needed for that: until nothing changes.
    loop {
        let clusters = layout.clusters();
        layout.blocks.extend(start / per_block..=(start + clusters - 1) / per_block);
        let entries = layout.blocks.last().map_or(0, |last| last + 1);
        layout.table_clusters = layout.table_clusters.max((entries * 8).div_ceil(size));
        if layout.table_clusters * size > MAX_REFCOUNT_TABLE {
            return Err(Error::unsupported(
                "the file is too long for a refcount table; export what can be read",
            ));
        }
        if layout.clusters() == clusters {
            return Ok(layout);
        }
    }
}

/// The marks of damage and of stale refcounts go last, and only when no damage is left. Returns the final report.
fn clear_marks(found: Survey, storage: &dyn Storage) -> Result<CheckReport> {
    let marks = incompatible::DIRTY | incompatible::CORRUPT;
    if found.header.incompatible & marks == 0 || !found.only_marked {
        return Ok(found.report);
    }
    put(storage, &(found.header.incompatible & !marks).to_be_bytes(), INCOMPATIBLE_FIELD)?;
    sync(storage)?;
    survey(storage).map(|survey| survey.report)
}

fn put(storage: &dyn Storage, bytes: &[u8], at: HostOffset) -> Result<()> {
    storage.write_at(bytes, at).map_err(|e| Error::io("repairing the image", e))
}

fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::io("repairing the image", e))
}

impl Refcounts {
    /// Treats a block whose place is unusable as absent.
    pub(super) fn forget_block(&mut self, number: usize) {
        self.add_block(number, HostOffset(0));
    }
}
