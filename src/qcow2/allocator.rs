//! Host clusters: found, reserved ahead of use, and given back.

use super::header::{Header, MAX_REFCOUNT_TABLE};
use super::layout::RawHeader;
use super::refcounts::Refcounts;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, HostOffset, SECTOR, index, length};
use crate::zero::is_zero;
use parking_lot::RwLock;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// Clusters that are counted as used before they are: what a crash can leak, and how rarely counts are written.
const RUN: u64 = 64;

/// The clusters that hold an image's own structures: header, tables, refcount blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata(Arc<RwLock<HashSet<u64>>>);

impl Metadata {
    pub(super) fn contains(&self, cluster: HostCluster) -> bool {
        self.0.read().contains(&cluster.0)
    }

    /// Adds a cluster. `false`: it was there already.
    pub(super) fn insert(&self, cluster: HostCluster) -> bool {
        self.0.write().insert(cluster.0)
    }

    pub(super) fn remove(&self, cluster: HostCluster) {
        self.0.write().remove(&cluster.0);
    }
}

/// The allocator of one image. Everything it does is in memory until [`Allocator::write`], but for the growth of
/// the refcount structures themselves, which is durable when it returns.
#[derive(Debug)]
pub(super) struct Allocator {
    refcounts: Refcounts,
    /// Never handed out, whatever the counts say.
    metadata: Metadata,
    /// No cluster before this one is free.
    cursor: u64,
    /// Reserved and not yet handed out.
    run: Range<u64>,
    /// Handed out and returned unused.
    spare: Vec<u64>,
}

impl Allocator {
    pub(super) fn new(
        header: &Header,
        l2_tables: impl Iterator<Item = u64>,
        storage: &dyn Storage,
    ) -> Result<Self> {
        let refcounts = Refcounts::read(header, storage)?;
        let geometry = header.geometry;
        let file_end = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
        let mut allocator =
            Self { refcounts, metadata: Metadata::default(), cursor: 0, run: 0..0, spare: Vec::new() };
        allocator.claim(0..1, "the header")?;
        let table = geometry.host_cluster(header.refcount_table).0;
        allocator.claim(table..table + header.refcount_table_clusters, "the refcount table")?;
        let l1 = geometry.host_cluster(header.l1_offset).0;
        let l1_clusters = (length(header.l1_entries) * 8).div_ceil(geometry.cluster_size());
        allocator.claim(l1..l1 + l1_clusters, "the L1 table")?;
        for (number, entry) in allocator.refcounts.table().to_vec().into_iter().enumerate() {
            if let Some(fault) = Refcounts::block_fault(entry, &geometry, file_end) {
                return Err(Error::corrupt(format!("refcount table entry {number} ({entry:#x}) {fault}")));
            }
            if entry != 0 {
                let cluster = entry >> geometry.cluster_bits;
                allocator.claim(cluster..cluster + 1, "a refcount block")?;
            }
        }
        for cluster in l2_tables {
            allocator.claim(cluster..cluster + 1, "an L2 table")?;
        }
        Ok(allocator)
    }

    fn claim(&mut self, clusters: Range<u64>, what: &str) -> Result<()> {
        for cluster in clusters {
            if !self.metadata.insert(HostCluster(cluster)) {
                return Err(Error::corrupt(format!(
                    "{what} overlaps other metadata at host cluster {cluster:#x}; run a check"
                )));
            }
        }
        Ok(())
    }

    /// The clusters that hold the image's own structures, shared with the image.
    pub(super) fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    /// Hands out a cluster with a refcount of one.
    pub(super) fn allocate(&mut self, storage: &dyn Storage) -> Result<HostCluster> {
        if self.cursor < self.run.start {
            // Something was freed below: the file stays short when that is used first.
            self.release_reserved(storage)?;
        }
        if let Some(cluster) = self.spare.pop() {
            return Ok(HostCluster(cluster));
        }
        if self.run.is_empty() {
            self.run = self.reserve(storage)?;
        }
        let cluster = self.run.start;
        self.run.start += 1;
        Ok(HostCluster(cluster))
    }

    /// Takes back a cluster that was handed out and that nothing points to.
    pub(super) fn give_back(&mut self, cluster: HostCluster) {
        self.spare.push(cluster.0);
    }

