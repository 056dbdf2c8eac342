//! The refcount table and its blocks, of every width.

use super::geometry::Geometry;
use super::header::Header;
use super::holes::Holes;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{HostCluster, HostOffset, KIB, MIB, index, length};
use crate::zero::is_zero;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Bytes of refcount blocks kept in memory.
const CACHE: u64 = 32 * MIB;
/// Blocks are read, kept and written in pieces of this many bytes (or whole, when smaller).
const PIECE: u64 = 4 * KIB;
/// Bits 9 to 63 of an entry of the refcount table: a host offset.
const BLOCK_OFFSET: u64 = !0x1ff;

/// Reads and writes counts in the bytes of a block, or of a part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    /// Log2 of the bits of a count.
    pub(super) order: u32,
}

impl Width {
    /// The largest count.
    pub(super) fn max(self) -> u64 {
        u64::MAX >> (64 - (1_u32 << self.order))
    }

    /// The bytes that a count touches.
    fn place(self, at: usize) -> Range<usize> {
        if self.order < 3 {
            let byte = at >> (3 - self.order);
            byte..byte + 1
        } else {
            let bytes = 1 << (self.order - 3);
            at * bytes..(at + 1) * bytes
        }
    }

    fn shift(self, at: usize) -> usize {
        (at & ((8 >> self.order) - 1)) << self.order
    }

    pub(super) fn get(self, bytes: &[u8], at: usize) -> u64 {
        if self.order == 4 {
            // Nearly every image's.
            return bytes.as_chunks::<2>().0.get(at).map_or(0, |count| u64::from(u16::from_be_bytes(*count)));
        }
        let value = bytes[self.place(at)].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if self.order < 3 { value >> self.shift(at) & self.max() } else { value }
    }

    pub(super) fn set(self, bytes: &mut [u8], at: usize, value: u64) -> Range<usize> {
        let place = self.place(at);
        if self.order < 3 {
            let [max, value, _] = [self.max(), value, 0].map(|number| number.to_le_bytes()[0]);
            let byte = &mut bytes[place.start];
            *byte = *byte & !(max << self.shift(at)) | value << self.shift(at);
        } else {
            let raw = value.to_be_bytes();
            bytes[place.clone()].copy_from_slice(&raw[8 - place.len()..]);
        }
        place
    }
}

/// A part of a refcount block.
#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    dirty: bool,
}

/// How often each host cluster is used.
#[derive(Debug)]
pub(super) struct Refcounts {
    geometry: Geometry,
    width: Width,
    pub(super) table_offset: HostOffset,
    table: Vec<u64>,
    /// All pieces in memory but for the recent one.
    pieces: BTreeMap<Key, Piece>,
    /// The one that was asked for last: neighbours are asked for one after the other.
    recent: Option<(Key, Piece)>,
}

/// Number of a block, and of a piece in it.
type Key = (usize, u64);

impl Refcounts {
    /// Reads and checks the table.
    pub(super) fn read(header: &Header, storage: &dyn Storage) -> Result<Self> {
        let mut bytes = vec![0; index(header.refcount_table_clusters << header.geometry.cluster_bits)];
        storage
            .read_at(&mut bytes, header.refcount_table)
            .map_err(|e| Error::io("reading the refcount table", e))?;
        let table: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        Ok(Self {
            geometry: header.geometry,
            width: Width { order: header.refcount_order },
            table_offset: header.refcount_table,
            table,
            pieces: BTreeMap::new(),
            recent: None,
        })
    }

