//! Ranges made to read as zeros, and the space they held given back.

use super::entry::{Mapping, Standard};
use super::image::{Image, Writer};
use super::locks::Exclusive;
use super::{Below, Source};
use crate::error::Result;
use crate::units::{GuestCluster, GuestOffset, index, length};

/// Zeros to write over bytes that no bit can stand for, at most this many at a time.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

impl Image {
    /// Makes a range read as zeros; the range must lie inside the disk. Whole subclusters lose their bytes: their
    /// host blocks come back with the next flush.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn write_zeroes(&self, at: GuestOffset, len: u64, below: &dyn Below) -> Result<()> {
        self.check_range(at, len)?;
        let writer = self.writer()?;
        let geometry = self.rules.geometry;
        let mut done = 0;
        while done < len {
            let at = at + done;
            let step = (geometry.cluster_size() - geometry.within_cluster(at)).min(len - done);
            self.zero_in_cluster(writer, at, step, below)?;
            done += step;
            self.settle(writer)?;
        }
        Ok(())
    }

    /// Tells that the guest has no use for a range. It reads as zeros afterwards, never as what is below: a guest
    /// must not see again what it had deleted.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn discard(&self, at: GuestOffset, len: u64, below: &dyn Below) -> Result<()> {
        self.write_zeroes(at, len, below)
    }

    fn zero_in_cluster(&self, writer: &Writer, at: GuestOffset, len: u64, below: &dyn Below) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster = geometry.cluster_of(at);
        let covered = geometry.covered(cluster, geometry.within_cluster(at), len);
        let exclusive = writer.locks.exclude(cluster, &geometry);
        let whole =
            if covered != 0 && self.zero_subclusters_of(writer, &exclusive, cluster, covered, below)? {
                covered
            } else {
                0
            };
        drop(exclusive);
        let start = geometry.start_of(cluster);
        let end = at.0 + len;
        if whole == 0 {
            return self.overwrite_with_zeros(writer, at, len, below);
        }
        let first = start + (u64::from(whole.trailing_zeros()) << geometry.subcluster_bits);
        let last = start.0 + (u64::from(32 - whole.leading_zeros()) << geometry.subcluster_bits);
        self.overwrite_with_zeros(writer, at, first - at, below)?;
        self.overwrite_with_zeros(writer, GuestOffset(last.min(end)), end.saturating_sub(last), below)
    }

    /// Marks whole subclusters as zeros. `false`: the image cannot say so, and zeros have to be written.
    fn zero_subclusters_of(
        &self,
        writer: &Writer,
        exclusive: &Exclusive<'_>,
        cluster: GuestCluster,
        covered: u32,
        below: &dyn Below,
    ) -> Result<bool> {
        let geometry = self.rules.geometry;
        let mapping = self.mapping(cluster)?;
        let all = covered == self.whole_cluster(cluster);
        let nothing_below = geometry.start_of(cluster).0 >= below.size();
        let old = match mapping {
            Mapping::Standard(standard) => standard,
            Mapping::Compressed(_) if all => Standard { allocated: covered, ..Standard::default() },
            Mapping::Compressed(_) => return Ok(false),
        };
        let allocated = old.allocated & !covered;
        let zero = match (self.rules.zero_flag, nothing_below) {
            (_, true) => old.zero & !covered,
            (true, false) => old.zero | covered,
            (false, false) => return Ok(false),
        };
        if (allocated, zero) == (old.allocated, old.zero) || nothing_below && old.allocated & covered == 0 {
            return Ok(true);
        }
        if allocated == 0 {
            self.publish(writer, exclusive, cluster, Standard { zero, ..Standard::default() })?;
            self.free(writer, mapping);
            return Ok(true);
        }
        self.publish(writer, exclusive, cluster, Standard { allocated, zero, ..old })?;
        if let Some(host) = old.host.filter(|_| old.owned) {
            writer.frees.lock().part(cluster, host, old.allocated & covered);
        }
        Ok(true)
    }

    /// The bits of all subclusters of a cluster that lie inside the disk.
    pub(super) fn whole_cluster(&self, cluster: GuestCluster) -> u32 {
        let geometry = self.rules.geometry;
        let len = geometry.cluster_size().min(self.virtual_size() - geometry.start_of(cluster).0);
        geometry.touched(0, len)
    }

    /// Writes zeros over a range inside one cluster, unless it reads as zeros already.
    fn overwrite_with_zeros(
        &self,
        writer: &Writer,
        at: GuestOffset,
        len: u64,
        below: &dyn Below,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        {
            let _shared = writer.locks.share(at, len);
            if self.reads_as_zeros(at, len, below)? {
                return Ok(());
            }
        }
        let mut done = 0;
        while done < len {
            let step = (len - done).min(length(ZEROS.len()));
            self.write(&ZEROS[..index(step)], at + done, below)?;
            done += step;
        }
        Ok(())
    }

    /// Whether a run is zeros or, with nothing below, nothing.
    fn reads_as_zeros(&self, at: GuestOffset, len: u64, below: &dyn Below) -> Result<bool> {
        let mut done = 0;
        while done < len {
            let run = self.run(at + done, len - done)?;
            let zero = match run.source {
                Source::Zero { .. } => true,
                Source::Below => at.0 + done >= below.size(),
                Source::Data(_) | Source::Compressed => false,
            };
            if !zero {
                return Ok(false);
            }
            done += run.len;
        }
        Ok(true)
    }
}
