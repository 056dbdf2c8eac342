//! Entries changed in memory, and the clusters they take and leave.

use super::entry::{Mapping, RawEntry, Standard};
use super::fresh::Fresh;
use super::image::{Image, Writer, is_owned};
use super::layout::{COPIED, OFFSET};
use super::locks::Exclusive;
use super::log::{Change, Entered, Log};
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::sync::atomic::Ordering;
use crate::units::{GuestCluster, index};

impl Image {
    /// Changes a cluster's entry in memory. Its bytes are written already; its clusters are counted already.
    pub(super) fn publish(
        &self,
        writer: &Writer,
        exclusive: &Exclusive<'_>,
        cluster: GuestCluster,
        new: Standard,
    ) -> Result<()> {
        self.publish_raw(writer, exclusive, cluster, self.rules.encode(new))
    }

    /// The same with the entry as it lies in a table.
    pub(super) fn publish_raw(
        &self,
        writer: &Writer,
        _exclusive: &Exclusive<'_>,
        cluster: GuestCluster,
        raw: RawEntry,
    ) -> Result<()> {
        let (number, entry) = self.rules.geometry.slice_of(cluster);
        let logged = self.enter_log(writer);
        self.own_table(writer, logged.as_ref(), self.rules.geometry.l1_index(cluster))?;
        let back = |bytes: &[u8]| self.back_slice(writer, number, bytes);
        let log = || append(logged.as_ref(), Change::Entry(cluster, raw));
        while !self.tables.publish(&self.slice(number)?, entry, raw, back, log)? {}
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
    fn own_table(&self, writer: &Writer, logged: Option<&Entered<'_>>, l1_index: usize) -> Result<()> {
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
        append(logged, Change::Table(l1_index, place.0 | COPIED));
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
    pub(super) fn allocate<'a>(&self, writer: &'a Writer) -> Result<Fresh<'a>> {
        let cluster = writer.allocator.lock().allocate(&self.storage)?;
        let end = self.rules.geometry.host_start(cluster) + self.cluster_size();
        if end.0 > OFFSET {
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

    /// Ends an operation that may have changed entries: flushes when more L2 slices are dirty than the budget can bear, and
    /// when a change is not logged. A log that is half full has one operation flush, while the others go on. No lock may be held.
    pub(super) fn settle(&self, writer: &Writer) -> Result<()> {
        let log = writer.log.as_ref();
        if log.is_some_and(Log::needs_flush) || self.tables.wants_flush() {
            return self.flush();
        }
        if log.is_some_and(Log::wants_flush) { self.flush_unless_running() } else { Ok(()) }
    }
}

fn append(logged: Option<&Entered<'_>>, change: Change) {
    if let Some(logged) = logged {
        logged.append(change);
    }
}
