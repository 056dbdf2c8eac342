//! A master boot record: its four entries, and one of them with another end; or a logical partition, and with it the extended one
//! that it lies in.

use super::{Slot, Writes, slot};
use crate::error::Result;
use crate::guestfs::mbr::{Entry, Logical, Place, Table, strict};
use crate::guestfs::partitions::{Bytes, PartitionKind, u32_at};
use crate::units::{GuestOffset, SECTOR, index};

/// The first byte that no entry can reach.
pub(super) const LARGEST: u64 = (1 << 32) * SECTOR;
/// Where the entries begin, and the bytes of one.
const ENTRIES: usize = 446;
const ENTRY: usize = 16;
/// What a disk in a file is said to have, for programs that still count so.
const HEADS: u64 = 255;
const SECTORS: u64 = 63;

type Sector = [u8; index(SECTOR)];

/// A boot record.
#[derive(Clone, Debug)]
pub(crate) struct Mbr {
    sector: Sector,
    slots: Vec<Slot>,
    protective: Option<usize>,
    extended: Option<Extended>,
}

/// An extended partition whose logical ones leave no doubt.
#[derive(Clone, Debug)]
struct Extended {
    /// Its number among the four entries, from 0 on.
    place: usize,
    entry: Entry,
    logical: Vec<Logical>,
}

impl Extended {
    fn end(&self) -> u64 {
        (self.entry.first + self.entry.count) * SECTOR
    }
}

impl Mbr {
    /// The boot record in `sector`, the disk's first; none when it has no entries, as that of a filesystem.
    ///
    /// # Errors
    /// `Unsupported` for an entry that no disk can have; the disk's.
    pub(super) fn read(disk: &dyn Bytes, sector: &Sector) -> Result<Option<Self>> {
        let Some(table) = Table::parse(sector) else { return Ok(None) };
        let mut mbr = Self { sector: *sector, slots: Vec::new(), protective: None, extended: None };
        let logical = strict(disk, &table)?.unwrap_or_default().logical;
        for ((place, entry), number) in table.0.into_iter().enumerate().zip(1..) {
            if !entry.is_used() {
                continue;
            }
            if entry.is_protective() {
                // Programs write more sectors into it than the disk has.
                mbr.protective = Some(place);
                continue;
            }
            if entry.is_extended() && !logical.is_empty() {
                mbr.extended = Some(Extended { place, entry, logical: logical.clone() });
                continue;
            }
            let sectors = (entry.first, entry.first + entry.count - 1);
            let kind = PartitionKind::Mbr(entry.kind);
            mbr.slots.push(slot(number, kind, SECTOR, sectors, entry.is_extended())?);
        }
        let logical = logical.into_iter().map(|logical| logical.partition);
        mbr.slots.extend(logical.map(|partition| Slot { partition, is_container: false }));
        let used = mbr.protective.is_some() || !mbr.slots.is_empty();
        Ok((used && disk.size() > SECTOR).then_some(mbr))
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Whether it guards a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.protective.is_some()
    }

    /// The boot records with the entry of partition `change.0` ending at byte `change.1`. An extended partition reaches as far as
    /// what is in it; one that lies behind byte `room` ends at `end`, or where that does.
    pub(super) fn rewrite(
        &self,
        disk: &dyn Bytes,
        (room, end): (u64, u64),
        change: Option<(u32, u64)>,
    ) -> Result<Writes> {
        let (mut writes, mut first) = (Vec::new(), self.sector);
        let logical = self.extended.iter().flat_map(|extended| &extended.logical);
        let changed =
            |logical: &&Logical| change.is_some_and(|(number, _)| number == logical.partition.number);
        match (change, logical.clone().find(changed)) {
            (Some((_, end)), Some(logical)) => {
                let extended = self.extended.as_ref().map_or(0, |extended| extended.entry.first);
                writes.push(with_end(disk, logical.entry, logical.entry.sector, end)?);
                if let Some(link) = logical.link {
                    writes.push(with_end(disk, link, extended, end)?);
                }
            }
            (Some((number, end)), None) => set_end(&mut first, index(u64::from(number)) - 1, 0, end),
            (None, _) => {}
        }
        if let Some(extended) = &self.extended {
            let ends = logical.map(|logical| match change {
                Some((number, end)) if number == logical.partition.number => end,
                _ => logical.partition.end().0,
            });
            let inner = ends.max().unwrap_or(0);
            let reach = if extended.end() > room { end } else { extended.end() };
            if reach.max(inner) != extended.end() {
                set_end(&mut first, extended.place, 0, reach.max(inner));
            }
        }
        if first != self.sector {
            writes.push((GuestOffset(0), first.to_vec()));
        }
        Ok(writes)
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

/// A boot record of the chain in which an entry, counted from sector `base`, ends at byte `end`.
fn with_end(disk: &dyn Bytes, place: Place, base: u64, end: u64) -> Result<(GuestOffset, Vec<u8>)> {
    let (at, mut sector) = (GuestOffset(place.sector * SECTOR), [0; index(SECTOR)]);
    disk.read(&mut sector, at)?;
    set_end(&mut sector, place.entry, base, end);
    Ok((at, sector.to_vec()))
}

/// Makes an entry of a boot record, counted from sector `base`, end at byte `end`.
fn set_end(sector: &mut Sector, place: usize, base: u64, end: u64) {
    let entry = &mut sector[ENTRIES + place * ENTRY..][..ENTRY];
    let first = base + u64::from(u32_at(entry, 8));
    let last = (end / SECTOR).saturating_sub(1);
    entry[5..8].copy_from_slice(&cylinder_head_sector(last));
    entry[12..16].copy_from_slice(&low((last + 1).saturating_sub(first)));
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
