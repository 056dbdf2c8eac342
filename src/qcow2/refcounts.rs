//! The refcount table and its blocks, of every width.

use super::geometry::Geometry;
use super::header::Header;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, HostOffset, MIB, index, length};
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of refcount blocks kept in memory.
const CACHE: u64 = 32 * MIB;
/// Dirty parts of a block are written in pieces of this size.
const GRAIN: usize = 4096;
/// Bits 9 to 63 of an entry of the refcount table: a host offset.
const BLOCK_OFFSET: u64 = !0x1ff;

/// Reads and writes counts in the bytes of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    /// Log2 of the bits of a count.
    pub(super) order: u32,
}

impl Width {
    /// The largest count.
    pub(super) fn max(self) -> u64 {
        u64::MAX >> (64 - (1_u32 << self.order))
    }

    /// The bytes that a count touches.
    fn place(self, at: usize) -> Range<usize> {
        if self.order < 3 {
            let byte = at >> (3 - self.order);
            byte..byte + 1
        } else {
            let bytes = 1 << (self.order - 3);
            at * bytes..(at + 1) * bytes
        }
    }

    fn shift(self, at: usize) -> usize {
        (at & ((8 >> self.order) - 1)) << self.order
    }

    pub(super) fn get(self, bytes: &[u8], at: usize) -> u64 {
        let value = bytes[self.place(at)].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if self.order < 3 { value >> self.shift(at) & self.max() } else { value }
    }

    pub(super) fn set(self, bytes: &mut [u8], at: usize, value: u64) -> Range<usize> {
        let place = self.place(at);
        if self.order < 3 {
            let [max, value, _] = [self.max(), value, 0].map(|number| number.to_le_bytes()[0]);
            let byte = &mut bytes[place.start];
            *byte = *byte & !(max << self.shift(at)) | value << self.shift(at);
        } else {
            let raw = value.to_be_bytes();
            bytes[place.clone()].copy_from_slice(&raw[8 - place.len()..]);
        }
        place
    }
}

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    dirty: Option<Range<usize>>,
}

/// How often each host cluster is used.
#[derive(Debug)]
pub(super) struct Refcounts {
    geometry: Geometry,
    width: Width,
    pub(super) table_offset: HostOffset,
    table: Vec<u64>,
    blocks: HashMap<usize, Block>,
}

impl Refcounts {
    /// Reads and checks the table.
    pub(super) fn read(header: &Header, storage: &dyn Storage) -> Result<Self> {
        let mut bytes = vec![0; index(header.refcount_table_clusters << header.geometry.cluster_bits)];
        storage
            .read_at(&mut bytes, header.refcount_table)
            .map_err(|e| Error::io("reading the refcount table", e))?;
        let table: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        Ok(Self {
            geometry: header.geometry,
            width: Width { order: header.refcount_order },
            table_offset: header.refcount_table,
            table,
            blocks: HashMap::new(),
        })
    }

