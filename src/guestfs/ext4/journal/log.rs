//! What the log holds, put where it belongs.

use super::Blocks;
use super::area::Area;
use super::format::{MAGIC, Superblock, mark_empty};
use super::scan::{self, Transaction};
use crate::error::{Error, Result};
use crate::guestfs::ext4::units::Block;
use crate::guestfs::ext4::{Ext4, damaged};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use std::collections::HashMap;

/// The first record of a fast commit.
const FAST_HEAD: u16 = 9;

/// What a replay gives.
pub(super) struct Replay {
    /// The blocks that it writes, the journal's superblock among them.
    pub(super) blocks: Blocks,
    pub(super) transactions: u32,
    /// The journal notes an error of the filesystem.
    pub(super) errors: bool,
}

pub(super) fn replay<B: Bytes>(filesystem: &Ext4<B>) -> Result<Replay> {
    let area = Area::find(filesystem)?;
    let mut head = area.read(0)?;
    let superblock = Superblock::parse(&head, area.blocks)?;
    let log = scan::read(&area, &superblock)?;
    let count = u32::try_from(log.transactions.len()).unwrap_or(u32::MAX);
    let next = superblock.sequence.wrapping_add(count);
    refuse_fast_commits(&area, &superblock, next)?;
    let mut blocks = Blocks::new();
    for transaction in &log.transactions {
        apply(&area, &superblock, transaction, &log.revoked, &mut blocks)?;
    }
    // As the kernel does: no block of what was replayed is taken for one of the next transaction.
    mark_empty(&mut head, next.wrapping_add(1), superblock.has_block_sums());
    blocks.insert(area.place(0)?.0, head.into());
    Ok(Replay { blocks, transactions: count, errors: superblock.errors })
}

fn apply<B: Bytes>(
    area: &Area<'_, B>,
    superblock: &Superblock,
    transaction: &Transaction,
    revoked: &HashMap<u64, u32>,
    blocks: &mut Blocks,
) -> Result<()> {
    let sequence = transaction.sequence;
    for (tag, number) in &transaction.writes {
        if revoked.get(&tag.block).is_some_and(|last| !is_after(sequence, *last)) {
            continue;
        }
        if !area.filesystem.superblock.holds(Block(tag.block), 1) && tag.block != 0 {
            return Err(damaged(format_args!(
                "its journal writes {}, which it does not have",
                Block(tag.block)
            )));
        }
        let mut data = area.read(*number)?;
        if !superblock.data_matches(&data, sequence, tag) {
            return Err(damaged(format_args!(
                "{} in transaction {sequence} of its journal does not match its checksum",
                Block(tag.block)
            )));
        }
        if tag.escaped {
            data[..4].copy_from_slice(&MAGIC.to_be_bytes());
        }
        blocks.insert(tag.block, data.into());
    }
    Ok(())
}

/// Whether transaction `one` came after `other`: their numbers wrap.
fn is_after(one: u32, other: u32) -> bool {
    let distance = one.wrapping_sub(other);
    distance != 0 && distance < 1 << 31
}

/// Fast commits say what was done to files and not what blocks hold; they would have to be done again.
fn refuse_fast_commits<B: Bytes>(area: &Area<'_, B>, superblock: &Superblock, next: u32) -> Result<()> {
    // Linux leaves out the first block of the area.
    for number in superblock.fast.clone().take(2) {
        let block = area.read(number)?;
        // A tag, the length of what follows, features, and the transaction that it goes on from.
        if u16_at(&block, 0) == FAST_HEAD && u32_at(&block, 8) == next {
            return Err(Error::unsupported(
                "the journal ends in fast commits, which are not replayed here; mount the filesystem once in its guest",
            ));
        }
    }
    Ok(())
}
