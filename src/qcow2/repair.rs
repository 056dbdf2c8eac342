//! The repair: counts again, and never makes things worse.
//!
//! Counts that are too low are raised and made durable first: from then on no cluster in use can be given away.
//! Then COPIED bits are corrected, and only then are leaks given back. Where the refcount structures themselves
//! are damaged, new ones are built behind the file's end and the header is switched to them by one write.

use super::allocator::refcount_table_field;
use super::check::{CheckReport, Survey, survey};
use super::layout::{RawHeader, incompatible};
use super::refcounts::{Refcounts, Width};
use super::references::References;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, HostOffset, index, length};
use std::collections::BTreeMap;
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
    if found.differences.is_empty() && found.copied.is_empty() && !stale {
        return Ok(found.report);
    }
    if needs_new_structures(&found) {
        rebuild(&found, &*storage)?;
    } else {
        recount(&mut found, &*storage, |stored, right| stored < right)?;
    }
    for (place, word) in &found.copied {
        put(&*storage, &word.to_be_bytes(), *place)?;
    }
    sync(&*storage)?;
    let mut found = survey(&*storage)?;
    recount(&mut found, &*storage, |stored, right| stored > right)?;
    clear_marks(&found, &*storage)?;
    sync(&*storage)?;
    survey(&*storage).map(|survey| survey.report)
}

/// Whether a count that has to be raised has no place in the stored structures.
fn needs_new_structures(found: &Survey) -> bool {
    let table = found.refcounts.table();
    let overlap = table
        .iter()
        .any(|entry| *entry != 0 && found.references.get(*entry >> found.header.geometry.cluster_bits) != 1);
    overlap
        || found
            .differences
            .iter()
            .any(|(cluster, stored, right)| stored < right && !found.refcounts.covers(HostCluster(*cluster)))
}

/// Sets the counts that `which` picks, by stored and right value.
fn recount(found: &mut Survey, storage: &dyn Storage, which: impl Fn(u64, u64) -> bool) -> Result<()> {
    for (cluster, stored, right) in &found.differences {
        if which(*stored, *right) {
            found.refcounts.set(HostCluster(*cluster), *right, storage)?;
        }
    }
    if found.refcounts.write_dirty(storage)? {
        sync(storage)?;
    }
    Ok(())
}

/// New refcount structures behind everything that the file holds.
fn rebuild(found: &Survey, storage: &dyn Storage) -> Result<()> {
    let geometry = found.header.geometry;
    let (size, width) = (geometry.cluster_size(), found.refcounts.width());
    let per_block = found.refcounts.per_block();
    let file_len = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    let start = found.references.end().max(file_len.div_ceil(size));
    let mut references = References::default();
    found.references.iter().for_each(|(cluster, times)| {
        references.add(cluster..cluster + 1, u32::try_from(times).unwrap_or(u32::MAX));
    });
    let mut blocks = numbers_of_blocks(&references, per_block);
    let mut table_clusters = 1;
    loop {
        let (len, last) =
            (length(blocks.len()) + table_clusters, blocks.keys().next_back().map_or(0, |last| last + 1));
        (start / per_block..=(start + len) / per_block).for_each(|number| {
            blocks.entry(number).or_default();
        });
        let wanted = (blocks.keys().next_back().map_or(0, |last| last + 1).max(last) * 8).div_ceil(size);
        if length(blocks.len()) + table_clusters == len && wanted <= table_clusters {
            break;
        }
        table_clusters = table_clusters.max(wanted);
    }
    let total = length(blocks.len()) + table_clusters;
    references.add(start..start + total, 1);
    let mut table = vec![0_u64; index(table_clusters * size / 8)];
    for (n, (number, place)) in blocks.iter_mut().enumerate() {
        *place = (start + length(n)) * size;
        table[index(*number)] = *place;
    }
    write_blocks(&references, &blocks, per_block, size, width, storage)?;
    let place = HostOffset((start + length(blocks.len())) * size);
    put(storage, &table.iter().flat_map(|entry| entry.to_be_bytes()).collect::<Vec<u8>>(), place)?;
    sync(storage)?;
    let clusters =
        u32::try_from(table_clusters).map_err(|_| Error::corrupt("the refcount table is too long"))?;
    let field = [&place.0.to_be_bytes()[..], &clusters.to_be_bytes()].concat();
    put(storage, &field, HostOffset(refcount_table_field()))?;
    sync(storage)
}

/// The blocks that are needed for the clusters in use; places come later.
fn numbers_of_blocks(references: &References, per_block: u64) -> BTreeMap<u64, u64> {
    references.iter().map(|(cluster, _)| (cluster / per_block, 0)).collect()
}

fn write_blocks(
    references: &References,
    blocks: &BTreeMap<u64, u64>,
    per_block: u64,
    size: u64,
    width: Width,
    storage: &dyn Storage,
) -> Result<()> {
    let mut bytes: BTreeMap<u64, Vec<u8>> =
        blocks.keys().map(|number| (*number, vec![0; index(size)])).collect();
    for (cluster, times) in references.iter() {
        if times > width.max() {
            return Err(Error::unsupported(format!(
                "{times} references do not fit the image's refcount width"
            )));
        }
        if let Some(block) = bytes.get_mut(&(cluster / per_block)) {
            width.set(block, index(cluster % per_block), times);
        }
    }
    for (number, block) in bytes {
        put(storage, &block, HostOffset(blocks.get(&number).copied().unwrap_or(0)))?;
    }
    Ok(())
}

/// The marks of damage and of stale refcounts go last.
fn clear_marks(found: &Survey, storage: &dyn Storage) -> Result<()> {
    let marks = incompatible::DIRTY | incompatible::CORRUPT;
    if found.header.incompatible & marks == 0 {
        return Ok(());
    }
    let place =
        RawHeader::ROWS.iter().find(|row| row.0 == "incompatible_features").map_or(0, |row| length(row.1));
    put(storage, &(found.header.incompatible & !marks).to_be_bytes(), HostOffset(place))
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
