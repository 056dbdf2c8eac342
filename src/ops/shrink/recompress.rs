//! What rests is compressed: the clusters of a clone's own layer that it has whole.

use super::needless::Found;
use crate::disk::{Disk, Layer};
use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::qcow2::{Compression, Ended, Packed};
use crate::units::{GuestOffset, index, length};
use serde::Serialize;
use std::ops::Range;

/// Clusters that an estimate reads.
const SAMPLE: usize = 256;

/// What compressing gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recompressed {
    /// Bytes of the clusters that the own layer has whole, and that are not compressed.
    pub full_bytes: u64,
    /// What their bytes take up less; of a plan an estimate, from a sample of at most 256 clusters.
    pub gives_back_bytes: u64,
}

impl Recompressed {
    pub(super) fn of(packed: &Packed) -> Self {
        Self { full_bytes: packed.full, gives_back_bytes: packed.before.saturating_sub(packed.after) }
    }
}

/// Refuses a clone whose file other tools could not read any more: who asked for plain L2 has tools that may not know zstd.
pub(super) fn refuse_compat(disk: &Disk) -> Result<()> {
    match disk.layers().first() {
        Some(Layer::Qcow2(image))
            if !image.header().geometry.extended_l2 && image.header().compression == Compression::Zlib =>
        {
            Err(Error::unsupported(
                "its file is for tools that may not know zstd (`clone --compat`); it is not compressed",
            ))
        }
        _ => Ok(()),
    }
}

/// Compresses; told is how far it is, in bytes of the disk.
pub(super) fn recompress(disk: &mut Disk, progress: &dyn Progress) -> Result<Packed> {
    let (size, mut at) = (disk.size(), 0);
    let packed = disk.pack(&mut |reached| {
        progress.advance(reached.at - at);
        at = reached.at;
        !progress.cancelled()
    })?;
    if packed.ended == Ended::Complete {
        progress.advance(size - at);
    }
    Ok(packed)
}

/// Clusters that would be compressed, while the own layer is walked; some of them are drawn.
#[derive(Debug)]
pub(super) struct Sample {
    bytes: u64,
    clusters: u64,
    drawn: Vec<(GuestOffset, u64)>,
    /// State of the generator: the same disk gives the same sample.
    random: u64,
}

impl Sample {
    pub(super) fn new() -> Self {
        Self { bytes: 0, clusters: 0, drawn: Vec::new(), random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Counts the clusters that begin in a range of which `found` was found: what loses something is whole no more.
    pub(super) fn count(
        &mut self,
        disk: &Disk,
        range: Range<u64>,
        found: &Found,
        cluster: u64,
    ) -> Result<()> {
        let mut goes: Vec<&Range<u64>> = found.drop.iter().chain(&found.zero).collect();
        goes.sort_unstable_by_key(|range| range.start);
        disk.each_full(range, |at, bytes| {
            let next = goes.partition_point(|range| range.end <= at.0);
            if goes.get(next).is_none_or(|range| range.start >= at.0 + cluster) {
                self.add(at, bytes);
            }
        })
    }

    /// Each of those that were added is drawn with the same chance (Vitter's algorithm R).
    fn add(&mut self, at: GuestOffset, bytes: u64) {
        self.bytes += bytes;
        self.clusters += 1;
        if self.drawn.len() < SAMPLE {
            self.drawn.push((at, bytes));
            return;
        }
        // Marsaglia's xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let place = self.random % self.clusters;
        if place < length(SAMPLE) {
            self.drawn[index(place)] = (at, bytes);
        }
    }

    /// What compressing would give, if the others are as those that were drawn.
    pub(super) fn estimate(&self, disk: &Disk) -> Result<Recompressed> {
        let places: Vec<GuestOffset> = self.drawn.iter().map(|(at, _)| *at).collect();
        let read: u64 = self.drawn.iter().map(|(_, bytes)| bytes).sum();
        let saved = u128::from(disk.would_save(&places)?) * u128::from(self.bytes) / u128::from(read.max(1));
        let gives_back_bytes = u64::try_from(saved).unwrap_or(self.bytes).min(self.bytes);
        Ok(Recompressed { full_bytes: self.bytes, gives_back_bytes })
    }
}
