//! The blocks of a journal. Unlike the filesystem's own, their numbers have the high byte first.

use crate::error::{Error, Result};
use crate::guestfs::ext4::checksum::{crc32c, crc32c_around};
use crate::guestfs::ext4::damaged;

/// What each block of the log starts with.
pub(super) const MAGIC: u32 = 0xc03b_3998;
pub(super) const DESCRIPTOR: u32 = 1;
pub(super) const COMMIT: u32 = 2;
pub(super) const REVOKE: u32 = 5;

/// Where the superblock keeps its checksum, and how long it is.
const CHECKSUM: usize = 0xfc;
const LEN: usize = 1024;

const SUM_OF_TRANSACTION: u32 = 1;
const WIDE: u32 = 2;
const ASYNC: u32 = 4;
const SUMS_V2: u32 = 8;
const SUMS_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = 0x3f;
/// Fast commits take this many blocks unless the superblock has another number.
const FAST_BLOCKS: u32 = 256;

/// Which checksums a journal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sums {
    None,
    /// One over a transaction, in its commit block.
    Transaction,
    /// One for each block: 16 bits of it for data.
    V2,
    /// One for each block.
    V3,
}

/// What the journal's superblock says.
#[derive(Debug)]
pub(super) struct Superblock {
    /// The log is a ring of the blocks from `first` to before `end`.
    pub(super) first: u32,
    pub(super) end: u32,
    /// The blocks of fast commits, behind the ring.
    pub(super) fast: std::ops::Range<u32>,
    /// Where the log starts, and its first transaction; 0 for an empty one.
    pub(super) start: u32,
    pub(super) sequence: u32,
    /// The filesystem had an error that its own superblock may not know of.
    pub(super) errors: bool,
    pub(super) sums: Sums,
    /// What checksums start from.
    pub(super) seed: u32,
    pub(super) asynchronous: bool,
    wide: bool,
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|field| field.try_into().ok()).map_or(0, u16::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

impl Superblock {
    /// The superblock in `block`, the first of a journal that has `blocks` blocks.
    pub(super) fn parse(block: &[u8], blocks: u64) -> Result<Self> {
        let version_2 = match (be32(block, 0), be32(block, 4)) {
            (MAGIC, 3) => false,
            (MAGIC, 4) => true,
            _ => return Err(damaged("its journal has no superblock")),
        };
        let words = |at| if version_2 { be32(block, at) } else { 0 };
        let (compat, incompat, ro_compat) = (words(0x24), words(0x28), words(0x2c));
        if incompat & !KNOWN != 0 || ro_compat != 0 {
            return Err(Error::unsupported(format!(
                "the journal has features that are not known here ({incompat:#x}); mount the filesystem once in its guest"
            )));
        }
        let sums = sums(block, compat, incompat)?;
        let end = be32(block, 0x10);
        let fast = if incompat & FAST_COMMIT == 0 { 0 } else { fast_blocks(block) };
        let found = Self {
            first: be32(block, 0x14),
            end: end.saturating_sub(fast),
            fast: end.saturating_sub(fast)..end,
            start: be32(block, 0x1c),
            sequence: be32(block, 0x18),
            errors: be32(block, 0x20) != 0,
            sums,
            seed: crc32c(!0, block.get(0x30..0x40).unwrap_or_default()),
            asynchronous: incompat & ASYNC != 0,
            wide: incompat & WIDE != 0,
        };
        let ring = found.first..found.end;
        let sound = u64::from(be32(block, 0xc)) == crate::units::length(block.len())
            && u64::from(end) <= blocks
            && found.first >= 1
            && !ring.is_empty()
            && (found.start == 0 || ring.contains(&found.start));
        if !sound {
            return Err(damaged("its journal has a superblock that contradicts itself"));
        }
        Ok(found)
    }

    /// Whether blocks have checksums of their own.
    pub(super) fn has_block_sums(&self) -> bool {
        matches!(self.sums, Sums::V2 | Sums::V3)
    }

    /// Whether a descriptor or revoke block matches the checksum at its end.
    pub(super) fn tail_matches(&self, block: &[u8]) -> bool {
        let tail = block.len() - 4;
        !self.has_block_sums() || crc32c_around(self.seed, block, tail, 4) == be32(block, tail)
    }

    /// Whether a commit block matches its own checksum.
    pub(super) fn commit_matches(&self, block: &[u8]) -> bool {
        !self.has_block_sums() || crc32c_around(self.seed, block, 16, 4) == be32(block, 16)
    }

    /// The end of what a descriptor or revoke block may use.
    fn usable(&self, block: &[u8]) -> usize {
        block.len() - if self.has_block_sums() { 4 } else { 0 }
    }

    /// The blocks that a descriptor block announces, in order.
    pub(super) fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let (wide, v3) = (self.wide, self.sums == Sums::V3);
        let size = match self.sums {
            Sums::V3 => 16,
            Sums::V2 => {
                if wide {
                    14
                } else {
                    10
                }
            }
            Sums::None | Sums::Transaction => {
                if wide {
                    12
                } else {
                    8
                }
            }
        };
        let (mut tags, mut at) = (Vec::new(), 12);
        while at + size <= self.usable(block) {
            let flags = if v3 { be32(block, at + 4) } else { u32::from(be16(block, at + 6)) };
            let high = if wide { be32(block, at + 8) } else { 0 };
            let sum = if v3 { be32(block, at + 12) } else { u32::from(be16(block, at + 4)) };
            let block_number = u64::from(high) << 32 | u64::from(be32(block, at));
            tags.push(Tag { block: block_number, escaped: flags & 1 != 0, sum });
            at += size + if flags & 2 == 0 { 16 } else { 0 };
            if flags & 8 != 0 {
                break;
            }
        }
        tags
    }

    /// Whether `data`, as it stands in the log of transaction `sequence`, matches its tag.
    pub(super) fn data_matches(&self, data: &[u8], sequence: u32, tag: &Tag) -> bool {
        let sum = crc32c(crc32c(self.seed, &sequence.to_be_bytes()), data);
        match self.sums {
            Sums::None | Sums::Transaction => true,
            Sums::V2 => sum & 0xffff == tag.sum,
            Sums::V3 => sum == tag.sum,
        }
    }

    /// The blocks that a revoke block names; `None` when its length is wrong.
    pub(super) fn revoked(&self, block: &[u8]) -> Option<Vec<u64>> {
        let used = usize::try_from(be32(block, 12)).ok()?;
        let size = if self.wide { 8 } else { 4 };
        if used > self.usable(block) {
            return None;
        }
        let records = block.get(16..used)?.chunks_exact(size);
        Some(
            records
                .map(|record| if self.wide { be64(record, 0) } else { u64::from(be32(record, 0)) })
                .collect(),
        )
    }
}