    /// Finds the next free clusters in a row, at least one, and counts them as used.
    fn reserve(&mut self, storage: &dyn Storage) -> Result<Range<u64>> {
        let start = loop {
            let free = self.refcounts.first_zero(HostCluster(self.cursor), storage)?.0;
            self.cursor = free;
            if self.refcounts.covers(HostCluster(free)) {
                break free;
            }
            self.add_block(free, storage)?;
        };
        let mut end = start;
        while end < start + RUN && self.refcounts.covers(HostCluster(end)) {
            match self.reserve_one(HostCluster(end), storage) {
                Ok(true) => end += 1,
                Err(error) if end == start => return Err(error),
                // What comes behind is somebody's, or cannot be told: the run is shorter.
                Ok(false) | Err(_) => break,
            }
        }
        self.cursor = end;
        // Written at once, and durable with the next commit: a full host fails this allocation, and no commit.
        if let Err(error) = self.refcounts.write_dirty(storage) {
            for cluster in (start..end).map(HostCluster) {
                self.release(cluster, storage)?;
            }
            return Err(error);
        }
        Ok(start..end)
    }

    /// Counts a cluster as used if it is free.
    fn reserve_one(&mut self, cluster: HostCluster, storage: &dyn Storage) -> Result<bool> {
        if self.refcounts.get(cluster, storage)? != 0 {
            return Ok(false);
        }
        if self.metadata.contains(cluster) {
            return Err(Error::corrupt(format!(
                "{cluster:?} is counted as free and holds metadata; run a check with --repair"
            )));
        }
        self.refcounts.set(cluster, 1, storage)?;
        Ok(true)
    }

    /// Writes new refcount structures to clusters that no block counts. They must be nobody's: every sector is a
    /// hole, zeros, or what an attempt that was cut short left there.
    fn put_uncounted(&self, bytes: &[u8], at: HostOffset, storage: &dyn Storage) -> Result<()> {
        let clusters = at.0 / self.cluster_size()..(at + length(bytes.len())).0.div_ceil(self.cluster_size());
        let mut old = vec![0; bytes.len()];
        storage.read_at(&mut old, at).map_err(|e| Error::io("growing the refcount table", e))?;
        let sector = index(SECTOR);
        let foreign =
            old.chunks(sector).zip(bytes.chunks(sector)).any(|(old, new)| !is_zero(old) && old != new);
        if foreign || clusters.clone().any(|cluster| self.metadata.contains(HostCluster(cluster))) {
            return Err(Error::corrupt(format!(
                "host clusters from {:#x} on are in use and no refcount block counts them; run a check with --repair",
                clusters.start
            )));
        }
        put(storage, bytes, at)
    }

    /// Adds the refcount block that covers `cluster`, at the first cluster it covers: durable before it is used.
    fn add_block(&mut self, cluster: u64, storage: &dyn Storage) -> Result<()> {
        let number = cluster / self.refcounts.per_block();
        if index(number) >= self.refcounts.table().len() {
            return self.grow_table(number, storage);
        }
        let place = HostCluster(number * self.refcounts.per_block());
        let mut bytes = vec![0; index(self.cluster_size())];
        self.refcounts.width().set(&mut bytes, 0, 1);
        let host = HostOffset(place.0 * self.cluster_size());
        self.put_uncounted(&bytes, host, storage)?;
        sync(storage)?;
        put(storage, &host.0.to_be_bytes(), self.refcounts.entry_place(index(number)))?;
        sync(storage)?;
        self.refcounts.add_block(index(number), host);
        self.metadata.insert(place);
        Ok(())
    }

