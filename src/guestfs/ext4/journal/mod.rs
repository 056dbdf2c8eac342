//! The journal: what was written to it and not yet where it belongs is put over what the disk holds.
//!
//! What counts as written follows jbd2's own recovery: a log from the superblock's start on, transactions with rising
//! numbers, each ended by a commit block, and blocks that a later transaction revoked left alone. A log that ends in a
//! transaction without a commit block is what a crash leaves; one that has a commit block and something before it that
//! does not match its checksum is damage.

mod area;
mod format;
mod log;
mod scan;

use super::extents::Extent;
use super::units::Block;
use super::{Ext4, Feature, superblock};
use crate::error::{Error, Kind, Result};
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, index, length};
use area::Area;
use std::collections::BTreeMap;

/// Content of blocks by number.
type Blocks = BTreeMap<u64, Box<[u8]>>;

/// A filesystem's bytes with its journal replayed in memory; the disk is not written.
///
/// [`Ext4::open`] on it sees what a guest would see after a mount, but for [`Ext4::orphans`], which still wait.
#[derive(Debug)]
pub struct Replayed<B> {
    bytes: B,
    block_size: u64,
    blocks: Blocks,
    transactions: u32,
}

impl<B: Bytes> Replayed<B> {
    /// Replays the journal of the filesystem in `bytes`, if it needs to be.
    ///
    /// # Errors
    /// As for [`Ext4::open`]; `Corrupt` when the journal breaks its format or names blocks outside of the filesystem,
    /// `Unsupported` when it is larger than 1 GiB, holds fast commits, or has something that is not known here.
    pub fn open(bytes: B) -> Result<Self> {
        let filesystem = Ext4::open(&bytes)?;
        let block_size = filesystem.superblock.block_size;
        if !filesystem.state().needs_recovery {
            return Ok(Self { bytes, block_size, blocks: Blocks::new(), transactions: 0 });
        }
        let replay = log::replay(&filesystem)?;
        drop(filesystem);
        let mut replayed =
            Self { bytes, block_size, blocks: replay.blocks, transactions: replay.transactions };
        replayed.mark_recovered(replay.errors)?;
        Ok(replayed)
    }

    /// The blocks that differ from what the disk holds, by number. Who writes all of them has recovered the
    /// filesystem: its superblock and the journal's say so. None when there was nothing to recover.
    pub fn written(&self) -> impl ExactSizeIterator<Item = (Block, &[u8])> {
        self.blocks.iter().map(|(number, data)| (Block(*number), &**data))
    }

    /// How many transactions were replayed.
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// What is below.
    pub fn bytes(&self) -> &B {
        &self.bytes
    }

    /// Puts a superblock over the disk's that needs no recovery. Errors that were seen before stay noted: the
    /// journal's copy of it may be older than they are.
    fn mark_recovered(&mut self, mut errors: bool) -> Result<()> {
        let mut raw = [0; superblock::LEN];
        self.bytes.read(&mut raw, superblock::AT)?;
        errors |= superblock::has_errors(&raw);
        self.read(&mut raw, superblock::AT)?;
        superblock::mark_recovered(&mut raw, errors);
        let number = superblock::AT.0 / self.block_size;
        let inside = index(superblock::AT.0 % self.block_size);
        let mut block = vec![0; index(self.block_size)];
        self.read(&mut block, GuestOffset(number * self.block_size))?;
        block[inside..inside + superblock::LEN].copy_from_slice(&raw);
        self.blocks.insert(number, block.into());
        Ok(())
    }
}

impl<B: Bytes> Ext4<B> {
    /// The blocks of its journal, in which nothing waits; none without a journal.
    ///
    /// # Errors
    /// `Busy` when the log holds transactions although nothing asks for recovery: the kernel would forget them, and
    /// e2fsck would replay them. `Corrupt` when the journal breaks its format, or notes an error of the filesystem.
    pub fn idle_journal(&self) -> Result<Vec<Extent>> {
        if !self.has(Feature::HasJournal) {
            return Ok(Vec::new());
        }
        let area = Area::find(self)?;
        let superblock = format::Superblock::parse(&area.read(0)?, area.blocks)?;
        if superblock.errors {
            return Err(super::damaged("its journal notes an error"));
        }
        if superblock.start != 0 {
            return Err(Error::new(
                Kind::Busy,
                "the journal holds transactions although the filesystem needs no recovery; run e2fsck in the guest first",
            ));
        }
        Ok(area.extents)
    }
}

impl<B: Bytes> Bytes for Replayed<B> {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        self.bytes.read(buf, at)?;
        if self.blocks.is_empty() || buf.is_empty() {
            return Ok(());
        }
        let end = at.0 + length(buf.len());
        for (number, data) in self.blocks.range(at.0 / self.block_size..end.div_ceil(self.block_size)) {
            let block = number * self.block_size;
            let (from, to) = (block.max(at.0), (block + self.block_size).min(end));
            buf[index(from - at.0)..index(to - at.0)]
                .copy_from_slice(&data[index(from - block)..index(to - block)]);
        }
        Ok(())
    }
}
