//! Inodes that wait to be deleted or cut: their last name was gone, or a truncation was under way, at a crash.

use super::checksum::crc32c;
use super::features::Feature;
use super::units::{Block, Ino};
use super::{Ext4, damaged};
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, u32_at};
use std::collections::BTreeSet;

/// At the end of each block of the orphan file, before the checksum.
const MAGIC: u32 = 0x0b10_ca04;

impl<B: Bytes> Ext4<B> {
    /// The inodes that wait to be deleted (no links) or cut to their length (links). Before anybody goes by the
    /// inodes and blocks in use, somebody has to do so: a mount, or e2fsck.
    ///
    /// # Errors
    /// `Corrupt` when the list breaks the format.
    pub fn orphans(&self) -> Result<BTreeSet<Ino>> {
        let mut orphans = BTreeSet::new();
        let mut next = self.superblock.layout.last_orphan;
        while next != 0 {
            if next < self.superblock.first_inode.0 || !orphans.insert(Ino(next)) {
                return Err(damaged("its list of orphans leads to a reserved inode, or back into itself"));
            }
            next = self.inode(Ino(next))?.deleted;
        }
        if self.superblock.layout.orphan_file != 0 && self.has(Feature::OrphanPresent) {
            self.read_orphan_file(&mut orphans)?;
        }
        Ok(orphans)
    }

    fn read_orphan_file(&self, orphans: &mut BTreeSet<Ino>) -> Result<()> {
        let inode = self.inode(Ino(self.superblock.layout.orphan_file))?;
        for extent in self.extents(&inode)? {
            for number in 0..extent.blocks {
                let at = Block(extent.physical.0 + number);
                let block = self.block(at)?;
                self.check_orphan_block(&block, at, inode.seed)?;
                let used = block[..block.len() - 8].chunks_exact(4).map(|slot| u32_at(slot, 0));
                for ino in used.filter(|ino| *ino != 0) {
                    if ino < self.superblock.first_inode.0 || ino > self.superblock.inode_count {
                        return Err(damaged(format_args!("its orphan file names {}", Ino(ino))));
                    }
                    orphans.insert(Ino(ino));
                }
            }
        }
        Ok(())
    }

    fn check_orphan_block(&self, block: &[u8], at: Block, seed: u32) -> Result<()> {
        let (slots, tail) = block.split_at(block.len() - 8);
        let place = at.0.to_le_bytes();
        let sound = u32_at(tail, 0) == MAGIC
            && (!self.has(Feature::MetadataCsum) || crc32c(crc32c(seed, &place), slots) == u32_at(tail, 4));
        if !sound {
            return Err(damaged(format_args!("the orphan file does not match its checksum in {at}")));
        }
        Ok(())
    }
}
