//! Where the content of a file lies: maps of single blocks, as ext2 and ext3 have them.

use super::extents::{Extent, push};
use super::inode::Inode;
use super::units::Block;
use super::{Ext4, damaged};
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, u32_at};
use std::collections::HashSet;

/// Blocks that the inode itself names.
const DIRECT: usize = 12;

/// What is known while a map is followed.
struct Walk<'a> {
    inode: &'a Inode,
    /// The block of the file that comes next.
    logical: u64,
    /// Maps that were read: a second use of one would let a few blocks stand for a whole disk.
    seen: HashSet<u64>,
    extents: &'a mut Vec<Extent>,
}

impl<B: Bytes> Ext4<B> {
    /// Adds the blocks of `inode`, which has no extents.
    pub(super) fn map_blocks(&self, inode: &Inode, extents: &mut Vec<Extent>) -> Result<()> {
        let mut walk = Walk { inode, logical: 0, seen: HashSet::new(), extents };
        for number in 0..DIRECT {
            self.follow(&mut walk, u32_at(&inode.map, number * 4), 0)?;
        }
        for depth in 1..=3 {
            self.follow(&mut walk, u32_at(&inode.map, (DIRECT + depth - 1) * 4), depth)?;
        }
        Ok(())
    }

    /// What `block` maps: itself at depth 0, else the blocks that it names.
    fn follow(&self, walk: &mut Walk<'_>, block: u32, depth: usize) -> Result<()> {
        let per_block = self.superblock.block_size / 4;
        if block == 0 {
            let hole = (0..depth).fold(1, |blocks, _| blocks * per_block);
            walk.logical += hole;
            return Ok(());
        }
        if depth == 0 {
            let (logical, physical) = (walk.logical, Block(u64::from(block)));
            if logical >= 1 << 32 {
                return Err(damaged(format_args!("{} has more blocks than can be counted", walk.inode.ino)));
            }
            push(walk.extents, Extent { logical, physical, blocks: 1, unwritten: false });
            walk.logical += 1;
            return Ok(());
        }
        if !walk.seen.insert(u64::from(block)) {
            return Err(damaged(format_args!("{} has the map in block {block} twice", walk.inode.ino)));
        }
        let map = self.block(Block(u64::from(block)))?;
        for entry in map.chunks_exact(4) {
            self.follow(walk, u32_at(entry, 0), depth - 1)?;
        }
        Ok(())
    }
}
