//! Ext2, ext3 and ext4 filesystems, read strictly.
//!
//! A guest wrote every byte: numbers of blocks and inodes, lengths and counts are checked before they are used, every
//! checksum that the filesystem has is verified, and what is refused is named. What breaks the format is an error and
//! never a guess, for what is read here is written again elsewhere. Nothing here writes.
//!
//! The memory that a call takes, and its time, are bounded by what is really on the disk: a structure that would let a
//! few blocks stand for many (one block twice in a tree, a folder larger than the disk) is refused.
//!
//! Layout: the kernel's `Documentation/filesystems/ext4` and, where it is silent, what Linux 6.1 and e2fsprogs 1.47
//! were seen to do.

mod acl;
mod bitmap;
mod blockmap;
mod checksum;
mod content;
mod directory;
mod extents;
mod features;
mod groups;
mod inode;
mod journal;
mod later;
mod orphans;
mod rewritten;
mod superblock;
mod table;
mod units;
mod xattr;
mod xattr_parse;

pub use acl::{acl_from_xattr, acl_to_xattr};
pub use content::Content;
pub use directory::{Directory, Entry};
pub use extents::Extent;
pub use features::{Feature, Features};
pub use inode::{Device, FileKind, Inode, flags};
pub use journal::Replayed;
pub use later::{Used, touches};
pub use superblock::{State, Superblock};
pub use table::Inodes;
pub use units::{Block, Ino, Run};

use super::partitions::{Bytes, u32_at};
use crate::error::{Error, Result};
use crate::units::{GuestOffset, index};
use groups::Group;
use std::fmt;

/// A filesystem that can be read. Threads may share it when they may share `B`.
#[derive(Debug)]
pub struct Ext4<B> {
    bytes: B,
    superblock: Superblock,
    groups: Vec<Group>,
}

impl<B: Bytes> Ext4<B> {
    /// Opens the filesystem that starts with the first of `bytes`.
    ///
    /// A filesystem whose journal waits to be replayed is opened as it stands: see [`State::needs_recovery`] and
    /// [`Replayed`].
    ///
    /// # Errors
    /// `Invalid` when there is no such filesystem, `Unsupported` when it has something that is not read here, `Busy`
    /// when another machine has it mounted, `Corrupt` when it breaks the format.
    pub fn open(bytes: B) -> Result<Self> {
        let superblock = Superblock::read(&bytes)?;
        let groups = groups::read_all(&bytes, &superblock)?;
        let filesystem = Self { bytes, superblock, groups };
        filesystem.check_mounts()?;
        Ok(filesystem)
    }

    /// What the filesystem is.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Whether the filesystem has `feature`.
    pub fn has(&self, feature: Feature) -> bool {
        self.superblock.features.has(feature)
    }

    /// In which state it was left.
    pub fn state(&self) -> State {
        self.superblock.state
    }

    /// What it lies in.
    pub fn bytes(&self) -> &B {
        &self.bytes
    }

    /// Protection against a second mount leaves a number that is not the one for "nobody".
    fn check_mounts(&self) -> Result<()> {
        const MAGIC: u32 = 0x004d_4d50;
        const NOBODY: u32 = 0xff4d_4d50;
        let at = self.superblock.layout.mmp;
        if !self.has(Feature::Mmp) || at.0 == 0 {
            return Ok(());
        }
        let block = self.block(at)?;
        if u32_at(&block, 0) != MAGIC {
            return Err(damaged("its block against a second mount has other content"));
        }
        if u32_at(&block, 4) != NOBODY {
            return Err(Error::new(
                crate::error::Kind::Busy,
                "the filesystem says that it is mounted or being checked elsewhere (mmp); unmount it there first",
            ));
        }
        Ok(())
    }

    /// The content of one block.
    fn block(&self, at: Block) -> Result<Vec<u8>> {
        let mut block = vec![0; index(self.superblock.block_size)];
        self.read_blocks(at, &mut block)?;
        Ok(block)
    }

    /// Fills `buf`, whole blocks or the start of one, from block `at` on.
    fn read_blocks(&self, at: Block, buf: &mut [u8]) -> Result<()> {
        self.read_inside(at, 0, buf)
    }

    /// Fills `buf` from byte `skip` of block `at` on.
    fn read_inside(&self, at: Block, skip: u64, buf: &mut [u8]) -> Result<()> {
        let size = self.superblock.block_size;
        let blocks = (skip + crate::units::length(buf.len())).div_ceil(size);
        if !self.superblock.holds(at, blocks) {
            return Err(damaged(format_args!("{at} is not inside of it")));
        }
        self.bytes.read(buf, GuestOffset(at.0 * size + skip))
    }
}

/// A filesystem that breaks its format: `what` is wrong with it.
fn damaged(what: impl fmt::Display) -> Error {
    Error::corrupt(format!("the ext4 filesystem is damaged: {what}; mend it with e2fsck in its guest"))
}
