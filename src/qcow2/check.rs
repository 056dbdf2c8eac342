//! The check: counts every reference in the file and compares with the refcounts. It collects all damage.

use super::entry::{Mapping, RawEntry, Rules, table_offset};
use super::header::Header;
use super::image::{is_owned, read_l1};
use super::layout::incompatible;
use super::refcounts::Refcounts;
use super::references::References;
use super::snapshots::{bitmap_clusters, snapshot_tables};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestCluster, HostCluster, HostOffset, index, length};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Sentences kept in a report.
const MOST_SENTENCES: usize = 1000;

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Sentences, one for each damage; at most the first 1000.
    pub errors: Vec<String>,
    /// How many damages there are.
    pub error_count: u64,
    /// Host clusters that are counted as used more often than they are: lost space, no danger.
    pub leaks: u64,
    /// Guest clusters with bytes or a host cluster of their own.
    pub allocated_clusters: u64,
    /// Guest clusters that are compressed.
    pub compressed_clusters: u64,
    /// Guest clusters in all.
    pub total_clusters: u64,
    /// End of the used part of the file in bytes.
    pub image_end: u64,
}

impl CheckReport {
    pub(super) fn error(&mut self, sentence: impl Into<String>) {
        self.error_count += 1;
        if self.errors.len() < MOST_SENTENCES {
            self.errors.push(sentence.into());
        }
    }

    /// Whether nothing is wrong, leaks aside.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.error_count == 0
    }
}

/// L1 entries of all snapshots together, so that a hostile file cannot keep a check busy for ever.
const MOST_SNAPSHOT_ENTRIES: usize = 1 << 26;

/// Everything that the check learns, for the repair to use.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) header: Header,
    pub(super) report: CheckReport,
    /// References found, per host cluster.
    pub(super) references: References,
    /// The refcounts as stored.
    pub(super) refcounts: Refcounts,
    /// Clusters whose count differs: cluster, stored, found.
    pub(super) differences: Vec<(u64, u64, u64)>,
    /// Entries whose COPIED bit is wrong: place in the file and the right word.
    pub(super) copied: Vec<(HostOffset, u64)>,
    /// Damage that counting again cannot repair.
    pub(super) beyond_repair: u64,
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
    let l1 = read_l1(&header, storage)?;
    let file_end = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    let mut walk = Walk::new(&header, storage, file_end)?;
    walk.structures()?;
    walk.report.total_clusters = header.geometry.clusters();
    walk.l1_table(&l1, header.l1_offset, true)?;
    for (offset, entries) in walk.snapshots()? {
        walk.snapshot(offset, entries)?;
    }
    walk.l2_tables()?;
    walk.compare()?;
    walk.check_copied()?;
    let Walk { mut report, references, refcounts, differences, copied, beyond_repair, .. } = walk;
    report.image_end = references.end() << header.geometry.cluster_bits;
    if header.incompatible & incompatible::CORRUPT != 0 {
        report.error("the image is marked as corrupt");
    }
    Ok(Survey { header, report, references, refcounts, differences, copied, beyond_repair })
}

/// A word that claims, or denies, to be the only reference to a cluster.
struct Claim {
    place: HostOffset,
    word: u64,
    cluster: u64,
}

/// Who points to an L2 table.
struct TableUse {
    times: u32,
    l1_index: usize,
    active: bool,
}

struct Walk<'a> {
    header: &'a Header,
    rules: Rules,
    storage: &'a dyn Storage,
    file_end: u64,
    report: CheckReport,
    references: References,
    refcounts: Refcounts,
    /// L2 tables by place. Each is walked once, however often it is pointed to.
    tables: BTreeMap<u64, TableUse>,
    claims: Vec<Claim>,
    differences: Vec<(u64, u64, u64)>,
    copied: Vec<(HostOffset, u64)>,
    beyond_repair: u64,
}

