//! Where the journal lies, and its blocks by their place in it.

use crate::error::{Error, Result};
use crate::guestfs::ext4::extents::{Extent, at_or_behind};
use crate::guestfs::ext4::inode::FileKind;
use crate::guestfs::ext4::units::Block;
use crate::guestfs::ext4::{Ext4, damaged};
use crate::guestfs::partitions::Bytes;

/// Largest journal that is replayed, in bytes: so much memory may be taken.
const LARGEST: u64 = 1 << 30;

/// A journal inside a filesystem.
pub(super) struct Area<'a, B> {
    pub(super) filesystem: &'a Ext4<B>,
    pub(super) extents: Vec<Extent>,
    pub(super) blocks: u64,
}

impl<'a, B: Bytes> Area<'a, B> {
    pub(super) fn find(filesystem: &'a Ext4<B>) -> Result<Self> {
        let ino = filesystem.superblock.layout.journal;
        if ino.0 == 0 {
            return Err(damaged("it needs its journal, and has none"));
        }
        let inode = filesystem.inode(ino)?;
        let blocks = inode.size / filesystem.superblock.block_size;
        if inode.kind != FileKind::Regular || inode.links == 0 || blocks == 0 {
            return Err(damaged(format_args!("its journal, {ino}, is no file")));
        }
        if inode.size > LARGEST {
            return Err(Error::unsupported(format!(
                "the journal has {} MiB, and at most {} MiB are replayed here; mount the filesystem once in its guest",
                inode.size >> 20,
                LARGEST >> 20
            )));
        }
        Ok(Self { filesystem, extents: filesystem.extents(&inode)?, blocks })
    }

    /// Where block `number` of the journal is in the filesystem.
    pub(super) fn place(&self, number: u32) -> Result<Block> {
        let logical = u64::from(number);
        match at_or_behind(&self.extents, logical) {
            Some(extent) if extent.logical <= logical && !extent.unwritten => {
                Ok(Block(extent.physical.0 + (logical - extent.logical)))
            }
            _ => Err(damaged(format_args!("its journal has a hole at its block {number}"))),
        }
    }

    pub(super) fn read(&self, number: u32) -> Result<Vec<u8>> {
        self.filesystem.block(self.place(number)?)
    }
}
