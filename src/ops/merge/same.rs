//! Whether two files of two versions hold the same bytes.
//!
//! What lies at the same place of both disks, in layers that are the same files, need not be read: so a comparison costs
//! what was changed, however long the files are.

use super::volumes::Volume;
use crate::error::Result;
use crate::guestfs::ext4::{Extent, Ino};
use crate::ops::scan::Against;
use crate::ops::{Progress, check_cancelled};
use crate::pages::Pages;
use crate::units::{index, length};
use std::ops::Range;

/// Two files are compared in pieces of this many bytes.
const PIECE: usize = 256 << 10;

/// Whether two regular files hold the same bytes. `shared` layers at the bottom of both disks are the same files.
///
/// # Errors
/// `Corrupt` when a file breaks the format, `Interrupted`, whatever reading gives.
pub fn is_same(
    one: (&Volume<'_>, u32),
    other: (&Volume<'_>, u32),
    shared: usize,
    progress: &dyn Progress,
) -> Result<bool> {
    check_cancelled(progress)?;
    let volumes = [one.0, other.0];
    let inodes = [one.0.filesystem.inode(Ino(one.1))?, other.0.filesystem.inode(Ino(other.1))?];
    if inodes[0].size != inodes[1].size {
        return Ok(false);
    }
    if inodes[0].size == 0 {
        return Ok(true);
    }
    let contents = [volumes[0].filesystem.content(&inodes[0])?, volumes[1].filesystem.content(&inodes[1])?];
    let known = known(volumes, [contents[0].extents(), contents[1].extents()], shared)?;
    // What is a hole in both is skipped.
    let ranges = without(union(contents[0].data(), contents[1].data()), &known);
    // Of most files nothing has to be read.
    let Some(longest) = ranges.iter().map(|range| range.end - range.start).max() else { return Ok(true) };
    let piece = index(longest.min(length(PIECE)));
    let (mut a, mut b) = (Pages::new(piece), Pages::new(piece));
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            check_cancelled(progress)?;
            let len = index((range.end - at).min(length(piece)));
            contents[0].read(at, &mut a[..len])?;
            contents[1].read(at, &mut b[..len])?;
            if a[..len] != b[..len] {
                return Ok(false);
            }
            at += length(len);
        }
    }
    Ok(true)
}

/// Blocks of which two states of a filesystem may have different ones, ascending and apart from each other; nothing when all may
/// be others, as their disks have no layer in common.
pub(super) fn changed(volumes: [&Volume<'_>; 2], shared: usize) -> Result<Option<Vec<Range<u64>>>> {
    let [first, second] = volumes;
    let block = first.filesystem.superblock().block_size;
    if shared == 0 || (first.start, first.end) != (second.start, second.end) {
        return Ok(None);
    }
    let against = Against { disk: &second.disk, shared, exact: false };
    let mut found: Vec<Range<u64>> =
        volumes.iter().flat_map(|volume| &volume.replayed).map(|block| *block..block + 1).collect();
    let mut at = first.start;
    while at < first.end {
        let (one, other) = (first.run_at(at)?, second.run_at(at)?);
        let end = one.end.min(other.end);
        let same = (!one.data && !other.data) || against.is_shared(&first.disk, one.depth, other.depth);
        if !same {
            found.push((at - first.start) / block..(end - first.start).div_ceil(block));
        }
        at = end;
    }
    Ok(Some(union(found, Vec::new())))
}

/// Ranges of both files that are the same blocks of the same layers, in order.
fn known(volumes: [&Volume<'_>; 2], maps: [&[Extent]; 2], shared: usize) -> Result<Vec<Range<u64>>> {
    let [first, second] = volumes;
    let block = |volume: &Volume<'_>| volume.filesystem.superblock().block_size;
    if shared == 0 || first.start != second.start || block(first) != block(second) {
        return Ok(Vec::new());
    }
    let [one, other] = maps.map(written);
    let (mut found, mut here, mut there) = (Vec::new(), 0, 0);
    while let (Some(a), Some(b)) = (one.get(here), other.get(there)) {
        let logical = a.logical.max(b.logical)..a.logical_end().min(b.logical_end());
        let physical = |extent: &Extent| extent.physical.0 + (logical.start - extent.logical);
        if logical.start < logical.end && physical(a) == physical(b) {
            settle(volumes, shared, physical(a), logical.clone(), &mut found)?;
        }
        if a.logical_end() <= b.logical_end() {
            here += 1;
        } else {
            there += 1;
        }
    }
    Ok(found)
}

fn written(map: &[Extent]) -> Vec<Extent> {
    map.iter().filter(|extent| !extent.unwritten).copied().collect()
}

/// Adds to `found` what both disks have from the same layers, of blocks that lie at the same place.
fn settle(
    volumes: [&Volume<'_>; 2],
    shared: usize,
    physical: u64,
    logical: Range<u64>,
    found: &mut Vec<Range<u64>>,
) -> Result<()> {
    let [first, second] = volumes;
    let block = first.filesystem.superblock().block_size;
    let against = Against { disk: &second.disk, shared, exact: false };
    let (place, file) = (physical * block, logical.start * block);
    let len = (logical.end - logical.start) * block;
    let mut at = 0;
    while at < len {
        let here = first.start + place + at;
        let (one, other) = (first.run_at(here)?, second.run_at(here)?);
        let step = (one.end.min(other.end) - here).min(len - at);
        let same = (!one.data && !other.data) || against.is_shared(&first.disk, one.depth, other.depth);
        // The journal brings other bytes than the disk has.
        let blocks = (place + at) / block..(place + at + step).div_ceil(block);
        let brought = |volume: &Volume<'_>| volume.replayed.range(blocks.clone()).next().is_some();
        if same && !brought(first) && !brought(second) {
            let (start, end) = (file + at, file + at + step);
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => found.push(start..end),
            }
        }
        at += step;
    }
    Ok(())
}

/// What either list has, ascending, no two of them touching.
fn union(mut one: Vec<Range<u64>>, other: Vec<Range<u64>>) -> Vec<Range<u64>> {
    one.extend(other);
    one.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in one {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// `ranges` without what `known` has; both ascending.
fn without(ranges: Vec<Range<u64>>, known: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut left, mut next) = (Vec::new(), 0);
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            match known.get(next) {
                Some(known) if known.end <= at => next += 1,
                Some(known) if known.start < range.end => {
                    if at < known.start {
                        left.push(at..known.start);
                    }
                    at = known.end;
                }
                _ => {
                    left.push(at..range.end);
                    at = range.end;
                }
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::{union, without};
    use std::ops::Range;

    #[test]
    fn what_is_left_is_in_a_file_and_not_known() {
        let ranges =
            |list: &[(u64, u64)]| list.iter().map(|(from, to)| *from..*to).collect::<Vec<Range<u64>>>();
        let both = union(ranges(&[(0, 10), (20, 30)]), ranges(&[(5, 12), (30, 40)]));
        assert_eq!(both, ranges(&[(0, 12), (20, 40)]));
        assert_eq!(
            without(both.clone(), &ranges(&[(3, 25), (35, 36), (39, 90)])),
            ranges(&[(0, 3), (25, 35), (36, 39)])
        );
        assert_eq!(without(both.clone(), &[]), both);
        assert_eq!(without(both, &ranges(&[(0, 100)])), []);
    }
}
