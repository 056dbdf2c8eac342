//! Ranges that show what is below again, and the space that they held given back.
//!
//! For who knows that the image's own bytes of a range are worth nothing: they are free in the guest's filesystem, or equal to what
//! is below. A guest's discard is not that: what it deleted must never show again what is below.

use super::Source;
use super::entry::{Mapping, Standard};
use super::image::{Image, Writer};
use crate::error::Result;
use crate::units::{GuestCluster, GuestOffset};
use std::ops::Range;

/// Entries that change before it is asked whether a commit is due: on a full host each answer may be a commit.
const CHANGES: u64 = 1024;

impl Image {
    /// Makes the whole subclusters inside of `ranges` (bytes of the disk) show what is below: zeros where that ends.
    /// Of plain L2 and of compressed clusters only whole clusters go. Gives the bytes that [`Image::droppable`] gives; their host
    /// blocks come back with the next flush, and few commits are made before.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn drop_to_below(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<u64> {
        let writer = self.writer()?;
        let (mut bytes, mut changes) = (0, 0);
        let result = ranges.into_iter().try_for_each(|range| {
            self.each_own(range, |cluster, covered| {
                let Some(dropped) = self.drop_in_cluster(writer, cluster, covered)? else { return Ok(()) };
                bytes += dropped;
                changes += 1;
                if changes % CHANGES == 0 { self.settle(writer) } else { Ok(()) }
            })
        });
        let settled = self.settle(writer);
        result?;
        settled.map(|()| bytes)
    }

    /// How many bytes of the image's file only the whole subclusters inside of `ranges` hold. Nothing is changed.
    ///
    /// # Errors
    /// As [`Image::extent`].
    pub fn droppable(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<u64> {
        let mut bytes = 0;
        ranges.into_iter().try_for_each(|range| {
            self.each_own(range, |cluster, covered| {
                let _shared = self
                    .writer
                    .as_ref()
                    .map(|writer| writer.locks.share(self.rules.geometry.start_of(cluster), 1));
                bytes += self.without(cluster, self.mapping(cluster)?, covered).map_or(0, |(_, bytes)| bytes);
                Ok(())
            })
        })?;
        Ok(bytes)
    }

    /// Calls `each` for the clusters of a range that may have something of their own, with the subclusters that lie in it whole.
    fn each_own(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(GuestCluster, u32) -> Result<()>,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let mut at = GuestOffset(range.start);
        self.check_range(at, range.end.saturating_sub(at.0))?;
        while at.0 < range.end {
            let left = range.end - at.0;
            let extent = self.extent(at, left)?;
            let end = at + extent.len;
            if extent.source == Source::Below {
                at = end;
                continue;
            }
            while at.0 < end.0 {
                let (cluster, within) = (geometry.cluster_of(at), geometry.within_cluster(at));
                let step = (geometry.cluster_size() - within).min(range.end - at.0);
                // What was passed over in this cluster shows what is below, and is covered as well.
                let start = at.0 - range.start.max(geometry.start_of(cluster).0);
                let covered = geometry.covered(cluster, within - start, start + step);
                if covered != 0 {
                    each(cluster, covered)?;
                }
                at = at + step;
            }
        }
        Ok(())
    }

    fn drop_in_cluster(&self, writer: &Writer, cluster: GuestCluster, covered: u32) -> Result<Option<u64>> {
        let exclusive = writer.locks.exclude(cluster, &self.rules.geometry);
        let mapping = self.mapping(cluster)?;
        let Some((new, bytes)) = self.without(cluster, mapping, covered) else { return Ok(None) };
        self.publish(writer, &exclusive, cluster, new)?;
        match mapping {
            Mapping::Standard(old) if new.host.is_some() => {
                if let Some(host) = old.host.filter(|_| old.owned) {
                    writer.frees.lock().part(cluster, host, old.allocated & covered);
                }
            }
            old => self.free(writer, old),
        }
        Ok(Some(bytes))
    }

    /// What the entry of a cluster is without the subclusters `covered`, and the bytes of the file that nobody needs then; `None` when
    /// it stays as it is.
    fn without(&self, cluster: GuestCluster, old: Mapping, covered: u32) -> Option<(Standard, u64)> {
        let geometry = self.rules.geometry;
        let all = covered == self.whole_cluster(cluster);
        let old = match old {
            Mapping::Compressed(compressed) => return all.then_some((Standard::default(), compressed.len)),
            Mapping::Standard(standard) => standard,
        };
        // Bits past the end of the disk, which a shrunk image may have, go with the others.
        let covered = if all { geometry.all_subclusters() } else { covered };
        let gone = old.allocated & covered;
        if gone == 0 && old.zero & covered == 0 && !(all && old.host.is_some()) {
            return None;
        }
        let bytes = if old.owned { u64::from(gone.count_ones()) << geometry.subcluster_bits } else { 0 };
        let (allocated, zero) = (old.allocated & !covered, old.zero & !covered);
        let new = match allocated {
            0 => Standard { zero, ..Standard::default() },
            _ => Standard { allocated, zero, ..old },
        };
        Some((new, bytes))
    }
}