/// A block that a descriptor block announces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    /// Where it belongs.
    pub(super) block: u64,
    /// Its first four bytes were those that blocks of the log start with, and are zeros here.
    pub(super) escaped: bool,
    sum: u32,
}

fn fast_blocks(block: &[u8]) -> u32 {
    match be32(block, 0x54) {
        0 => FAST_BLOCKS,
        blocks => blocks,
    }
}

fn sums(block: &[u8], compat: u32, incompat: u32) -> Result<Sums> {
    let sums = match incompat & (SUMS_V2 | SUMS_V3) {
        0 if compat & SUM_OF_TRANSACTION != 0 => return Ok(Sums::Transaction),
        0 => return Ok(Sums::None),
        SUMS_V2 => Sums::V2,
        SUMS_V3 => Sums::V3,
        _ => return Err(damaged("its journal has two kinds of checksums")),
    };
    if block[0x50] != 4 || crc32c_around(!0, &block[..LEN], CHECKSUM, 4) != be32(block, CHECKSUM) {
        return Err(damaged("the superblock of its journal does not match its checksum"));
    }
    Ok(sums)
}

/// Makes the superblock in `block` say that the log is empty, and that the next transaction is `sequence`.
pub(super) fn mark_empty(block: &mut [u8], sequence: u32, has_sum: bool) {
    block[0x18..0x1c].copy_from_slice(&sequence.to_be_bytes());
    block[0x1c..0x20].fill(0);
    // The error, if there was one, is noted in the filesystem's superblock now.
    block[0x20..0x24].fill(0);
    if has_sum {
        let sum = crc32c_around(!0, &block[..LEN], CHECKSUM, 4);
        block[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
    }
}