impl<'a> Walk<'a> {
    fn new(header: &'a Header, storage: &'a dyn Storage, file_end: u64) -> Result<Self> {
        Ok(Self {
            header,
            rules: Rules { geometry: header.geometry, zero_flag: header.version >= 3 },
            storage,
            file_end,
            report: CheckReport::default(),
            references: References::default(),
            refcounts: Refcounts::read(header, storage)?,
            tables: BTreeMap::new(),
            claims: Vec::new(),
            differences: Vec::new(),
            copied: Vec::new(),
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
    fn structures(&mut self) -> Result<()> {
        let size = self.header.geometry.cluster_size();
        self.count(HostOffset(0), size);
        self.count(self.header.refcount_table, self.header.refcount_table_clusters * size);
        for (number, entry) in self.refcounts.table().to_vec().into_iter().enumerate() {
            match Refcounts::block_fault(entry, &self.header.geometry, self.file_end) {
                Some(fault) => {
                    self.report.error(format!("refcount table entry {number} ({entry:#x}) {fault}"));
                    self.refcounts.forget_block(number);
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
    fn snapshots(&mut self) -> Result<Vec<(HostOffset, usize)>> {
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

    fn snapshot(&mut self, offset: HostOffset, entries: usize) -> Result<()> {
        let end = offset.0.checked_add(length(entries) * 8);
        if !self.header.geometry.is_aligned(offset.0) || end.is_none_or(|end| end > self.file_end) {
            self.damage(format!("the L1 table of a snapshot at {offset} does not lie inside the file"));
            return Ok(());
        }
        let mut bytes = vec![0; entries * 8];
        self.storage
            .read_at(&mut bytes, offset)
            .map_err(|e| Error::io("reading a snapshot's L1 table", e))?;
        let l1: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        self.l1_table(&l1, offset, false)
    }

    fn l1_table(&mut self, l1: &[u64], offset: HostOffset, active: bool) -> Result<()> {
        self.count(offset, length(l1.len()) * 8);
        for (l1_index, word) in l1.iter().enumerate() {
            let table = match table_offset(*word, l1_index, &self.header.geometry, self.file_end) {
                Ok(Some(table)) => table,
                Ok(None) => continue,
                Err(error) => {
                    self.damage(error.to_string());
                    continue;
                }
            };
            self.count(table, self.header.geometry.cluster_size());
            if active {
                let place = offset + length(l1_index) * 8;
                let cluster = self.header.geometry.host_cluster(table).0;
                self.claims.push(Claim { place, word: *word, cluster });
            }
            self.register(table, l1_index, active);
        }
        Ok(())
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

    fn l2_tables(&mut self) -> Result<()> {
        let geometry = self.header.geometry;
        for (table, uses) in std::mem::take(&mut self.tables) {
            let table = HostOffset(table);
            if self.is_hole(table)? {
                continue;
            }
            let mut bytes = vec![0; index(geometry.cluster_size())];
            self.storage.read_at(&mut bytes, table).map_err(|e| Error::io("reading an L2 table", e))?;
            for (entry, raw) in bytes.chunks_exact(index(geometry.entry_size())).enumerate() {
                let cluster = GuestCluster((length(uses.l1_index) << geometry.table_bits()) + length(entry));
                let place = table + length(entry) * geometry.entry_size();
                self.l2_entry(raw_entry(raw), cluster, place, &uses);
            }
        }
        Ok(())
    }

    /// Whether a cluster of the file is a hole throughout: a table of zeros that need not be read.
    fn is_hole(&self, at: HostOffset) -> Result<bool> {
        let run = self.storage.run_at(at).map_err(|e| Error::io("asking for the holes of the image", e))?;
        Ok(!run.data && run.len >= self.header.geometry.cluster_size())
    }

    fn l2_entry(&mut self, raw: RawEntry, cluster: GuestCluster, place: HostOffset, uses: &TableUse) {
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
                if uses.active {
                    self.claims.push(Claim { place, word: raw.word, cluster: first });
                }
                first..first + 1
            }
            Err(error) => return self.damage(error.to_string()),
        };
        self.report.allocated_clusters += u64::from(uses.active);
        self.references.add(range, uses.times);
    }

    /// Holds the references against the stored counts, and the stored counts against the references.
    fn compare(&mut self) -> Result<()> {
        let found: Vec<(u64, u64)> = self.references.iter().collect();
        for (cluster, found) in found {
            let stored = self.refcounts.get(HostCluster(cluster), self.storage)?;
            if stored != found {
                self.difference(cluster, stored, found);
            }
        }
        let mut seen = HashSet::new();
        for (number, place) in self.refcounts.table().to_vec().into_iter().enumerate() {
            if place == 0 || !seen.insert(place) || self.is_hole(HostOffset(place))? {
                continue;
            }
            let first = length(number) * self.refcounts.per_block();
            for cluster in first..first + self.refcounts.per_block() {
                let stored = self.refcounts.get(HostCluster(cluster), self.storage)?;
                if stored != 0 && self.references.get(cluster) == 0 {
                    self.difference(cluster, stored, 0);
                }
            }
        }
        Ok(())
    }

    fn difference(&mut self, cluster: u64, stored: u64, found: u64) {
        self.differences.push((cluster, stored, found));
        if stored > found {
            self.report.leaks += 1;
        } else {
            self.report
                .error(format!("host cluster {cluster:#x} is used {found} times and counted {stored} times"));
        }
    }

    /// COPIED says that the count is one, and says so whenever it is.
    fn check_copied(&mut self) -> Result<()> {
        for claim in std::mem::take(&mut self.claims) {
            let only = self.refcounts.get(HostCluster(claim.cluster), self.storage)? == 1;
            if only != is_owned(claim.word) {
                self.report.error(format!(
                    "the entry {:#018x} at {} says that its cluster is {} alone, against its refcount",
                    claim.word,
                    claim.place,
                    if only { "not its" } else { "its" }
                ));
            }
            let right = self.references.get(claim.cluster) == 1;
            if right != is_owned(claim.word) {
                self.copied.push((claim.place, claim.word ^ super::layout::COPIED));
            }
        }
        Ok(())
    }
}

fn raw_entry(bytes: &[u8]) -> RawEntry {
    let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    RawEntry { word: words.next().unwrap_or(0), bitmap: words.next().unwrap_or(0) }
}
