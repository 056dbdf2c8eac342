//! An open image: its parts, and the look-up of entries.

use super::allocator::Allocator;
use super::commit::{Commit, Frees};
use super::compressed::Unpacked;
use super::entry::{Mapping, RawEntry, Rules, table_offset};
use super::header::Header;
use super::layout::{AUTOCLEAR_FIELD, COPIED, OFFSET, incompatible};
use super::locks::Locks;
use super::log::Log;
use super::metadata::Metadata;
use super::tables::{Slice, Tables};
use super::written::Written;
use super::{BackingName, Identity, OpenOptions};
use crate::error::{Error, Kind, Result};
use crate::storage::{Latch, Storage};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{GuestCluster, GuestOffset, HostOffset, index};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

/// One open image, shared by many threads.
#[derive(Debug)]
pub struct Image {
    pub(super) header: Header,
    pub(super) rules: Rules,
    pub(super) storage: Latch,
    pub(super) l1: Box<[AtomicU64]>,
    /// End of the file, as far as entries may point.
    pub(super) end: AtomicU64,
    pub(super) tables: Tables,
    pub(super) unpacked: Unpacked,
    /// What only a writable image has.
    pub(super) writer: Option<Writer>,
}

/// The parts that change an image.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) locks: Locks,
    pub(super) allocator: Mutex<Allocator>,
    /// L1 entries that are not yet on disk. Held while an entry changes.
    pub(super) l1_dirty: Mutex<BTreeSet<usize>>,
    /// Clusters of the image's own structures.
    pub(super) metadata: Metadata,
    pub(super) frees: Mutex<Frees>,
    /// Whether something was written since the last sync began.
    pub(super) written: Written,
    pub(super) commit: Commit,
    pub(super) log: Option<Log>,
}

impl Image {
    /// Opens and validates an image.
    ///
    /// # Errors
    /// `Corrupt` and `Unsupported` for the file; `ReadOnly` when it may be read only; the host's errors.
    pub fn open(storage: Arc<dyn Storage>, options: OpenOptions) -> Result<Self> {
        let image = Self::validated(storage, options)?;
        if image.writer.is_some() {
            image.clear_autoclear()?;
        }
        Ok(image)
    }

    /// An image as its file says it is; nothing is changed.
    pub(super) fn validated(storage: Arc<dyn Storage>, options: OpenOptions) -> Result<Self> {
        let header = Header::read(&*storage)?;
        let l1 = checked_l1(&header, &*storage)?;
        let end = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
        let geometry = header.geometry;
        let writer = options.writable.then(|| Writer::new(&header, &l1, &*storage)).transpose()?;
        Ok(Self {
            rules: Rules { geometry, zero_flag: header.version >= 3 },
            storage: Latch::new(storage),
            l1: l1.into_iter().map(AtomicU64::new).collect(),
            end: AtomicU64::new(end),
            tables: Tables::new(geometry, options.metadata_cache),
            unpacked: Unpacked::default(),
            writer,
            header,
        })
    }

    /// The image is one of `images` in a chain, which share the memory for L2 tables. Returns how many bytes it may use.
    pub(crate) fn share_memory(&mut self, images: usize) -> u64 {
        self.tables.share(images)
    }

    /// Whether it is open for writing.
    pub(crate) fn is_writable(&self) -> bool {
        self.writer.is_some()
    }

    /// Bytes of the L1 table, which is in memory as long as the image is open.
    pub(crate) fn l1_bytes(&self) -> u64 {
        crate::units::length(self.l1.len()) * 8
    }

