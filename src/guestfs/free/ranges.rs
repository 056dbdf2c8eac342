//! Free ranges while they are found: in bounded memory.

use crate::units::length;
use std::ops::Range;

/// Most ranges of one disk, and the fewest that an area has room for.
const MOST: u64 = 4 << 20;
const FEWEST: u64 = 1024;
/// The first length below which ranges are forgotten when there are too many.
const SHORT: u64 = 4096;

/// Ranges in order. Neighbours are one; when there are too many, the shortest are forgotten.
#[derive(Debug)]
pub(super) struct Ranges {
    found: Vec<Range<u64>>,
    /// The last one, which may go on.
    open: Range<u64>,
    /// Shorter ones are not kept.
    shortest: u64,
    most: u64,
}

impl Ranges {
    /// Room for the ranges of an area of `len` bytes of a disk of `size` bytes.
    pub(super) fn of(len: u64, size: u64) -> Self {
        let share = u128::from(MOST) * u128::from(len) / u128::from(size.max(1));
        Self::at_most(u64::try_from(share).unwrap_or(MOST).clamp(FEWEST, MOST))
    }

    fn at_most(most: u64) -> Self {
        Self { found: Vec::new(), open: 0..0, shortest: 1, most }
    }

    /// Adds the bytes from `start` to `end`, which lie behind all that were added before.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        debug_assert!(start >= self.open.end, "{start} comes after {:?}", self.open);
        if start == self.open.end {
            self.open.end = end;
        } else if start > self.open.end && start < end {
            self.close();
            self.open = start..end;
        }
    }

    fn close(&mut self) {
        if self.open.end - self.open.start >= self.shortest {
            self.found.push(self.open.clone());
        }
        while length(self.found.len()) > self.most {
            self.shortest = (self.shortest * 2).max(SHORT);
            let shortest = self.shortest;
            self.found.retain(|range| range.end - range.start >= shortest);
        }
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Vec<Range<u64>> {
        self.close();
        self.found.shrink_to_fit();
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range_and_nothing_is_none() {
        let mut ranges = Ranges::of(100, 100);
        for (start, end) in [(0, 4), (4, 8), (10, 12), (12, 20), (20, 20), (30, 31)] {
            ranges.add(start, end);
        }
        assert_eq!(ranges.finish(), [0..8, 10..20, 30..31]);
        assert!(Ranges::of(100, 100).finish().is_empty());
    }

    #[test]
    fn of_too_many_ranges_the_longest_stay() {
        let mut ranges = Ranges::at_most(1000);
        let mut at = 0;
        for number in 0..100_000_u64 {
            let len = if number.is_multiple_of(200) { 1 << 20 } else { 4096 };
            ranges.add(at, at + len);
            at += len + 4096;
        }
        assert!(ranges.found.len() <= 1000 && ranges.found.capacity() <= 4096);
        let kept = ranges.finish();
        assert_eq!(kept.iter().filter(|range| range.end - range.start == 1 << 20).count(), 500);
        assert!(kept.windows(2).all(|pair| pair[0].end < pair[1].start));
    }

    #[test]
    fn areas_share_the_room_of_their_disk() {
        assert_eq!(Ranges::of(1 << 40, 1 << 40).most, MOST);
        assert_eq!(Ranges::of(1 << 39, 1 << 40).most, MOST / 2);
        assert_eq!(Ranges::of(512, u64::MAX).most, FEWEST);
        assert_eq!(Ranges::of(u64::MAX, 0).most, MOST);
    }
}
