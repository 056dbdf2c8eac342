//! The partition table of a disk that gets another size.
//!
//! A table is read whole and strictly: one that contradicts itself is refused, for it cannot be said what may be cut
//! then. What is to be written for another size is computed here; the caller writes it.

mod content;
mod gpt;
mod mbr;

use super::partitions::{Bytes, Partition, PartitionKind};
use crate::error::{Error, Result};
use crate::units::{GuestOffset, KIB, MIB, SECTOR, index};

pub(crate) use content::Content;

/// Partitions begin and end at multiples of this.
const GRAIN: u64 = MIB;
/// And a disk without partitions at multiples of this.
const BARE_GRAIN: u64 = 4 * KIB;

/// Bytes to be written, and where.
pub(crate) type Writes = Vec<(GuestOffset, Vec<u8>)>;

/// A partition table.
#[derive(Clone, Debug)]
pub(crate) enum Table {
    /// None: the disk is one filesystem, or empty, or something else.
    None,
    /// A GUID partition table.
    Gpt(gpt::Gpt),
    /// A master boot record.
    Mbr(mbr::Mbr),
}

/// One entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) partition: Partition,
    /// It is no partition itself but holds logical ones.
    pub(crate) is_container: bool,
}

impl Table {
    /// The table of `disk`.
    ///
    /// # Errors
    /// `Unsupported` for one that is damaged, contradicts itself, or is two at once; what reading the disk gives.
    pub(crate) fn read(disk: &dyn Bytes) -> Result<Self> {
        let mut sector = [0; index(SECTOR)];
        if disk.size() < SECTOR {
            return Ok(Self::None);
        }
        disk.read(&mut sector, GuestOffset(0))?;
        let Some(mbr) = mbr::Mbr::read(disk, &sector)? else { return Ok(Self::None) };
        if !mbr.is_protective() {
            check(mbr.slots(), disk.size())?;
            return Ok(Self::Mbr(mbr));
        }
        let gpt = gpt::Gpt::read(disk, mbr)?;
        check(gpt.slots(), disk.size())?;
        Ok(Self::Gpt(gpt))
    }

    /// Its partitions, the logical ones instead of the one that they lie in; of a disk without a table all of it, as partition 0.
    pub(crate) fn slots(&self, size: u64) -> Vec<Slot> {
        match self {
            Self::Gpt(gpt) => gpt.slots().to_vec(),
            Self::Mbr(mbr) => mbr.slots().to_vec(),
            Self::None => {
                let kind = PartitionKind::Mbr(0);
                let partition = Partition { number: 0, start: GuestOffset(0), len: size, kind };
                vec![Slot { partition, is_container: false }]
            }
        }
    }

    /// The first byte that no partition of a disk of `size` bytes can have.
    pub(crate) fn room(&self, size: u64) -> u64 {
        match self {
            Self::None => size,
            Self::Mbr(_) => size.min(mbr::LARGEST),
            Self::Gpt(gpt) => size.saturating_sub(gpt.reserve()),
        }
    }

    /// The least size of a disk whose partitions end before byte `end`.
    pub(crate) fn least(&self, end: u64) -> u64 {
        match self {
            Self::None | Self::Mbr(_) => end.next_multiple_of(self.grain()),
            Self::Gpt(gpt) => (end + gpt.reserve()).next_multiple_of(self.grain()),
        }
    }

    /// Where a partition ends that takes all the room of a disk of `size` bytes.
    pub(crate) fn last_end(&self, size: u64) -> u64 {
        match self {
            Self::None => size,
            _ => self.room(size) / GRAIN * GRAIN,
        }
    }

    /// What lies last ends at a multiple of this.
    pub(crate) fn grain(&self) -> u64 {
        match self {
            Self::None => BARE_GRAIN,
            Self::Gpt(_) | Self::Mbr(_) => GRAIN,
        }
    }

    /// The unit in which the table counts, in bytes.
    pub(crate) fn sector(&self) -> u64 {
        match self {
            Self::None | Self::Mbr(_) => SECTOR,
            Self::Gpt(gpt) => gpt.sector(),
        }
    }

    /// What to write to `disk` for it to have `size` bytes, with partition `change.0` ending at byte `change.1`.
    ///
    /// # Errors
    /// What reading the disk gives.
    pub(crate) fn rewrite(&self, disk: &dyn Bytes, size: u64, change: Option<(u32, u64)>) -> Result<Writes> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Mbr(mbr) => mbr.rewrite(disk, (self.room(size), self.last_end(size)), change),
            Self::Gpt(gpt) => gpt.rewrite(disk, size, change),
        }
    }
}

/// Refuses partitions that lie outside of the disk or over each other: what such a table means is anybody's guess.
fn check(slots: &[Slot], size: u64) -> Result<()> {
    let mut ends = 0;
    let mut sorted: Vec<&Partition> = slots.iter().map(|slot| &slot.partition).collect();
    sorted.sort_by_key(|partition| partition.start);
    for partition in sorted {
        if partition.start.0 < ends || partition.end().0 > size {
            return Err(contradicts(partition.number));
        }
        ends = partition.end().0;
    }
    Ok(())
}

fn contradicts(number: u32) -> Error {
    Error::unsupported(format!(
        "its partition table contradicts itself: partition {number} lies over another one or outside of the disk; \
         mend the table first"
    ))
}

/// The entry from byte `first * sector` up to, not including, `(last + 1) * sector`.
fn slot(
    number: u32,
    kind: PartitionKind,
    sector: u64,
    (first, last): (u64, u64),
    is_container: bool,
) -> Result<Slot> {
    let bytes = || {
        let start = first.checked_mul(sector)?;
        let end = last.checked_add(1)?.checked_mul(sector)?;
        end.checked_sub(start).filter(|len| *len > 0 && start > 0).map(|len| (start, len))
    };
    let (start, len) = bytes().ok_or_else(|| contradicts(number))?;
    let partition = Partition { number, start: GuestOffset(start), len, kind };
    Ok(Slot { partition, is_container })
}

#[cfg(test)]
mod tests;
