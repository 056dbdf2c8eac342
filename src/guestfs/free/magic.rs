//! What lies in a place, by its marks.
//!
//! A new filesystem often leaves marks of what was there before. Two of them mean that nobody knows which one the guest
//! goes by, so all are looked for, also of what is not read here.
//!
//! The marks are those of each format's documentation, and what `blkid` was seen to go by.

use crate::error::Result;
use crate::guestfs::fat;
use crate::guestfs::partitions::Bytes;
use crate::guestfs::swap::Swap;
use crate::units::{GuestOffset, index, length};

/// Kinds whose free space is read.
pub(crate) const EXT: &str = "ext4";
pub(super) const FAT: &str = "FAT";
pub(super) const LVM: &str = "LVM2";
pub(super) const NTFS: &str = "NTFS";
pub(crate) const SWAP_SPACE: &str = "swap";
/// Not a kind of content, but what has others in it.
pub(super) const PARTITION_TABLE: &str = "a partition table";

/// Bytes from the start of a place, and what they are the mark of.
const MARKS: &[(u64, &[u8], &str)] = &[
    (1080, b"\x53\xef", EXT),
    (3, b"NTFS    ", NTFS),
    (54, b"FAT", FAT),
    (82, b"FAT", FAT),
    (0, b"LABELONE", LVM),
    (512, b"LABELONE", LVM),
    (1024, b"LABELONE", LVM),
    (1536, b"LABELONE", LVM),
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0x4000, b"SKUL\xba\xbe", "LUKS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (3, b"EXFAT   ", "exFAT"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (0, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (0x1018, b"\xc6\x85\x73\xf6", "bcache"),
    (0, b"hsqs", "squashfs"),
    (0, b"sqsh", "squashfs"),
    (0x8001, b"CD001", "ISO 9660"),
    (0x8001, b"BEA01", "UDF"),
    (0x8001, b"NSR0", "UDF"),
    (0x8801, b"NSR0", "UDF"),
    (0, b"\x45\x3d\xcd\x28", "cramfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (0x1_0034, b"ReIsEr", "ReiserFS"),
    (0x2034, b"ReIsEr", "ReiserFS"),
    (0x8000, b"JFS1", "JFS"),
    (1030, b"\x34\x34", "NILFS2"),
    (1024, b"H+\0\x04", "HFS+"),
    (1024, b"HX\0\x05", "HFS+"),
    (32, b"NXSB", "APFS"),
    (0x255c, b"\x54\x19\x01\x00", "UFS"),
    (0x1_055c, b"\x19\x01\x54\x19", "UFS"),
    (0x1_055c, b"\x54\x19\x01\x00", "UFS"),
    (0x10_0000, b"\x0d\xd0\x01\xc0", "VMFS"),
    (0, b"dmvdo001", "VDO"),
    (0, b"verity\0\0", "dm-verity"),
    (0, b"integrt\0", "dm-integrity"),
    (0x1004, b"!Stra0tis", "Stratis"),
    (0x1204, b"!Stra0tis", "Stratis"),
    (0, b"bluestore block device", "BlueStore"),
    (1024, b"OCFSV2", "OCFS2"),
    (2048, b"OCFSV2", "OCFS2"),
    (4096, b"OCFSV2", "OCFS2"),
    (0x1_0000, b"\x01\x16\x19\x70", "GFS2"),
    (0xc00, b"PRIVHEAD", "a Windows dynamic disk"),
    (512, b"EFI PART", PARTITION_TABLE),
    (4096, b"EFI PART", PARTITION_TABLE),
    (512, b"PM\0\0", PARTITION_TABLE),
    (0, b"\x57\x45\x56\x82", PARTITION_TABLE),
    (64, b"\x57\x45\x56\x82", PARTITION_TABLE),
    (512, b"\x57\x45\x56\x82", PARTITION_TABLE),
];

/// The kinds whose marks are in `place`, each once.
pub(crate) fn kinds(place: &impl Bytes) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for (at, mark, kind) in MARKS {
        if has(place, *at, mark)? && !found.contains(kind) {
            found.push(*kind);
        }
    }
    let swap = Swap::find(place)?.is_some();
    if !found.contains(&FAT) && fat::is_boot_sector(place)? {
        found.push(FAT);
    }
    found.extend(swap.then_some(SWAP_SPACE));
    found.extend(at_the_end(place)?.filter(|kind| !found.contains(kind)));
    found.extend(is_zfs(place)?.then_some("ZFS"));
    Ok(found)
}

