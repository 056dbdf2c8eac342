//! What `resize2fs` (e2fsprogs 1.47) may write into a filesystem that gets another end, besides the content that it moves.

use super::extents::Extent;
use super::inode::{FileKind, Inode, flags, number};
use super::units::{Block, Ino};
use super::{Ext4, Feature};
use crate::error::Result;
use crate::guestfs::bits::is_set;
use crate::guestfs::partitions::Bytes;
use crate::units::{SECTOR, index, length};
use std::ops::Range;

/// The file that holds the room for more descriptors.
const RESIZE: Ino = Ino(7);
/// Extents that a record has room for, and fewer than a block has when it was split in two.
const IN_RECORD: usize = 4;
const IN_HALF_A_BLOCK: usize = 40;

/// What may be other blocks than before: no more than that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Blocks that are known, from the first one up to the one behind the last.
    pub(crate) known: Vec<Range<u64>>,
    /// So many others, of which the places are not known.
    pub(crate) others: u64,
    /// Where what is moved comes to lie: the first free blocks.
    pub(crate) moved_to: Vec<Range<u64>>,
}

/// Counts what the files have a share in.
#[derive(Default)]
struct Files {
    found: Rewritten,
    /// Inodes that get another number, and names of them.
    renumbered: u32,
    names: u64,
    /// Blocks of folders.
    folders: u64,
}

impl<B: Bytes> Ext4<B> {
    /// What changes when the filesystem has `blocks` blocks. `None` where it cannot be said: it grows by more than it has
    /// room for descriptors of.
    ///
    /// # Errors
    /// As for [`Ext4::inodes`], [`Ext4::extents`] and [`Ext4::free`].
    pub(crate) fn rewritten(&self, blocks: u64) -> Result<Option<Rewritten>> {
        let Some(mut found) = self.rewritten_descriptors(blocks) else { return Ok(None) };
        for group in self.groups.iter().take(index(self.groups_of(blocks))) {
            found.known.extend([group.block_bitmap, group.inode_bitmap].map(one));
        }
        if blocks >= self.superblock.block_count {
            return Ok(Some(found));
        }
        let moved = self.places_for_what_is_behind(blocks, &mut found)?;
        // Each piece that a run of blocks is cut into may need a block more of its file's map.
        found.others += moved.min(length(found.moved_to.len()));
        let mut files = Files { found, ..Files::default() };
        for inode in self.inodes() {
            self.rewritten_inode(&inode?, blocks, &mut files)?;
        }
        let Files { mut found, renumbered, names, folders } = files;
        self.new_records(renumbered, blocks, &mut found)?;
        found.others += names.min(folders);
        Ok(Some(found))
    }

    fn groups_of(&self, blocks: u64) -> u64 {
        let layout = &self.superblock.layout;
        blocks.saturating_sub(layout.first_data).div_ceil(layout.blocks_per_group)
    }

    /// Superblocks and descriptors with all their copies; of the first group also the room for more, which maps the room of
    /// the others.
    fn rewritten_descriptors(&self, blocks: u64) -> Option<Rewritten> {
        let layout = &self.superblock.layout;
        let (old, new) = (u64::from(layout.groups), self.groups_of(blocks));
        let per_block = self.superblock.descriptors_per_block();
        let descriptors = old.max(new).div_ceil(per_block);
        let room = old.div_ceil(per_block) + layout.reserved_descriptors;
        if descriptors > room && !self.has(Feature::MetaBg) {
            return None;
        }
        // The file that maps the room, and with two copies only those that move with the end.
        let mut found = Rewritten { others: 2 + 2 * (1 + descriptors), ..Rewritten::default() };
        for group in 0..layout.groups.min(u32::try_from(new).unwrap_or(u32::MAX)) {
            let copies = self.copies(group);
            let all = copies.start.0..copies.end().0;
            let start = copies.start.0;
            match (group, copies.blocks) {
                (_, 0) => {}
                (0, _) => found.known.push(all),
                _ => found.known.push(start..start + copies.blocks.min(1 + descriptors)),
            }
        }
        for group in old..new {
            let has_copy = u32::try_from(group).is_ok_and(|group| self.superblock.has_superblock(group));
            found.others += 2 + if has_copy { 1 + descriptors } else { 1 };
        }
        Some(found)
    }

