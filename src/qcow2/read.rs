//! Reading: runs of the disk that come from one place, and their bytes.

use super::entry::{Mapping, Standard};
use super::image::Image;
use super::{Below, Extent, Source};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestOffset, index, length};

/// Runs are not followed further than this, so that a caller can stop in time.
const LONGEST_EXTENT: u64 = 1 << 30;

impl Image {
    /// Fills `buf` with what the guest sees at `at`; the range must lie inside the disk.
    ///
    /// # Errors
    /// `Invalid` outside of the disk; `Corrupt`; the host's. `buf` then holds anything.
    pub fn read(&self, mut buf: &mut [u8], mut at: GuestOffset, below: &dyn Below) -> Result<()> {
        self.check_range(at, length(buf.len()))?;
        while !buf.is_empty() {
            let Some(writer) = &self.writer else {
                return self.read_runs(buf, at, below);
            };
            let len = writer.locks.batch(at, length(buf.len()));
            let (now, later) = buf.split_at_mut(index(len));
            let shared = writer.locks.share(at, len);
            self.read_runs(now, at, below)?;
            drop(shared);
            buf = later;
            at = at + len;
        }
        Ok(())
    }

    /// Reads under the caller's locks.
    pub(super) fn read_runs(&self, mut buf: &mut [u8], mut at: GuestOffset, below: &dyn Below) -> Result<()> {
        while !buf.is_empty() {
            let extent = self.run(at, length(buf.len()))?;
            let (now, later) = buf.split_at_mut(index(extent.len));
            match extent.source {
                Source::Below => below.read(now, at)?,
                Source::Zero { .. } => now.fill(0),
                Source::Data(host) => {
                    self.storage.read_at(now, host).map_err(|e| Error::io("reading the image", e))?;
                }
                Source::Compressed => self.read_compressed(now, at)?,
            }
            buf = later;
            at = at + extent.len;
        }
        Ok(())
    }

    fn read_compressed(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let geometry = self.rules.geometry;
        let Mapping::Compressed(compressed) = self.mapping(geometry.cluster_of(at))? else {
            return Err(Error::corrupt(format!("the entry of {at} changed while it was read")));
        };
        let from = index(geometry.within_cluster(at));
        buf.copy_from_slice(&self.unpack(compressed)?[from..from + buf.len()]);
        Ok(())
    }

    /// The run that starts at `at`, which must lie inside the disk, followed for at most `limit` bytes (at least 1).
    ///
    /// # Errors
    /// `Invalid` outside of the disk; `Corrupt`; the host's.
    pub fn extent(&self, at: GuestOffset, limit: u64) -> Result<Extent> {
        self.check_range(at, 1)?;
        let limit = (self.virtual_size() - at.0).min(limit).min(LONGEST_EXTENT);
        let Some(writer) = &self.writer else { return self.run(at, limit) };
        let limit = writer.locks.batch(at, limit);
        let _shared = writer.locks.share(at, limit);
        self.run(at, limit)
    }

    /// The run that starts at `at`, up to `limit` bytes: neighbouring pieces joined.
    pub(super) fn run(&self, at: GuestOffset, limit: u64) -> Result<Extent> {
        let mut run = self.piece(at, limit)?;
        while run.len < limit && run.source != Source::Compressed {
            let next = self.piece(at + run.len, limit - run.len)?;
            let joined = match (run.source, next.source) {
                (Source::Data(first), Source::Data(second)) => first + run.len == second,
                (first, second) => first == second,
            };
            if !joined {
                break;
            }
            run.len += next.len;
        }
        Ok(run)
    }

    /// The part of a run that lies in one cluster.
    fn piece(&self, at: GuestOffset, limit: u64) -> Result<Extent> {
        let geometry = self.rules.geometry;
        let within = geometry.within_cluster(at);
        let cluster = geometry.cluster_of(at);
        if self.table(geometry.l1_index(cluster))?.is_none()
            && self.tables.entry(geometry.slice_of(cluster).0, 0).is_none()
        {
            let table_bytes = geometry.table_entries() << geometry.cluster_bits;
            return Ok(Extent { len: (table_bytes - at.0 % table_bytes).min(limit), source: Source::Below });
        }
        match self.mapping(cluster)? {
            Mapping::Compressed(_) => {
                Ok(Extent { len: (geometry.cluster_size() - within).min(limit), source: Source::Compressed })
            }
            Mapping::Standard(standard) => {
                let subcluster = within >> geometry.subcluster_bits;
                let (source, count) = subcluster_run(standard, subcluster, within);
                let end =
                    (subcluster + u64::from(count.min(geometry.subclusters()))) << geometry.subcluster_bits;
                Ok(Extent { len: (end.min(geometry.cluster_size()) - within).min(limit), source })
            }
        }
    }
}

/// Where the subclusters from number `first` on come from, and how many are alike; `within` is the place that a
/// host offset is wanted for.
fn subcluster_run(standard: Standard, first: u64, within: u64) -> (Source, u32) {
    let allocated = standard.allocated >> first;
    let zero = standard.zero >> first;
    if allocated & 1 != 0
        && let Some(host) = standard.host
    {
        (Source::Data(host + within), allocated.trailing_ones())
    } else if zero & 1 != 0 {
        (Source::Zero { allocated: standard.host.is_some() }, zero.trailing_ones())
    } else {
        (Source::Below, (allocated | zero).trailing_zeros())
    }
}
