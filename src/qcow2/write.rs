//! Writing: in place where the bytes have a home, by allocation where they have none.

use super::Below;
use super::Source;
use super::entry::{Mapping, Standard};
use super::fresh::Fresh;
use super::image::{Image, Writer, is_owned};
use super::layout::COPIED;
use super::locks::Exclusive;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::units::{GuestCluster, GuestOffset, HostOffset, index, length};
use crate::zero::is_zero;
use std::sync::atomic::Ordering;

impl Image {
    /// Writes `data` at `at`; the range must lie inside the disk. What is not covered of a subcluster that had no
    /// bytes of its own is copied up from `below`.
    ///
    /// # Errors
    /// `Invalid` outside of the disk; `ReadOnly`; `NoSpace`, then the range holds old or new bytes; `Latched` after a
    /// failed sync; `Corrupt`; the host's.
    pub fn write(&self, mut data: &[u8], mut at: GuestOffset, below: &dyn Below) -> Result<()> {
        self.check_range(at, length(data.len()))?;
        let writer = self.writer()?;
        while !data.is_empty() {
            let mut done = self.write_in_place(writer, data, at)?;
            if done == 0 {
                let geometry = self.rules.geometry;
                done = (geometry.cluster_size() - geometry.within_cluster(at)).min(length(data.len()));
                let exclusive = writer.locks.exclude(geometry.cluster_of(at), &geometry);
                self.write_cluster(writer, &exclusive, &data[..index(done)], at, below)?;
            }
            data = &data[index(done)..];
            at = at + done;
        }
        self.keep_budget()
    }

    /// Writes the first part of `data` that has its own host bytes already, and returns its length.
    fn write_in_place(&self, writer: &Writer, data: &[u8], at: GuestOffset) -> Result<u64> {
        let len = writer.locks.batch(at, length(data.len()));
        let _shared = writer.locks.share(at, len);
        let mut done = 0;
        while done < len {
            let Some((host, run)) = self.owned_run(at + done, len - done)? else { break };
            self.put_data(writer, &data[index(done)..index(done + run)], host)?;
            done += run;
        }
        Ok(done)
    }

    /// Where the bytes from `at` on are stored, and how many lie there in a row, if they may be overwritten there.
    fn owned_run(&self, at: GuestOffset, limit: u64) -> Result<Option<(HostOffset, u64)>> {
        let Some((host, mut len)) = self.owned_piece(at, limit)? else { return Ok(None) };
        while len < limit {
            match self.owned_piece(at + len, limit - len)? {
                Some((next, more)) if next == host + len => len += more,
                _ => break,
            }
        }
        Ok(Some((host, len)))
    }

    /// The part of an owned run that lies in one cluster.
    fn owned_piece(&self, at: GuestOffset, limit: u64) -> Result<Option<(HostOffset, u64)>> {
        let geometry = self.rules.geometry;
        let within = geometry.within_cluster(at);
        let Mapping::Standard(Standard { host: Some(host), owned: true, allocated, .. }) =
            self.mapping(geometry.cluster_of(at))?
        else {
            return Ok(None);
        };
        let first = within >> geometry.subcluster_bits;
        let count = u64::from((allocated >> first).trailing_ones());
        let end = ((first + count) << geometry.subcluster_bits).min(geometry.cluster_size());
        Ok((count > 0).then(|| (host + within, (end - within).min(limit))))
    }

    /// Writes inside one cluster whose entry has to change.
    fn write_cluster(
        &self,
        writer: &Writer,
        exclusive: &Exclusive<'_>,
        data: &[u8],
        at: GuestOffset,
        below: &dyn Below,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster = geometry.cluster_of(at);
        let within = geometry.within_cluster(at);
        let mapping = self.mapping(cluster)?;
        let touched = geometry.touched(within, length(data.len()));
        let Mapping::Standard(standard) = mapping else {
            return self.replace(writer, exclusive, mapping, geometry.all_subclusters(), data, at, below);
        };
        let zeros = self.zero_subclusters(standard, cluster, data, within);
        let stored = touched & !zeros;
        if stored == 0 {
            let zero = standard.zero | zeros;
            if zero == standard.zero {
                return Ok(());
            }
            return self.publish(writer, exclusive, cluster, Standard { zero, ..standard });
        }
        match standard.host {
            Some(host) if standard.owned => {
                self.fill(writer, stored, data, at, host, below)?;
                let new = Standard {
                    allocated: standard.allocated | stored,
                    zero: (standard.zero | zeros) & !stored,
                    ..standard
                };
                self.publish(writer, exclusive, cluster, new)
            }
            _ => self.replace(writer, exclusive, mapping, standard.allocated | stored, data, at, below),
        }
    }