    /// Whether an entry of the table can be used; 0, no block, can.
    pub(super) fn block_fault(entry: u64, geometry: &Geometry, file_end: u64) -> Option<&'static str> {
        if entry & !BLOCK_OFFSET != 0 {
            Some("has reserved bits set")
        } else if !geometry.is_aligned(entry) {
            Some("does not point to a cluster's start")
        } else if entry != 0 && entry >= file_end {
            Some("points past the end of the file")
        } else {
            None
        }
    }

    /// The table: the place of each block, or 0.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    pub(super) fn width(&self) -> Width {
        self.width
    }

    /// Counts of one block.
    pub(super) fn per_block(&self) -> u64 {
        (self.geometry.cluster_size() * 8) >> self.width.order
    }

    /// Bytes of one block: a cluster.
    pub(super) fn block_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn split(&self, cluster: HostCluster) -> (usize, usize) {
        (index(cluster.0 / self.per_block()), index(cluster.0 % self.per_block()))
    }

    /// Whether there is a block for a cluster.
    pub(super) fn covers(&self, cluster: HostCluster) -> bool {
        self.table.get(self.split(cluster).0).is_some_and(|entry| *entry != 0)
    }

    fn block(&mut self, number: usize, storage: &dyn Storage) -> Result<Option<&mut Block>> {
        let Some(place) = self.table.get(number).copied().filter(|place| *place != 0) else {
            return Ok(None);
        };
        if !self.blocks.contains_key(&number) {
            self.make_room();
            let mut bytes = vec![0; index(self.geometry.cluster_size())];
            storage.read_at(&mut bytes, HostOffset(place)).map_err(|e| Error::io("reading refcounts", e))?;
            self.blocks.insert(number, Block { bytes, dirty: None });
        }
        Ok(self.blocks.get_mut(&number))
    }

    fn make_room(&mut self) {
        let most = index(CACHE / self.geometry.cluster_size());
        if self.blocks.len() >= most {
            self.blocks.retain(|_, block| block.dirty.is_some());
        }
    }

    /// The count of a cluster; 0 where there is no block.
    pub(super) fn get(&mut self, cluster: HostCluster, storage: &dyn Storage) -> Result<u64> {
        let (number, at) = self.split(cluster);
        let width = self.width;
        Ok(self.block(number, storage)?.map_or(0, |block| width.get(&block.bytes, at)))
    }

    /// The first cluster from `from` on with a count of zero, or that no block covers.
    pub(super) fn first_zero(&mut self, from: HostCluster, storage: &dyn Storage) -> Result<HostCluster> {
        let (width, per_block) = (self.width, self.per_block());
        let (mut number, mut at) = self.split(from);
        loop {
            let Some(block) = self.block(number, storage)? else { break };
            if let Some(free) = (at..index(per_block)).find(|at| width.get(&block.bytes, *at) == 0) {
                at = free;
                break;
            }
            (number, at) = (number + 1, 0);
        }
        Ok(HostCluster(length(number) * per_block + length(at)))
    }

    /// The first cluster from `from` on, in the block that covers `from`, whose count is not zero, and its count.
    pub(super) fn next_counted(
        &mut self,
        from: HostCluster,
        storage: &dyn Storage,
    ) -> Result<Option<(HostCluster, u64)>> {
        let (width, per_block) = (self.width, index(self.per_block()));
        let (number, mut at) = self.split(from);
        let Some(block) = self.block(number, storage)? else { return Ok(None) };
        let per_word = 64_usize >> width.order;
        while at < per_block {
            // Most of a block is zeros: they are passed over by whole words.
            if at.is_multiple_of(per_word) {
                let words = block.bytes[at / per_word * 8..].as_chunks::<8>().0;
                let Some(zeros) = words.iter().position(|word| *word != [0; 8]) else { break };
                at += zeros * per_word;
            }
            let count = width.get(&block.bytes, at);
            if count != 0 {
                let first = length(number) * self.per_block();
                return Ok(Some((HostCluster(first + length(at)), count)));
            }
            at += 1;
        }
        Ok(None)
    }

    /// Sets the count of a cluster that a block covers; on disk after [`Refcounts::write_dirty`].
    pub(super) fn set(&mut self, cluster: HostCluster, value: u64, storage: &dyn Storage) -> Result<()> {
        let (number, at) = self.split(cluster);
        let width = self.width;
        if value > width.max() {
            return Err(Error::unsupported(format!(
                "a refcount of {value} does not fit the image's refcount width"
            )));
        }
        let block = self
            .block(number, storage)?
            .ok_or_else(|| Error::corrupt(format!("no refcount block covers host cluster {cluster}")))?;
        let place = width.set(&mut block.bytes, at, value);
        let dirty = block.dirty.get_or_insert(place.clone());
        *dirty = dirty.start.min(place.start)..dirty.end.max(place.end);
        Ok(())
    }

    /// Writes what was set since the last time. Returns whether anything was.
    pub(super) fn write_dirty(&mut self, storage: &dyn Storage) -> Result<bool> {
        let mut any = false;
        for (number, block) in &mut self.blocks {
            let Some(dirty) = &block.dirty else { continue };
            let start = dirty.start / GRAIN * GRAIN;
            let end = dirty.end.next_multiple_of(GRAIN).min(block.bytes.len());
            storage
                .write_at(&block.bytes[start..end], HostOffset(self.table[*number]) + length(start))
                .map_err(|e| Error::io("writing refcounts", e))?;
            block.dirty = None;
            any = true;
        }
        Ok(any)
    }

    /// Makes an empty block at `place` known; the caller has written it and the table's entry.
    pub(super) fn add_block(&mut self, number: usize, place: HostOffset) {
        self.table[number] = place.0;
        self.blocks.remove(&number);
    }

    /// Takes a new, longer table that the caller has written.
    pub(super) fn replace_table(&mut self, place: HostOffset, table: Vec<u64>) {
        self.table_offset = place;
        self.table = table;
    }

    /// Bytes of an entry's place in the file.
    pub(super) fn entry_place(&self, number: usize) -> HostOffset {
        self.table_offset + length(number) * 8
    }
}

#[cfg(test)]
mod tests {
    use super::Width;

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let width = Width { order };
            let mut bytes = vec![0; 64];
            for at in 0..(512 >> order) {
                width.set(&mut bytes, at, width.max());
                assert_eq!(width.get(&bytes, at), width.max(), "order {order} at {at}");
                assert!(at == 0 || width.get(&bytes, at - 1) == 0, "order {order} left of {at}");
                width.set(&mut bytes, at, 0);
            }
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn counts_below_a_byte_start_at_the_lowest_bit() {
        let mut bytes = [0];
        Width { order: 1 }.set(&mut bytes, 1, 2);
        assert_eq!(bytes, [0b1000]);
    }
}
