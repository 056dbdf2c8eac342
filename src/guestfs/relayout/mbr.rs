//! A master boot record: its four entries, and one of them with another end.

use super::{Slot, Writes, slot};
use crate::error::Result;
use crate::guestfs::mbr::Table;
use crate::guestfs::partitions::{PartitionKind, u32_at};
use crate::units::{GuestOffset, SECTOR, index};

/// The first byte that no entry can reach.
pub(super) const LARGEST: u64 = (1 << 32) * SECTOR;
/// Where the entries begin, and the bytes of one.
const ENTRIES: usize = 446;
const ENTRY: usize = 16;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;
/// What a disk in a file is said to have, for programs that still count so.
const HEADS: u64 = 255;
const SECTORS: u64 = 63;

/// A boot record.
#[derive(Clone, Debug)]
pub(crate) struct Mbr {
    sector: [u8; index(SECTOR)],
    slots: Vec<Slot>,
    protective: Option<usize>,
}

impl Mbr {
    /// The boot record in a disk's first sector; none when it has no entries, as that of a filesystem.
    ///
    /// # Errors
    /// `Unsupported` for an entry that no disk can have.
    pub(super) fn parse(sector: &[u8; index(SECTOR)], size: u64) -> Result<Option<Self>> {
        if Table::parse(sector).is_none() {
            return Ok(None);
        }
        let mut mbr = Self { sector: *sector, slots: Vec::new(), protective: None };
        for (place, number) in (0..4).zip(1..) {
            let entry = mbr.entry(place);
            let (kind, first, count) = (entry[4], u64::from(u32_at(entry, 8)), u64::from(u32_at(entry, 12)));
            if kind == 0 || count == 0 {
                continue;
            }
            if kind == PROTECTIVE {
                // Programs write more sectors into it than the disk has.
                mbr.protective = Some(place);
                continue;
            }
            let found = slot(
                number,
                PartitionKind::Mbr(kind),
                SECTOR,
                (first, first + count - 1),
                EXTENDED.contains(&kind),
            )?;
            mbr.slots.push(found);
        }
        let used = mbr.protective.is_some() || !mbr.slots.is_empty();
        Ok((used && size > SECTOR).then_some(mbr))
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Whether it guards a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.protective.is_some()
    }

    fn entry(&self, place: usize) -> &[u8] {
        &self.sector[ENTRIES + place * ENTRY..][..ENTRY]
    }

    /// The boot record with the entry of partition `change.0` ending at byte `change.1`.
    pub(super) fn rewrite(&self, change: Option<(u32, u64)>) -> Writes {
        let Some((number, end)) = change else { return Vec::new() };
        let mut sector = self.sector;
        let place = ENTRIES + (index(u64::from(number)) - 1) * ENTRY;
        let entry = &mut sector[place..place + ENTRY];
        let first = u64::from(u32_at(entry, 8));
        let last = (end / SECTOR).saturating_sub(1);
        entry[5..8].copy_from_slice(&cylinder_head_sector(last));
        entry[12..16].copy_from_slice(&low(last + 1 - first));
        vec![(GuestOffset(0), sector.to_vec())]
    }

    /// The boot record with a protective entry for a disk of `total` sectors.
    pub(super) fn guarding(&self, total: u64) -> Writes {
        let Some(place) = self.protective else { return Vec::new() };
        let mut sector = self.sector;
        let place = ENTRIES + place * ENTRY;
        let first = u64::from(u32_at(&sector[place..], 8));
        sector[place + 12..place + 16].copy_from_slice(&low(total.saturating_sub(first)));
        vec![(GuestOffset(0), sector.to_vec())]
    }
}

/// The number, or the largest that an entry can hold.
fn low(count: u64) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes()
}

/// A sector in the form of old disks: head, sector and cylinder; the last one that can be said for those behind it.
fn cylinder_head_sector(sector: u64) -> [u8; 3] {
    let (cylinder, rest) = (sector / (HEADS * SECTORS), sector % (HEADS * SECTORS));
    let (cylinder, head, sector) = match cylinder {
        0..1024 => (cylinder, rest / SECTORS, rest % SECTORS + 1),
        _ => (1023, HEADS - 1, SECTORS),
    };
    let byte = |value: u64| value.to_le_bytes()[0];
    [byte(head), byte(sector | cylinder >> 2 & 0xc0), byte(cylinder)]
}