    /// Subclusters that `data` covers with zeros only and that hold no bytes: a bit says so, without bytes.
    fn zero_subclusters(&self, standard: Standard, cluster: GuestCluster, data: &[u8], within: u64) -> u32 {
        let geometry = self.rules.geometry;
        if !self.rules.zero_flag {
            return 0;
        }
        let mut candidates = geometry.covered(cluster, within, length(data.len())) & !standard.allocated;
        let mut zeros = 0;
        while candidates != 0 {
            let bit = candidates.trailing_zeros();
            let from = index((u64::from(bit) << geometry.subcluster_bits) - within);
            let to = data.len().min(from + index(geometry.subcluster_size()));
            if is_zero(&data[from..to]) {
                zeros |= 1 << bit;
            }
            candidates &= candidates - 1;
        }
        zeros
    }

    /// Gives a cluster a fresh host cluster with the subclusters `stored`, and drops what it had.
    #[expect(clippy::too_many_arguments, reason = "the whole of one write")]
    fn replace(
        &self,
        writer: &Writer,
        exclusive: &Exclusive<'_>,
        old: Mapping,
        stored: u32,
        data: &[u8],
        at: GuestOffset,
        below: &dyn Below,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster = geometry.cluster_of(at);
        // Bits past the end of the disk, which a shrunk image may have, are not carried over.
        let stored = stored & self.whole_cluster(cluster);
        let fresh = self.allocate(writer)?;
        self.fill(writer, stored, data, at, geometry.host_start(fresh.cluster()), below)?;
        let zero = match old {
            Mapping::Standard(standard) => {
                let zeros = self.zero_subclusters(standard, cluster, data, geometry.within_cluster(at));
                (standard.zero | zeros) & !stored
            }
            Mapping::Compressed(_) => 0,
        };
        let host = Some(geometry.host_start(fresh.cluster()));
        self.publish(writer, exclusive, cluster, Standard { host, owned: true, allocated: stored, zero })?;
        fresh.keep();
        self.free(writer, old);
        Ok(())
    }

    /// Writes the subclusters `stored` of one cluster to `host`: `data` where it reaches, what the guest sees now
    /// elsewhere. No byte of another subcluster is touched.
    fn fill(
        &self,
        writer: &Writer,
        mut stored: u32,
        data: &[u8],
        at: GuestOffset,
        host: HostOffset,
        below: &dyn Below,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster_start = geometry.start_of(geometry.cluster_of(at));
        while stored != 0 {
            let first = stored.trailing_zeros();
            let count = (stored >> first).trailing_ones();
            stored &= !(u32::MAX >> (32 - count) << first);
            let from = u64::from(first) << geometry.subcluster_bits;
            let start = cluster_start + from;
            let full = u64::from(count) << geometry.subcluster_bits;
            let end = (start.0 + full).min(self.virtual_size());
            let data_end = at.0 + length(data.len());
            if at <= start && end <= data_end && start.0 + full == end {
                let covered = &data[index(start - at)..index(end - at.0)];
                self.put_data(writer, covered, host + from)?;
                continue;
            }
            // Behind the end of the disk zeros are written: a larger disk must not show old bytes there.
            let mut bytes = vec![0; index(full)];
            self.read_runs(&mut bytes[..index(end - start.0)], start, below)?;
            let (copy_from, copy_to) = (start.max(at), GuestOffset(end.min(data_end)));
            if copy_from < copy_to {
                bytes[index(copy_from - start)..index(copy_to - start)]
                    .copy_from_slice(&data[index(copy_from - at)..index(copy_to - at)]);
            }
            self.put_data(writer, &bytes, host + from)?;
        }
        Ok(())
    }