    /// Finds the first free blocks before `blocks` for all that are in use behind. Returns how many these are.
    fn places_for_what_is_behind(&self, blocks: u64, found: &mut Rewritten) -> Result<u64> {
        let (mut free, mut free_behind) = (Vec::new(), 0);
        self.free(|run| {
            let (start, end) = (run.start.0, run.end().0);
            if start < blocks {
                free.push(start..end.min(blocks));
            }
            free_behind += end.saturating_sub(start.max(blocks));
            Ok(())
        })?;
        let moved = (self.superblock.block_count - blocks).saturating_sub(free_behind);
        let mut left = moved;
        for run in free {
            let taken = left.min(run.end - run.start);
            found.moved_to.extend((taken > 0).then(|| run.start..run.start + taken));
            left -= taken;
        }
        Ok(moved)
    }

    /// Counts what changes of a file that has anything behind `blocks`, or a number that is in no group any more.
    fn rewritten_inode(&self, inode: &Inode, blocks: u64, files: &mut Files) -> Result<()> {
        let superblock = &self.superblock;
        let extents = self.extents(inode)?;
        let content: u64 = extents.iter().map(|extent| extent.blocks).sum();
        let all = inode.sectors.div_ceil(superblock.block_size / SECTOR).min(superblock.block_count);
        // Blocks of its map, and of its attributes.
        let map = if inode.ino == RESIZE { 1 } else { all.saturating_sub(content) };
        let is_folder = inode.kind == FileKind::Directory;
        let inodes = self.groups_of(blocks) * u64::from(superblock.layout.inodes_per_group);
        let is_renumbered = u64::from(inode.ino.0) > inodes;
        if is_folder {
            files.folders += content;
        }
        if is_renumbered {
            files.renumbered += 1;
            // The sums in the blocks of a folder are made with its number.
            files.names += u64::from(inode.links) + if is_folder { content } else { 0 };
        }
        let is_cut = extents.iter().any(|extent| extent.physical.0 + extent.blocks > blocks);
        if is_cut || is_renumbered || map > 0 {
            let more = larger_map(inode, &extents, map > 0);
            files.found.others = files.found.others.saturating_add(map + more);
            if !is_renumbered {
                files.found.known.push(one(self.record_block(inode.ino)?));
            }
        }
        Ok(())
    }

    /// The blocks with the records that `count` inodes get: the first free ones.
    fn new_records(&self, count: u32, blocks: u64, found: &mut Rewritten) -> Result<()> {
        let (mut left, per_group) = (count, self.superblock.layout.inodes_per_group);
        for group in 0..u32::try_from(self.groups_of(blocks)).unwrap_or(u32::MAX) {
            if left == 0 {
                break;
            }
            let bitmap = self.inode_bitmap(group)?;
            let free = (0..per_group).filter(|slot| !is_set(&bitmap, *slot));
            let free = free.map(|slot| number(group, slot, &self.superblock));
            for ino in free.filter(|ino| *ino >= self.superblock.first_inode).take(index(u64::from(left))) {
                left -= 1;
                let block = one(self.record_block(ino)?);
                if found.known.last() != Some(&block) {
                    found.known.push(block);
                }
            }
        }
        Ok(())
    }

    /// The block that holds the record of an inode.
    fn record_block(&self, ino: Ino) -> Result<Block> {
        let superblock = &self.superblock;
        let (group, slot) = (
            (ino.0 - 1) / superblock.layout.inodes_per_group,
            (ino.0 - 1) % superblock.layout.inodes_per_group,
        );
        let table = self.group(group)?.inode_table;
        Ok(Block(table.0 + u64::from(slot) * superblock.inode_size / superblock.block_size))
    }
}

/// Blocks at most by which the map of a file grows while its blocks get other numbers one by one: a run is two meanwhile.
fn larger_map(inode: &Inode, extents: &[Extent], has_blocks: bool) -> u64 {
    match inode.has(flags::EXTENTS) {
        true if has_blocks || extents.len() >= IN_RECORD => 1 + length(extents.len() / IN_HALF_A_BLOCK),
        _ => 0,
    }
}

fn one(block: Block) -> Range<u64> {
    block.0..block.0 + 1
}
