//! The walk of a check through every structure of the file.

use super::entry::{Mapping, RawEntry, Rules, Standard, table_offset};
use super::header::Header;
use super::image::{is_owned, read_l1};
use super::refcounts::Refcounts;
use super::references::References;
use super::report::CheckReport;
use super::snapshots::{bitmap_clusters, snapshot_tables};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestCluster, HostCluster, HostOffset, index, length};
use std::collections::{BTreeMap, HashSet};

/// L1 entries of all snapshots together, so that a hostile file cannot keep a check busy for ever.
const MOST_SNAPSHOT_ENTRIES: usize = 1 << 26;

/// Who points to an L2 table.
struct TableUse {
    times: u32,
    l1_index: usize,
    active: bool,
}

pub(super) struct Walk<'a> {
    header: &'a Header,
    rules: Rules,
    storage: &'a dyn Storage,
    file_end: u64,
    pub(super) report: CheckReport,
    pub(super) references: References,
    pub(super) refcounts: Refcounts,
    /// L2 tables by place. Each is walked once, however often it is pointed to.
    tables: BTreeMap<u64, TableUse>,
    pub(super) copied: Vec<(HostOffset, u64)>,
    pub(super) bad_blocks: bool,
    pub(super) beyond_repair: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(header: &'a Header, storage: &'a dyn Storage, file_end: u64) -> Result<Self> {
        Ok(Self {
            header,
            rules: Rules { geometry: header.geometry, zero_flag: header.version >= 3 },
            storage,
            file_end,
            report: CheckReport::default(),
            references: References::default(),
            refcounts: Refcounts::read(header, storage)?,
            tables: BTreeMap::new(),
            copied: Vec::new(),
            bad_blocks: false,
            beyond_repair: 0,
        })
    }

    fn damage(&mut self, sentence: impl Into<String>) {
        self.beyond_repair += 1;
        self.report.error(sentence);
    }

    /// Counts `bytes` from `at` on.
    fn count(&mut self, at: HostOffset, bytes: u64) {
        if bytes > 0 {
            let first = self.header.geometry.host_cluster(at).0;
            let last = self.header.geometry.host_cluster(at + (bytes - 1)).0;
            self.references.add(first..last + 1, 1);
        }
    }

    /// The header, the refcount structures and the bitmaps.
    pub(super) fn structures(&mut self) -> Result<()> {
        let size = self.header.geometry.cluster_size();
        self.count(HostOffset(0), size);
        self.count(self.header.refcount_table, self.header.refcount_table_clusters * size);
        for (number, entry) in self.refcounts.table().to_vec().into_iter().enumerate() {
            match Refcounts::block_fault(entry, &self.header.geometry, self.file_end) {
                Some(fault) => {
                    self.report.error(format!("refcount table entry {number} ({entry:#x}) {fault}"));
                    self.refcounts.forget_block(number);
                    self.bad_blocks = true;
                }
                None if entry != 0 => self.count(HostOffset(entry), size),
                None => {}
            }
        }
        match bitmap_clusters(self.header, self.storage) {
            Ok(ranges) => ranges.into_iter().for_each(|(at, bytes)| self.count(at, bytes)),
            Err(error) => self.damage(error.to_string()),
        }
        Ok(())
    }

    /// The snapshot table's L1 tables.
    pub(super) fn snapshots(&mut self) -> Result<Vec<(HostOffset, usize)>> {
        if self.header.snapshots == 0 {
            return Ok(Vec::new());
        }
        match snapshot_tables(self.header, self.storage) {
            Ok((tables, _))
                if tables.iter().map(|(_, entries)| *entries).sum::<usize>() > MOST_SNAPSHOT_ENTRIES =>
            {
                self.damage("the internal snapshots have more L1 entries than can be checked");
                Ok(Vec::new())
            }
            Ok((tables, bytes)) => {
                self.count(self.header.snapshots_offset, bytes);
                Ok(tables)
            }
            Err(error) => {
                self.damage(error.to_string());
                Ok(Vec::new())
            }
        }
    }

    pub(super) fn snapshot(&mut self, offset: HostOffset, entries: usize) -> Result<()> {
        let end = offset.0.checked_add(length(entries) * 8);
        if !self.header.geometry.is_aligned(offset.0) || end.is_none_or(|end| end > self.file_end) {
            self.damage(format!("the L1 table of a snapshot at {offset} does not lie inside the file"));
            return Ok(());
        }
        let l1 = read_l1(offset, entries, self.storage)?;
        self.l1_table(&l1, offset, false);
        Ok(())
    }

    pub(super) fn l1_table(&mut self, l1: &[u64], offset: HostOffset, active: bool) {
        self.count(offset, length(l1.len()) * 8);
        for (l1_index, word) in l1.iter().enumerate() {
            match table_offset(*word, l1_index, &self.header.geometry, self.file_end) {
                Ok(Some(table)) => {
                    self.count(table, self.header.geometry.cluster_size());
                    self.register(table, l1_index, active);
                }
                Ok(None) => {}
                Err(error) => self.damage(error.to_string()),
            }
        }
    }

    fn register(&mut self, table: HostOffset, l1_index: usize, active: bool) {
        let uses = self.tables.entry(table.0).or_insert(TableUse { times: 0, l1_index, active: false });
        uses.times = uses.times.saturating_add(1);
        if active && uses.active {
            self.damage(format!("the L2 table at {table} is used twice by the disk"));
        } else if active {
            uses.active = true;
            uses.l1_index = l1_index;
        }
    }

    pub(super) fn l2_tables(&mut self) -> Result<()> {
        let geometry = self.header.geometry;
        for (table, uses) in std::mem::take(&mut self.tables) {
            for (entry, raw) in self.entries(HostOffset(table))?.into_iter().enumerate() {
                let cluster = GuestCluster((length(uses.l1_index) << geometry.table_bits()) + length(entry));
                self.l2_entry(raw, cluster, &uses);
            }
        }
        Ok(())
    }

    /// The entries of an L2 table; none when it is a hole.
    fn entries(&self, table: HostOffset) -> Result<Vec<RawEntry>> {
        let geometry = self.header.geometry;
        if is_hole(self.storage, table, geometry.cluster_size())? {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; index(geometry.cluster_size())];
        self.storage.read_at(&mut bytes, table).map_err(|e| Error::io("reading an L2 table", e))?;
        Ok(bytes.chunks_exact(index(geometry.entry_size())).map(raw_entry).collect())
    }

    fn l2_entry(&mut self, raw: RawEntry, cluster: GuestCluster, uses: &TableUse) {
        if raw == RawEntry::default() {
            return;
        }
        let geometry = self.header.geometry;
        let range = match self.rules.decode(raw, cluster, self.file_end) {
            Ok(Mapping::Compressed(compressed)) => {
                self.report.compressed_clusters += u64::from(uses.active);
                compressed.host_clusters(&geometry)
            }
            Ok(Mapping::Standard(standard)) => {
                let Some(host) = standard.host else { return };
                let first = geometry.host_cluster(host).0;
                first..first + 1
            }
            Err(error) => return self.damage(error.to_string()),
        };
        self.report.allocated_clusters += u64::from(uses.active);
        self.references.add(range, uses.times);
    }

    /// Holds the references against the stored counts, and the stored counts against the references.
    pub(super) fn compare(&mut self) -> Result<()> {
        let references = std::mem::take(&mut self.references);
        for (cluster, found) in references.iter() {
            let stored = self.refcounts.get(HostCluster(cluster), self.storage)?;
            if stored < found {
                self.report.error(format!(
                    "host cluster {cluster:#x} is used {found} times and counted {stored} times"
                ));
            }
        }
        let report = &mut self.report;
        each_count(&mut self.refcounts, self.storage, |_, cluster, stored| {
            report.leaks += u64::from(stored > references.get(cluster.0));
            Ok(())
        })?;
        self.references = references;
        Ok(())
    }

    /// COPIED says that the count is one, and says so whenever it is.
    pub(super) fn check_copied(&mut self, l1: &[u64]) -> Result<()> {
        let geometry = self.header.geometry;
        let mut seen = HashSet::new();
        for (l1_index, word) in l1.iter().enumerate() {
            let Ok(Some(table)) = table_offset(*word, l1_index, &geometry, self.file_end) else { continue };
            self.check_claim(self.header.l1_offset + length(l1_index) * 8, *word, table)?;
            if !seen.insert(table) {
                continue;
            }
            for (entry, raw) in self.entries(table)?.into_iter().enumerate() {
                let cluster = GuestCluster((length(l1_index) << geometry.table_bits()) + length(entry));
                if let Ok(Mapping::Standard(Standard { host: Some(host), .. })) =
                    self.rules.decode(raw, cluster, self.file_end)
                {
                    self.check_claim(table + length(entry) * geometry.entry_size(), raw.word, host)?;
                }
            }
        }
        Ok(())
    }

    /// An entry that says, or denies, that it is the only one to point to a cluster.
    fn check_claim(&mut self, place: HostOffset, word: u64, host: HostOffset) -> Result<()> {
        let cluster = self.header.geometry.host_cluster(host);
        let only = self.refcounts.get(cluster, self.storage)? == 1;
        if only != is_owned(word) {
            let says = if only { "not its" } else { "its" };
            self.report.error(format!(
                "the entry {word:#018x} at {place} says that its cluster is {says} alone, against its refcount"
            ));
        }
        if (self.references.get(cluster.0) == 1) != is_owned(word) {
            self.copied.push((place, word ^ super::layout::COPIED));
        }
        Ok(())
    }
}

