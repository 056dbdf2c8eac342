//! Where LVM2 keeps its text on a physical volume: label, header, areas of metadata.

use super::text::wrong;
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, u32_at, u64_at};
use crate::units::{GuestOffset, KIB, MIB, SECTOR as SECTOR_BYTES, index, length};

/// The label is in one of the first sectors.
const SECTORS: u64 = 4;
const SECTOR: usize = index(SECTOR_BYTES);
/// Longest text that is read, in bytes.
const LONGEST: u64 = 4 * MIB;
/// A header has room for so many entries of a list.
const ENTRIES: usize = 16;

/// What the header of a physical volume says.
#[derive(Debug)]
pub(super) struct Header {
    /// Its identifier, without dashes.
    pub(super) id: String,
    /// Where its extents start, in bytes.
    pub(super) data: u64,
    /// The text about its volume group.
    pub(super) text: Vec<u8>,
    /// Where that stands, also what LVM2 ignores.
    pub(super) areas: Vec<Place>,
}

/// A run of bytes, as the header has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Header {
    pub(super) fn read(bytes: &impl Bytes) -> Result<Self> {
        let sector = label(bytes)?;
        let at = usize::try_from(u32_at(&sector, 20)).unwrap_or(usize::MAX);
        if !(32..=SECTOR - 40).contains(&at) {
            return Err(wrong("its label leads outside of its sector"));
        }
        let id = String::from_utf8_lossy(&sector[at..at + 32]).into_owned();
        if u64_at(&sector, at + 32) > bytes.size() {
            return Err(wrong("its volume is longer than its place"));
        }
        let (data, behind) = list(&sector, at + 40)?;
        let (areas, _) = list(&sector, behind)?;
        let [data] = data[..] else { return Err(wrong("it has its extents in several places")) };
        Ok(Self { id, data: data.start, text: text(bytes, &areas, data.start)?, areas })
    }
}

/// The sector of the label: the only one.
fn label(bytes: &impl Bytes) -> Result<[u8; SECTOR]> {
    let mut found = None;
    for number in 0..SECTORS {
        let mut sector = [0; SECTOR];
        let at = number * length(SECTOR);
        if at + length(SECTOR) > bytes.size() {
            break;
        }
        bytes.read(&mut sector, GuestOffset(at))?;
        if !sector.starts_with(b"LABELONE") {
            continue;
        }
        let sound = u64_at(&sector, 8) == number
            && &sector[24..32] == b"LVM2 001"
            && sum(&sector[20..]) == u32_at(&sector, 16);
        if !sound || found.is_some() {
            return Err(wrong("its label does not match its checksum, or is there twice"));
        }
        found = Some(sector);
    }
    found.ok_or_else(|| wrong("it has no label"))
}

/// A list of places, ended by zeros, and where it ends.
fn list(sector: &[u8], mut at: usize) -> Result<(Vec<Place>, usize)> {
    let mut places = Vec::new();
    while at + 16 <= sector.len() && places.len() <= ENTRIES {
        let place = Place { start: u64_at(sector, at), len: u64_at(sector, at + 8) };
        at += 16;
        if place.start == 0 {
            return Ok((places, at));
        }
        places.push(place);
    }
    Err(wrong("a list in its header does not end"))
}

/// The text in the areas of metadata, which lie before the extents or behind them: all have the same.
fn text(bytes: &impl Bytes, areas: &[Place], data: u64) -> Result<Vec<u8>> {
    let mut found: Option<Vec<u8>> = None;
    for area in areas {
        let Some(text) = area_text(bytes, *area, data)? else { continue };
        if found.as_ref().is_some_and(|other| *other != text) {
            return Err(wrong("its areas of metadata differ"));
        }
        found = Some(text);
    }
    found.ok_or_else(|| wrong("it belongs to no volume group, or its metadata lies elsewhere"))
}

/// The text in one area; `None` when LVM2 ignores it.
fn area_text(bytes: &impl Bytes, area: Place, data: u64) -> Result<Option<Vec<u8>>> {
    let head = length(SECTOR);
    let end = area.start.checked_add(area.len).filter(|end| *end <= bytes.size());
    if end.is_none_or(|end| area.start < data && end > data) || area.len < 8 * KIB || area.start < 4 * KIB {
        return Err(wrong("an area of metadata lies outside of its place"));
    }
    let mut header = [0; SECTOR];
    bytes.read(&mut header, GuestOffset(area.start))?;
    let sound = sum(&header[4..]) == u32_at(&header, 0)
        && &header[4..20] == b" LVM2 x[5A%r0N*>"
        && u32_at(&header, 20) == 1
        && (u64_at(&header, 24), u64_at(&header, 32)) == (area.start, area.len);
    if !sound {
        return Err(wrong("an area of metadata does not match its checksum"));
    }
    let (start, len, kept, flags) =
        (u64_at(&header, 40), u64_at(&header, 48), u32_at(&header, 56), u32_at(&header, 60));
    match flags {
        0 => (),
        1 => return Ok(None),
        _ => return Err(wrong("an area of metadata has flags")),
    }
    if header[64..88] != [0; 24] {
        return Err(wrong("a change of it was not finished"));
    }
    if start < head || start >= area.len || !(1..=LONGEST.min(area.len - head)).contains(&len) {
        return Err(wrong("its text lies outside of its area"));
    }
    // The area is a ring behind its header.
    let mut text = vec![0; index(len)];
    let (one, two) = text.split_at_mut(index(len.min(area.len - start)));
    bytes.read(one, GuestOffset(area.start + start))?;
    bytes.read(two, GuestOffset(area.start + head))?;
    if sum(&text) != kept {
        return Err(wrong("its text does not match its checksum"));
    }
    while text.last() == Some(&0) {
        text.pop();
    }
    Ok(Some(text))
}

/// CRC-32, not inverted, from a number of its own.
fn sum(bytes: &[u8]) -> u32 {
    const START: u32 = 0xf597_a6cf;
    let mut sum = crc32fast::Hasher::new_with_initial(!START);
    sum.update(bytes);
    !sum.finalize()
}
