//! What is called free is filled with garbage: nothing that a guest needs may be missed then.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use crate::ext4::{Image, ran};
use cowshed::guestfs::free::{Area, Free, survey};
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use std::ops::Range;
use std::process::Command;

/// The survey of a disk, after what must hold for any disk at all.
pub fn surveyed<B: Bytes + Sync>(disk: &B) -> Vec<Area> {
    let areas = survey(disk).unwrap();
    let mut at = 0;
    for area in &areas {
        assert!(area.start.0 == at && area.len > 0, "a gap or an overlap at {at}: {}", area.what);
        at += area.len;
        let mut behind = area.start.0;
        match &area.free {
            Free::Known(ranges) => {
                for (number, range) in ranges.iter().enumerate() {
                    let apart = range.start > behind || number == 0 && range.start == behind;
                    assert!(apart && range.start < range.end, "{}: {range:?} after {behind}", area.what);
                    behind = range.end;
                }
                assert!(behind <= at, "{}: {behind} lies behind its end", area.what);
            }
            Free::Left(reason) => {
                assert!(reason.len() > 5 && !reason.chars().any(char::is_control), "{reason:?}");
            }
        }
    }
    assert_eq!(at, disk.size(), "not the whole disk");
    areas
}

/// All that is free.
pub fn known(areas: &[Area]) -> Vec<Range<u64>> {
    let ranges = areas.iter().filter_map(|area| match &area.free {
        Free::Known(ranges) => Some(ranges.clone()),
        Free::Left(_) => None,
    });
    ranges.flatten().collect()
}

/// What is free of the only area, which must be known.
pub fn whole(areas: &[Area], place: &str) -> Vec<Range<u64>> {
    match areas {
        [Area { free: Free::Known(ranges), .. }] => ranges.clone(),
        _ => panic!("{place}: {areas:?}"),
    }
}

/// Why the area whose words are `what` is left.
pub fn reason(areas: &[Area], what: &str) -> String {
    let area = areas.iter().find(|area| area.what.to_string() == what);
    let area = area.unwrap_or_else(|| panic!("there is no {what}: {areas:?}"));
    match &area.free {
        Free::Left(reason) => reason.clone(),
        Free::Known(ranges) => panic!("{what} is not left, but has {} free ranges", ranges.len()),
    }
}

/// Fills ranges with what no filesystem expects.
pub fn spoil(image: &Image, ranges: &[Range<u64>]) {
    static GARBAGE: [u8; 1 << 16] = [0xa5; 1 << 16];
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(GARBAGE.len() as u64);
            image.write(at, &GARBAGE[..usize::try_from(len).unwrap()]);
            at += len;
        }
    }
}

/// Whether all of `part` is in `all`; both are in order.
pub fn is_within(part: &[Range<u64>], all: &[Range<u64>]) -> bool {
    part.iter().all(|range| {
        let next = all.get(all.partition_point(|whole| whole.end <= range.start));
        next.is_some_and(|whole| whole.start <= range.start && range.end <= whole.end)
    })
}

/// The free blocks of an ext filesystem by its bitmaps as they stand on the disk, as dumpe2fs lists them: in bytes.
pub fn by_dumpe2fs(image: &Image) -> Vec<Range<u64>> {
    let text = ran(Command::new("dumpe2fs").arg(&image.path));
    let number = |key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key)).map(|number| number.trim().parse().unwrap())
    };
    let (block, count) = (number("Block size:").unwrap(), number("Block count:").unwrap());
    let ratio = number("Cluster size:").map_or(1, |cluster| cluster / block);
    let lists = text.lines().filter_map(|line| line.strip_prefix("  Free blocks: "));
    let mut found: Vec<Range<u64>> = Vec::new();
    for run in lists.flat_map(|list| list.split(", ")).filter(|run| !run.is_empty()) {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        let (start, end) = (first * block, (last + ratio).min(count) * block);
        match found.last_mut() {
            Some(before) if before.end == start => before.end = end,
            _ => found.push(start..end),
        }
    }
    found
}

/// The free blocks of an ext filesystem by its bitmaps as they stand on the disk, whatever is in the journal, and
/// whether or not their checksums match: in bytes.
pub fn on_the_disk(image: &Image) -> Vec<Range<u64>> {
    let text = ran(Command::new("dumpe2fs").arg("-h").arg(&image.path));
    let number = |key: &str| -> u64 {
        text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().parse().unwrap()
    };
    // Block 0 is the superblock's, and debugfs does not know it.
    let (block, first) = (number("Block size:"), number("First block:").max(1));
    let request = format!("testb {first} {}", number("Block count:") - first);
    let said = ran(Command::new("debugfs").args(["-n", "-R", &request]).arg(&image.path));
    let mut found: Vec<Range<u64>> = Vec::new();
    for line in said.lines().filter_map(|line| line.strip_suffix(" not in use")) {
        let start = line.trim_start_matches("Block ").parse::<u64>().unwrap() * block;
        match found.last_mut() {
            Some(last) if last.end == start => last.end += block,
            _ => found.push(start..start + block),
        }
    }
    assert!(!found.is_empty());
    found
}

/// A disk in memory.
pub struct Memory(pub Vec<u8>);

impl Bytes for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> cowshed::Result<()> {
        let at = usize::try_from(at.0).unwrap();
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}
