//! Writes that need host bytes first: subclusters get a home, with what the guest saw there around the new bytes.

use super::Below;
use super::entry::{Mapping, Standard};
use super::geometry::bit_runs;
use super::image::{Image, Writer};
use super::locks::Exclusive;
use crate::error::Result;
use crate::units::{GuestCluster, GuestOffset, HostOffset, index, length};
use crate::zero::is_zero;

/// A write inside one cluster.
pub(super) struct Piece<'a> {
    pub(super) data: &'a [u8],
    pub(super) at: GuestOffset,
    pub(super) below: &'a dyn Below,
}

impl Piece<'_> {
    fn end(&self) -> GuestOffset {
        self.at + length(self.data.len())
    }
}

impl Image {
    /// Writes inside one cluster whose entry has to change.
    pub(super) fn write_cluster(
        &self,
        writer: &Writer,
        exclusive: &Exclusive<'_>,
        piece: &Piece<'_>,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster = geometry.cluster_of(piece.at);
        let mapping = self.mapping(cluster)?;
        let Mapping::Standard(old) = mapping else {
            return self.replace(writer, exclusive, mapping, geometry.all_subclusters(), piece);
        };
        let zeros = self.zero_subclusters(old, cluster, piece);
        let stored = geometry.touched(geometry.within_cluster(piece.at), length(piece.data.len())) & !zeros;
        if stored == 0 {
            let zero = old.zero | zeros;
            if zero == old.zero {
                return Ok(());
            }
            return self.publish(writer, exclusive, cluster, Standard { zero, ..old });
        }
        match old.host {
            Some(host) if old.owned => {
                self.fill(writer, stored, host, piece)?;
                let (allocated, zero) = (old.allocated | stored, (old.zero | zeros) & !stored);
                self.publish(writer, exclusive, cluster, Standard { allocated, zero, ..old })
            }
            _ => self.replace(writer, exclusive, mapping, old.allocated | stored, piece),
        }
    }

    /// Subclusters that are covered with zeros only and that hold no bytes: a bit says so, without bytes.
    fn zero_subclusters(&self, old: Standard, cluster: GuestCluster, piece: &Piece<'_>) -> u32 {
        let geometry = self.rules.geometry;
        if !self.rules.zero_flag {
            return 0;
        }
        let within = geometry.within_cluster(piece.at);
        let mut candidates = geometry.covered(cluster, within, length(piece.data.len())) & !old.allocated;
        let mut zeros = 0;
        while candidates != 0 {
            let bit = candidates.trailing_zeros();
            let from = index((u64::from(bit) << geometry.subcluster_bits) - within);
            let to = piece.data.len().min(from + index(geometry.subcluster_size()));
            if is_zero(&piece.data[from..to]) {
                zeros |= 1 << bit;
            }
            candidates &= candidates - 1;
        }
        zeros
    }

    /// Gives a cluster a fresh host cluster with the subclusters `stored`, and drops what it had.
    fn replace(
        &self,
        writer: &Writer,
        exclusive: &Exclusive<'_>,
        old: Mapping,
        stored: u32,
        piece: &Piece<'_>,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster = geometry.cluster_of(piece.at);
        // Bits past the end of the disk, which a shrunk image may have, are not carried over.
        let stored = stored & self.whole_cluster(cluster);
        let fresh = self.allocate(writer)?;
        let host = geometry.host_start(fresh.cluster());
        self.fill(writer, stored, host, piece)?;
        let zero = match old {
            Mapping::Standard(old) => (old.zero | self.zero_subclusters(old, cluster, piece)) & !stored,
            Mapping::Compressed(_) => 0,
        };
        let new = Standard { host: Some(host), owned: true, allocated: stored, zero };
        self.publish(writer, exclusive, cluster, new)?;
        fresh.keep();
        self.free(writer, old);
        Ok(())
    }

    /// Writes the subclusters `stored` of one cluster to `host`: the new bytes where they reach, what the guest sees
    /// now elsewhere. No byte of another subcluster is touched.
    fn fill(&self, writer: &Writer, stored: u32, host: HostOffset, piece: &Piece<'_>) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster_start = geometry.start_of(geometry.cluster_of(piece.at));
        for (first, count) in bit_runs(stored) {
            let from = u64::from(first) << geometry.subcluster_bits;
            let len = u64::from(count) << geometry.subcluster_bits;
            self.fill_run(writer, cluster_start + from, len, host + from, piece)?;
        }
        Ok(())
    }

    /// Writes `len` bytes, whole subclusters from `start` on, to `host`.
    fn fill_run(
        &self,
        writer: &Writer,
        start: GuestOffset,
        len: u64,
        host: HostOffset,
        piece: &Piece<'_>,
    ) -> Result<()> {
        if piece.at <= start && start + len <= piece.end() {
            let from = index(start - piece.at);
            return self.put_data(writer, &piece.data[from..from + index(len)], host);
        }
        let end = GuestOffset((start + len).0.min(self.virtual_size()));
        let new = start.max(piece.at).min(end)..end.min(piece.end()).max(start);
        // Behind the end of the disk zeros are written: a larger disk must not show old bytes there.
        let mut bytes = vec![0; index(len)];
        if new.start >= new.end {
            self.read_runs(&mut bytes[..index(end - start)], start, piece.below)?;
        } else {
            let (from, to) = (index(new.start - start), index(new.end - start));
            self.read_runs(&mut bytes[..from], start, piece.below)?;
            self.read_runs(&mut bytes[to..index(end - start)], new.end, piece.below)?;
            let data = index(new.start - piece.at);
            bytes[from..to].copy_from_slice(&piece.data[data..data + (to - from)]);
        }
        self.put_data(writer, &bytes, host)
    }
}
