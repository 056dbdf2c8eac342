//! The partitions of a disk, from its GPT or its MBR.
//!
//! The readers are our own, because both libraries that were looked at trust the disk: `gpt` 4.1 asserts that an entry
//! has 128 bytes and allocates what the header asks for (up to 512 GiB) before it checks a checksum; `mbrman` 0.6 adds
//! 32-bit sector numbers unchecked and follows a chain of extended boot records of any length.

use super::{gpt, mbr};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::units::{GuestOffset, SECTOR, index, length};
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// Most partitions that are reported for one disk.
const LIMIT: usize = 256;

/// A disk that can be read at any byte.
pub trait Bytes {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `at` on; the range lies inside the disk.
    ///
    /// # Errors
    /// Whatever reading the disk gives.
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()>;
}

impl Bytes for Disk {
    fn size(&self) -> u64 {
        Self::size(self)
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        Self::read(self, buf, at)
    }
}

impl<B: Bytes + ?Sized> Bytes for &B {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        (**self).read(buf, at)
    }
}

impl<B: Bytes + ?Sized> Bytes for Arc<B> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        (**self).read(buf, at)
    }
}

/// What was read of a disk before.
impl Bytes for Vec<u8> {
    fn size(&self) -> u64 {
        length(self.len())
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let from = self.get(index(at.0.min(self.size()))..).and_then(|from| from.get(..buf.len()));
        buf.copy_from_slice(from.ok_or_else(|| Error::invalid("a read past the end of a disk"))?);
        Ok(())
    }
}

/// What a partition table says a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionKind {
    /// The type GUID of a GPT entry, as its 16 bytes stand on the disk.
    Gpt([u8; 16]),
    /// The type byte of an MBR entry.
    Mbr(u8),
}

/// GUIDs as they stand on the disk: an EFI system partition, and places for boot code (BIOS, PowerPC).
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";
const PREP_BOOT: [u8; 16] =
    [0x38, 0x2d, 0x1a, 0x9e, 0x12, 0xc6, 0x16, 0x43, 0xaa, 0x26, 0x8b, 0x49, 0x52, 0x1e, 0x5a, 0x8b];

/// Types that say where a partition is mounted, as the Discoverable Partitions Specification has them; one for the root of each
/// architecture.
const DISCOVERABLE: [(&str, &str); 13] = [
    ("44479540-F297-41B2-9AF7-D131D5F0458A", ""),
    ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", ""),
    ("69DAD710-2CE4-4E3C-B16C-21A1D49ABED3", ""),
    ("B921B045-1DF0-41C3-AF44-4C6F280D3FAE", ""),
    ("72EC70A6-CF74-40E6-BD49-4BDA08E8F224", ""),
    ("C31C45E6-3F39-412E-80FB-4809C4980599", ""),
    ("5EEAD9A9-FE09-4A1E-A1D7-520D00531306", ""),
    ("77055800-792C-4F94-B39A-98C91B762BB6", ""),
    ("BC13C2FF-59E6-4262-A352-B275FD6F7172", "/boot"),
    ("933AC7E1-2EB4-4F13-B844-0E14E2AEF915", "/home"),
    ("3B8F8425-20E0-4F3B-907F-1A25A76F98E8", "/srv"),
    ("4D21B016-B534-45C2-A9FB-5C16E091FD2D", "/var"),
    ("7EC6F557-3BC5-4ACA-B293-16EF5DF639D1", "/var/tmp"),
];

impl PartitionKind {
    /// Whether it is an EFI system partition.
    #[must_use]
    pub fn is_efi_system(self) -> bool {
        matches!(self, Self::Gpt(EFI_SYSTEM) | Self::Mbr(0xef))
    }

    /// Where a partition of this type is mounted without a table that says it; empty for `/`. EFI system partitions have
    /// no such place of their own.
    #[must_use]
    pub fn mount_point(self) -> Option<&'static str> {
        let Self::Gpt(guid) = self else { return None };
        let text = guid_text(&guid);
        DISCOVERABLE.iter().find(|(known, _)| *known == text).map(|(_, at)| *at)
    }

    /// Whether it is a place for a boot loader's code, without any files.
    #[must_use]
    pub fn is_boot_code(self) -> bool {
        matches!(self, Self::Gpt(BIOS_BOOT | PREP_BOOT) | Self::Mbr(0x41))
    }
}

impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = match self {
            Self::Mbr(kind) => return write!(f, "{kind:#04x}"),
            Self::Gpt(guid) => guid,
        };
        f.write_str(&guid_text(g))
    }
}

