//! Another size of the disk in an image that nobody uses.

use super::header::Header;
use super::layout::SIZE_FIELD;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::SECTOR;

/// Makes the disk of an image smaller; durable after the storage's next sync. Nobody has it open.
///
/// L1 keeps its length, and tables that lie past the new end stay where they are. Who makes the disk smaller discards
/// what lies there first: bytes that no guest can reach would only take room.
///
/// # Errors
/// `Invalid` for a size that is no multiple of 512, is 0 or larger than it is; `Unsupported` for an image with internal
/// snapshots or bitmaps, which have the old size; what reading the header gives; the host's.
pub fn shrink(storage: &dyn Storage, size: u64) -> Result<()> {
    let header = Header::read(storage)?;
    let now = header.geometry.virtual_size;
    if size == 0 || !size.is_multiple_of(SECTOR) || size > now {
        return Err(Error::invalid(format!("a disk of {now} bytes cannot be made smaller to {size} bytes")));
    }
    if header.snapshots > 0 || header.bitmaps.is_some() {
        return Err(Error::unsupported("the image has internal snapshots or bitmaps of its present size"));
    }
    storage.write_at(&size.to_be_bytes(), SIZE_FIELD).map_err(|e| Error::io("writing the disk's size", e))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::shrink;
    use crate::error::Kind;
    use crate::qcow2::{CreateOptions, Image, Nothing, OpenOptions, check, create};
    use crate::storage::Memory;
    use crate::units::{GuestOffset, MIB};
    use std::sync::Arc;

    const SIZE: u64 = 600 * MIB;

    fn image() -> Arc<Memory> {
        let storage = Arc::new(Memory::new());
        let options = CreateOptions { cluster_bits: 16, ..CreateOptions::new(SIZE) };
        create(&*storage, &options).unwrap();
        storage
    }

    fn open(storage: &Arc<Memory>, writable: bool) -> Image {
        Image::open(storage.clone(), OpenOptions { writable, ..OpenOptions::default() }).unwrap()
    }

    #[test]
    fn what_lies_before_the_new_end_stays_and_nothing_is_wrong_or_lost() {
        for size in [512, MIB + 512, 7 * MIB, 256 * MIB, SIZE - 512, SIZE] {
            let storage = image();
            let first = open(&storage, true);
            first.write(&[7; 5000], GuestOffset(0), &Nothing).unwrap();
            first.write(&[8; 5000], GuestOffset(SIZE - 5000), &Nothing).unwrap();
            first.discard(GuestOffset(size), SIZE - size, &Nothing).unwrap();
            first.close().unwrap();
            drop(first);
            shrink(&*storage, size).unwrap();
            let smaller = open(&storage, true);
            assert_eq!(smaller.virtual_size(), size);
            let mut start = vec![0; 5000.min(usize::try_from(size).unwrap())];
            smaller.read(&mut start, GuestOffset(0), &Nothing).unwrap();
            assert!(start.iter().all(|byte| *byte == 7), "{size}");
            smaller.read(&mut [0], GuestOffset(size), &Nothing).unwrap_err();
            smaller.write(&[9; 512], GuestOffset(size - 512), &Nothing).unwrap();
            smaller.close().unwrap();
            let report = check(storage.clone()).unwrap();
            assert_eq!((report.error_count, report.leaks), (0, 0), "{size}: {report:?}");
        }
    }

    #[test]
    fn a_size_that_is_none_is_refused_and_changes_nothing() {
        let storage = image();
        for size in [0, 511, SIZE + 512, u64::MAX] {
            assert_eq!(shrink(&*storage, size).unwrap_err().kind(), Kind::Invalid, "{size}");
        }
        assert_eq!(open(&storage, false).virtual_size(), SIZE);
    }
}
