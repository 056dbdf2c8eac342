//! Master boot records, with the chain of extended boot records that holds logical partitions.
//!
//! Sector numbers are 32 bits wide on the disk and 64 bits wide here, so that no sum of two of them overflows.

use super::partitions::{Bytes, Partition, PartitionKind, inside, u32_at};
use crate::error::Result;
use crate::units::{GuestOffset, SECTOR, index};
use std::ops::Range;

/// Most extended boot records that are followed: a chain that loops ends here.
const LONGEST_CHAIN: u32 = 128;
/// The number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// One of the four entries of a boot record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: u8,
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Entry {
    pub(super) fn is_used(self) -> bool {
        self.kind != 0 && self.count > 0
    }

    pub(super) fn is_extended(self) -> bool {
        self.is_used() && EXTENDED.contains(&self.kind)
    }

    pub(super) fn is_protective(self) -> bool {
        self.kind == PROTECTIVE
    }
}

/// The four entries of a boot record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table(pub(super) [Entry; 4]);

/// Where an entry stands: the sector of its boot record, and its number there, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) sector: u64,
    pub(super) entry: usize,
}

/// A logical partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Logical {
    pub(super) partition: Partition,
    /// Its entry, which is counted from its own record.
    pub(super) entry: Place,
    /// The entry that leads to that record, counted from the extended partition; none leads to the first one.
    pub(super) link: Option<Place>,
}

/// A table that leaves no doubt.
#[derive(Clone, Debug, Default)]
pub(super) struct Strict {
    /// In the order of their places.
    pub(super) partitions: Vec<Partition>,
    /// Those of them that are logical, as the chain has them.
    pub(super) logical: Vec<Logical>,
}

impl Table {
    /// The table in `sector`; `None` when it is not a boot record.
    ///
    /// A boot flag is 0 or 0x80: anything else means that there is code, as in the boot sector of a FAT filesystem.
    pub(super) fn parse(sector: &[u8; 512]) -> Option<Self> {
        if !sector.ends_with(&[0x55, 0xaa]) {
            return None;
        }
        let mut entries = [Entry { kind: 0, first: 0, count: 0 }; 4];
        for (entry, bytes) in entries.iter_mut().zip(sector[446..510].chunks_exact(16)) {
            if bytes[0] & 0x7f != 0 {
                return None;
            }
            let (first, count) = (u64::from(u32_at(bytes, 8)), u64::from(u32_at(bytes, 12)));
            *entry = Entry { kind: bytes[4], first, count };
        }
        Some(Self(entries))
    }

    /// Whether it only guards a GPT (or mirrors parts of one).
    pub(super) fn is_protective(&self) -> bool {
        self.0.iter().any(|entry| entry.is_protective())
    }

    /// Whether it guards a GPT and does nothing else.
    pub(super) fn is_plainly_protective(&self) -> bool {
        let mut used = self.0.iter().filter(|entry| entry.is_used());
        used.next().is_some_and(|entry| entry.is_protective() && entry.first == 1) && used.next().is_none()
    }

    /// Whether it has no partition at all.
    pub(super) fn is_empty(&self) -> bool {
        !self.0.iter().any(|entry| entry.is_used())
    }
}

/// The partitions of `table`, if it leaves no doubt: all lie inside the disk, nothing overlaps anything, and the chain
/// of logical partitions is in order.
pub(super) fn strict(disk: &dyn Bytes, table: &Table) -> Result<Option<Strict>> {
    let mut taken: Vec<Range<u64>> = std::iter::once(0..1).collect();
    for entry in table.0.into_iter().filter(|entry| entry.is_used()) {
        taken.push(entry.first..entry.first + entry.count);
    }
    let extended: Vec<Entry> = table.0.into_iter().filter(|entry| entry.is_extended()).collect();
    let logical = match extended[..] {
        [] => Some(Vec::new()),
        [extended] => chain(disk, extended)?,
        _ => None,
    };
    let Some(logical) = logical.filter(|_| are_apart(taken, disk)) else { return Ok(None) };
    let Some(mut partitions) = primary(disk, table).collect::<Option<Vec<_>>>() else { return Ok(None) };
    partitions.extend(logical.iter().map(|logical| logical.partition));
    partitions.sort_by_key(|partition| partition.start);
    Ok(Some(Strict { partitions, logical }))
}

