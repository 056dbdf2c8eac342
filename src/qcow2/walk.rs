//! The walk of a check through every structure of the file.
//!
//! A file of any length is walked with little memory: a pass counts the references to one window of the file, and nearly
//! always that window is the whole file.

use super::entry::{Mapping, RawEntry, Rules, Standard, table_offset};
use super::header::Header;
use super::holes::Holes;
use super::image::is_owned;
use super::layout::COPIED;
use super::refcounts::Refcounts;
use super::references::{Counted, References};
use super::report::CheckReport;
use super::snapshots::{bitmap_clusters, snapshot_tables};
use super::table_uses::{TableUse, TableUses};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestCluster, HostCluster, HostOffset, index, length};
use std::ops::Range;

/// L1 entries of all snapshots together, so that a hostile file cannot keep a check busy for ever.
const MOST_SNAPSHOT_ENTRIES: usize = 1 << 24;
/// L2 tables of the disk and its snapshots together, for the same reason.
const MOST_TABLES: usize = 1 << 23;
/// Entries of an L1 table that are read at once.
const L1_PIECE: usize = 1 << 16;

/// An L1 table: where it is, how many entries it has, and whether it is the disk's own.
#[derive(Clone, Copy, Debug)]
struct L1 {
    offset: HostOffset,
    entries: usize,
    active: bool,
}

/// An entry that says, or denies, that it is the only one to point to a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// The entry's place in the file.
    pub(super) place: HostOffset,
    pub(super) word: u64,
    pub(super) cluster: HostCluster,
}

impl Claim {
    pub(super) fn is_owned(self) -> bool {
        is_owned(self.word)
    }

    /// Whether the references say otherwise.
    pub(super) fn is_wrong(self, references: &Counted) -> bool {
        (references.get(self.cluster.0) == 1) != self.is_owned()
    }

    /// The entry with the other COPIED bit.
    pub(super) fn opposite(self) -> u64 {
        self.word ^ COPIED
    }
}

