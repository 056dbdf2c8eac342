//! The two forms of a POSIX access control list: the shorter one on the disk, and the one that Linux shows.

use super::damaged;
use crate::error::Result;
use crate::guestfs::partitions::{u16_at, u32_at};

const DISK_VERSION: u32 = 1;
const SHOWN_VERSION: u32 = 2;
/// An id for entries that have none.
const NO_ID: u32 = u32::MAX;
const USER: u16 = 2;
const GROUP: u16 = 8;
/// Tags of the entries that have no id: owner, owning group, mask, others.
const PLAIN: [u16; 4] = [1, 4, 0x10, 0x20];

/// The list that `getxattr` gives, from `disk`, as it stands in an attribute on the disk.
///
/// # Errors
/// `Corrupt` when it breaks the format.
pub fn acl_to_xattr(disk: &[u8]) -> Result<Vec<u8>> {
    if disk.len() < 4 || u32_at(disk, 0) != DISK_VERSION {
        return Err(wrong());
    }
    let mut shown = SHOWN_VERSION.to_le_bytes().to_vec();
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        let tag = u16_at(rest, 0);
        let (len, id) = match tag {
            USER | GROUP => (8, u32_at(rest, 4)),
            _ if PLAIN.contains(&tag) => (4, NO_ID),
            _ => return Err(wrong()),
        };
        let Some((entry, behind)) = rest.split_at_checked(len) else { return Err(wrong()) };
        shown.extend_from_slice(&entry[..4]);
        shown.extend_from_slice(&id.to_le_bytes());
        rest = behind;
    }
    Ok(shown)
}

/// The list as it stands on the disk, from `shown`, which `getxattr` gave.
///
/// # Errors
/// `Corrupt` when it breaks the format.
pub fn acl_from_xattr(shown: &[u8]) -> Result<Vec<u8>> {
    if shown.len() < 4 || u32_at(shown, 0) != SHOWN_VERSION || shown.len() % 8 != 4 {
        return Err(wrong());
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for entry in shown[4..].chunks_exact(8) {
        let len = match u16_at(entry, 0) {
            USER | GROUP => 8,
            tag if PLAIN.contains(&tag) => 4,
            _ => return Err(wrong()),
        };
        disk.extend_from_slice(&entry[..len]);
    }
    Ok(disk)
}

fn wrong() -> crate::error::Error {
    damaged("an access control list breaks its format")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DISK: &[u8] = &[
        1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0x34, 0x12, 0, 0, 4, 0, 4, 0, 8, 0, 7, 0, 1, 2, 3, 4, 0x10, 0, 7,
        0, 0x20, 0, 0, 0,
    ];

    #[test]
    fn both_forms_say_the_same() {
        let shown = acl_to_xattr(DISK).unwrap();
        assert_eq!(shown.len(), 4 + 6 * 8);
        assert_eq!(shown[..12], [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(shown[12..20], [2, 0, 4, 0, 0x34, 0x12, 0, 0]);
        assert_eq!(acl_from_xattr(&shown).unwrap(), DISK);
    }

    #[test]
    fn a_list_cut_anywhere_inside_an_entry_is_refused() {
        let ends = [4, 8, 16, 20, 28, 32, 36];
        for len in 0..=DISK.len() {
            assert_eq!(acl_to_xattr(&DISK[..len]).is_ok(), ends.contains(&len), "{len}");
        }
        let shown = acl_to_xattr(DISK).unwrap();
        for len in 0..=shown.len() {
            assert_eq!(acl_from_xattr(&shown[..len]).is_ok(), len >= 4 && len % 8 == 4, "{len}");
        }
    }

    #[test]
    fn unknown_versions_and_tags_are_refused() {
        assert!(acl_to_xattr(&[2, 0, 0, 0]).is_err());
        assert!(acl_from_xattr(&[1, 0, 0, 0]).is_err());
        assert!(acl_to_xattr(&[1, 0, 0, 0, 3, 0, 0, 0]).is_err());
        assert!(acl_from_xattr(&[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
