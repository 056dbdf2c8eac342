//! What a later state of a filesystem says of its inodes, by the blocks in which it differs from the earlier one.

use super::Ext4;
use super::inode::{Inode, number, parse};
use super::units::{Block, Ino};
use crate::error::Result;
use crate::guestfs::bits::is_set;
use crate::guestfs::partitions::{Bytes, u16_at};
use crate::units::index;
use std::ops::Range;

/// Which inodes are in use, as the bitmaps of a filesystem say.
#[derive(Clone, Debug)]
pub struct Used {
    /// Of each group.
    bitmaps: Vec<Vec<u8>>,
    per_group: u32,
}

impl Used {
    /// Whether an inode is in use.
    #[must_use]
    pub fn has(&self, ino: Ino) -> bool {
        let Some(slot) = ino.0.checked_sub(1) else { return false };
        let bitmap = self.bitmaps.get(index((slot / self.per_group).into()));
        bitmap.is_some_and(|bitmap| is_set(bitmap, slot % self.per_group))
    }

    /// Inodes that are in use here, and not in `other`, a state of the same filesystem.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Ino> + 'a {
        let groups = (0..).zip(self.bitmaps.iter().zip(&other.bitmaps));
        groups.filter(|(_, (one, other))| one != other).flat_map(|(group, _)| {
            let first: u32 = group * self.per_group + 1;
            (first..first + self.per_group).map(Ino).filter(|ino| self.has(*ino) && !other.has(*ino))
        })
    }
}

impl<B: Bytes> Ext4<B> {
    /// Which inodes are in use.
    ///
    /// # Errors
    /// As for [`Ext4::inodes`].
    pub fn used(&self) -> Result<Used> {
        let layout = &self.superblock.layout;
        let bitmaps = (0..layout.groups).map(|group| self.inode_bitmap(group)).collect::<Result<_>>()?;
        Ok(Used { bitmaps, per_group: layout.inodes_per_group })
    }

    /// Whether the same bytes at the same place mean the same in both: then what was read of an inode of one is true of
    /// the other, if no block that it was read from differs.
    #[must_use]
    pub fn reads_as<C>(&self, other: &Ext4<C>) -> bool {
        let (one, two) = (&self.superblock, &other.superblock);
        let sizes = |of: &super::Superblock| {
            let counts = (of.block_count, of.inode_count, of.first_inode, of.layout.groups);
            let sizes = (of.block_size, of.cluster_size, of.inode_size, of.layout.inodes_per_group);
            (counts, sizes, of.layout.first_data, of.checksum_seed)
        };
        let tables = self.groups.iter().zip(&other.groups);
        sizes(one) == sizes(two)
            && one.features == two.features
            && tables.into_iter().all(|(one, two)| one.inode_table == two.inode_table)
    }

    /// The inodes in use that are new or have another record than in `earlier`, a state of the filesystem in which `before`
    /// was in use and that differs in `blocks` at most, ascending ranges. What is left out is as it was then.
    ///
    /// # Errors
    /// As for [`Ext4::inodes`].
    pub fn inodes_since<A: Bytes>(
        &self,
        (earlier, before): (&Ext4<A>, &Used),
        blocks: &[Range<u64>],
    ) -> Result<Vec<Inode>> {
        let superblock = &self.superblock;
        let used = self.used()?;
        let (mut found, size) = (Vec::new(), index(superblock.inode_size));
        for (group, bitmap) in (0..).zip(&used.bitmaps) {
            let table = self.group(group)?.inode_table.0;
            // The block that was looked at last: whether it differs, and then both of it.
            let (mut known, mut is, mut was) = (u64::MAX, Vec::new(), Vec::new());
            for slot in (0..superblock.layout.inodes_per_group).filter(|slot| is_set(bitmap, *slot)) {
                let at = u64::from(slot) * superblock.inode_size;
                let block = table + at / superblock.block_size;
                if known != block {
                    (known, is, was) = (block, Vec::new(), Vec::new());
                    if touches(blocks, block, block + 1) {
                        (is, was) = (self.block(Block(block))?, earlier.block(Block(block))?);
                    }
                }
                let ino = number(group, slot, superblock);
                let at = index(at % superblock.block_size);
                if before.has(ino) && is.get(at..at + size) == was.get(at..at + size) {
                    continue;
                }
                let record = match is.get(at..at + size) {
                    Some(record) => record.to_vec(),
                    None => self.record(ino)?,
                };
                if u16_at(&record, 0) != 0 || ino.0 >= superblock.first_inode.0 {
                    found.push(parse(&record, ino, superblock)?);
                }
            }
        }
        Ok(found)
    }
}

/// Whether any of `ranges`, which are in order and apart, has something from `start` on and before `end`.
#[must_use]
pub fn touches(ranges: &[Range<u64>], start: u64, end: u64) -> bool {
    let next = ranges.get(ranges.partition_point(|range| range.end <= start));
    start < end && next.is_some_and(|range| range.start < end)
}
