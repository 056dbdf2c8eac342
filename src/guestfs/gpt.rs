//! GUID partition tables (UEFI specification 2.10, chapter 5.3).

use super::partitions::{Bytes, Partition, PartitionKind, inside, u32_at, u64_at};
use crate::error::Result;
use crate::units::{GuestOffset, index};
use std::ops::Range;

/// Sector sizes under which a table is looked for: a table does not say which one it was made for.
pub(super) const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// Largest array of entries that is read, in bytes; 128 entries of 128 bytes are usual.
const LARGEST_ARRAY: u64 = 1 << 20;
const HEADER: usize = 92;

/// The fields of a header that are needed, all checked.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// All of its sector.
    pub(super) raw: Vec<u8>,
    pub(super) sector: u64,
    /// The sector of the other copy.
    pub(super) other: u64,
    /// The disk's identifier.
    guid: [u8; 16],
    first_usable: u64,
    last_usable: u64,
    pub(super) array: GuestOffset,
    count: u32,
    /// Bytes of an entry.
    pub(super) entry: u32,
    array_crc: u32,
}

/// The entries of the disk's table that lie inside the disk: of the primary one, else of its backup.
pub(super) fn entries(disk: &dyn Bytes) -> Result<Vec<Partition>> {
    let table = table(disk)?;
    Ok(table.map_or_else(Vec::new, |(header, array)| parse_array(disk, &header, &array)))
}

/// The UUID and the name of each partition, by its number.
pub(super) fn names(disk: &dyn Bytes) -> Result<Vec<(u32, [u8; 16], String)>> {
    let Some((header, array)) = table(disk)? else { return Ok(Vec::new()) };
    let entries = (1..).zip(array.chunks_exact(index(u64::from(header.entry))));
    Ok(entries.filter_map(|(number, entry)| parse_names(number, entry)).collect())
}

/// The first header that is in order, with its array.
fn table(disk: &dyn Bytes) -> Result<Option<(Header, Vec<u8>)>> {
    for sector in SECTOR_SIZES {
        let Some(last) = (disk.size() / sector).checked_sub(1) else { continue };
        for lba in [1, last] {
            let Some(header) = read_header(disk, sector, lba)? else { continue };
            if let Some(array) = read_array(disk, &header)? {
                return Ok(Some((header, array)));
            }
        }
    }
    Ok(None)
}

/// A table whose two copies agree, in bytes.
pub(super) struct Strict {
    /// The protective boot record with the first copy, and the second copy.
    pub(super) tables: [Range<u64>; 2],
    /// What partitions may have.
    pub(super) usable: Range<u64>,
    /// In the order of their places.
    pub(super) partitions: Vec<Partition>,
}

/// The table of a disk, if it leaves no doubt: both copies are whole and the same, nothing overlaps anything, and all
/// lies inside the disk.
pub(super) fn strict(disk: &dyn Bytes) -> Result<Option<Strict>> {
    for sector in SECTOR_SIZES {
        let Some(first) = read_header(disk, sector, 1)? else { continue };
        let Some(second) = read_header(disk, sector, first.other)? else { return Ok(None) };
        let (Some(array), Some(copy)) = (read_array(disk, &first)?, read_array(disk, &second)?) else {
            return Ok(None);
        };
        let same = array == copy
            && second.other == 1
            && (first.guid, first.count, first.entry) == (second.guid, second.count, second.entry)
            && (first.first_usable, first.last_usable) == (second.first_usable, second.last_usable);
        return Ok(if same { arrange(disk, &first, &second, &array) } else { None });
    }
    Ok(None)
}

fn arrange(disk: &dyn Bytes, first: &Header, second: &Header, array: &[u8]) -> Option<Strict> {
    let sector = first.sector;
    let len = u64::from(first.count) * u64::from(first.entry);
    let at = |lba: u64| lba.checked_mul(sector);
    let usable = at(first.first_usable)?..at(first.last_usable.checked_add(1)?)?;
    let header = at(first.other)?;
    let front = 0..(first.array.0 + len).next_multiple_of(sector);
    let back = second.array.0.min(header)..(header + sector).max(second.array.0 + len);
    let mut partitions = parse_array(disk, first, array);
    partitions.sort_by_key(|partition| partition.start);
    let entries = array.chunks_exact(index(u64::from(first.entry)));
    let used = entries.filter(|entry| entry.get(..16).is_none_or(|kind| kind != [0; 16])).count();
    let sound = first.array.0 >= 2 * sector
        && front.end <= usable.start
        && usable.start <= usable.end
        && usable.end <= back.start
        && back.end <= disk.size()
        && used == partitions.len()
        && partitions.windows(2).all(|pair| pair[0].end() <= pair[1].start);
    sound.then_some(Strict { tables: [front, back], usable, partitions })
}