    pub(super) fn put_data(&self, writer: &Writer, data: &[u8], host: HostOffset) -> Result<()> {
        let result = self.storage.write_at(data, host).map_err(|e| Error::io("writing the image", e));
        writer.written.store(true, Ordering::Release);
        result
    }

    /// Changes a cluster's entry in memory. Its bytes are written already; its clusters are counted already.
    pub(super) fn publish(
        &self,
        writer: &Writer,
        _exclusive: &Exclusive<'_>,
        cluster: GuestCluster,
        new: Standard,
    ) -> Result<()> {
        let (number, entry) = self.rules.geometry.slice_of(cluster);
        self.own_table(writer, self.rules.geometry.l1_index(cluster))?;
        let back = |bytes: &[u8]| self.back_slice(writer, number, bytes);
        while !self.tables.publish(&self.slice(number)?, entry, self.rules.encode(new), back)? {}
        Ok(())
    }

    /// Writes a slice of zeros over what is zeros, for the host to set space aside.
    fn back_slice(&self, writer: &Writer, number: u64, bytes: &[u8]) -> Result<()> {
        let (l1_index, within) = self.rules.geometry.slice_place(number);
        match self.table(l1_index)? {
            Some(table) => self.put_data(writer, bytes, table + within),
            None => Ok(()),
        }
    }

    /// Gives an L1 entry a table of its own: a new one, or a copy of one that a snapshot shares.
    fn own_table(&self, writer: &Writer, l1_index: usize) -> Result<()> {
        if is_owned(self.l1[l1_index].load(Ordering::Acquire)) {
            return Ok(());
        }
        let mut dirty = writer.l1_dirty.lock();
        if is_owned(self.l1[l1_index].load(Ordering::Acquire)) {
            return Ok(());
        }
        let geometry = self.rules.geometry;
        let old = self.table(l1_index)?;
        let fresh = self.allocate(writer)?;
        let mut bytes = vec![0; index(geometry.cluster_size())];
        if let Some(old) = old {
            self.storage.read_at(&mut bytes, old).map_err(|e| Error::io("copying an L2 table", e))?;
        }
        let place = geometry.host_start(fresh.cluster());
        self.put_data(writer, &bytes, place)?;
        writer.metadata.insert(fresh.cluster());
        self.l1[l1_index].store(place.0 | COPIED, Ordering::Release);
        dirty.insert(l1_index);
        fresh.keep();
        drop(dirty);
        if let Some(old) = old {
            let cluster = geometry.host_cluster(old);
            writer.metadata.remove(cluster);
            writer.frees.lock().cluster(cluster);
        }
        Ok(())
    }

    /// A host cluster that goes back unless it is kept.
    fn allocate<'a>(&self, writer: &'a Writer) -> Result<Fresh<'a>> {
        let cluster = writer.allocator.lock().allocate(&self.storage)?;
        let end = self.rules.geometry.host_start(cluster) + self.cluster_size();
        if end.0 > super::layout::OFFSET {
            return Err(Error::new(Kind::NoSpace, "the image file is as large as the format allows"));
        }
        self.end.fetch_max(end.0, Ordering::Relaxed);
        Ok(Fresh::new(&writer.allocator, cluster))
    }

    /// An entry's host clusters lose a reference, once the change of the entry is durable.
    pub(super) fn free(&self, writer: &Writer, old: Mapping) {
        let geometry = self.rules.geometry;
        match old {
            Mapping::Standard(standard) => {
                if let Some(host) = standard.host {
                    writer.frees.lock().cluster(geometry.host_cluster(host));
                }
            }
            Mapping::Compressed(compressed) => {
                writer.frees.lock().clusters(compressed.host_clusters(&geometry))
            }
        }
    }

    /// Flushes when more L2 slices are dirty than the budget can bear. No lock may be held.
    pub(super) fn keep_budget(&self) -> Result<()> {
        if self.tables.wants_flush() { self.flush() } else { Ok(()) }
    }

    /// Whether a run is zeros or, with nothing below, nothing.
    pub(super) fn reads_as_zeros(&self, at: GuestOffset, len: u64, below: &dyn Below) -> Result<bool> {
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
