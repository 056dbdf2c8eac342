//! FAT12, FAT16 and FAT32: clusters whose entry in the table is zero.
//!
//! There is no checksum, but there are mostly two copies of the table. Both must be the same, every chain must go on in
//! clusters that are in use, none may share a cluster, and each folder entry must start a chain.
//!
//! Layout: Microsoft's FAT specification 1.03; the marks of a mount as Linux 6.1 sets them.

mod boot;
mod folders;

use super::ranges::Ranges;
use super::{Found, left};
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, index, length};
pub(super) use boot::is_boot_sector;
use boot::{Boot, Width};

/// How much of a table is read at once: a multiple of 3 and of 4 bytes, so that no entry is cut.
const PIECE: u64 = 3 << 18;

/// What is free of the filesystem in `bytes`.
pub(super) fn free(bytes: &impl Bytes, mut ranges: Ranges) -> Result<Found> {
    let boot = Boot::read(bytes)?;
    let chains = Chains::read(bytes, &boot)?;
    folders::check(bytes, &boot, &chains)?;
    for cluster in 2..boot.end {
        if !chains.used.has(cluster) {
            let start = boot.place(cluster);
            ranges.add(start, start + boot.cluster);
        }
    }
    Ok(Found::Free(ranges.finish()))
}

/// A filesystem that breaks its format.
fn damaged(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("the FAT filesystem is damaged: {what}; check it in its guest"))
}

/// A bit for each cluster: at most 32 MiB.
#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u32) -> Self {
        Self(vec![0; index(u64::from(count).div_ceil(64))])
    }

    fn has(&self, number: u32) -> bool {
        self.0.get(index(u64::from(number / 64))).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Sets a bit; whether it was clear.
    fn set(&mut self, number: u32) -> bool {
        let Some(word) = self.0.get_mut(index(u64::from(number / 64))) else { return false };
        let was_clear = *word >> (number % 64) & 1 == 0;
        *word |= 1 << (number % 64);
        was_clear
    }
}

/// What the table says of the clusters.
#[derive(Debug)]
struct Chains {
    /// In use, or bad.
    used: Bits,
    /// Another cluster goes on in this one.
    inner: Bits,
}

impl Chains {
    fn read(bytes: &impl Bytes, boot: &Boot) -> Result<Self> {
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
    fn take(&mut self, boot: &Boot, number: u32, entry: u32) -> Result<()> {
        let most = boot.width.most();
        match number {
            0 if entry != (most & !0xff | u32::from(boot.medium)) => {
                return Err(damaged("its table does not start as one"));
            }
            1 if entry < (most & !boot.width.clean()) - 7 => {
                return Err(damaged("its table does not start as one"));
            }
            1 if entry & boot.width.clean() != boot.width.clean() => {
                return left("it was not unmounted, or had errors; check it in its guest first");
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

impl Width {
    /// How many bytes `count` entries take.
    fn bytes(self, count: u32) -> u64 {
        (u64::from(count) * self.bits()).div_ceil(8)
    }

    /// Entry `number` in a piece of the table from byte `at` on.
    fn entry(self, piece: &[u8], number: u32, at: u64) -> u32 {
        let place = index(u64::from(number) * self.bits() / 8 - at);
        match self {
            Self::Twelve => {
                let pair = u32::from(u16_at(piece, place));
                if number.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            Self::Sixteen => u32::from(u16_at(piece, place)),
            Self::ThirtyTwo => u32_at(piece, place) & 0x0fff_ffff,
        }
    }
}