fn raw_entry(bytes: &[u8]) -> RawEntry {
    let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    RawEntry { word: words.next().unwrap_or(0), bitmap: words.next().unwrap_or(0) }
}

/// Calls `each` for every stored count that is not zero. Holes of the file hold none and are passed over.
pub(super) fn each_count(
    refcounts: &mut Refcounts,
    storage: &dyn Storage,
    mut each: impl FnMut(&mut Refcounts, HostCluster, u64) -> Result<()>,
) -> Result<()> {
    let mut seen = HashSet::new();
    for (number, place) in refcounts.table().to_vec().into_iter().enumerate() {
        if place == 0 || !seen.insert(place) || is_hole(storage, HostOffset(place), refcounts.block_size())? {
            continue;
        }
        let first = length(number) * refcounts.per_block();
        let (mut next, end) = (HostCluster(first), HostCluster(first + refcounts.per_block()));
        while next < end
            && let Some((cluster, stored)) = refcounts.next_counted(next, storage)?
        {
            each(refcounts, cluster, stored)?;
            next = cluster + 1;
        }
    }
    Ok(())
}

/// Whether `len` bytes of the file are a hole: a table of zeros that need not be read.
fn is_hole(storage: &dyn Storage, at: HostOffset, len: u64) -> Result<bool> {
    let run = storage.run_at(at).map_err(|e| Error::io("asking for the holes of the image", e))?;
    Ok(!run.data && run.len >= len)
}