/// A GUID in words, from its 16 bytes as they stand on the disk, where its first three fields are little endian.
fn guid_text(guid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for at in [3, 2, 1, 0, 16, 5, 4, 16, 7, 6, 16, 8, 9, 16, 10, 11, 12, 13, 14, 15] {
        match guid.get(at) {
            // Nothing can fail on the way into a string.
            Some(byte) => drop(write!(text, "{byte:02X}")),
            None => text.push('-'),
        }
    }
    text
}

/// One partition of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts it, from 1 on; logical partitions of an MBR from 5 on.
    pub number: u32,
    /// Its first byte.
    pub start: GuestOffset,
    /// Its length in bytes, at least 512.
    pub len: u64,
    /// Its type.
    pub kind: PartitionKind,
}

impl Partition {
    /// The first byte behind it. Never overflows: a partition lies inside its disk.
    #[must_use]
    pub fn end(&self) -> GuestOffset {
        self.start + self.len
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// The partitions of `disk`, by number.
///
/// A disk without a table, or with one that breaks its format, has none. An entry that reaches past the end of the
/// disk, or into a partition with a lower number, is left out.
///
/// # Errors
/// Only what reading the disk gives.
pub fn partitions(disk: &dyn Bytes) -> Result<Vec<Partition>> {
    if disk.size() < SECTOR {
        return Ok(Vec::new());
    }
    let mut sector = [0; index(SECTOR)];
    disk.read(&mut sector, GuestOffset(0))?;
    let Some(table) = mbr::Table::parse(&sector) else { return Ok(Vec::new()) };
    let entries = if table.is_protective() { gpt::entries(disk)? } else { mbr::entries(disk, &table)? };
    Ok(without_overlaps(entries))
}

/// Where filesystems may lie: the partitions of `disk`, or all of it as partition 0 when it has none.
///
/// # Errors
/// Only what reading the disk gives.
pub fn places(disk: &dyn Bytes) -> Result<Vec<Partition>> {
    let mut found = partitions(disk)?;
    if found.is_empty() {
        let kind = PartitionKind::Mbr(0);
        found.push(Partition { number: 0, start: GuestOffset(0), len: disk.size(), kind });
    }
    Ok(found)
}

/// What the partition table calls partition `number` of `disk`: its UUID, as Linux writes it, and its name; both are
/// empty when there is no such partition.
///
/// # Errors
/// Only what reading the disk gives.
pub fn own_names(disk: &dyn Bytes, number: u32) -> Result<(String, String)> {
    let mut sector = [0; index(SECTOR)];
    if number == 0 || disk.size() < SECTOR {
        return Ok(Default::default());
    }
    disk.read(&mut sector, GuestOffset(0))?;
    let Some(table) = mbr::Table::parse(&sector) else { return Ok(Default::default()) };
    if !table.is_protective() {
        // The disk's signature and the partition's number.
        return Ok((format!("{:08x}-{number:02x}", u32_at(&sector, 440)), String::new()));
    }
    let found = gpt::names(disk)?.into_iter().find(|(known, _, _)| *known == number);
    Ok(found.map(|(_, guid, name)| (guid_text(&guid), name)).unwrap_or_default())
}

fn without_overlaps(mut entries: Vec<Partition>) -> Vec<Partition> {
    entries.sort_by_key(|entry| entry.number);
    let mut kept: Vec<Partition> = Vec::new();
    for entry in entries {
        if kept.len() < LIMIT && !kept.iter().any(|other| other.overlaps(&entry)) {
            kept.push(entry);
        }
    }
    kept
}

/// A partition of `count` sectors of `sector` bytes from sector `first` on, if it lies inside the disk.
pub(super) fn inside(
    disk: &dyn Bytes,
    number: u32,
    kind: PartitionKind,
    sector: u64,
    first: u64,
    count: u64,
) -> Option<Partition> {
    let start = first.checked_mul(sector)?;
    let len = count.checked_mul(sector)?;
    let end = start.checked_add(len)?;
    (len > 0 && end <= disk.size()).then_some(Partition { number, start: GuestOffset(start), len, kind })
}

/// The little-endian number of 2 bytes at `at`; 0 past the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let field = at.checked_add(2).and_then(|end| bytes.get(at..end)).and_then(|field| field.try_into().ok());
    field.map_or(0, u16::from_le_bytes)
}

/// The little-endian number of 4 bytes at `at`; 0 past the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = at.checked_add(4).and_then(|end| bytes.get(at..end)).and_then(|field| field.try_into().ok());
    field.map_or(0, u32::from_le_bytes)
}

/// The little-endian number of 8 bytes at `at`; 0 past the end.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = at.checked_add(8).and_then(|end| bytes.get(at..end)).and_then(|field| field.try_into().ok());
    field.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
#[path = "partitions_tests.rs"]
mod tests;
