//! GUID partition tables (UEFI specification 2.10, chapter 5.3).

use super::partitions::{Bytes, Partition, PartitionKind, inside, u32_at, u64_at};
use crate::error::Result;
use crate::units::{GuestOffset, index};

/// Sector sizes under which a table is looked for: a table does not say which one it was made for.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// Largest array of entries that is read, in bytes; 128 entries of 128 bytes are usual.
const LARGEST_ARRAY: u64 = 1 << 20;
const HEADER: usize = 92;

/// The fields of a header that are needed, all checked.
struct Header {
    sector: u64,
    first_usable: u64,
    last_usable: u64,
    array: GuestOffset,
    count: u32,
    entry: u32,
    array_crc: u32,
}

/// The entries of the disk's table that lie inside the disk: of the primary one, else of its backup.
pub(super) fn entries(disk: &dyn Bytes) -> Result<Vec<Partition>> {
    for sector in SECTOR_SIZES {
        let Some(last) = (disk.size() / sector).checked_sub(1) else { continue };
        for lba in [1, last] {
            let Some(header) = read_header(disk, sector, lba)? else { continue };
            if let Some(array) = read_array(disk, &header)? {
                return Ok(parse_array(disk, &header, &array));
            }
        }
    }
    Ok(Vec::new())
}

fn read_header(disk: &dyn Bytes, sector: u64, lba: u64) -> Result<Option<Header>> {
    let at = lba.saturating_mul(sector);
    if at == 0 || !fits(disk, at, sector) {
        return Ok(None);
    }
    let mut bytes = vec![0; index(sector)];
    disk.read(&mut bytes, GuestOffset(at))?;
    Ok(parse_header(disk, sector, lba, &bytes))
}

/// `None` when any field that is used breaks the format. `bytes` is a whole sector.
fn parse_header(disk: &dyn Bytes, sector: u64, lba: u64, bytes: &[u8]) -> Option<Header> {
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
    sound.then(|| Header {
        sector,
        first_usable: u64_at(bytes, 40),
        last_usable: u64_at(bytes, 48),
        array: GuestOffset(array),
        count,
        entry,
        array_crc: u32_at(bytes, 88),
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

fn read_array(disk: &dyn Bytes, header: &Header) -> Result<Option<Vec<u8>>> {
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

fn fits(disk: &dyn Bytes, at: u64, len: u64) -> bool {
    at.checked_add(len).is_some_and(|end| end <= disk.size())
}
