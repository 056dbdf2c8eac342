//! Internal snapshots and bitmaps: only as far as they hold host clusters.

use super::header::Header;
use super::layout::{OFFSET, RawBitmap, RawSnapshot};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{HostOffset, MIB, index, length};

/// Largest snapshot table in bytes, as QEMU has it.
const MAX_SNAPSHOT_TABLE: u64 = 64 * MIB;
/// Most bytes of the tables of all bitmaps together: more than a bitmap of every sector of a 16 TiB disk needs.
const MAX_BITMAP_TABLES: u64 = 8 * MIB;
/// Extra data that version 3 asks for: the sizes of the VM state and of the disk.
const LEAST_EXTRA: u64 = 16;
/// Largest L1 table of a snapshot in bytes.
const MAX_L1: u64 = 32 * MIB;

/// The L1 tables of all snapshots (place and entries), and the length of the snapshot table in bytes.
pub(super) fn snapshot_tables(
    header: &Header,
    storage: &dyn Storage,
) -> Result<(Vec<(HostOffset, usize)>, u64)> {
    let mut tables = Vec::new();
    let mut at = 0;
    for number in 0..header.snapshots {
        let mut bytes = [0; RawSnapshot::SIZE];
        let place = header.snapshots_offset + at;
        check_inside(storage, place, length(RawSnapshot::SIZE), "the snapshot table")?;
        storage.read_at(&mut bytes, place).map_err(|e| Error::io("reading the snapshot table", e))?;
        let raw = RawSnapshot::decode(&bytes);
        let names = u64::from(raw.id_length) + u64::from(raw.name_length);
        at += length(RawSnapshot::SIZE) + u64::from(raw.extra_length) + names;
        if at > MAX_SNAPSHOT_TABLE
            || u64::from(raw.extra_length) > 1024
            || u64::from(raw.l1_size) * 8 > MAX_L1
        {
            return Err(Error::corrupt(format!("snapshot {number} has lengths out of range")));
        }
        if header.version >= 3 && u64::from(raw.extra_length) < LEAST_EXTRA {
            return Err(Error::corrupt(format!("entry {number} of the snapshot table is incomplete")));
        }
        // Entries are padded; behind the last one the padding does not count.
        if number + 1 < header.snapshots {
            at = at.next_multiple_of(8);
        }
        tables.push((HostOffset(raw.l1_table_offset), index(u64::from(raw.l1_size))));
    }
    Ok((tables, at))
}

/// Calls `each` for every range that persistent bitmaps hold: place and bytes.
pub(super) fn bitmap_clusters(
    header: &Header,
    storage: &dyn Storage,
    mut each: impl FnMut(HostOffset, u64),
) -> Result<()> {
    let Some((count, directory, size)) = header.bitmaps else { return Ok(()) };
    check_inside(storage, directory, size, "the bitmap directory")?;
    each(directory, size);
    let (mut at, mut total) = (0, 0);
    for number in 0..count {
        if at + length(RawBitmap::SIZE) > size {
            return Err(Error::corrupt(format!("bitmap {number} lies past the end of the bitmap directory")));
        }
        let mut bytes = [0; RawBitmap::SIZE];
        storage
            .read_at(&mut bytes, directory + at)
            .map_err(|e| Error::io("reading the bitmap directory", e))?;
        let raw = RawBitmap::decode(&bytes);
        let len = length(RawBitmap::SIZE) + u64::from(raw.extra_length) + u64::from(raw.name_length);
        at += len.next_multiple_of(8);
        total += u64::from(raw.table_size) * 8;
        if total > MAX_BITMAP_TABLES {
            return Err(Error::corrupt(format!("the tables of all bitmaps have {total} bytes and more")));
        }
        bitmap_table(header, storage, &raw, &mut each)?;
    }
    Ok(())
}

fn bitmap_table(
    header: &Header,
    storage: &dyn Storage,
    raw: &RawBitmap,
    each: &mut impl FnMut(HostOffset, u64),
) -> Result<()> {
    let (place, size) = (HostOffset(raw.table_offset), u64::from(raw.table_size) * 8);
    check_inside(storage, place, size, "a bitmap table")?;
    each(place, size);
    let mut bytes = vec![0; index(size)];
    storage.read_at(&mut bytes, place).map_err(|e| Error::io("reading a bitmap table", e))?;
    for word in bytes.as_chunks::<8>().0 {
        let host = u64::from_be_bytes(*word) & OFFSET;
        if host != 0 {
            check_inside(storage, HostOffset(host), 1, "a cluster of a bitmap")?;
            if !header.geometry.is_aligned(host) {
                return Err(Error::corrupt(format!("a bitmap points into a cluster, to {host:#x}")));
            }
            each(HostOffset(host), header.geometry.cluster_size());
        }
    }
    Ok(())
}

fn check_inside(storage: &dyn Storage, at: HostOffset, len: u64, what: &str) -> Result<()> {
    let file_len = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    match at.0.checked_add(len) {
        Some(end) if end <= file_len => Ok(()),
        _ => Err(Error::corrupt(format!("{what} does not lie inside the file"))),
    }
}
