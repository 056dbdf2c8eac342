//! The name of what lies in a place, by its mark.

use crate::error::Result;
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, index, length};

/// Where each kind has which bytes.
const MARKS: [(u64, &[u8], &str); 14] = [
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"XFSB", "XFS"),
    (0, b"hsqs", "squashfs"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (54, b"FAT", "FAT"),
    (82, b"FAT", "FAT"),
    (512, b"LABELONE", "LVM"),
    (1080, b"\x53\xef", "ext4"),
    (4086, b"SWAPSPACE2", "swap"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0x1018, b"\xfc\x4e\x2b\xa9", "RAID"),
    (0x8001, b"CD001", "ISO 9660"),
];

/// What `place` holds; "unknown" when no mark says it.
pub(super) fn kind(place: &dyn Bytes) -> Result<&'static str> {
    for (at, mark, name) in MARKS {
        let mut found = [0; 16];
        let found = &mut found[..mark.len()];
        if at + length(mark.len()) > place.size() {
            continue;
        }
        place.read(found, GuestOffset(at))?;
        if found == mark {
            return Ok(name);
        }
    }
    let mut start = vec![0; index(place.size().min(4096))];
    place.read(&mut start, GuestOffset(0))?;
    Ok(if crate::zero::is_zero(&start) { "empty or unknown" } else { "unknown" })
}

#[cfg(test)]
mod tests {
    use super::{MARKS, kind};
    use crate::error::Result;
    use crate::guestfs::partitions::Bytes;
    use crate::units::{GuestOffset, index, length};

    struct Plain(Vec<u8>);

    impl Bytes for Plain {
        fn size(&self) -> u64 {
            length(self.0.len())
        }
        fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
            buf.copy_from_slice(&self.0[index(at.0)..][..buf.len()]);
            Ok(())
        }
    }

    #[test]
    fn each_mark_is_found_and_short_places_have_none() {
        for (at, mark, name) in MARKS {
            let mut bytes = vec![0; 70_000];
            bytes[index(at)..][..mark.len()].copy_from_slice(mark);
            assert_eq!(kind(&Plain(bytes.clone())).ok(), Some(name));
            bytes.truncate(index(at) + mark.len() - 1);
            assert_ne!(kind(&Plain(bytes)).ok(), Some(name));
        }
        assert_eq!(kind(&Plain(Vec::new())).ok(), Some("empty or unknown"));
    }
}
