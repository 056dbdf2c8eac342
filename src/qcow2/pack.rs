//! Clusters that rest are packed: compressed, several of them in one host cluster.
//!
//! For who knows that nobody writes to them soon: a write to a packed cluster unpacks all of it first. A batch does, in this order:
//! 1. compresses on all cores, and writes what got small enough to fresh host clusters, one behind the other;
//! 2. counts each of those clusters once for everything that has bytes in it, and writes the counts;
//! 3. changes the entries as a write does, and commits: bytes and counts are durable before an entry is, and only after that
//!    the clusters from before are given back.

use super::compact::Ended;
use super::entry::{Compressed, Mapping, Standard};
use super::fresh::Fresh;
use super::header::{Compression, Header};
use super::image::{Image, Writer};
use super::layout::{RawHeader, incompatible};
use super::{Nothing, Source};
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::units::{GuestCluster, GuestOffset, HostCluster, HostOffset, MIB, SECTOR, index, length};
use rayon::prelude::*;
use std::ops::Range;
use zstd::bulk::Compressor;

/// As QEMU compresses.
const LEVEL: i32 = 3;
/// Bytes of clusters that are packed between two commits at most.
const BATCH_BYTES: u64 = 32 * MIB;
/// Clusters that are packed first, and then more and more: a full host, or a wish to stop, is known early.
const FIRST_BATCH: usize = 8;

/// What packing has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// What of the disk lies before this was looked at.
    pub at: u64,
    /// Bytes of the clusters that were full and not packed.
    pub full: u64,
    /// Clusters that are packed now.
    pub clusters: u64,
    /// Bytes of the file that they took before.
    pub before: u64,
    /// And take now.
    pub after: u64,
    /// How it ended.
    pub ended: Ended,
}

/// A cluster with bytes of its own in all of it.
#[derive(Clone, Copy, Debug)]
struct Full {
    cluster: GuestCluster,
    standard: Standard,
    /// Bytes of the file that it takes.
    bytes: u64,
}

/// Host clusters in a row that take packed ones.
struct Room<'a> {
    fresh: Vec<Fresh<'a>>,
    /// By cluster: how many have bytes in it.
    counts: Vec<u64>,
    bytes: Vec<u8>,
    /// What is in it, with the place.
    holds: Vec<(Full, Compressed)>,
}

impl Image {
    /// Calls `each` for the clusters of which the image has all bytes, unpacked and for the disk alone, and that begin in
    /// `range`; with their place, and the bytes of the file that they take.
    ///
    /// # Errors
    /// As [`Image::extent`].
    pub fn each_full(&self, range: Range<u64>, mut each: impl FnMut(GuestOffset, u64)) -> Result<()> {
        self.full_clusters(range, |full| each(self.rules.geometry.start_of(full.cluster), full.bytes))
    }

    fn full_clusters(&self, range: Range<u64>, mut each: impl FnMut(Full)) -> Result<()> {
        let size = self.cluster_size();
        let mut at = range.start.next_multiple_of(size);
        while at < range.end.min(self.virtual_size()) {
            let extent = self.extent(GuestOffset(at), u64::MAX)?;
            match extent.source {
                Source::Below | Source::Compressed => {
                    at = (at + extent.len).next_multiple_of(size);
                    continue;
                }
                Source::Zero { .. } if extent.len >= size => {
                    at += extent.len / size * size;
                    continue;
                }
                Source::Zero { .. } | Source::Data(_) => {}
            }
            if let Some(full) = self.full(self.rules.geometry.cluster_of(GuestOffset(at)))? {
                each(full);
            }
            at += size;
        }
        Ok(())
    }

