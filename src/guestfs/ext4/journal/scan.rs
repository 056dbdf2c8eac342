//! The log, transaction by transaction.

use super::area::Area;
use super::format::{COMMIT, DESCRIPTOR, MAGIC, REVOKE, Sums, Superblock, Tag, be32, be64};
use crate::error::{Error, Result};
use crate::guestfs::ext4::checksum::crc32_be;
use crate::guestfs::ext4::damaged;
use crate::guestfs::partitions::Bytes;
use std::collections::HashMap;

/// Most blocks that are remembered as revoked: some 100 MiB of memory.
const MOST_REVOKED: usize = 4 << 20;

/// A transaction that was committed.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Its number, which wraps.
    pub(super) sequence: u32,
    /// The blocks that it wrote, with the place of their content in the journal.
    pub(super) writes: Vec<(Tag, u32)>,
}

/// What the log holds.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// In order.
    pub(super) transactions: Vec<Transaction>,
    /// The last transaction that revoked each block: no write up to and in that one brings it back.
    pub(super) revoked: HashMap<u64, u32>,
}

/// Where the scan is.
struct Scan<'a, B> {
    area: &'a Area<'a, B>,
    superblock: &'a Superblock,
    /// The next block of the ring, and how many of it are left: no log is longer than the ring.
    at: u32,
    left: u32,
    /// When the last transaction was committed, in seconds.
    committed: u64,
    log: Log,
}

/// A transaction whose commit block is still to come.
struct Pending {
    transaction: Transaction,
    revoked: Vec<u64>,
    /// A block does not match its checksum: it may be one of the last round, if no newer commit block follows.
    doubtful: bool,
    /// The checksum over all its blocks.
    sum: u32,
}

/// What was committed, in order. A log of the last round may follow the real one: its numbers do not fit.
pub(super) fn read<B: Bytes>(area: &Area<'_, B>, superblock: &Superblock) -> Result<Log> {
    let left = if superblock.start == 0 { 0 } else { superblock.end - superblock.first };
    let mut scan = Scan { area, superblock, at: superblock.start, left, committed: 0, log: Log::default() };
    let mut sequence = superblock.sequence;
    while scan.transaction(sequence)? {
        sequence = sequence.wrapping_add(1);
    }
    Ok(scan.log)
}

impl<B: Bytes> Scan<'_, B> {
    /// Reads transaction `sequence`; false when the log ends before its commit block.
    fn transaction(&mut self, sequence: u32) -> Result<bool> {
        let transaction = Transaction { sequence, ..Transaction::default() };
        let mut pending = Pending { transaction, revoked: Vec::new(), doubtful: false, sum: !0 };
        while let Some(block) = self.next_block()? {
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            match be32(&block, 4) {
                DESCRIPTOR => {
                    if !self.take_writes(&block, &mut pending)? {
                        break;
                    }
                }
                REVOKE => self.take_revoked(&block, &mut pending)?,
                COMMIT => return self.commit(&block, pending),
                _ => break,
            }
        }
        Ok(false)
    }

    /// The content of the next block of the ring; `None` behind a whole round.
    fn next_block(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(number) = self.step() else { return Ok(None) };
        self.area.read(number).map(Some)
    }

    fn step(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let number = self.at;
        self.at = if number + 1 >= self.superblock.end { self.superblock.first } else { number + 1 };
        Some(number)
    }

    /// Notes what a descriptor block announces; false when the ring ends before its data do.
    fn take_writes(&mut self, block: &[u8], pending: &mut Pending) -> Result<bool> {
        let has_sum = self.superblock.sums == Sums::Transaction;
        pending.doubtful |= !self.superblock.tail_matches(block);
        if has_sum {
            pending.sum = crc32_be(pending.sum, block);
        }
        for tag in self.superblock.tags(block) {
            let Some(number) = self.step() else { return Ok(false) };
            if has_sum {
                pending.sum = crc32_be(pending.sum, &self.area.read(number)?);
            }
            pending.transaction.writes.push((tag, number));
        }
        Ok(true)
    }

    fn take_revoked(&mut self, block: &[u8], pending: &mut Pending) -> Result<()> {
        let revoked = self.superblock.revoked(block).filter(|_| self.superblock.tail_matches(block));
        pending.doubtful |= revoked.is_none();
        pending.revoked.extend(revoked.unwrap_or_default());
        if self.log.revoked.len() + pending.revoked.len() > MOST_REVOKED {
            return Err(Error::unsupported(format!(
                "the journal revokes more than {MOST_REVOKED} blocks; mount the filesystem once in its guest"
            )));
        }
        Ok(())
    }

    fn commit(&mut self, block: &[u8], pending: Pending) -> Result<bool> {
        let time = be64(block, 0x30);
        let sequence = pending.transaction.sequence;
        let matches = match self.superblock.sums {
            Sums::None => true,
            Sums::Transaction => transaction_matches(block, pending.sum),
            Sums::V2 | Sums::V3 => self.superblock.commit_matches(block) && !pending.doubtful,
        };
        if matches {
            self.committed = time;
            self.log.transactions.push(pending.transaction);
            self.log.revoked.extend(pending.revoked.into_iter().map(|block| (block, sequence)));
            return Ok(true);
        }
        // An older time: the log has been round, and this is what stood here before. With commits that do not wait for
        // their data, a crash leaves this as well.
        if time < self.committed || self.superblock.asynchronous {
            return Ok(false);
        }
        Err(damaged(format_args!(
            "transaction {sequence} of its journal was committed and does not match its checksum"
        )))
    }
}

/// Whether the sum over a transaction's blocks is the one in its commit block; those without one have zeros there.
fn transaction_matches(block: &[u8], sum: u32) -> bool {
    const CRC32: u8 = 1;
    let (kind, size, kept) = (block[12], block[13], be32(block, 16));
    (kind == CRC32 && size == 4 && kept == sum) || (kind == 0 && size == 0 && kept == 0)
}
