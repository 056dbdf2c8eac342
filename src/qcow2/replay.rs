//! Opening an image whose last writer was killed: the changes that its log holds are made again.

use super::OpenOptions;
use super::entry::{Mapping, table_offset};
use super::image::{Image, Writer};
use super::layout::{AUTOCLEAR_FIELD, AUTOCLEAR_LOG_SHIFT, COPIED, OFFSET};
use super::log::{Change, Entered, Left, Log, LogPlace};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::sync::atomic::Ordering;
use crate::units::{GuestCluster, HostCluster};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What entries pointed to before a replay: guest cluster and host clusters, with the mapping that had the most data.
type Before = BTreeMap<(u64, u64, u64), Mapping>;

impl Image {
    /// Opens an image that has a log. What a killed process left in it is in force when this returns, as if that process
    /// went on: the next commit of a writable image makes it durable.
    ///
    /// # Errors
    /// As [`Image::open`]; `Corrupt` when the log does not fit the image.
    pub fn open_logged(
        storage: Arc<dyn Storage>,
        options: OpenOptions,
        place: Arc<dyn LogPlace>,
    ) -> Result<Self> {
        let mut image = Self::validated(storage, options)?;
        let left = Left::read(&*place, image.header.log_nonce(), options.writable)
            .map_err(|e| Error::io("reading the log of the image", e))?;
        let changes = left.as_ref().map_or(&[][..], |left| &left.changes);
        image.replay(changes).map_err(|error| {
            error.at("the log beside the image does not fit it (without the log the image is as at the last flush)")
        })?;
        if let Some(writer) = &mut image.writer {
            // A killed process may have left bytes unsynced, in places that have long been allocated too: the first commit
            // makes them durable before any entry.
            writer.written.set();
            // A version 2 header has no place for the nonce.
            writer.log = match left {
                Some(left) => Some(Log::continued(place, left)),
                None => (image.header.version >= 3).then(|| Log::new(place)),
            };
            image.take_void_log_away()?;
        }
        Ok(image)
    }

    /// A log that counts for nothing goes, before there is another one.
    fn take_void_log_away(&self) -> Result<()> {
        let log = self.writer.as_ref().and_then(|writer| writer.log.as_ref());
        if log.is_some_and(Log::is_live) {
            return Ok(());
        }
        self.clear_autoclear()?;
        // Without its nonce in the header it says nothing; it may stay.
        let _ = log.map(Log::remove_debris);
        Ok(())
    }

    /// Enters the log for a change of an entry; `None` for an image without log.
    pub(super) fn enter_log<'a>(&self, writer: &'a Writer) -> Option<Entered<'a>> {
        writer.log.as_ref().map(|log| log.enter(|nonce| self.set_log_nonce(nonce)))
    }

    /// Says in the header which log belongs to the image; 0 for none. All other autoclear features are off in a writable
    /// image.
    pub(super) fn set_log_nonce(&self, nonce: u32) -> io::Result<()> {
        let field = u64::from(nonce) << AUTOCLEAR_LOG_SHIFT;
        self.storage.write_at(&field.to_be_bytes(), AUTOCLEAR_FIELD)
    }

    fn replay(&self, changes: &[Change]) -> Result<()> {
        let end = self.storage.len().map_err(|e| Error::io("reading the image's length", e))?;
        self.end.fetch_max(end, Ordering::Relaxed);
        let mut before = Before::new();
        for change in changes {
            match *change {
                Change::Table(l1_index, word) => self.replay_table(l1_index, word)?,
                Change::Entry(cluster, raw) => {
                    if cluster.0 >= self.rules.geometry.clusters() {
                        return Err(Error::corrupt(format!(
                            "guest cluster {cluster} is outside of the disk"
                        )));
                    }
                    self.rules.decode(raw, cluster, end)?;
                    self.refuse_metadata(raw.word, self.rules.geometry.slice_of(cluster).0)?;
                    note(&mut before, cluster, self.mapping(cluster)?, self);
                    let (number, entry) = self.rules.geometry.slice_of(cluster);
                    while !self.tables.publish(&self.slice(number)?, entry, raw, |_| Ok(()), || ())? {}
                }
            }
        }
        match &self.writer {
            Some(writer) => self.free_what_went(writer, before),
            None => Ok(()),
        }
    }

    fn replay_table(&self, l1_index: usize, word: u64) -> Result<()> {
        let geometry = &self.rules.geometry;
        let Some(slot) = self.l1.get(l1_index) else {
            return Err(Error::corrupt(format!("L1 entry {l1_index} does not exist")));
        };
        table_offset(word, l1_index, geometry, self.end.load(Ordering::Relaxed))?;
        let old = slot.swap(word, Ordering::AcqRel);
        let Some(writer) = self.writer.as_ref().filter(|_| old != word) else { return Ok(()) };
        let cluster = |word: u64| HostCluster((word & OFFSET) >> geometry.cluster_bits);
        if word & COPIED == 0 || !writer.metadata.insert(cluster(word)) {
            return Err(Error::corrupt(format!("L1 entry {l1_index} points to another table's cluster")));
        }
        writer.l1_dirty.lock().insert(l1_index);
        if old & OFFSET != 0 {
            writer.metadata.remove(cluster(old));
            writer.frees.lock().cluster(cluster(old));
        }
        Ok(())
    }

    /// Frees what entries pointed to and point to no more: the killed process had no time for it.
    fn free_what_went(&self, writer: &Writer, before: Before) -> Result<()> {
        for ((cluster, ..), old) in before {
            let cluster = GuestCluster(cluster);
            let now = self.mapping(cluster)?;
            if host_clusters(&old, self) != host_clusters(&now, self) {
                self.free(writer, old);
            } else if let (Mapping::Standard(old), Mapping::Standard(now)) = (old, now)
                && let Some(host) = now.host.filter(|_| now.owned)
                && old.allocated & !now.allocated != 0
            {
                writer.frees.lock().part(cluster, host, old.allocated & !now.allocated);
            }
        }
        Ok(())
    }
}

fn host_clusters(mapping: &Mapping, image: &Image) -> Option<Range<u64>> {
    let geometry = &image.rules.geometry;
    match mapping {
        Mapping::Compressed(compressed) => Some(compressed.host_clusters(geometry)),
        Mapping::Standard(standard) => {
            let first = geometry.host_cluster(standard.host?).0;
            Some(first..first + 1)
        }
    }
}

fn note(before: &mut Before, cluster: GuestCluster, old: Mapping, image: &Image) {
    let Some(hosts) = host_clusters(&old, image) else { return };
    let known = before.entry((cluster.0, hosts.start, hosts.end)).or_insert(old);
    if let (Mapping::Standard(known), Mapping::Standard(old)) = (known, old) {
        known.allocated |= old.allocated;
    }
}
