//! What of an image can be moved to another place in its file, and what has to be.

use super::entry::{Compressed, Mapping, RawEntry, Rules, Standard, table_offset};
use super::header::Header;
use super::holes::Holes;
use super::image::{is_owned, read_l1};
use super::layout::{COMPRESSED, L1_TABLE_FIELD, OFFSET, REFCOUNT_TABLE_FIELD};
use super::refcounts::Refcounts;
use super::references::References;
use super::walk::raw_entry;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestCluster, HostOffset, SECTOR, index, length};
use std::cmp::Reverse;
use std::ops::Range;

/// Moves that are known at once, of 48 bytes each: those of the file's end.
const MOST_MOVES: usize = if cfg!(test) { 1 << 6 } else { 1 << 18 };

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A guest cluster's host cluster, with bytes in these subclusters.
    Data(u32),
    /// The bytes of a compressed cluster.
    Packed(Compressed),
    /// An L2 table.
    Table,
    /// The refcount block with this number.
    Block(usize),
    /// The disk's L1 table, and its clusters.
    L1(u64),
    /// The refcount table, and its clusters.
    RefcountTable(u64),
}

/// What is moved in one go. The words that point to things of one level lie in none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Data,
    Tables,
    Blocks,
    L1,
    RefcountTable,
}

/// Something that one word of 8 bytes points to, and nothing else does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Movable {
    pub(super) what: What,
    pub(super) from: HostOffset,
    /// The place of the word, and the word as it is.
    pub(super) pointer: HostOffset,
    word: u64,
}

impl Movable {
    /// The host clusters that hold a byte of it.
    pub(super) fn clusters(&self, header: &Header) -> Range<u64> {
        let first = header.geometry.host_cluster(self.from).0;
        match self.what {
            What::Packed(packed) => packed.host_clusters(&header.geometry),
            What::L1(clusters) | What::RefcountTable(clusters) => first..first + clusters,
            What::Data(_) | What::Table | What::Block(_) => first..first + 1,
        }
    }

    /// The word when it is moved to `to`.
    pub(super) fn pointing_to(&self, to: HostOffset, header: &Header) -> u64 {
        match self.what {
            What::Data(_) | What::Table => self.word & !OFFSET | to.0,
            What::Packed(_) => {
                let places = (1 << (62 - (header.geometry.cluster_bits - 8))) - 1;
                debug_assert!(to.0 <= places && self.word & COMPRESSED != 0);
                self.word & !places | to.0
            }
            What::Block(_) | What::L1(_) | What::RefcountTable(_) => to.0,
        }
    }
}

/// An image as its file holds it, used by nobody else.
pub(super) struct Closed<'a> {
    pub(super) header: Header,
    pub(super) storage: &'a dyn Storage,
    pub(super) refcounts: Refcounts,
    file_end: u64,
}

/// What a look at the whole file shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// Clusters that are in use.
    pub(super) used: u64,
    /// One past the last cluster that holds something that cannot be moved.
    pub(super) held: u64,
}

impl<'a> Closed<'a> {
    pub(super) fn new(storage: &'a dyn Storage) -> Result<Self> {
        let header = Header::read(storage)?;
        let refcounts = Refcounts::read(&header, storage)?;
        let file_end = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
        Ok(Self { header, storage, refcounts, file_end })
    }

    /// Counts the clusters in use, and finds the last one that is used by something that cannot be moved: what a snapshot shares or
    /// owns, and bitmaps.
    pub(super) fn outlook(&mut self) -> Result<Outlook> {
        let storage = self.storage;
        let mut outlook = Outlook { used: 0, held: 0 };
        let mut start = Some(0);
        while let Some(from) = start {
            let mut references = References::from(from);
            for level in [Level::Data, Level::Tables, Level::Blocks, Level::L1, Level::RefcountTable] {
                self.each(level, &mut |header, movable| references.add(movable.clusters(header), 1))?;
            }
            let references = references.finish();
            self.refcounts.each_stored(references.window(), storage, |_, cluster, stored| {
                outlook.used += 1;
                if stored > references.get(cluster.0) {
                    outlook.held = outlook.held.max(cluster.0 + 1);
                }
                Ok(())
            })?;
            start = references.next();
        }
        Ok(outlook)
    }

    /// What of a level reaches to cluster `limit` or behind it, the last of the file first; and whether there is more of it.
    pub(super) fn behind(&mut self, level: Level, limit: u64) -> Result<(Vec<Movable>, bool)> {
        let (mut found, mut more) = (Vec::new(), false);
        self.each(level, &mut |header, movable| {
            if movable.clusters(header).end <= limit {
                return;
            }
            found.push(movable);
            if found.len() == 2 * MOST_MOVES {
                found.select_nth_unstable_by_key(MOST_MOVES, |movable| Reverse(movable.from));
                found.truncate(MOST_MOVES);
                more = true;
            }
        })?;
        found.sort_unstable_by_key(|movable| Reverse(movable.from));
        Ok((found, more))
    }

