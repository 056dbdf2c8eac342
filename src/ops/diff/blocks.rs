//! What differs between two disks, as blocks.

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::partitions::Partition;
use crate::ops::scan::{Against, Count, Sink, difference_in};
use crate::ops::{Progress, check_cancelled};
use crate::pages::Pages;
use crate::units::{GuestOffset, MIB, index, length};
use crate::zero::is_zero;
use parking_lot::Mutex;
use serde::Serialize;
use std::ops::Range;

/// Most extents that are listed: they take 24 bytes of memory each.
const MOST: usize = 1 << 25;
/// Two places that do not lie at the same offset are compared in pieces of this many bytes.
const PIECE: u64 = MIB;
const GRAIN: u64 = 4096;

/// A run of the disk that differs, in whole blocks of 4 KiB from the start of the disk; the last may be cut by its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BlockChange {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Whether it is all zeros on the new disk.
    pub zero: bool,
}

/// Lists what is put.
#[derive(Default)]
struct List(Mutex<Vec<BlockChange>>);

impl Sink for List {
    fn put(&self, data: &[u8], at: u64) -> Result<()> {
        let mut list = self.0.lock();
        if list.len() >= MOST {
            return Err(Error::unsupported(format!("there are more than {MOST} runs that differ")));
        }
        list.push(BlockChange { start: at, length: length(data.len()), zero: is_zero(data) });
        Ok(())
    }
}

/// All runs of two disks that differ, in order; the shorter one reads as zeros past its end.
pub(super) fn list(new: &Disk, old: Against<'_>, progress: &dyn Progress) -> Result<Vec<BlockChange>> {
    let found = List::default();
    difference_in(new, old, 0..new.size().max(old.disk.size()), &found, progress)?;
    let mut found = found.0.into_inner();
    found.sort_unstable();
    found.dedup_by(|next, last| {
        let joins = last.start + last.length == next.start && last.zero == next.zero;
        last.length += if joins { next.length } else { 0 };
        joins
    });
    Ok(found)
}

/// How many bytes of a range of two disks differ.
pub(super) fn count(new: &Disk, old: Against<'_>, range: Range<u64>, progress: &dyn Progress) -> Result<u64> {
    let found = Count::default();
    difference_in(new, old, range, &found, progress)?;
    Ok(found.all())
}

/// The same of two places, wherever they lie.
pub(super) fn count_places(
    new: (&Disk, &Partition),
    old: (&Disk, &Partition),
    shared: usize,
    progress: &dyn Progress,
) -> Result<u64> {
    let (start, end) = (new.1.start.0, new.1.end().0.max(old.1.end().0));
    // Without a table the place is the disk, whatever its length is.
    if new.1.start == old.1.start && (new.1.len == old.1.len || new.1.number == 0) {
        return count(new.0, Against { disk: old.0, shared, exact: false }, start..end, progress);
    }
    let len = new.1.len.max(old.1.len);
    progress.total(len);
    let (mut a, mut b) = (Pages::new(index(PIECE)), Pages::new(index(PIECE)));
    let (mut at, mut found) = (0, 0);
    while at < len {
        check_cancelled(progress)?;
        let piece = (len - at).min(PIECE);
        read(new, &mut a[..index(piece)], at)?;
        read(old, &mut b[..index(piece)], at)?;
        let blocks = a[..index(piece)].chunks(index(GRAIN)).zip(b[..index(piece)].chunks(index(GRAIN)));
        found += blocks.filter(|(a, b)| a != b).map(|(a, _)| length(a.len())).sum::<u64>();
        progress.advance(piece);
        at += piece;
    }
    Ok(found)
}

/// Reads a place, zeros past its end.
fn read((disk, place): (&Disk, &Partition), buf: &mut [u8], at: u64) -> Result<()> {
    let inside = index(place.len.saturating_sub(at).min(length(buf.len())));
    let (inside, outside) = buf.split_at_mut(inside);
    outside.fill(0);
    if inside.is_empty() { Ok(()) } else { disk.read(inside, GuestOffset(place.start.0 + at)) }
}