    /// Moves the refcount table to a longer one behind everything that is counted, with blocks of its own, and
    /// switches the header over. Durable at each step, so that a crash leaves the old table or the new one.
    fn grow_table(&mut self, first_block: u64, storage: &dyn Storage) -> Result<()> {
        let size = self.cluster_size();
        let per_block = self.refcounts.per_block();
        let (mut table_clusters, mut blocks) = (1_u64, 1_u64);
        loop {
            let wanted_blocks = (table_clusters + blocks).div_ceil(per_block);
            let least = ((first_block + wanted_blocks) * 8).div_ceil(size);
            let wanted_table = (least * 3 / 2).min(MAX_REFCOUNT_TABLE / size).max(least).max(table_clusters);
            if (wanted_table, wanted_blocks) == (table_clusters, blocks) {
                break;
            }
            (table_clusters, blocks) = (wanted_table, wanted_blocks);
        }
        if table_clusters * size > MAX_REFCOUNT_TABLE {
            return Err(Error::new(
                crate::Kind::NoSpace,
                "the image is as large as its refcount table can count",
            ));
        }
        let start = first_block * per_block;
        let mut table = self.refcounts.table().to_vec();
        table.resize(index(table_clusters * size / 8), 0);
        let mut bytes = vec![0; index(blocks * size)];
        for n in 0..blocks {
            table[index(first_block + n)] = (start + n) * size;
        }
        for n in 0..table_clusters + blocks {
            let block = &mut bytes[index(n / per_block * size)..];
            self.refcounts.width().set(block, index(n % per_block), 1);
        }
        let place = HostOffset((start + blocks) * size);
        let table_bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.put_uncounted(&[bytes, table_bytes].concat(), HostOffset(start * size), storage)?;
        sync(storage)?;
        for cluster in start..start + blocks + table_clusters {
            self.metadata.insert(HostCluster(cluster));
        }
        self.switch_table(place, table, table_clusters, storage)
    }

    /// Points the header to another refcount table, and frees the old one.
    fn switch_table(
        &mut self,
        place: HostOffset,
        table: Vec<u64>,
        clusters: u64,
        storage: &dyn Storage,
    ) -> Result<()> {
        let count = u32::try_from(clusters).map_err(|_| Error::corrupt("the refcount table is too long"))?;
        let field = [&place.0.to_be_bytes()[..], &count.to_be_bytes()].concat();
        put(storage, &field, HostOffset(refcount_table_field()))?;
        sync(storage)?;
        let old_start = self.refcounts.table_offset.0 / self.cluster_size();
        let old_clusters = (length(self.refcounts.table().len()) * 8).div_ceil(self.cluster_size());
        self.refcounts.replace_table(place, table);
        for old in old_start..old_start + old_clusters {
            self.metadata.remove(HostCluster(old));
            // A count that cannot be changed now is a leak.
            let _ = self.release(HostCluster(old), storage);
        }
        Ok(())
    }

    fn cluster_size(&self) -> u64 {
        self.refcounts.per_block() << self.refcounts.width().order >> 3
    }

    /// One reference to a cluster is gone, durably. Returns whether it was the last: the cluster then stays
    /// counted, so that nobody gets it, until [`Allocator::release`].
    pub(super) fn drop_reference(&mut self, cluster: HostCluster, storage: &dyn Storage) -> Result<bool> {
        if self.metadata.contains(cluster) {
            // Only a damaged entry gives such a cluster away; a check reports it.
            return Ok(false);
        }
        let count = self.refcounts.get(cluster, storage)?;
        if count > 1 {
            self.refcounts.set(cluster, count - 1, storage)?;
        }
        // A count of zero here is damage that a check reports; the cluster is left alone.
        Ok(count == 1)
    }

    /// A cluster without references is free for others.
    pub(super) fn release(&mut self, cluster: HostCluster, storage: &dyn Storage) -> Result<()> {
        self.refcounts.set(cluster, 0, storage)?;
        self.cursor = self.cursor.min(cluster.0);
        Ok(())
    }

    /// Gives everything back that is reserved and not used.
    pub(super) fn release_reserved(&mut self, storage: &dyn Storage) -> Result<()> {
        let run = std::mem::take(&mut self.run);
        let spare = std::mem::take(&mut self.spare);
        for cluster in run.chain(spare) {
            self.release(HostCluster(cluster), storage)?;
        }
        Ok(())
    }

    /// Writes changed counts. Returns whether there were any.
    pub(super) fn write(&mut self, storage: &dyn Storage) -> Result<bool> {
        self.refcounts.write_dirty(storage)
    }
}

/// Where the header says where the refcount table is: its offset, and behind it its clusters.
pub(super) fn refcount_table_field() -> u64 {
    RawHeader::ROWS.iter().find(|row| row.0 == "refcount_table_offset").map_or(0, |row| length(row.1))
}

fn put(storage: &dyn Storage, bytes: &[u8], at: HostOffset) -> Result<()> {
    storage.write_at(bytes, at).map_err(|e| Error::io("growing the refcount table", e))
}

fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::io("growing the refcount table", e))
}
