//! The repair: counts again, and never makes things worse.
//!
//! Counts that are too low are raised and made durable first: from then on no cluster in use can be given away.
//! Then COPIED bits are corrected, and only then are leaks given back. Where the refcount structures themselves
//! are damaged, new ones are built behind the file's end and the header is switched to them by one write.

use super::check::{Survey, survey};
use super::header::{Header, MAX_REFCOUNT_TABLE};
use super::layout::{AUTOCLEAR_FIELD, INCOMPATIBLE_FIELD, REFCOUNT_TABLE_FIELD, incompatible};
use super::refcounts::{Refcounts, Width};
use super::report::CheckReport;
use super::walk::Walk;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, HostOffset, index, length};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Counts that are changed in memory before they are written.
const BATCH: u64 = 1024;

/// Gives leaked clusters back and corrects refcounts. Returns the report of a check made afterwards.
///
/// # Errors
/// `Corrupt` when there is damage that counting again cannot mend: nothing is changed then. The host's errors.
pub fn repair(storage: Arc<dyn Storage>) -> Result<CheckReport> {
    mend(&*storage)
}

fn mend(storage: &dyn Storage) -> Result<CheckReport> {
    mend_found(survey(storage)?, storage)
}

/// As [`repair`], of what was found just now.
pub(super) fn mend_found(found: Survey, storage: &dyn Storage) -> Result<CheckReport> {
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
    if found.report.is_consistent() && found.report.leaks == 0 && found.wrong_copied == 0 && !stale {
        return Ok(found.report);
    }
    void_log(&found, storage)?;
    if found.needs_new_structures {
        rebuild(&found, storage)?;
    } else {
        raise(&found.header, storage)?;
    }
    // The header may name other refcount structures now.
    let header = Header::read(storage)?;
    set_copied(&header, storage, false)?;
    give_leaks_back(&header, storage)?;
    set_copied(&header, storage, true)?;
    clear_marks(survey(storage)?, storage)
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

/// Raises counts that are too low; durable when it returns.
fn raise(header: &Header, storage: &dyn Storage) -> Result<()> {
    let mut changed = 0;
    Walk::new(header, storage)?.each_window(|walk, references| {
        for (cluster, times) in references.iter() {
            if walk.refcounts.get(HostCluster(cluster), storage)? < times {
                set(&mut walk.refcounts, HostCluster(cluster), times, storage, &mut changed)?;
            }
        }
        walk.refcounts.write_dirty(storage).map(drop)
    })?;
    sync(storage)
}

/// Lowers counts that are too high; durable when it returns.
fn give_leaks_back(header: &Header, storage: &dyn Storage) -> Result<()> {
    let mut changed = 0;
    Walk::new(header, storage)?.each_window(|walk, references| {
        walk.refcounts.each_stored(references.window(), storage, |refcounts, cluster, stored| {
            let right = references.get(cluster.0);
            if stored > right { set(refcounts, cluster, right, storage, &mut changed) } else { Ok(()) }
        })?;
        walk.refcounts.write_dirty(storage).map(drop)
    })?;
    sync(storage)
}

/// Sets a count, and writes what was set when it is much.
fn set(
    refcounts: &mut Refcounts,
    cluster: HostCluster,
    count: u64,
    storage: &dyn Storage,
    changed: &mut u64,
) -> Result<()> {
    refcounts.set(cluster, count, storage)?;
    *changed += 1;
    if changed.is_multiple_of(BATCH) {
        refcounts.write_dirty(storage)?;
    }
    Ok(())
}

/// Corrects COPIED bits: takes them away while counts are still too high, sets them once the counts are exact.
fn set_copied(header: &Header, storage: &dyn Storage, wanted: bool) -> Result<()> {
    Walk::new(header, storage)?.each_window(|walk, references| {
        walk.claims(references, |_, claim| {
            if claim.is_wrong(references) && claim.is_owned() != wanted {
                put(storage, &claim.opposite().to_be_bytes(), claim.place)?;
            }
            Ok(())
        })
    })?;
    sync(storage)
}

/// New refcount structures behind everything that the file holds.
fn rebuild(found: &Survey, storage: &dyn Storage) -> Result<()> {
    let header = &found.header;
    let mut walk = Walk::new(header, storage)?;
    let file_len = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    let start = found.end.max(file_len.div_ceil(header.geometry.cluster_size()));
    let layout = layout(&mut walk, start)?;
    let mut blocks = Blocks::new(&walk.refcounts, header, storage, start);
    walk.each_window(|_, references| {
        references.iter().try_for_each(|(cluster, times)| blocks.count(cluster, times))
    })?;
    (start..start + layout.clusters()).try_for_each(|cluster| blocks.count(cluster, 1))?;
    let table = blocks.finish(&layout)?;
    let place = HostOffset((start + length(layout.blocks.len())) * header.geometry.cluster_size());
    put(storage, &table.iter().flat_map(|entry| entry.to_be_bytes()).collect::<Vec<u8>>(), place)?;
    sync(storage)?;
    let clusters =
        u32::try_from(layout.table_clusters).map_err(|_| Error::corrupt("the refcount table is too long"))?;
    let field = [&place.0.to_be_bytes()[..], &clusters.to_be_bytes()].concat();
    put(storage, &field, REFCOUNT_TABLE_FIELD)?;
    sync(storage)
}

/// The blocks of a rebuild, written one after the other.
struct Blocks<'a> {
    storage: &'a dyn Storage,
    size: u64,
    per_block: u64,
    width: Width,
    /// The place of the next block, as a cluster.
    next: u64,
    /// Numbers of the blocks that are written, in order.
    written: Vec<u64>,
    open: Option<(u64, Vec<u8>)>,
}

