//! Host clusters: found, reserved ahead of use, and given back.

use super::header::Header;
use super::metadata::Metadata;
use super::refcounts::Refcounts;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, length};
use std::ops::Range;

/// Clusters that are counted as used before they are: what a crash can leak, and how rarely counts are written.
const RUN: u64 = 64;

/// The allocator of one image. Everything it does is in memory until [`Allocator::write`], but for the growth of
/// the refcount structures themselves, which is durable when it returns.
#[derive(Debug)]
pub(super) struct Allocator {
    pub(super) refcounts: Refcounts,
    /// Never handed out, whatever the counts say.
    pub(super) metadata: Metadata,
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