    /// Size of the virtual disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.rules.geometry.virtual_size
    }

    /// The validated header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The backing file that the header names.
    #[must_use]
    pub fn backing(&self) -> Option<&BackingName> {
        self.header.backing.as_ref()
    }

    /// The base that the header names.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.header.identity.as_ref()
    }

    /// The file of the host that holds it, to share blocks with; `None` where there is none.
    #[must_use]
    pub fn host_file(&self) -> Option<&File> {
        self.storage.host_file()
    }

    /// Size of a cluster in bytes.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        self.rules.geometry.cluster_size()
    }

    /// The parts that change the image.
    pub(super) fn writer(&self) -> Result<&Writer> {
        if self.storage.is_closed() {
            return Err(Error::new(Kind::Latched, self.storage.sentence("the image")));
        }
        self.writer.as_ref().ok_or_else(|| Error::new(Kind::ReadOnly, "the image is open for reading only"))
    }

    /// A request lies inside the disk.
    pub(super) fn check_range(&self, at: GuestOffset, len: u64) -> Result<()> {
        match at.0.checked_add(len) {
            Some(end) if end <= self.virtual_size() => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {at} reach past the end of the disk of {} bytes",
                self.virtual_size()
            ))),
        }
    }

    /// What a cluster's entry says.
    pub(super) fn mapping(&self, cluster: GuestCluster) -> Result<Mapping> {
        let (slice, entry) = self.rules.geometry.slice_of(cluster);
        let raw = match self.tables.entry(slice, entry) {
            Some(raw) => raw,
            // A cluster without a table needs no slice in memory until it is written.
            None if self.table(self.rules.geometry.l1_index(cluster))?.is_none() => RawEntry::default(),
            None => self.slice(slice)?.get(entry),
        };
        self.rules.decode(raw, cluster, self.end.load(Ordering::Relaxed))
    }

    /// The slice with number `number`, from memory or from the file.
    pub(super) fn slice(&self, number: u64) -> Result<Arc<Slice>> {
        self.tables.slice(number, |words| {
            let (l1_index, within) = self.rules.geometry.slice_place(number);
            let mut bytes = vec![0; words.len() * 8];
            // A table that was copied meanwhile may be freed and used for others: the copy counts then.
            loop {
                let Some(table) = self.table(l1_index)? else { return Ok(()) };
                self.storage
                    .read_at(&mut bytes, table + within)
                    .map_err(|e| Error::io("reading an L2 table", e))?;
                if self.table(l1_index)? == Some(table) {
                    break;
                }
            }
            for (word, raw) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_be_bytes(*raw);
            }
            self.check_slice(number, words)
        })
    }

    /// The place of an L2 table.
    pub(super) fn table(&self, l1_index: usize) -> Result<Option<HostOffset>> {
        let word = self.l1[l1_index].load(Ordering::Acquire);
        table_offset(word, l1_index, &self.rules.geometry, self.end.load(Ordering::Relaxed))
    }

    fn check_slice(&self, number: u64, words: &[u64]) -> Result<()> {
        let step = index(self.rules.geometry.entry_size() / 8);
        words.iter().step_by(step).try_for_each(|word| self.refuse_metadata(*word, number))
    }

    /// No entry of a writable image points to the image's own structures: a write through it would destroy them.
    pub(super) fn refuse_metadata(&self, word: u64, slice: u64) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let host = word & OFFSET;
        if word & super::layout::COMPRESSED == 0
            && host != 0
            && writer.metadata.contains(self.rules.geometry.host_cluster(HostOffset(host)))
        {
            return Err(Error::corrupt(format!(
                "an L2 entry of slice {slice} points to the image's own tables at {host:#x}; run a check"
            )));
        }
        Ok(())
    }

    /// Switches off the features that a writer who does not know them must not leave on, such as the consistency of
    /// bitmaps; and makes a log of the image void.
    pub(super) fn clear_autoclear(&self) -> Result<()> {
        if self.header.autoclear == 0 {
            return Ok(());
        }
        self.storage
            .write_at(&[0; 8], AUTOCLEAR_FIELD)
            .and_then(|()| self.storage.sync())
            .map_err(|e| Error::io("clearing the autoclear features", e))
    }
}

impl Writer {
    pub(super) fn new(header: &Header, l1: &[u64], storage: &dyn Storage) -> Result<Self> {
        if header.incompatible & incompatible::CORRUPT != 0 {
            return Err(Error::corrupt(
                "the image is marked as corrupt; check and repair it before it is written",
            ));
        }
        if header.incompatible & incompatible::DIRTY != 0 {
            return Err(Error::corrupt(
                "the image was not closed cleanly and its refcounts are stale; repair it before it is written",
            ));
        }
        let geometry = header.geometry;
        let tables =
            l1.iter().map(|word| (word & OFFSET) >> geometry.cluster_bits).filter(|cluster| *cluster != 0);
        let allocator = Allocator::new(header, tables, storage)?;
        Ok(Self {
            locks: Locks::new(geometry),
            metadata: allocator.metadata(),
            allocator: Mutex::new(allocator),
            l1_dirty: Mutex::default(),
            frees: Mutex::default(),
            written: Written::default(),
            commit: Commit::default(),
            log: None,
        })
    }
}

/// Reads an L1 table as it is.
pub(super) fn read_l1(offset: HostOffset, entries: usize, storage: &dyn Storage) -> Result<Vec<u64>> {
    let mut bytes = vec![0; entries * 8];
    storage.read_at(&mut bytes, offset).map_err(|e| Error::io("reading an L1 table", e))?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// Reads the disk's L1 table and checks its entries. Entries past the end of the disk are kept and never used.
pub(super) fn checked_l1(header: &Header, storage: &dyn Storage) -> Result<Vec<u64>> {
    let l1 = read_l1(header.l1_offset, header.l1_entries, storage)?;
    let end = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    for (l1_index, word) in l1.iter().enumerate() {
        table_offset(*word, l1_index, &header.geometry, end)?;
    }
    Ok(l1)
}

/// Whether an L1 entry's table belongs to it alone.
pub(super) fn is_owned(word: u64) -> bool {
    word & COPIED != 0
}
