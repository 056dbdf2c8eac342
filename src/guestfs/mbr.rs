//! Master boot records, with the chain of extended boot records that holds logical partitions.
//!
//! Sector numbers are 32 bits wide on the disk and 64 bits wide here, so that no sum of two of them overflows.

use super::partitions::{Bytes, Partition, PartitionKind, inside, u32_at};
use crate::error::Result;
use crate::units::{GuestOffset, SECTOR, index};
use std::ops::Range;

/// Most extended boot records that are followed: a chain that loops ends here.
const LONGEST_CHAIN: u32 = 128;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// One of the four entries of a boot record.
#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    first: u64,
    count: u64,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.count > 0
    }

    fn is_extended(self) -> bool {
        self.is_used() && EXTENDED.contains(&self.kind)
    }
}

/// The four entries of a boot record.
pub(super) struct Table([Entry; 4]);

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
        self.0.iter().any(|entry| entry.kind == PROTECTIVE)
    }

    /// Whether it guards a GPT and does nothing else.
    pub(super) fn is_plainly_protective(&self) -> bool {
        let mut used = self.0.iter().filter(|entry| entry.is_used());
        used.next().is_some_and(|entry| entry.kind == PROTECTIVE && entry.first == 1) && used.next().is_none()
    }

    /// Whether it has no partition at all.
    pub(super) fn is_empty(&self) -> bool {
        !self.0.iter().any(|entry| entry.is_used())
    }
}

/// The partitions of `table`, if it leaves no doubt: all lie inside the disk, nothing overlaps anything, and the chain
/// of logical partitions is in order. Sorted by their places.
pub(super) fn strict(disk: &dyn Bytes, table: &Table) -> Result<Option<Vec<Partition>>> {
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
    let mut found = entries(disk, table)?;
    let primary = table.0.iter().filter(|entry| entry.is_used() && !entry.is_extended()).count();
    found.sort_by_key(|partition| partition.start);
    Ok((found.len() == primary + logical.len()).then_some(found))
}

/// Where the logical partitions of `extended` lie, in sectors; `None` when there is any doubt.
fn chain(disk: &dyn Bytes, extended: Entry) -> Result<Option<Vec<Range<u64>>>> {
    let end = extended.first + extended.count;
    let (mut taken, mut found) = (Vec::new(), Vec::new());
    let mut record = extended.first;
    for _ in 0..LONGEST_CHAIN {
        let Some(table) = read_record(disk, record)? else { return Ok(None) };
        taken.push(record..record + 1);
        let used: Vec<Entry> = table.0.into_iter().filter(|entry| entry.is_used()).collect();
        let partitions: Vec<_> = used.iter().filter(|entry| !entry.is_extended()).collect();
        if partitions.len() > 1 || used.len() > partitions.len() + 1 {
            return Ok(None);
        }
        found.extend(partitions.iter().map(|entry| record + entry.first..record + entry.first + entry.count));
        let Some(link) = used.iter().find(|entry| entry.is_extended()) else {
            taken.extend(found.iter().cloned());
            let inside = taken.iter().all(|range| range.start >= extended.first && range.end <= end);
            return Ok((inside && are_apart(taken, disk)).then_some(found));
        };
        record = extended.first + link.first;
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
    let mut found = Vec::new();
    let primary = (1..).zip(table.0).filter(|(_, entry)| entry.is_used() && !entry.is_extended());
    found.extend(primary.filter_map(|(number, entry)| partition(disk, number, entry, 0)));
    if let Some(extended) = table.0.into_iter().find(|entry| entry.is_extended()) {
        follow(disk, extended, &mut found)?;
    }
    Ok(found)
}

/// Adds the logical partitions of `extended` to `found`. Each record holds one of them, placed relative to the record,
/// and a link to the next record, placed relative to the extended partition.
fn follow(disk: &dyn Bytes, extended: Entry, found: &mut Vec<Partition>) -> Result<()> {
    let end = extended.first + extended.count;
    let mut record = extended.first;
    let mut number = 5;
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