pub(super) struct Walk<'a> {
    pub(super) header: &'a Header,
    rules: Rules,
    pub(super) storage: &'a dyn Storage,
    file_end: u64,
    pub(super) report: CheckReport,
    pub(super) refcounts: Refcounts,
    holes: Holes,
    /// The disk's L1 table, then those of the snapshots that lie inside the file.
    l1_tables: Vec<L1>,
    snapshot_table: u64,
    /// Whether damage is collected: in the first pass, so that each is told once.
    first: bool,
    pub(super) bad_blocks: bool,
    pub(super) beyond_repair: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(header: &'a Header, storage: &'a dyn Storage) -> Result<Self> {
        let active = L1 { offset: header.l1_offset, entries: header.l1_entries, active: true };
        let mut walk = Self {
            header,
            rules: Rules { geometry: header.geometry, zero_flag: header.version >= 3 },
            storage,
            file_end: storage.len().map_err(|e| Error::io("reading the image's length", e))?,
            report: CheckReport::default(),
            refcounts: Refcounts::read(header, storage)?,
            holes: Holes::default(),
            l1_tables: vec![active],
            snapshot_table: 0,
            first: true,
            bad_blocks: false,
            beyond_repair: 0,
        };
        walk.refcount_blocks();
        walk.snapshots();
        Ok(walk)
    }

    /// Counts the references of the whole file, window by window, and calls `each` with those of each window.
    pub(super) fn each_window(
        &mut self,
        mut each: impl FnMut(&mut Self, &Counted) -> Result<()>,
    ) -> Result<()> {
        let mut start = Some(0);
        while let Some(from) = start {
            let counted = self.count(from)?;
            self.first = false;
            each(self, &counted)?;
            start = counted.next();
        }
        Ok(())
    }

    /// Calls `each` for every entry of the disk's own tables that points to a cluster of the window.
    pub(super) fn claims(
        &mut self,
        references: &Counted,
        mut each: impl FnMut(&mut Self, Claim) -> Result<()>,
    ) -> Result<()> {
        let window = references.window();
        let Some(l1) = self.l1_tables.first().copied() else { return Ok(()) };
        self.each_l1_entry(l1, |walk, number, word| {
            let Ok(Some(table)) = walk.table(word, number) else { return Ok(()) };
            let place = l1.offset + length(number) * 8;
            let cluster = walk.header.geometry.host_cluster(table);
            if window.contains(&cluster.0) { each(walk, Claim { place, word, cluster }) } else { Ok(()) }
        })?;
        let geometry = self.header.geometry;
        self.each_table(|walk, table| {
            if table.active == 0 {
                return Ok(());
            }
            for (place, cluster, raw) in walk.entries(table)? {
                let Ok(Mapping::Standard(Standard { host: Some(host), .. })) =
                    walk.rules.decode(raw, cluster, walk.file_end)
                else {
                    continue;
                };
                let cluster = geometry.host_cluster(host);
                if window.contains(&cluster.0) {
                    each(walk, Claim { place, word: raw.word, cluster })?;
                }
            }
            Ok(())
        })
    }

    /// Tells of tables that are used for something else as well: a write to the one would change the other. A refcount
    /// structure is left out, for a repair builds a new one elsewhere.
    pub(super) fn shared_tables(&mut self, references: &Counted) -> Result<()> {
        let (window, geometry) = (references.window(), self.header.geometry);
        if let Some(l1) = self.l1_tables.first().copied() {
            let mut clusters = self.clusters(l1.offset, length(l1.entries) * 8);
            if clusters.any(|cluster| window.contains(&cluster) && references.get(cluster) != 1) {
                self.beyond("the L1 table is used for something else as well");
            }
        }
        self.each_table(|walk, table| {
            let cluster = geometry.host_cluster(HostOffset(table.place)).0;
            if window.contains(&cluster) && references.get(cluster) != u64::from(table.times) {
                let place = HostOffset(table.place);
                walk.beyond(format!("the L2 table at {place} is used for something else as well"));
            }
            Ok(())
        })
    }

    fn beyond(&mut self, sentence: impl Into<String>) {
        self.beyond_repair += 1;
        self.report.error(sentence);
    }

    fn damage(&mut self, sentence: impl Into<String>) {
        if self.first {
            self.beyond(sentence);
        }
    }

    /// Takes unusable entries out of the refcount table.
    fn refcount_blocks(&mut self) {
        for number in 0..self.refcounts.table().len() {
            let entry = self.refcounts.table()[number];
            if let Some(fault) = Refcounts::block_fault(entry, &self.header.geometry, self.file_end) {
                self.report.error(format!("refcount table entry {number} ({entry:#x}) {fault}"));
                self.refcounts.forget_block(number);
                self.bad_blocks = true;
            }
        }
    }

    /// Finds the L1 tables of the snapshots.
    fn snapshots(&mut self) {
        if self.header.snapshots == 0 {
            return;
        }
        let (tables, bytes) = match snapshot_tables(self.header, self.storage) {
            Ok(found) => found,
            Err(error) => return self.damage(error.to_string()),
        };
        if tables.iter().map(|(_, entries)| *entries).sum::<usize>() > MOST_SNAPSHOT_ENTRIES {
            return self.damage("the internal snapshots have more L1 entries than can be checked");
        }
        self.snapshot_table = bytes;
        for (offset, entries) in tables {
            let end = offset.0.checked_add(length(entries) * 8);
            if !self.header.geometry.is_aligned(offset.0) || end.is_none_or(|end| end > self.file_end) {
                self.damage(format!("the L1 table of a snapshot at {offset} does not lie inside the file"));
            } else {
                self.l1_tables.push(L1 { offset, entries, active: false });
            }
        }
    }

    /// One pass: the references to clusters from `from` on, as many as memory allows.
    fn count(&mut self, from: u64) -> Result<Counted> {
        let mut references = References::from(from);
        self.structures(&mut references);
        for l1 in self.l1_tables.clone() {
            references.add(self.clusters(l1.offset, length(l1.entries) * 8), 1);
            self.each_l1_entry(l1, |walk, number, word| {
                match walk.table(word, number) {
                    Ok(Some(table)) => references.add(walk.cluster_at(table), 1),
                    Ok(None) => {}
                    Err(error) => walk.damage(error.to_string()),
                }
                Ok(())
            })?;
        }
        self.each_table(|walk, table| {
            if table.active > 1 {
                let place = HostOffset(table.place);
                walk.damage(format!("the L2 table at {place} is used twice by the disk"));
            }
            for (_, cluster, raw) in walk.entries(table)? {
                walk.l2_entry(&mut references, raw, cluster, table);
            }
            Ok(())
        })?;
        Ok(references.finish())
    }

    /// The header, the refcount structures, the snapshot table and the bitmaps.
    fn structures(&mut self, references: &mut References) {
        let size = self.header.geometry.cluster_size();
        references.add(0..1, 1);
        let table = (self.header.refcount_table, self.header.refcount_table_clusters * size);
        references.add(self.clusters(table.0, table.1), 1);
        for entry in self.refcounts.table().iter().filter(|entry| **entry != 0) {
            references.add(self.cluster_at(HostOffset(*entry)), 1);
        }
        references.add(self.clusters(self.header.snapshots_offset, self.snapshot_table), 1);
        let bitmaps = bitmap_clusters(self.header, self.storage, |at, bytes| {
            references.add(self.clusters(at, bytes), 1);
        });
        if let Err(error) = bitmaps {
            self.damage(error.to_string());
        }
    }

    /// The host clusters that hold a byte of a range.
    pub(super) fn clusters(&self, at: HostOffset, bytes: u64) -> Range<u64> {
        let geometry = self.header.geometry;
        let first = geometry.host_cluster(at).0;
        if bytes == 0 { first..first } else { first..geometry.host_cluster(at + (bytes - 1)).0 + 1 }
    }

    fn cluster_at(&self, at: HostOffset) -> Range<u64> {
        self.clusters(at, 1)
    }

    fn table(&self, word: u64, l1_index: usize) -> Result<Option<HostOffset>> {
        table_offset(word, l1_index, &self.header.geometry, self.file_end)
    }

    fn each_l1_entry(
        &mut self,
        l1: L1,
        mut each: impl FnMut(&mut Self, usize, u64) -> Result<()>,
    ) -> Result<()> {
        let mut bytes = vec![0; l1.entries.min(L1_PIECE) * 8];
        for start in (0..l1.entries).step_by(L1_PIECE) {
            let piece = &mut bytes[..(l1.entries - start).min(L1_PIECE) * 8];
            self.storage
                .read_at(piece, l1.offset + length(start) * 8)
                .map_err(|e| Error::io("reading an L1 table", e))?;
            for (number, word) in (start..).zip(piece.as_chunks::<8>().0) {
                each(self, number, u64::from_be_bytes(*word))?;
            }
        }
        Ok(())
    }

    /// Calls `each` for every L2 table of the disk and its snapshots, once, in the order of the file.
    fn each_table(&mut self, mut each: impl FnMut(&mut Self, &TableUse) -> Result<()>) -> Result<()> {
        let (mut start, mut count) = (Some(0), 0);
        while let Some(from) = start {
            let mut uses = TableUses::from(from);
            for l1 in self.l1_tables.clone() {
                self.each_l1_entry(l1, |walk, number, word| {
                    if let Ok(Some(table)) = walk.table(word, number) {
                        uses.add(table.0, number, l1.active);
                    }
                    Ok(())
                })?;
            }
            let (tables, next) = uses.finish();
            count += tables.len();
            if count > MOST_TABLES {
                self.damage("the disk and its snapshots have more L2 tables than can be checked");
                return Ok(());
            }
            tables.iter().try_for_each(|table| each(self, table))?;
            start = next;
        }
        Ok(())
    }

    /// The entries of an L2 table, each with its place in the file and its guest cluster; none when it is a hole.
    fn entries(
        &mut self,
        table: &TableUse,
    ) -> Result<impl Iterator<Item = (HostOffset, GuestCluster, RawEntry)> + use<>> {
        let geometry = self.header.geometry;
        let place = HostOffset(table.place);
        let mut bytes = Vec::new();
        if !self.holes.is_hole(self.storage, place, geometry.cluster_size())? {
            bytes.resize(index(geometry.cluster_size()), 0);
            self.storage.read_at(&mut bytes, place).map_err(|e| Error::io("reading an L2 table", e))?;
        }
        let first = length(table.l1_index) << geometry.table_bits();
        Ok((0..length(bytes.len()) / geometry.entry_size()).map(move |entry| {
            let at = entry * geometry.entry_size();
            let raw = raw_entry(&bytes[index(at)..index(at + geometry.entry_size())]);
            (place + at, GuestCluster(first + entry), raw)
        }))
    }

    fn l2_entry(
        &mut self,
        references: &mut References,
        raw: RawEntry,
        cluster: GuestCluster,
        table: &TableUse,
    ) {
        if raw == RawEntry::default() {
            return;
        }
        let geometry = self.header.geometry;
        let active = u64::from(self.first && table.active > 0);
        let range = match self.rules.decode(raw, cluster, self.file_end) {
            Ok(Mapping::Compressed(compressed)) => {
                self.report.compressed_clusters += active;
                compressed.host_clusters(&geometry)
            }
            Ok(Mapping::Standard(standard)) => {
                let Some(host) = standard.host else { return };
                self.cluster_at(host)
            }
            Err(error) => return self.damage(error.to_string()),
        };
        self.report.allocated_clusters += active;
        references.add(range, table.times);
    }
}

/// An entry of a table, of 8 or 16 bytes.
pub(super) fn raw_entry(bytes: &[u8]) -> RawEntry {
    let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    RawEntry { word: words.next().unwrap_or(0), bitmap: words.next().unwrap_or(0) }
}