    /// Whether an entry of the table can be used; 0, no block, can.
    pub(super) fn block_fault(entry: u64, geometry: &Geometry, file_end: u64) -> Option<&'static str> {
        if entry & !BLOCK_OFFSET != 0 {
            Some("has reserved bits set")
        } else if !geometry.is_aligned(entry) {
            Some("does not point to a cluster's start")
        } else if entry != 0 && entry >= file_end {
            Some("points past the end of the file")
        } else {
            None
        }
    }

    /// The table: the place of each block, or 0.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    pub(super) fn width(&self) -> Width {
        self.width
    }

    /// Counts of one block.
    pub(super) fn per_block(&self) -> u64 {
        (self.geometry.cluster_size() * 8) >> self.width.order
    }

    /// Bytes of one block: a cluster.
    pub(super) fn block_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    /// The block that counts a cluster, and the place of the count in it.
    fn split(&self, cluster: HostCluster) -> (usize, u64) {
        let per_block = self.per_block();
        (index(cluster.0 >> per_block.trailing_zeros()), cluster.0 & (per_block - 1))
    }

    fn piece_bytes(&self) -> u64 {
        PIECE.min(self.block_size())
    }

    /// Counts of one piece of a block.
    fn per_piece(&self) -> u64 {
        (self.piece_bytes() * 8) >> self.width.order
    }

    /// Whether there is a block for a cluster.
    pub(super) fn covers(&self, cluster: HostCluster) -> bool {
        self.table.get(self.split(cluster).0).is_some_and(|entry| *entry != 0)
    }

    /// The piece of block `number` that holds its count `at`; `None` where there is no block.
    fn piece(&mut self, number: usize, at: u64, storage: &dyn Storage) -> Result<Option<&mut Piece>> {
        let Some(place) = self.table.get(number).copied().filter(|place| *place != 0) else {
            return Ok(None);
        };
        let key = (number, at >> self.per_piece().trailing_zeros());
        if self.recent.as_ref().is_none_or(|(recent, _)| *recent != key) {
            self.settle();
            let piece = match self.pieces.remove(&key) {
                Some(piece) => piece,
                None => self.read_piece(HostOffset(place) + key.1 * self.piece_bytes(), storage)?,
            };
            self.recent = Some((key, piece));
        }
        Ok(self.recent.as_mut().map(|(_, piece)| piece))
    }

    fn read_piece(&mut self, place: HostOffset, storage: &dyn Storage) -> Result<Piece> {
        self.make_room();
        let mut bytes = vec![0; index(self.piece_bytes())];
        storage.read_at(&mut bytes, place).map_err(|e| Error::io("reading refcounts", e))?;
        Ok(Piece { bytes, dirty: false })
    }

    /// Puts the recent piece to the others.
    fn settle(&mut self) {
        self.pieces.extend(self.recent.take());
    }

    fn make_room(&mut self) {
        if length(self.pieces.len()) >= CACHE / self.piece_bytes() {
            self.pieces.retain(|_, piece| piece.dirty);
        }
    }

    /// The count of a cluster; 0 where there is no block.
    pub(super) fn get(&mut self, cluster: HostCluster, storage: &dyn Storage) -> Result<u64> {
        let (number, at) = self.split(cluster);
        let (width, per_piece) = (self.width, self.per_piece());
        let piece = self.piece(number, at, storage)?;
        Ok(piece.map_or(0, |piece| width.get(&piece.bytes, index(at & (per_piece - 1)))))
    }

    /// The first cluster from `from` on with a count of zero, or that no block covers.
    pub(super) fn first_zero(&mut self, from: HostCluster, storage: &dyn Storage) -> Result<HostCluster> {
        let (width, per_block, per_piece) = (self.width, self.per_block(), self.per_piece());
        let (mut number, mut at) = self.split(from);
        while let Some(piece) = self.piece(number, at, storage)? {
            let start = at - at % per_piece;
            let free = (at - start..per_piece).find(|within| width.get(&piece.bytes, index(*within)) == 0);
            if let Some(within) = free {
                at = start + within;
                break;
            }
            at = start + per_piece;
            if at == per_block {
                (number, at) = (number + 1, 0);
            }
        }
        Ok(HostCluster(length(number) * per_block + at))
    }

    /// Sets the count of a cluster that a block covers; on disk after [`Refcounts::write_dirty`].
    pub(super) fn set(&mut self, cluster: HostCluster, value: u64, storage: &dyn Storage) -> Result<()> {
        let (number, at) = self.split(cluster);
        let (width, per_piece) = (self.width, self.per_piece());
        if value > width.max() {
            return Err(Error::unsupported(format!(
                "a refcount of {value} does not fit the image's refcount width"
            )));
        }
        let piece = self
            .piece(number, at, storage)?
            .ok_or_else(|| Error::corrupt(format!("no refcount block covers host cluster {cluster}")))?;
        width.set(&mut piece.bytes, index(at % per_piece), value);
        piece.dirty = true;
        Ok(())
    }

    /// Writes what was set since the last time. Returns whether anything was.
    pub(super) fn write_dirty(&mut self, storage: &dyn Storage) -> Result<bool> {
        self.settle();
        let mut any = false;
        let size = self.piece_bytes();
        for ((number, piece), Piece { bytes, dirty }) in &mut self.pieces {
            if *dirty {
                storage
                    .write_at(bytes, HostOffset(self.table[*number]) + piece * size)
                    .map_err(|e| Error::io("writing refcounts", e))?;
                *dirty = false;
                any = true;
            }
        }
        Ok(any)
    }

    /// Calls `each` for every stored count of a window that is not zero. Holes of the file hold none and are passed over;
    /// a block that is named twice is read once.
    pub(super) fn each_stored(
        &mut self,
        window: Range<u64>,
        storage: &dyn Storage,
        mut each: impl FnMut(&mut Self, HostCluster, u64) -> Result<()>,
    ) -> Result<()> {
        let (mut seen, mut holes) = (HashSet::new(), Holes::default());
        let (width, per_block, per_piece) = (self.width, self.per_block(), self.per_piece());
        for number in 0..self.table.len() {
            let place = self.table[number];
            let first = length(number) * per_block;
            if place == 0 || !seen.insert(place) || first >= window.end || first + per_block <= window.start {
                continue;
            }
            for (piece, start) in (0_u64..).zip((first..first + per_block).step_by(index(per_piece))) {
                let bytes = self.piece_bytes();
                if holes.is_hole(storage, HostOffset(place) + piece * bytes, bytes)? {
                    continue;
                }
                let Some(found) = self.piece(number, start - first, storage)? else { break };
                let bytes = if is_zero(&found.bytes) { Vec::new() } else { found.bytes.clone() };
                for (cluster, at) in (start..start + per_piece).zip(0..(bytes.len() * 8) >> width.order) {
                    let stored = width.get(&bytes, at);
                    if stored != 0 && window.contains(&cluster) {
                        each(self, HostCluster(cluster), stored)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes an empty block at `place` known; the caller has written it and the table's entry.
    pub(super) fn add_block(&mut self, number: usize, place: HostOffset) {
        self.settle();
        self.table[number] = place.0;
        self.pieces.retain(|(block, _), _| *block != number);
    }

    /// Takes a new, longer table that the caller has written.
    pub(super) fn replace_table(&mut self, place: HostOffset, table: Vec<u64>) {
        self.table_offset = place;
        self.table = table;
    }

    /// Bytes of an entry's place in the file.
    pub(super) fn entry_place(&self, number: usize) -> HostOffset {
        self.table_offset + length(number) * 8
    }
}

#[cfg(test)]
mod tests {
    use super::Width;

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let width = Width { order };
            let mut bytes = vec![0; 64];
            for at in 0..(512 >> order) {
                width.set(&mut bytes, at, width.max());
                assert_eq!(width.get(&bytes, at), width.max(), "order {order} at {at}");
                assert!(at == 0 || width.get(&bytes, at - 1) == 0, "order {order} left of {at}");
                width.set(&mut bytes, at, 0);
            }
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn counts_below_a_byte_start_at_the_lowest_bit() {
        let mut bytes = [0];
        Width { order: 1 }.set(&mut bytes, 1, 2);
        assert_eq!(bytes, [0b1000]);
    }
}