/// Whether `mark` stands at `at`, which may lie behind the end.
pub(super) fn has(place: &impl Bytes, at: u64, mark: &[u8]) -> Result<bool> {
    if at.checked_add(length(mark.len())).is_none_or(|end| end > place.size()) {
        return Ok(false);
    }
    let mut found = vec![0; mark.len()];
    place.read(&mut found, GuestOffset(at))?;
    Ok(found == mark)
}

/// Marks that are counted from the end.
fn at_the_end(place: &impl Bytes) -> Result<Option<&'static str>> {
    let size = place.size() / 512 * 512;
    let linux = [
        (size & !0xffff).checked_sub(0x1_0000),
        (size / 512).checked_sub(16).map(|sector| (sector & !7) * 512),
    ];
    for at in linux.into_iter().flatten() {
        if has(place, at, b"\xfc\x4e\x2b\xa9")? || has(place, at, b"\xa9\x2b\x4e\xfc")? {
            return Ok(Some("Linux RAID"));
        }
    }
    let last = |sectors: u64| size.checked_sub(sectors * 512);
    let others: [(_, &[u8], _); 4] = [
        (last(2), b"Intel Raid ISM Cfg Sig. ", "RAID of the firmware"),
        (last(1), b"\xde\x11\xde\x11", "RAID of the firmware"),
        (last(1), b"\x11\xde\x11\xde", "RAID of the firmware"),
        (last(1), b"PRIVHEAD", "a Windows dynamic disk"),
    ];
    for (at, mark, kind) in others {
        if let Some(at) = at
            && has(place, at, mark)?
        {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// Whether one of the four labels of a ZFS pool has an uberblock: each has up to 128 of them.
fn is_zfs(place: &impl Bytes) -> Result<bool> {
    const LABEL: u64 = 256 << 10;
    const UBERBLOCKS: u64 = LABEL / 2;
    let size = place.size() / LABEL * LABEL;
    if size < 4 * LABEL {
        return Ok(false);
    }
    let mut half = vec![0; index(UBERBLOCKS)];
    for label in [0, LABEL, size - 2 * LABEL, size - LABEL] {
        place.read(&mut half, GuestOffset(label + UBERBLOCKS))?;
        let is_uberblock = |bytes: &[u8]| {
            bytes.starts_with(&0x00ba_b10c_u64.to_le_bytes())
                || bytes.starts_with(&0x00ba_b10c_u64.to_be_bytes())
        };
        if half.chunks_exact(1024).any(is_uberblock) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guestfs::swap::{PAGES, SIGNATURES, SLEEPING};

    /// A place without marks, in which each mark is then put.
    fn with(at: u64, mark: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 3 << 20];
        bytes[index(at)..][..mark.len()].copy_from_slice(mark);
        bytes
    }

    #[test]
    fn each_mark_is_found_and_short_places_have_none() {
        for (at, mark, kind) in MARKS {
            let mut bytes = with(*at, mark);
            assert_eq!(kinds(&bytes).expect("memory"), [*kind], "{at:#x}");
            bytes.truncate(index(*at) + mark.len() - 1);
            assert!(!kinds(&bytes).expect("memory").contains(kind), "{at:#x}");
        }
        assert!(kinds(&Vec::new()).expect("memory").is_empty());
    }

    #[test]
    fn swap_is_found_at_the_end_of_pages_of_any_size() {
        for page in PAGES {
            for mark in SIGNATURES.iter().chain(&SLEEPING) {
                assert_eq!(kinds(&with(page - 10, mark)).expect("memory"), [SWAP_SPACE]);
            }
        }
    }

    #[test]
    fn marks_at_the_end_are_found() {
        let size = 3 << 20;
        let raid = b"\xfc\x4e\x2b\xa9";
        for (back, mark, kind) in [
            (0x1_0000, &raid[..], "Linux RAID"),
            (0x2000, raid, "Linux RAID"),
            (1024, b"Intel Raid ISM Cfg Sig. ", "RAID of the firmware"),
            (512, b"\xde\x11\xde\x11", "RAID of the firmware"),
            (512, b"PRIVHEAD", "a Windows dynamic disk"),
            (0x6_0000, &0x00ba_b10c_u64.to_le_bytes(), "ZFS"),
            (0x1_fc00, &0x00ba_b10c_u64.to_be_bytes(), "ZFS"),
        ] {
            assert_eq!(kinds(&with(size - back, mark)).expect("memory"), [kind], "{back:#x}");
        }
    }
}
