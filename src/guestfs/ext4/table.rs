//! All inodes in use, in the order of their tables.

use super::inode::{Inode, number, parse, records_in};
use super::units::{Block, Ino};
use super::{Ext4, damaged};
use crate::error::Result;
use crate::guestfs::bits::{is_set, next_bit};
use crate::guestfs::partitions::{Bytes, u16_at};
use crate::units::index;

/// How much of a table is read at once, in bytes.
const CHUNK: u64 = 256 << 10;

/// The inodes in use; made by [`Ext4::inodes`]. It ends at the first error.
#[derive(Debug)]
pub struct Inodes<'a, B> {
    filesystem: &'a Ext4<B>,
    /// The group that is looked through, and those to come.
    group: u32,
    /// A bit for each of its inodes; empty before the group is begun.
    bitmap: Vec<u8>,
    /// The next slot to look at.
    next: u32,
    /// The records from slot `first` on.
    chunk: Vec<u8>,
    first: u32,
}

impl<B: Bytes> Ext4<B> {
    /// The inodes that the bitmaps say are in use, by number. Reserved ones that were never made are left out; those
    /// that the filesystem keeps for itself (journal, quota, values of extended attributes) are not.
    pub fn inodes(&self) -> Inodes<'_, B> {
        Inodes { filesystem: self, group: 0, bitmap: Vec::new(), next: 0, chunk: Vec::new(), first: 0 }
    }
}

impl<B: Bytes> Iterator for Inodes<'_, B> {
    type Item = Result<Inode>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.advance();
        if found.is_err() {
            self.group = u32::MAX;
        }
        found.transpose()
    }
}

impl<B: Bytes> Inodes<'_, B> {
    fn advance(&mut self) -> Result<Option<Inode>> {
        let superblock = &self.filesystem.superblock;
        while self.group < superblock.layout.groups {
            if self.bitmap.is_empty() {
                self.bitmap = self.filesystem.inode_bitmap(self.group)?;
                (self.next, self.first) = (0, 0);
                self.chunk.clear();
            }
            let Some(slot) = next_bit(&self.bitmap, self.next, superblock.layout.inodes_per_group, true)
            else {
                self.bitmap.clear();
                self.group += 1;
                continue;
            };
            self.next = slot + 1;
            let ino = number(self.group, slot, superblock);
            let record = self.record(slot)?;
            // What is reserved is marked as used, and has no type before it is made.
            if u16_at(record, 0) != 0 || ino.0 >= superblock.first_inode.0 {
                return parse(record, ino, superblock).map(Some);
            }
        }
        Ok(None)
    }

    fn record(&mut self, slot: u32) -> Result<&[u8]> {
        let superblock = &self.filesystem.superblock;
        let held = records_in(self.chunk.len(), superblock);
        if slot < self.first || slot - self.first >= held {
            self.read_chunk(slot)?;
        }
        let size = index(superblock.inode_size);
        let at = index(u64::from(slot - self.first)) * size;
        self.chunk.get(at..at + size).ok_or_else(|| damaged("an inode table ends early"))
    }

    /// Reads the records from `slot` to the last one in use that is near enough.
    fn read_chunk(&mut self, slot: u32) -> Result<()> {
        let superblock = &self.filesystem.superblock;
        let most = records_in(index(CHUNK), superblock).max(1);
        let end = superblock.layout.inodes_per_group.min(slot.saturating_add(most));
        let last = (slot..end).rev().find(|slot| is_set(&self.bitmap, *slot)).unwrap_or(slot);
        let table = self.filesystem.group(self.group)?.inode_table;
        self.chunk.resize(index(u64::from(last - slot + 1) * superblock.inode_size), 0);
        self.first = slot;
        let skip = u64::from(slot) * superblock.inode_size;
        let (block, inside) = (skip / superblock.block_size, skip % superblock.block_size);
        self.filesystem.read_inside(Block(table.0 + block), inside, &mut self.chunk)
    }
}

impl<B: Bytes> Ext4<B> {
    /// A bit for each inode of `group`, at least one byte long; bits of inodes that were never used are clear.
    pub(super) fn inode_bitmap(&self, number: u32) -> Result<Vec<u8>> {
        let (group, per_group) = (self.group(number)?, self.superblock.layout.inodes_per_group);
        let len = index(u64::from(per_group).div_ceil(8));
        if group.inodes_uninit {
            return Ok(vec![0; len.max(1)]);
        }
        let mut bitmap = self.block(group.inode_bitmap)?;
        bitmap.truncate(len);
        self.check_bitmap(&bitmap, group.inode_bitmap_sum, super::bitmap::INODE_SUM_END)
            .map_err(|error| error.at(format_args!("the inode bitmap of group {number}")))?;
        let used = per_group - group.unused_inodes;
        if let Some(slot) = next_bit(&bitmap, used, per_group, true) {
            let ino = super::inode::number(number, slot, &self.superblock);
            return Err(damaged(format_args!("{ino} is in use, and among those that were never used")));
        }
        Ok(bitmap)
    }

    pub(super) fn group(&self, number: u32) -> Result<&super::Group> {
        self.groups
            .get(index(u64::from(number)))
            .ok_or_else(|| damaged(format_args!("there is no group {number}")))
    }

    /// Whether the inode bitmap says that `ino` is in use.
    ///
    /// # Errors
    /// As for [`Ext4::inodes`].
    pub fn is_used(&self, ino: Ino) -> Result<bool> {
        if ino.0 == 0 || ino.0 > self.superblock.inode_count {
            return Ok(false);
        }
        let per_group = self.superblock.layout.inodes_per_group;
        let bitmap = self.inode_bitmap((ino.0 - 1) / per_group)?;
        Ok(is_set(&bitmap, (ino.0 - 1) % per_group))
    }
}
