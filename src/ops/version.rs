//! How the content of a base version is stored: whole, or as a delta over the version before it.

use super::scan::{Against, Early, Flat, Nowhere, Sink, scan, scan_against};
use super::share::{share, shown};
use super::{Progress, Untold};
use crate::disk::{Disk, Layer};
use crate::error::{Error, Result};
use crate::store::{BLOCK, BlockSum, DISK_MAX, DiskFormat, Finished, NewBase, OpenDisk};
use crate::units::{GuestOffset, SECTOR, index, length};
use crate::zero::is_zero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// A delta in the making: what differs from the layers below it.
pub(super) struct Delta<'a> {
    disk: &'a Disk,
    bytes: AtomicU64,
}

impl<'a> Delta<'a> {
    /// Nothing is in `disk`'s top layer yet.
    pub(super) fn new(disk: &'a Disk) -> Self {
        Self { disk, bytes: AtomicU64::new(0) }
    }

    /// Bytes that had to be stored.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Sink for Delta<'_> {
    /// The unit in which the layer stores: with less of it the rest would be copied up.
    fn grain(&self) -> usize {
        let unit = match self.disk.layers().first() {
            Some(Layer::Qcow2(image)) => image.header().geometry.subcluster_size(),
            _ => SECTOR,
        };
        index(unit.min(BLOCK))
    }

    fn ordered(&self) -> bool {
        true
    }

    fn put(&self, data: &[u8], at: u64) -> Result<()> {
        if is_zero(data) {
            return self.disk.write_zeroes(GuestOffset(at), length(data.len()));
        }
        self.bytes.fetch_add(length(data.len()), Ordering::Relaxed);
        self.disk.write(data, GuestOffset(at))
    }
}

/// Stores all of `disk` in the new version. `files` are those of its layers, where they are the store's.
pub(super) fn store_disk(
    disk: &Disk,
    files: &[PathBuf],
    new: &NewBase,
    progress: &dyn Progress,
) -> Result<Finished> {
    if let Some(before) = new.open_before()?
        && let Some(stored) = store_delta(disk, files, &before, new, progress)?
    {
        return Ok(stored);
    }
    store_whole(disk, new, progress)
}

fn store_whole(disk: &Disk, new: &NewBase, progress: &dyn Progress) -> Result<Finished> {
    let size = padded(disk.size())?;
    let out = new.create_disk(DiskFormat::Raw)?;
    let mut list = new.create_sums()?;
    let mut each = |sum: &BlockSum| list.push(sum);
    let sums = if share(disk, &out, size, &Untold(progress))? {
        // Of what the file holds: the disk may be one that somebody wrote to meanwhile.
        scan(&shown(&out)?, size, &Nowhere, progress, &mut each)?
    } else {
        scan(disk, size, &Early::new(&Flat(&out), &out), progress, &mut each)?
    };
    Ok(Finished { format: DiskFormat::Raw, is_delta: false, size, sums, list })
}

/// Stores what differs from the version before; `None`, and nothing is stored, when that is more than half of what is
/// not zero. What both have from the same files is read for its sums alone.
pub(super) fn store_delta(
    disk: &Disk,
    files: &[PathBuf],
    before: &OpenDisk,
    new: &NewBase,
    progress: &dyn Progress,
) -> Result<Option<Finished>> {
    let size = padded(disk.size())?;
    let delta = new.create_delta(size)?;
    let mut list = new.create_sums()?;
    let (sink, file) = (Delta::new(&delta.disk), new.open_disk(DiskFormat::Qcow2)?);
    let early = Early::new(&sink, &file);
    let against = Against { disk: &before.disk, shared: before.shared_with(files), exact: false };
    let mut data = 0;
    let sums = scan_against(disk, against, size, &early, progress, &mut |sum: &BlockSum| {
        data += if sum.is_zeros() { 0 } else { BLOCK };
        list.push(sum)
    })?;
    let bytes = sink.bytes();
    delta.close()?;
    if bytes > data / 2 {
        new.remove_disk(DiskFormat::Qcow2)?;
        return Ok(None);
    }
    Ok(Some(Finished { format: DiskFormat::Qcow2, is_delta: true, size, sums, list }))
}

/// The size of a disk whose image has `len` bytes: whole sectors.
pub(super) fn padded(len: u64) -> Result<u64> {
    match len {
        0 => Err(Error::invalid("it is empty: there is no disk in it")),
        1..=DISK_MAX => Ok(len.next_multiple_of(SECTOR)),
        _ => Err(Error::invalid(format!("its disk has {len} bytes; at most 16 TiB are taken"))),
    }
}
