//! Swap space of Linux, as `mkswap` makes it: what its first page says.

use super::ext4::{Ext4, FileKind, Ino, Inode};
use super::partitions::{Bytes, u32_at};
use crate::error::{Error, Result};
use crate::units::{GuestOffset, KIB, length};

/// Sizes of a page at whose end a signature is looked for.
pub(super) const PAGES: [u64; 5] = [4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB];
/// The largest of them: a header ends before that, whatever the size of a page is.
pub const HEADER: u64 = 64 * KIB;
const SIGNATURE: usize = 10;
pub(super) const SIGNATURES: [&[u8]; 2] = [b"SWAPSPACE2", b"SWAP-SPACE"];
/// What stands there instead while the memory of a system that sleeps is in it: as the kernel, uswsusp and TuxOnIce
/// write it.
pub(super) const SLEEPING: [&[u8]; 5] =
    [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"];
/// A swap file has at least ten pages.
const SMALLEST_FILE: u64 = 40 * KIB;
/// Where the description begins, and its bytes: version, last page, count of bad pages, UUID, label.
const DESCRIPTION: u64 = 1024;
const DESCRIBED: usize = 44;

/// What a swap space says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    page: u64,
    /// Version, last page, count of bad pages, UUID, label, as they stand on the disk.
    description: Vec<u8>,
    /// It holds the memory of a system that hibernates.
    pub hibernated: bool,
}

impl Swap {
    /// The swap space that begins at the first byte of `place`, if one does.
    ///
    /// # Errors
    /// Only what reading the disk gives.
    pub fn find(place: &dyn Bytes) -> Result<Option<Self>> {
        let mut found: Option<Self> = None;
        for page in PAGES.into_iter().filter(|page| *page <= place.size()) {
            let mut signature = [0; SIGNATURE];
            place.read(&mut signature, GuestOffset(page - length(SIGNATURE)))?;
            let hibernated = SLEEPING.iter().any(|known| signature.starts_with(known));
            if !hibernated && !SIGNATURES.contains(&&signature[..]) {
                continue;
            }
            // Several of them, left by pages of other sizes: one that sleeps counts.
            if let Some(swap) = &mut found {
                swap.hibernated |= hibernated;
                continue;
            }
            let mut description = vec![0; DESCRIBED];
            place.read(&mut description, GuestOffset(DESCRIPTION))?;
            found = Some(Self { page, description, hibernated });
        }
        Ok(found)
    }

    /// Whether the place of `size` bytes has all pages that it counts.
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        (u64::from(u32_at(&self.description, 4)) + 1) * self.page <= size
    }
}

/// Whether a regular file is swap space with the memory of a system that sleeps.
///
/// # Errors
/// As [`Ext4::content`]; whatever reading the disk gives.
pub fn sleeps_in<B: Bytes>(filesystem: &Ext4<B>, inode: &Inode) -> Result<bool> {
    let (content, mut signature) = (filesystem.content(inode)?, [0; SIGNATURE]);
    for page in PAGES {
        let read = content.read(page - length(SIGNATURE), &mut signature)?;
        if SLEEPING.iter().any(|mark| signature[..read].starts_with(mark)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first file in which a system sleeps, of a filesystem that was not unmounted: one that was has no such files, or its
/// system does not use them any more.
///
/// # Errors
/// `Corrupt` when the filesystem breaks its format; whatever reading the disk gives.
pub fn sleeper<B: Bytes>(filesystem: &Ext4<B>) -> Result<Option<Ino>> {
    let mut blocks = 0;
    for inode in filesystem.inodes() {
        let inode = inode?;
        if inode.kind != FileKind::Regular || inode.size < SMALLEST_FILE {
            continue;
        }
        blocks += filesystem.extents(&inode)?.iter().map(|extent| extent.blocks).sum::<u64>();
        if blocks > filesystem.superblock().block_count {
            return Err(Error::corrupt(
                "the ext4 filesystem is damaged: its files have more blocks than it; mend it with e2fsck",
            ));
        }
        if sleeps_in(filesystem, &inode)? {
            return Ok(Some(inode.ino));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{HEADER, SLEEPING, Swap};
    use crate::units::{index, length};

    fn place(page: usize, signature: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        bytes[1028..1032].copy_from_slice(&99_u32.to_le_bytes());
        bytes[page - 10..page - 10 + signature.len()].copy_from_slice(signature);
        bytes
    }

    #[test]
    fn swap_is_known_by_its_signature_whatever_its_page_is() {
        for page in [4096, 8192, 65536] {
            let found = Swap::find(&place(page, b"SWAPSPACE2")).unwrap().unwrap();
            assert!(!found.hibernated);
            assert!(found.fits(100 * length(page)) && !found.fits(100 * length(page) - 1));
        }
        assert_eq!(Swap::find(&place(4096, b"SWAPSPACE3")).unwrap(), None);
        assert_eq!(Swap::find(&vec![0; 4095]).unwrap(), None);
        assert_eq!(Swap::find(&vec![0; index(HEADER)]).unwrap(), None);
    }

    #[test]
    fn the_memory_of_a_system_that_sleeps_is_noticed() {
        for signature in SLEEPING {
            assert!(Swap::find(&place(4096, signature)).unwrap().unwrap().hibernated);
        }
        let mut twice = place(4096, b"SWAPSPACE2");
        twice[8182..8191].copy_from_slice(b"S1SUSPEND");
        assert!(Swap::find(&twice).unwrap().unwrap().hibernated);
    }
}