    /// Calls `each` for everything of a level that can be moved.
    fn each(&mut self, level: Level, each: &mut dyn FnMut(&Header, Movable)) -> Result<()> {
        let header = self.header.clone();
        let clusters = |bytes: u64| bytes.div_ceil(header.geometry.cluster_size());
        match level {
            Level::Data => return self.each_data(each),
            Level::Tables => self.each_table(&mut |pointer, word, from| {
                each(&header, Movable { what: What::Table, from, pointer, word });
                Ok(())
            })?,
            Level::Blocks => {
                for (number, word) in
                    self.refcounts.table().iter().enumerate().filter(|(_, word)| **word != 0)
                {
                    let (from, pointer) = (HostOffset(*word), self.refcounts.entry_place(number));
                    each(&header, Movable { what: What::Block(number), from, pointer, word: *word });
                }
            }
            Level::L1 if header.l1_entries > 0 => {
                let (from, what) = (header.l1_offset, What::L1(clusters(length(header.l1_entries) * 8)));
                each(&header, Movable { what, from, pointer: L1_TABLE_FIELD, word: from.0 });
            }
            Level::L1 => {}
            Level::RefcountTable => {
                let (from, what) =
                    (header.refcount_table, What::RefcountTable(header.refcount_table_clusters));
                each(&header, Movable { what, from, pointer: REFCOUNT_TABLE_FIELD, word: from.0 });
            }
        }
        Ok(())
    }

    /// Calls `each` for the L2 tables that belong to the disk alone: place and word of the L1 entry, and the table's place.
    fn each_table(&self, each: &mut dyn FnMut(HostOffset, u64, HostOffset) -> Result<()>) -> Result<()> {
        let header = &self.header;
        let words = read_l1(header.l1_offset, header.l1_entries, self.storage)?;
        for (number, word) in words.into_iter().enumerate() {
            let place = table_offset(word, number, &header.geometry, self.file_end)?;
            if let Some(place) = place.filter(|_| is_owned(word)) {
                each(header.l1_offset + length(number) * 8, word, place)?;
            }
        }
        Ok(())
    }

    /// Calls `each` for the clusters of the disk's own tables. What is packed may be a snapshot's as well, which no bit tells:
    /// then it stays.
    fn each_data(&self, each: &mut dyn FnMut(&Header, Movable)) -> Result<()> {
        let (header, geometry) = (&self.header, self.header.geometry);
        let (mut holes, mut bytes) = (Holes::default(), vec![0; index(geometry.cluster_size())]);
        self.each_table(&mut |l1_entry, _, table| {
            if holes.is_hole(self.storage, table, geometry.cluster_size())? {
                return Ok(());
            }
            self.storage.read_at(&mut bytes, table).map_err(|e| Error::io("reading an L2 table", e))?;
            let first = ((l1_entry - header.l1_offset) / 8) << geometry.table_bits();
            for (number, raw) in (0_u64..).zip(bytes.chunks_exact(index(geometry.entry_size()))) {
                let raw = raw_entry(raw);
                if raw != RawEntry::default() {
                    let pointer = table + number * geometry.entry_size();
                    self.data(GuestCluster(first + number), raw, pointer)?
                        .into_iter()
                        .for_each(|movable| each(header, movable));
                }
            }
            Ok(())
        })
    }

    /// What the L2 entry of a cluster points to, if that can be moved.
    fn data(&self, cluster: GuestCluster, raw: RawEntry, pointer: HostOffset) -> Result<Option<Movable>> {
        let header = &self.header;
        let rules = Rules { geometry: header.geometry, zero_flag: header.version >= 3 };
        let (what, from) = match rules.decode(raw, cluster, self.file_end)? {
            Mapping::Standard(Standard { host: Some(host), owned: true, allocated, .. }) => {
                (What::Data(allocated), host)
            }
            Mapping::Compressed(packed) if header.snapshots == 0 => (What::Packed(packed), packed.host),
            _ => return Ok(None),
        };
        Ok(Some(Movable { what, from, pointer, word: raw.word }))
    }
}

/// The whole sectors that hold the bytes of a compressed cluster.
pub(super) fn sectors(packed: Compressed) -> Range<u64> {
    packed.host.0 / SECTOR * SECTOR..packed.host.0 + packed.len
}
