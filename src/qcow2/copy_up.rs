//! Writes that need host bytes first: subclusters get a home, with what the guest saw there around the new bytes.

use super::Below;
use super::entry::{Mapping, Standard};
use super::geometry::bit_runs;
use super::holes::Holes;
use super::image::{Image, Writer};
use super::locks::Exclusive;
use crate::error::Result;
use crate::units::{GuestCluster, GuestOffset, HostOffset, index, length};
use crate::zero::is_zero;
use std::ops::Range;

/// What a host keeps or leaves out of a file.
const HOST_BLOCK: usize = 4096;
/// Writing so many zeros takes longer than asking the host whether there is a hole.
const WORTH_ASKING: usize = 4 * HOST_BLOCK;

/// A write inside one cluster.
pub(super) struct Piece<'a> {
    pub(super) data: &'a [u8],
    pub(super) at: GuestOffset,
    pub(super) below: &'a dyn Below,
}

/// Whose a host cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The guest cluster's already: it may hold bytes of other subclusters.
    Entry,
    /// Nobody's yet.
    Nobody,
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
                self.fill(writer, stored, (host, Owner::Entry), piece)?;
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
        self.fill(writer, stored, (host, Owner::Nobody), piece)?;
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
    fn fill(
        &self,
        writer: &Writer,
        stored: u32,
        (host, owner): (HostOffset, Owner),
        piece: &Piece<'_>,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let cluster_start = geometry.start_of(geometry.cluster_of(piece.at));
        for (first, count) in bit_runs(stored) {
            let from = u64::from(first) << geometry.subcluster_bits;
            let len = u64::from(count) << geometry.subcluster_bits;
            self.fill_run(writer, (cluster_start + from, len), (host + from, owner), piece)?;
        }
        Ok(())
    }

    /// Writes `len` bytes, whole subclusters from `start` on, to `host`.
    fn fill_run(
        &self,
        writer: &Writer,
        (start, len): (GuestOffset, u64),
        (host, owner): (HostOffset, Owner),
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
        match owner {
            Owner::Entry => self.put_data(writer, &bytes, host),
            Owner::Nobody => self.put_fresh(writer, &bytes, host),
        }
    }

    /// Writes to a place that nobody uses. Where the host has a hole it reads as zeros already, and those at both ends are left out;
    /// what an earlier owner of the place left is no hole.
    fn put_fresh(&self, writer: &Writer, bytes: &[u8], host: HostOffset) -> Result<()> {
        let wanted = but_zeros(bytes);
        let spared = bytes.len() - wanted.len();
        // Where the host cannot tell all is written.
        let hole = || Holes::default().is_hole(&self.storage, host, length(bytes.len())).unwrap_or(false);
        if spared < WORTH_ASKING || !hole() {
            return self.put_data(writer, bytes, host);
        }
        self.put_data(writer, &bytes[wanted.clone()], host + length(wanted.start))
    }
}

/// The blocks from the first to the last one that is not all zero; one block at least, for the file reaches to where an entry points.
fn but_zeros(bytes: &[u8]) -> Range<usize> {
    let blocks = || bytes.chunks(HOST_BLOCK).map(is_zero);
    let Some(first) = blocks().position(|zeros| !zeros) else { return 0..bytes.len().min(HOST_BLOCK) };
    let last = blocks().rposition(|zeros| !zeros).unwrap_or(first);
    first * HOST_BLOCK..bytes.len().min((last + 1) * HOST_BLOCK)
}

#[cfg(all(test, not(cowshed_model)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::qcow2::{CreateOptions, Nothing, OpenOptions, Source, check, create};
    use crate::storage::{Effect, Event, Fault, Memory, Operation, Recorder, Storage};
    use crate::units::{KIB, MIB};
    use std::sync::Arc;

    #[test]
    fn zeros_at_both_ends_are_left_out_by_blocks() {
        let with = |places: &[usize]| {
            let mut bytes = vec![0; 5 * HOST_BLOCK];
            places.iter().for_each(|at| bytes[*at] = 1);
            but_zeros(&bytes)
        };
        let block = HOST_BLOCK;
        assert_eq!(with(&[]), 0..block);
        assert_eq!(with(&[0]), 0..block);
        assert_eq!(with(&[2 * block - 1]), block..2 * block);
        assert_eq!(with(&[block, 3 * block]), block..4 * block);
        assert_eq!(with(&[5 * block - 1]), 4 * block..5 * block);
        assert_eq!(but_zeros(&[0; 512]), 0..512);
        assert_eq!(but_zeros(&[1; 512]), 0..512);
    }

    /// A plain image of 64 KiB clusters, and what is written to its file.
    fn plain() -> (Arc<Memory>, Arc<Recorder>, Image) {
        let memory = Arc::new(Memory::default());
        let options = CreateOptions { cluster_bits: 16, extended_l2: false, ..CreateOptions::new(8 * MIB) };
        create(&*memory, &options).unwrap();
        let recorder = Arc::new(Recorder::new(memory.clone()));
        let image =
            Image::open(recorder.clone(), OpenOptions { writable: true, metadata_cache: MIB }).unwrap();
        (memory, recorder, image)
    }

    #[test]
    fn a_first_write_leaves_a_hole_where_the_file_has_one() {
        let (memory, recorder, image) = plain();
        image.write(&[1; 4096], GuestOffset(8 * KIB), &Nothing).unwrap();
        let at = image.extent(GuestOffset(0), 64 * KIB).unwrap();
        let Source::Data(host) = at.source else { panic!("{at:?}") };
        let data = |event: &Event| match &event.effect {
            Effect::Write(place, bytes) if (host.0..host.0 + 64 * KIB).contains(&place.0) => {
                Some((*place, bytes.len()))
            }
            _ => None,
        };
        assert_eq!(recorder.events().iter().filter_map(data).collect::<Vec<_>>(), [(host + 8 * KIB, 4096)]);
        let mut expected = vec![0; 64 << 10];
        expected[8 << 10..12 << 10].fill(1);
        let mut seen = vec![9; 64 << 10];
        image.read(&mut seen, GuestOffset(0), &Nothing).unwrap();
        assert!(seen == expected);
        image.close().unwrap();
        assert_eq!(check(memory).unwrap().error_count, 0);
    }

    #[test]
    fn old_bytes_of_a_place_that_is_used_again_are_written_over() {
        let (memory, _, image) = plain();
        image.write(&[7; 1 << 20], GuestOffset(0), &Nothing).unwrap();
        image.close().unwrap();
        // Nobody's by now, and the host could not take the blocks back.
        let only = Some(Operation::Punch);
        memory.set_fault(Some(Fault { after: 0, only, errno: libc::ENOSPC, lasting: true }));
        image.discard(GuestOffset(0), MIB, &Nothing).unwrap();
        image.flush().unwrap();
        assert!(memory.fault_was_hit());
        memory.set_fault(None);
        drop(image);
        let image = Image::open(memory.clone(), OpenOptions { writable: true, metadata_cache: MIB }).unwrap();
        let before = memory.len().unwrap();
        image.write(&[1; 4096], GuestOffset(4 * MIB), &Nothing).unwrap();
        assert_eq!(memory.len().unwrap(), before, "a place inside of the file is used again");
        let mut seen = vec![9; 64 << 10];
        image.read(&mut seen, GuestOffset(4 * MIB), &Nothing).unwrap();
        assert!(seen[..4096].iter().all(|byte| *byte == 1) && seen[4096..].iter().all(|byte| *byte == 0));
    }
}