/// The header in sector `lba`, if one is there that is in order.
pub(super) fn read_header(disk: &dyn Bytes, sector: u64, lba: u64) -> Result<Option<Header>> {
    let at = lba.saturating_mul(sector);
    if at == 0 || !fits(disk, at, sector) {
        return Ok(None);
    }
    let mut bytes = vec![0; index(sector)];
    disk.read(&mut bytes, GuestOffset(at))?;
    Ok(parse_header(disk, sector, lba, bytes))
}

/// `None` when any field that is used breaks the format. `bytes` is a whole sector.
fn parse_header(disk: &dyn Bytes, sector: u64, lba: u64, raw: Vec<u8>) -> Option<Header> {
    let bytes = &raw[..];
    let size = usize::try_from(u32_at(bytes, 12)).ok()?;
    let sound = bytes.starts_with(b"EFI PART")
        && u32_at(bytes, 8) == 0x0001_0000
        && (HEADER..=bytes.len()).contains(&size)
        && u64_at(bytes, 24) == lba
        && header_crc(bytes.get(..size)?) == u32_at(bytes, 16);
    let array = u64_at(bytes, 72).checked_mul(sector)?;
    let (count, entry) = (u32_at(bytes, 80), u32_at(bytes, 84));
    let len = u64::from(count) * u64::from(entry);
    let sound = sound
        && entry >= 128
        && entry.is_power_of_two()
        && (1..=LARGEST_ARRAY).contains(&len)
        && array > 0
        && fits(disk, array, len);
    let guid = bytes.get(56..72)?.try_into().ok()?;
    let at = |place| u64_at(bytes, place);
    let (other, first_usable, last_usable) = (at(32), at(40), at(48));
    let (array, array_crc) = (GuestOffset(array), u32_at(bytes, 88));
    sound.then_some(Header {
        raw,
        sector,
        other,
        guid,
        first_usable,
        last_usable,
        array,
        count,
        entry,
        array_crc,
    })
}

/// The checksum is computed with its own field as zeros.
pub(super) fn header_crc(header: &[u8]) -> u32 {
    let mut copy = header.to_vec();
    if let Some(field) = copy.get_mut(16..20) {
        field.fill(0);
    }
    crc32fast::hash(&copy)
}

/// The entries of a table; `None` when they do not match their checksum.
pub(super) fn read_array(disk: &dyn Bytes, header: &Header) -> Result<Option<Vec<u8>>> {
    let mut array = vec![0; index(u64::from(header.count) * u64::from(header.entry))];
    disk.read(&mut array, header.array)?;
    Ok((crc32fast::hash(&array) == header.array_crc).then_some(array))
}

fn parse_array(disk: &dyn Bytes, header: &Header, array: &[u8]) -> Vec<Partition> {
    let entry_size = index(u64::from(header.entry));
    let entries = (1..).zip(array.chunks_exact(entry_size));
    entries.filter_map(|(number, entry)| parse_entry(disk, header, number, entry)).collect()
}

fn parse_entry(disk: &dyn Bytes, header: &Header, number: u32, entry: &[u8]) -> Option<Partition> {
    let kind: [u8; 16] = entry.get(..16)?.try_into().ok()?;
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    if kind == [0; 16] || first < header.first_usable || last > header.last_usable {
        return None;
    }
    let count = last.checked_sub(first)?.checked_add(1)?;
    inside(disk, number, PartitionKind::Gpt(kind), header.sector, first, count)
}

/// The name is 36 units of UTF-16, ended by a zero when it is shorter.
fn parse_names(number: u32, entry: &[u8]) -> Option<(u32, [u8; 16], String)> {
    let units = entry.get(56..128)?.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let name: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    Some((number, entry.get(16..32)?.try_into().ok()?, String::from_utf16_lossy(&name)))
}

fn fits(disk: &dyn Bytes, at: u64, len: u64) -> bool {
    at.checked_add(len).is_some_and(|end| end <= disk.size())
}