/// The logical partitions of `extended`; `None` when there is any doubt.
fn chain(disk: &dyn Bytes, extended: Entry) -> Result<Option<Vec<Logical>>> {
    let end = extended.first + extended.count;
    let (mut taken, mut found) = (Vec::new(), Vec::new());
    let (mut record, mut link, mut number) = (extended.first, None, FIRST_LOGICAL);
    for _ in 0..LONGEST_CHAIN {
        let Some(table) = read_record(disk, record)? else { return Ok(None) };
        taken.push(record..record + 1);
        let used = || (0..).zip(table.0).filter(|(_, entry)| entry.is_used());
        let mut links = used().filter(|(_, entry)| entry.is_extended());
        let mut partitions = used().filter(|(_, entry)| !entry.is_extended());
        if let Some((entry, of)) = partitions.next() {
            let first = record + of.first;
            taken.push(first..first + of.count);
            let Some(partition) = partition(disk, number, of, record) else { return Ok(None) };
            found.push(Logical { partition, entry: Place { sector: record, entry }, link });
            number += 1;
        }
        let next = links.next();
        if partitions.next().is_some() || links.next().is_some() {
            return Ok(None);
        }
        let Some((entry, next)) = next else {
            let inside = taken.iter().all(|range| range.start >= extended.first && range.end <= end);
            return Ok((inside && are_apart(taken, disk)).then_some(found));
        };
        link = Some(Place { sector: record, entry });
        record = extended.first + next.first;
    }
    Ok(None)
}

/// Whether the sectors lie inside the disk and none is in two ranges.
fn are_apart(mut ranges: Vec<Range<u64>>, disk: &dyn Bytes) -> bool {
    ranges.sort_by_key(|range| range.start);
    let inside = ranges.last().is_none_or(|last| last.end <= disk.size() / SECTOR);
    inside && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

/// The primary partitions of `table` and the logical ones behind it that lie inside the disk.
pub(super) fn entries(disk: &dyn Bytes, table: &Table) -> Result<Vec<Partition>> {
    let mut found: Vec<Partition> = primary(disk, table).flatten().collect();
    if let Some(extended) = table.0.into_iter().find(|entry| entry.is_extended()) {
        follow(disk, extended, &mut found)?;
    }
    Ok(found)
}

/// The primary partitions of `table`; `None` for one that does not lie inside the disk.
fn primary<'a>(disk: &'a dyn Bytes, table: &Table) -> impl Iterator<Item = Option<Partition>> + use<'a> {
    let used = (1..).zip(table.0).filter(|(_, entry)| entry.is_used() && !entry.is_extended());
    used.map(|(number, entry)| partition(disk, number, entry, 0))
}

/// Adds the logical partitions of `extended` to `found`. Each record holds one of them, placed relative to the record,
/// and a link to the next record, placed relative to the extended partition.
fn follow(disk: &dyn Bytes, extended: Entry, found: &mut Vec<Partition>) -> Result<()> {
    let end = extended.first + extended.count;
    let mut record = extended.first;
    let mut number = FIRST_LOGICAL;
    for _ in 0..LONGEST_CHAIN {
        let Some(table) = read_record(disk, record)? else { return Ok(()) };
        for entry in table.0.into_iter().filter(|entry| entry.is_used() && !entry.is_extended()) {
            if record + entry.first + entry.count <= end && entry.first > 0 {
                found.extend(partition(disk, number, entry, record));
            }
            number += 1;
        }
        let Some(link) = table.0.into_iter().find(|entry| entry.is_extended()) else { return Ok(()) };
        record = extended.first + link.first;
        if link.first == 0 || record >= end {
            return Ok(());
        }
    }
    Ok(())
}

fn read_record(disk: &dyn Bytes, lba: u64) -> Result<Option<Table>> {
    let at = lba * SECTOR;
    if lba == 0 || at + SECTOR > disk.size() {
        return Ok(None);
    }
    let mut sector = [0; index(SECTOR)];
    disk.read(&mut sector, GuestOffset(at))?;
    Ok(Table::parse(&sector))
}

fn partition(disk: &dyn Bytes, number: u32, entry: Entry, relative_to: u64) -> Option<Partition> {
    if entry.first == 0 {
        return None;
    }
    inside(disk, number, PartitionKind::Mbr(entry.kind), SECTOR, relative_to + entry.first, entry.count)
}
