//! Reading: runs of the disk that come from one place, and their bytes.

use super::entry::{Mapping, Standard};
use super::image::Image;
use super::{Below, Extent, Piece, Reader, Source};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestOffset, index, length};

/// Runs are not followed further than this, so that a caller can stop in time.
const LONGEST_EXTENT: u64 = 1 << 30;
/// Who asks for no more than this means to read it: its tables had better be in memory.
const REQUEST: u64 = 4 << 20;

impl Image {
    /// Fills `buf` with what the guest sees at `at`; the range must lie inside the disk.
    ///
    /// # Errors
    /// `Invalid` outside of the disk; `Corrupt`; the host's. `buf` then holds anything.
    pub fn read(&self, mut buf: &mut [u8], at: GuestOffset, below: &dyn Below) -> Result<()> {
        let len = length(buf.len());
        self.read_to(&mut buf, at, len, below)
    }

    /// Gives `reader` what the guest sees in the `len` bytes at `at`; the range must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::read`]; the reader's.
    pub fn read_to(
        &self,
        reader: &mut dyn Reader,
        mut at: GuestOffset,
        mut len: u64,
        below: &dyn Below,
    ) -> Result<()> {
        self.check_range(at, len)?;
        while len > 0 {
            let Some(writer) = &self.writer else {
                return self.runs_to(reader, at, len, below);
            };
            let batch = writer.locks.batch(at, len);
            let shared = writer.locks.share(at, batch);
            self.runs_to(reader, at, batch, below)?;
            drop(shared);
            len -= batch;
            at = at + batch;
        }
        Ok(())
    }

    /// Reads under the caller's locks.
    pub(super) fn read_runs(&self, mut buf: &mut [u8], at: GuestOffset, below: &dyn Below) -> Result<()> {
        let len = length(buf.len());
        self.runs_to(&mut buf, at, len, below)
    }

    /// Reads under the caller's locks.
    fn runs_to(
        &self,
        reader: &mut dyn Reader,
        mut at: GuestOffset,
        mut len: u64,
        below: &dyn Below,
    ) -> Result<()> {
        while len > 0 {
            let extent = self.run(at, len)?;
            match extent.source {
                Source::Below => below.read_to(reader, at, extent.len)?,
                Source::Zero { .. } => reader.take(Piece::Zeros(extent.len))?,
                Source::Data(host) => reader.take(Piece::Stored {
                    file: &self.storage,
                    at: host,
                    len: extent.len,
                    doing: "reading the image",
                })?,
                Source::Compressed => self.read_compressed(reader, at, extent.len)?,
            }
            len -= extent.len;
            at = at + extent.len;
        }
        Ok(())
    }

    fn read_compressed(&self, reader: &mut dyn Reader, at: GuestOffset, len: u64) -> Result<()> {
        let geometry = self.rules.geometry;
        let Mapping::Compressed(compressed) = self.mapping(geometry.cluster_of(at))? else {
            return Err(Error::corrupt(format!("the entry of {at} changed while it was read")));
        };
        let from = index(geometry.within_cluster(at));
        reader.take(Piece::Bytes(&self.unpack(compressed)?[from..from + index(len)]))
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
        if let Some(len) = self.untouched(at, limit)? {
            return Ok(Extent { len, source: Source::Below });
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

impl Image {
    /// Bytes from `at` on of which their table says nothing because it is a hole of the file: whole slices, which then need not be
    /// read. `None` where that is not so, in an image that is open for writing, and for no more than a request.
    fn untouched(&self, at: GuestOffset, limit: u64) -> Result<Option<u64>> {
        let geometry = self.rules.geometry;
        let (slice, entry) = geometry.slice_of(geometry.cluster_of(at));
        let span = geometry.slice_entries() << geometry.cluster_bits;
        if self.writer.is_some()
            || limit < span.max(REQUEST)
            || entry != 0
            || geometry.within_cluster(at) != 0
        {
            return Ok(None);
        }
        let (l1_index, within) = geometry.slice_place(slice);
        let Some(table) = self.table(l1_index)? else { return Ok(None) };
        let run = self.storage.run_at(table + within);
        let run = run.map_err(|e| Error::io("asking for the holes of the image", e))?;
        let bytes = geometry.slice_entries() * geometry.entry_size();
        let slices = run.len.min(geometry.cluster_size() - within) / bytes;
        Ok((!run.data && slices > 0).then(|| (slices * span).min(limit)))
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
