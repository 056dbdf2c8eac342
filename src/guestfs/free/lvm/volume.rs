//! A logical volume as a disk of its own.

use crate::error::{Error, Result};
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, index, length};
use std::ops::Range;

/// A run of a volume that is a run of what lies below as well, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) len: u64,
}

impl Piece {
    /// The same, below counted from `start` before.
    pub(super) fn moved(self, start: u64) -> Self {
        Self { physical: self.physical + start, ..self }
    }

    /// What of `ranges`, which are in order, is in this piece: where it lies below.
    pub(super) fn on_disk(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let end = self.logical + self.len;
        let first = ranges.partition_point(|range| range.end <= self.logical);
        let inside = ranges[first..].iter().take_while(|range| range.start < end);
        let below = |at: u64| at.clamp(self.logical, end) - self.logical + self.physical;
        inside.map(|range| below(range.start)..below(range.end)).collect()
    }
}

/// A volume of pieces that follow on each other from 0 on.
pub(super) struct Volume<'a, B> {
    below: &'a B,
    pieces: Vec<Piece>,
}

impl<'a, B: Bytes> Volume<'a, B> {
    pub(super) fn new(below: &'a B, pieces: Vec<Piece>) -> Self {
        Self { below, pieces }
    }
}

impl<B: Bytes> Bytes for Volume<'_, B> {
    fn size(&self) -> u64 {
        self.pieces.last().map_or(0, |last| last.logical + last.len)
    }

    fn read(&self, mut buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let mut at = at.0;
        let first = self.pieces.partition_point(|piece| piece.logical + piece.len <= at);
        for piece in self.pieces.get(first..).unwrap_or_default() {
            let skip = at - piece.logical;
            let (part, rest) = buf.split_at_mut(index((piece.len - skip).min(length(buf.len()))));
            self.below.read(part, GuestOffset(piece.physical + skip))?;
            at += length(part.len());
            buf = rest;
            if buf.is_empty() {
                break;
            }
        }
        if buf.is_empty() { Ok(()) } else { Err(Error::invalid("a read past the end of the volume")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_in_pieces_reads_and_maps_as_one() {
        let below: Vec<u8> = (0..100).collect();
        let piece = |logical, physical, len| Piece { logical, physical, len };
        let pieces = vec![piece(0, 50, 10), piece(10, 20, 5), piece(15, 80, 10)];
        let volume = Volume::new(&below, pieces.clone());
        let whole: Vec<u8> = (50..60).chain(20..25).chain(80..90).collect();
        for (at, len) in [(0, 25), (5, 7), (10, 5), (9, 8), (24, 1), (3, 0)] {
            let mut buf = vec![0; len];
            volume.read(&mut buf, GuestOffset(at)).expect("inside");
            assert_eq!(buf, whole[index(at)..][..len], "{len} at {at}");
        }
        assert!(volume.read(&mut [0; 2], GuestOffset(24)).is_err() && volume.size() == 25);
        let free = [2..4, 8..12, 14..15, 15..16, 20..25];
        let below: Vec<_> = pieces.iter().map(|piece| piece.on_disk(&free)).collect();
        assert_eq!(below, [vec![52..54, 58..60], vec![20..22, 24..25], vec![80..81, 85..90]]);
    }
}
