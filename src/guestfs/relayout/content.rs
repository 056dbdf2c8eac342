//! What lies in a partition, as far as it must be known to say whether it may be cut, and what it is called.

use crate::error::Result;
use crate::guestfs::Window;
use crate::guestfs::partitions::{Bytes, Partition, u16_at, u32_at};
use crate::guestfs::swap::Swap;
use crate::units::{GuestOffset, SECTOR, index, length};
use std::fmt;

/// Bytes from the start of a partition in which every mark lies.
const HEAD: u64 = 68 << 10;
const RAID_MARK: &[u8] = b"\xfc\x4e\x2b\xa9";

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A filesystem that can be made smaller and larger, with its name.
    Ext(&'static str),
    /// Swap space with the memory of a guest that hibernates.
    Hibernated,
    /// Something else that is known by its mark.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

impl Content {
    /// What `partition` of `disk` holds.
    ///
    /// # Errors
    /// What reading the disk gives.
    pub(crate) fn of(disk: &dyn Bytes, partition: &Partition) -> Result<Self> {
        let window = Window::new(disk, partition)?;
        let mut head = vec![0; index(HEAD.min(window.size()))];
        window.read(&mut head, GuestOffset(0))?;
        // One half of a mirror looks like what is on it, but for its end.
        if is_raid_by_its_end(&window)? {
            return Ok(Self::Other("a RAID"));
        }
        Ok(match Swap::find(&window)? {
            Some(swap) if swap.hibernated => Self::Hibernated,
            Some(_) => Self::Other("swap"),
            None => Self::of_head(&head),
        })
    }

    fn of_head(head: &[u8]) -> Self {
        let has = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
        let marks: [(usize, &[u8], &str); 9] = [
            (0, b"XFSB", "xfs"),
            (0, b"LUKS\xba\xbe", "LUKS"),
            (0x10040, b"_BHRfS_M", "btrfs"),
            (3, b"NTFS    ", "NTFS"),
            (512, b"LABELONE", "LVM"),
            (4096, RAID_MARK, "a RAID"),
            (0, RAID_MARK, "a RAID"),
            (54, b"FAT", "FAT"),
            (82, b"FAT32", "FAT"),
        ];
        if let Some((_, _, name)) = marks.iter().find(|(at, mark, _)| has(*at, mark)) {
            return Self::Other(name);
        }
        if length(head.len()) >= 2048 && u16_at(head, 1024 + 0x38) == 0xef53 {
            let journal = u32_at(head, 1024 + 0x5c) & 4 != 0;
            // Extents, 64bit or flex_bg: no ext3 has one of them.
            let new = u32_at(head, 1024 + 0x60) & 0x2c0 != 0;
            return Self::Ext(if new {
                "ext4"
            } else if journal {
                "ext3"
            } else {
                "ext2"
            });
        }
        Self::Unknown
    }
}

/// Whether a member of a Linux RAID ends here: the versions 0.90 and 1.0 have their mark near the end.
fn is_raid_by_its_end(window: &dyn Bytes) -> Result<bool> {
    let sectors = window.size() / SECTOR;
    for place in [(sectors & !127).checked_sub(128), sectors.checked_sub(16).map(|place| place & !7)] {
        let Some(place) = place else { continue };
        let mut mark = [0; RAID_MARK.len()];
        window.read(&mut mark, GuestOffset(place * SECTOR))?;
        if mark == RAID_MARK {
            return Ok(true);
        }
    }
    Ok(false)
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ext(name) | Self::Other(name) => name,
            Self::Hibernated => "the memory of a guest that hibernates",
            Self::Unknown => "unknown content",
        })
    }
}