    fn full(&self, cluster: GuestCluster) -> Result<Option<Full>> {
        let geometry = self.rules.geometry;
        let all = geometry.all_subclusters();
        let cut = geometry.start_of(cluster).0 + geometry.cluster_size() > self.virtual_size();
        Ok(match self.mapping(cluster)? {
            Mapping::Standard(standard)
                if standard.owned
                    && standard.allocated != 0
                    && standard.allocated | standard.zero == all
                    && !cut =>
            {
                let bytes = u64::from(standard.allocated.count_ones()) << geometry.subcluster_bits;
                Some(Full { cluster, standard, bytes })
            }
            _ => None,
        })
    }

    /// How many bytes of the file packing the clusters at these places, as [`Image::each_full`] gives them, would save.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn would_save(&self, places: &[GuestOffset]) -> Result<u64> {
        let full: Vec<Full> = places
            .iter()
            .filter_map(|at| self.full(self.rules.geometry.cluster_of(*at)).transpose())
            .collect::<Result<_>>()?;
        let packed = self.squeeze_all(&full)?;
        Ok(packed.iter().map(|(full, packed)| full.bytes - length(packed.len())).sum())
    }

    /// Packs all clusters of which the image has all bytes, and that get smaller by a quarter at least. Nobody else uses the
    /// image. What it shows stays the same. `go_on` is told what is reached before each batch; `false` ends the work.
    ///
    /// # Errors
    /// `Unsupported` for an image that holds clusters that are packed in another way; as [`Image::flush`].
    pub fn pack(&mut self, go_on: &mut dyn FnMut(&Packed) -> bool) -> Result<Packed> {
        self.writer()?;
        self.flush()?;
        self.say_zstd()?;
        let writer = self.writer()?;
        let most = index(BATCH_BYTES / self.cluster_size()).max(1);
        let mut reached = Packed { at: 0, full: 0, clusters: 0, before: 0, after: 0, ended: Ended::Complete };
        let mut len = FIRST_BATCH.min(most);
        while reached.at < self.virtual_size() {
            if !go_on(&reached) {
                return Ok(Packed { ended: Ended::Stopped, ..reached });
            }
            let (batch, end) = self.next_full(reached.at, len)?;
            match self.storage.close_on_panic(|| self.pack_batch(writer, &batch, &mut reached)) {
                Err(error) if error.kind() == Kind::NoSpace && batch.len() > 1 => len = 1,
                Err(error) if error.kind() == Kind::NoSpace => {
                    return Ok(Packed { ended: Ended::HostFull, ..reached });
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    len = most.min(2 * len);
                    reached.full += batch.iter().map(|full| full.bytes).sum::<u64>();
                    reached.at = end;
                }
            }
        }
        Ok(reached)
    }

    /// The next full clusters from `at` on, and where to look for those behind them.
    fn next_full(&self, at: u64, most: usize) -> Result<(Vec<Full>, u64)> {
        let (mut found, mut at) = (Vec::new(), at);
        // As far as so many clusters reach at once: what is below is passed over quickly.
        while at < self.virtual_size() && found.len() < most {
            let end = at + length(most - found.len()) * self.cluster_size();
            let skip = self.extent(GuestOffset(at), u64::MAX)?;
            let end = if skip.source == Source::Below { end.max(at + skip.len) } else { end };
            let end = end.next_multiple_of(self.cluster_size());
            self.full_clusters(at..end, |full| found.push(full))?;
            at = end;
        }
        Ok((found, at.min(self.virtual_size())))
    }

    fn pack_batch(&self, writer: &Writer, batch: &[Full], reached: &mut Packed) -> Result<()> {
        let packed = self.squeeze_all(batch)?;
        if packed.is_empty() {
            return Ok(());
        }
        let rooms = self.rooms(writer, packed)?;
        if let Err(error) = self.write_rooms(writer, &rooms) {
            // Nothing points there: on a full host these blocks are what the next, smaller batch needs.
            for room in &rooms {
                let _ =
                    self.storage.punch(self.start_of(room), length(room.fresh.len()) * self.cluster_size());
            }
            return Err(error);
        }
        let mut result = Ok(());
        for Room { fresh, holds, .. } in rooms {
            for (full, place) in holds {
                result = result.and_then(|()| self.switch(writer, full, place));
                if result.is_err() {
                    // Nothing points to it: its references go with the next commit.
                    self.free(writer, Mapping::Compressed(place));
                    continue;
                }
                reached.clusters += 1;
                reached.before += full.bytes;
                reached.after += place.len;
            }
            fresh.into_iter().for_each(Fresh::keep);
        }
        self.flush()?;
        result
    }

    /// The clusters that get small enough, with their packed bytes: whole sectors.
    fn squeeze_all(&self, batch: &[Full]) -> Result<Vec<(Full, Vec<u8>)>> {
        let packed: Vec<Result<Option<Vec<u8>>>> = batch
            .par_iter()
            .map_init(
                || (Vec::new(), None),
                |(bytes, compressor), full| self.squeeze(full, bytes, compressor),
            )
            .collect();
        let pairs = batch.iter().zip(packed);
        pairs
            .filter_map(|(full, packed)| {
                packed.transpose().map(|packed| packed.map(|packed| (*full, packed)))
            })
            .collect()
    }

    fn squeeze(
        &self,
        full: &Full,
        bytes: &mut Vec<u8>,
        compressor: &mut Option<Compressor<'static>>,
    ) -> Result<Option<Vec<u8>>> {
        bytes.resize(index(self.cluster_size()), 0);
        // Nothing of a full cluster shows what is below.
        self.read(bytes, self.rules.geometry.start_of(full.cluster), &Nothing)?;
        let compressor = match compressor {
            Some(compressor) => compressor,
            None => {
                let new = Compressor::new(LEVEL).map_err(|error| Error::io("cannot compress", error))?;
                compressor.insert(new)
            }
        };
        // Less than a quarter is not worth that each read unpacks it.
        let most = index(full.bytes / 4 * 3 / SECTOR * SECTOR);
        let mut packed = Vec::with_capacity(most);
        // An error says that it does not fit.
        if compressor.compress_to_buffer(&bytes[..], &mut packed).is_err() || packed.len() > most {
            return Ok(None);
        }
        packed.resize(packed.len().next_multiple_of(index(SECTOR)), 0);
        packed.shrink_to_fit();
        Ok(Some(packed))
    }

    /// Gives each packed cluster a place: in the first room that has one, else in a further cluster.
    fn rooms<'a>(&self, writer: &'a Writer, packed: Vec<(Full, Vec<u8>)>) -> Result<Vec<Room<'a>>> {
        let most = writer.allocator.lock().refcounts.width().max();
        let size = index(self.cluster_size());
        let mut rooms: Vec<Room<'a>> = Vec::new();
        for (full, packed) in packed {
            let found = rooms.iter().rposition(|room| room.place(packed.len(), size, most).is_some());
            let number = match found {
                Some(number) => number,
                None => self.more_room(writer, &mut rooms)?,
            };
            let room = &mut rooms[number];
            // A further cluster has room for any.
            let Some(at) = room.place(packed.len(), size, most) else { continue };
            room.counts[at / size..=(at + packed.len() - 1) / size].iter_mut().for_each(|count| *count += 1);
            let host = self.start_of(room) + length(at);
            room.holds.push((full, Compressed { host, len: length(packed.len()) }));
            room.bytes.resize(at, 0);
            room.bytes.extend(packed);
        }
        Ok(rooms)
    }

    /// A further cluster: of the last room where it lies behind that, else of a new one, which is then the last.
    fn more_room<'a>(&self, writer: &'a Writer, rooms: &mut Vec<Room<'a>>) -> Result<usize> {
        let fresh = self.allocate(writer)?;
        let cluster = fresh.cluster().0;
        let behind = |room: &Room<'_>| room.fresh.last().is_some_and(|last| last.cluster().0 + 1 == cluster);
        match rooms.last_mut().filter(|room| behind(room)) {
            Some(room) => {
                room.fresh.push(fresh);
                room.counts.push(0);
            }
            None => {
                rooms.push(Room {
                    fresh: vec![fresh],
                    counts: vec![0],
                    bytes: Vec::new(),
                    holds: Vec::new(),
                });
            }
        }
        Ok(rooms.len() - 1)
    }

    fn start_of(&self, room: &Room<'_>) -> HostOffset {
        let first = room.fresh.first().map_or(HostCluster(0), Fresh::cluster);
        self.rules.geometry.host_start(first)
    }

    /// Writes the bytes of rooms, and counts each cluster for everything in it. The counts are in the file before an entry is
    /// in the log.
    fn write_rooms(&self, writer: &Writer, rooms: &[Room<'_>]) -> Result<()> {
        for room in rooms {
            self.put_data(writer, &room.bytes, self.start_of(room))?;
        }
        let mut allocator = writer.allocator.lock();
        let mut set = |of: &dyn Fn(u64) -> u64| -> Result<()> {
            for (fresh, count) in rooms.iter().flat_map(|room| room.fresh.iter().zip(&room.counts)) {
                allocator.refcounts.set(fresh.cluster(), of(*count), &self.storage)?;
            }
            allocator.write(&self.storage).map(drop)
        };
        set(&|count| count.max(1)).inspect_err(|_| {
            // They go back as they came; what the host does not take of it now is written with the next counts.
            let _ = set(&|_| 1);
        })
    }

    fn switch(&self, writer: &Writer, full: Full, place: Compressed) -> Result<()> {
        let exclusive = writer.locks.exclude(full.cluster, &self.rules.geometry);
        self.publish_raw(writer, &exclusive, full.cluster, self.rules.encode_compressed(place))?;
        self.free(writer, Mapping::Standard(full.standard));
        Ok(())
    }

    /// Has the header say that what is packed is packed with zstd; nothing may be packed in another way.
    fn say_zstd(&mut self) -> Result<()> {
        if self.header.compression == Compression::Zstd {
            return Ok(());
        }
        let refuse = |what: &str| Err(Error::unsupported(format!("{what}; nothing is compressed")));
        if self.header.snapshots > 0 {
            return refuse(
                "the image has internal snapshots, which may hold clusters that are compressed in another way",
            );
        }
        let mut at = 0;
        while at < self.virtual_size() {
            let extent = self.extent(GuestOffset(at), u64::MAX)?;
            if extent.source == Source::Compressed {
                return refuse("the image holds clusters that are compressed with zlib");
            }
            at += extent.len;
        }
        let mut bytes = [0; RawHeader::SIZE];
        self.storage.read_at(&mut bytes, HostOffset(0)).map_err(|e| Error::io("reading the header", e))?;
        let mut raw = RawHeader::decode(&bytes);
        if raw.version < 3 || index(u64::from(raw.header_length)) < RawHeader::SIZE {
            return refuse("the image's header has no place for the kind of compression");
        }
        raw.incompatible_features |= incompatible::COMPRESSION;
        raw.compression_type = 1;
        // One sector: whole or not at all. While nothing is packed, either says the same.
        self.storage
            .write_at(&raw.encode(), HostOffset(0))
            .and_then(|()| self.storage.sync())
            .map_err(|e| Error::io("writing the header", e))?;
        self.header = Header::read(&self.storage)?;
        Ok(())
    }
}

impl Room<'_> {
    /// Where `len` bytes could lie, at most one cluster, if no count gets larger than `most`.
    fn place(&self, len: usize, size: usize, most: u64) -> Option<usize> {
        let next = self.bytes.len();
        let is_counted = self.counts.get(next / size).is_some_and(|count| *count >= most);
        let at = if is_counted { next.next_multiple_of(size) } else { next };
        (at + len <= self.fresh.len() * size).then_some(at)
    }
}
