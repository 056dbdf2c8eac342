//! FAT12, FAT16 and FAT32: clusters whose entry in the table is zero.
//!
//! There is no checksum, but there are mostly two copies of the table. Both must be the same, every chain must go on in
//! clusters that are in use, none may share a cluster, and each folder entry must start a chain.
//!
//! Layout: Microsoft's FAT specification 1.03; the marks of a mount as Linux 6.1 sets them.

mod folders;

use super::ranges::Ranges;
use super::{Found, left};
use crate::error::Result;
use crate::guestfs::bits::Bits;
use crate::guestfs::fat::{Layout, damaged};
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, index, length};

/// How much of a table is read at once: a multiple of 3 and of 4 bytes, so that no entry is cut.
const PIECE: u64 = 3 << 18;
const NOT_IN_ORDER: &str = "it was not unmounted, or had errors; check it in its guest first";

/// What is free of the filesystem in `bytes`.
pub(super) fn free(bytes: &impl Bytes, mut ranges: Ranges) -> Result<Found> {
    let boot = Layout::read(bytes)?;
    if boot.state & 3 != 0 {
        return left(NOT_IN_ORDER);
    }
    let chains = Chains::read(bytes, &boot)?;
    folders::check(bytes, &boot, &chains)?;
    for cluster in 2..boot.end {
        if !chains.used.has(cluster) {
            let start = boot.at(cluster);
            ranges.add(start, start + boot.cluster);
        }
    }
    Ok(Found::Free(ranges.finish()))
}

/// What the table says of the clusters, a bit for each: at most 64 MiB.
#[derive(Debug)]
struct Chains {
    /// In use, or bad.
    used: Bits,
    /// Another cluster goes on in this one.
    inner: Bits,
}

impl Chains {
    fn read(bytes: &impl Bytes, boot: &Layout) -> Result<Self> {
        let mut chains = Self { used: Bits::new(boot.end), inner: Bits::new(boot.end) };
        let len = boot.width.bytes(boot.end);
        let (mut at, mut number) = (0, 0);
        let (mut piece, mut copy) = (Vec::new(), Vec::new());
        while at < len {
            let part = index((len - at).min(PIECE));
            piece.resize(part, 0);
            bytes.read(&mut piece, GuestOffset(boot.table + at))?;
            for other in 1..boot.tables {
                copy.resize(part, 0);
                bytes.read(&mut copy, GuestOffset(boot.table + other * boot.table_len + at))?;
                if copy != piece {
                    return left("the copies of its table differ; check it in its guest");
                }
            }
            while number < boot.end && boot.width.bytes(number + 1) <= at + length(part) {
                chains.take(boot, number, boot.width.entry(&piece, number, at))?;
                number += 1;
            }
            at += length(part);
        }
        match (2..boot.end).find(|cluster| chains.inner.has(*cluster) && !chains.used.has(*cluster)) {
            None => Ok(chains),
            Some(cluster) => {
                Err(damaged(format_args!("cluster {cluster} is free, and in the midst of a file")))
            }
        }
    }

    /// Takes entry `number` of the table.
    fn take(&mut self, boot: &Layout, number: u32, entry: u32) -> Result<()> {
        let most = boot.width.most();
        match number {
            0 if entry != (most & !0xff | u32::from(boot.medium)) => {
                return Err(damaged("its table does not start as one"));
            }
            1 if entry < (most & !boot.width.clean()) - 7 => {
                return Err(damaged("its table does not start as one"));
            }
            1 if entry & boot.width.clean() != boot.width.clean() => {
                return left(NOT_IN_ORDER);
            }
            0 | 1 => return Ok(()),
            _ if entry == 0 => return Ok(()),
            _ => (),
        }
        self.used.set(number);
        // The end of a file, or a bad cluster.
        if entry >= most - 8 {
            return Ok(());
        }
        if !(2..boot.end).contains(&entry) || entry == number {
            return Err(damaged(format_args!("cluster {number} leads to {entry}, which it does not have")));
        }
        if !self.inner.set(entry) {
            return Err(damaged(format_args!("two clusters lead to cluster {entry}")));
        }
        Ok(())
    }
}