impl<'a> Blocks<'a> {
    fn new(refcounts: &Refcounts, header: &Header, storage: &'a dyn Storage, start: u64) -> Self {
        Self {
            storage,
            size: header.geometry.cluster_size(),
            per_block: refcounts.per_block(),
            width: refcounts.width(),
            next: start,
            written: Vec::new(),
            open: None,
        }
    }

    /// Sets the count of a cluster; clusters come in order.
    fn count(&mut self, cluster: u64, times: u64) -> Result<()> {
        if times > self.width.max() {
            return Err(Error::unsupported(format!(
                "{times} references do not fit the image's refcount width"
            )));
        }
        let number = cluster / self.per_block;
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            self.close()?;
        }
        let (_, bytes) = self.open.get_or_insert_with(|| (number, vec![0; index(self.size)]));
        self.width.set(bytes, index(cluster % self.per_block), times);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some((number, bytes)) = self.open.take() else { return Ok(()) };
        put(self.storage, &bytes, HostOffset(self.next * self.size))?;
        self.written.push(number);
        self.next += 1;
        Ok(())
    }

    /// The refcount table that names the blocks.
    fn finish(mut self, layout: &Layout) -> Result<Vec<u64>> {
        self.close()?;
        let first = self.next - length(self.written.len());
        let mut table = vec![0; index(layout.table_clusters * self.size / 8)];
        for (cluster, number) in (first..).zip(&self.written) {
            table[index(*number)] = cluster * self.size;
        }
        if !self.written.iter().eq(&layout.blocks) {
            return Err(Error::new(
                Kind::Changed,
                "the image changed while it was repaired; nothing was changed",
            ));
        }
        Ok(table)
    }
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

fn layout(walk: &mut Walk<'_>, start: u64) -> Result<Layout> {
    let size = walk.refcounts.block_size();
    let per_block = walk.refcounts.per_block();
    let too_long =
        || Error::unsupported("the file is too long for a refcount table; export what can be read");
    let mut layout = Layout { blocks: BTreeSet::new(), table_clusters: 1 };
    walk.each_window(|_, references| {
        for (cluster, _) in references.iter() {
            layout.blocks.insert(cluster / per_block);
            if cluster / per_block >= MAX_REFCOUNT_TABLE / 8 {
                return Err(too_long());
            }
        }
        Ok(())
    })?;
    // The structures count themselves, so more of them may be needed for that: until nothing changes.
    loop {
        let clusters = layout.clusters();
        layout.blocks.extend(start / per_block..=(start + clusters - 1) / per_block);
        let entries = layout.blocks.last().map_or(0, |last| last + 1);
        layout.table_clusters = layout.table_clusters.max((entries * 8).div_ceil(size));
        if layout.table_clusters * size > MAX_REFCOUNT_TABLE {
            return Err(too_long());
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
