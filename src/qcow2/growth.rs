//! More refcount blocks, and a longer refcount table: the only metadata that is made durable outside of a commit.

use super::allocator::Allocator;
use super::header::MAX_REFCOUNT_TABLE;
use super::layout::REFCOUNT_TABLE_FIELD;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, HostOffset, SECTOR, index, length};
use crate::zero::is_zero;

impl Allocator {
    /// Writes new refcount structures to clusters that no block counts. They must be nobody's: every sector is a
    /// hole, zeros, or what an attempt that was cut short left there.
    fn put_uncounted(&self, bytes: &[u8], at: HostOffset, storage: &dyn Storage) -> Result<()> {
        let clusters = at.0 / self.refcounts.block_size()
            ..(at + length(bytes.len())).0.div_ceil(self.refcounts.block_size());
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
    pub(super) fn add_block(&mut self, cluster: u64, storage: &dyn Storage) -> Result<()> {
        let number = cluster / self.refcounts.per_block();
        if index(number) >= self.refcounts.table().len() {
            return self.grow_table(number, storage);
        }
        let place = HostCluster(number * self.refcounts.per_block());
        let mut bytes = vec![0; index(self.refcounts.block_size())];
        self.refcounts.width().set(&mut bytes, 0, 1);
        let host = HostOffset(place.0 * self.refcounts.block_size());
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
        let size = self.refcounts.block_size();
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
            return Err(Error::new(Kind::NoSpace, "the image is as large as its refcount table can count"));
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
        put(storage, &field, REFCOUNT_TABLE_FIELD)?;
        sync(storage)?;
        let old_start = self.refcounts.table_offset.0 / self.refcounts.block_size();
        let old_clusters = (length(self.refcounts.table().len()) * 8).div_ceil(self.refcounts.block_size());
        self.refcounts.replace_table(place, table);
        for old in old_start..old_start + old_clusters {
            self.metadata.remove(HostCluster(old));
            // A count that cannot be changed now is a leak.
            let _ = self.release(HostCluster(old), storage);
        }
        Ok(())
    }
}

fn put(storage: &dyn Storage, bytes: &[u8], at: HostOffset) -> Result<()> {
    storage.write_at(bytes, at).map_err(|e| Error::io("growing the refcount table", e))
}

fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::io("growing the refcount table", e))
}
