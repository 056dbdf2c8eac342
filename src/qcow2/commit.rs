//! The write order: the one place that makes metadata durable.
//!
//! One commit does, in this order:
//! 1. takes the list of freed clusters, the dirty L2 slices and L1 entries, and marks the end of the log, all at one moment;
//!    then makes a snapshot of the slices;
//! 2. writes refcounts, and the slices of L2 tables that no durable L1 entry points to;
//! 3. syncs: guest data, refcounts and new tables are durable before anything points to them;
//! 4. writes the other slices and the L1 entries, and syncs;
//! 5. lets the log forget what came before the mark;
//! 6. only then drops the references of freed clusters, punches them, and lets others have them.

use super::entry::Mapping;
use super::geometry::bit_runs;
use super::image::{Image, Writer};
use super::log::{Closed, Log};
use super::tables::Snapshot;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::sync::atomic::Ordering;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::units::{GuestCluster, HostCluster, HostOffset, length};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What may be given back once the entries that pointed to it are durably gone.
#[derive(Debug, Default)]
pub(super) struct Frees {
    /// Host clusters that lost one reference.
    clusters: Vec<Range<u64>>,
    /// Subclusters of clusters that stay: guest cluster, its host cluster, and the bits.
    parts: BTreeMap<(GuestCluster, HostOffset), u32>,
}

impl Frees {
    /// A cluster lost one reference; its entry has changed in memory already.
    pub(super) fn cluster(&mut self, cluster: HostCluster) {
        self.clusters(cluster.0..cluster.0 + 1);
    }

    /// Clusters that lost one reference each.
    pub(super) fn clusters(&mut self, clusters: Range<u64>) {
        self.clusters.push(clusters);
    }

    /// Subclusters of an owned cluster are no data any more.
    pub(super) fn part(&mut self, cluster: GuestCluster, host: HostOffset, bits: u32) {
        *self.parts.entry((cluster, host)).or_default() |= bits;
    }

    /// The subclusters of a cluster that [`Frees::part`] was told of.
    fn parts_of(&self, cluster: GuestCluster, host: HostOffset) -> u32 {
        self.parts.get(&(cluster, host)).copied().unwrap_or(0)
    }

    fn append(&mut self, mut other: Self) {
        self.clusters.append(&mut other.clusters);
        other.parts.into_iter().for_each(|((cluster, host), bits)| self.part(cluster, host, bits));
    }

    fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.parts.is_empty()
    }
}

/// What becomes of the host's blocks of clusters that a commit frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freed {
    /// The host gets them.
    Punched,
    /// They are left to a compaction, which moves others there.
    Left,
}

/// Group commit: callers that come while a commit runs share the next one.
#[derive(Debug, Default)]
pub(super) struct Commit {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    finished: u64,
    running: bool,
    /// The last round that failed, and how.
    failed: Option<(u64, Kind)>,
}

/// A round that runs. It ends when this is dropped, as a failure unless it is said to have succeeded, so that a
/// panic inside it leaves nobody waiting.
struct Round<'a> {
    commit: &'a Commit,
    number: u64,
    failure: Option<Kind>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let mut rounds = self.commit.rounds.lock();
        rounds.running = false;
        rounds.finished = self.number;
        if let Some(kind) = self.failure {
            rounds.failed = Some((self.number, kind));
        }
        self.commit.ended.notify_all();
    }
}

impl Commit {
    /// Runs `commit`, or waits for one that began after this call.
    pub(super) fn join(&self, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut rounds = self.rounds.lock();
        let wanted = rounds.started + 1;
        while rounds.running && rounds.finished < wanted {
            self.ended.wait(&mut rounds);
        }
        if rounds.finished >= wanted {
            return match rounds.failed {
                Some((round, kind)) if round >= wanted => Err(failed(kind)),
                _ => Ok(()),
            };
        }
        self.round(rounds, commit)
    }

    /// Runs `commit`, unless one runs already.
    fn unless_running(&self, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let rounds = self.rounds.lock();
        if rounds.running { Ok(()) } else { self.round(rounds, commit) }
    }

    /// Runs `commit` while no other one runs.
    fn alone(&self, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut rounds = self.rounds.lock();
        while rounds.running {
            self.ended.wait(&mut rounds);
        }
        self.round(rounds, commit)
    }

    fn round(&self, mut rounds: MutexGuard<'_, Rounds>, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        rounds.started += 1;
        rounds.running = true;
        let mut round = Round { commit: self, number: rounds.started, failure: Some(Kind::Io) };
        drop(rounds);
        let result = commit();
        round.failure = result.as_ref().err().map(Error::kind);
        result
    }
}

fn failed(kind: Kind) -> Error {
    Error::new(kind, "the flush that this one was joined with failed")
}

impl Image {
    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// `NoSpace` when the host is full (nothing is lost, and a later flush may succeed); `Latched` or the host's error
    /// when a sync failed: nothing is certain then, until the image is opened again.
    pub fn flush(&self) -> Result<()> {
        match &self.writer {
            Some(writer) => {
                self.writer()?;
                writer.commit.join(|| self.storage.close_on_panic(|| self.commit(writer, Freed::Punched)))
            }
            None => Ok(()),
        }
    }

    /// Makes room in the log, unless somebody is at that.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub(super) fn flush_unless_running(&self) -> Result<()> {
        let writer = self.writer()?;
        writer.commit.unless_running(|| self.storage.close_on_panic(|| self.commit(writer, Freed::Punched)))
    }

    /// Flushes and gives reserved clusters back: the file then has no leak. The image stays usable.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn close(&self) -> Result<()> {
        match &self.writer {
            Some(_) => self.close_with(Freed::Punched),
            None => Ok(()),
        }
    }

    /// As [`Image::close`], but whole clusters that are freed keep the host's blocks: a compaction follows, which gives back those that
    /// nothing is moved to.
    pub(super) fn close_for_compaction(&self) -> Result<()> {
        self.close_with(Freed::Left)?;
        // A log that could not forget holds on to what was freed; it is asked once more.
        let log = self.writer.as_ref().and_then(|writer| writer.log.as_ref());
        if log.is_some_and(Log::is_live) { self.close_with(Freed::Left) } else { Ok(()) }
    }

    fn close_with(&self, freed: Freed) -> Result<()> {
        let writer = self.writer()?;
        writer.commit.alone(|| self.storage.close_on_panic(|| self.commit_and_release(writer, freed)))
    }

    fn commit_and_release(&self, writer: &Writer, freed: Freed) -> Result<()> {
        self.commit(writer, freed)?;
        let mut allocator = writer.allocator.lock();
        allocator.release_reserved(&self.storage)?;
        let mut unsynced = allocator.write(&self.storage)?;
        drop(allocator);
        unsynced |= self.retire_log(writer)?;
        if unsynced || writer.written.take() {
            self.sync(writer)?;
        }
        Ok(())
    }

    fn commit(&self, writer: &Writer, freed: Freed) -> Result<()> {
        // Who joined before a failure, and commits after it, hears of it too.
        self.writer()?;
        let gate = writer.log.as_ref().map(Log::close_gate);
        let mark = gate.as_ref().map(Closed::mark);
        let frees = std::mem::take(&mut *writer.frees.lock());
        let l1 = std::mem::take(&mut *writer.l1_dirty.lock());
        let dirty = self.tables.take_dirty();
        drop(gate);
        let slices = self.tables.snapshots(dirty);
        if let Err(error) = self.write_in_order(writer, &slices, &l1) {
            self.tables.restore(&slices);
            writer.l1_dirty.lock().extend(l1);
            writer.frees.lock().append(frees);
            return Err(error);
        }
        self.tables.written(&slices);
        // While the log names a cluster nobody else may have it.
        if writer.log.as_ref().zip(mark).is_some_and(|(log, mark)| !log.settle(mark)) {
            writer.frees.lock().append(frees);
            return Ok(());
        }
        if frees.is_empty() { Ok(()) } else { self.give_back(writer, frees, freed) }
    }

    fn write_in_order(&self, writer: &Writer, slices: &[Snapshot], l1: &BTreeSet<usize>) -> Result<()> {
        let counted = writer.allocator.lock().write(&self.storage)?;
        if writer.written.take() || counted {
            self.sync(writer)?;
        }
        if slices.is_empty() && l1.is_empty() {
            return Ok(());
        }
        // A table that no durable L1 entry points to was written whole when it was made, before that sync.
        self.write_slices(slices)?;
        for l1_index in l1 {
            let word = self.l1[*l1_index].load(Ordering::Acquire);
            self.put(
                &word.to_be_bytes(),
                self.header.l1_offset + length(*l1_index) * 8,
                "writing the L1 table",
            )?;
        }
        self.sync(writer)
    }

    /// Writes slices, neighbours in one go.
    fn write_slices(&self, snapshots: &[Snapshot]) -> Result<()> {
        let mut pending: Option<(HostOffset, Vec<u8>)> = None;
        for snapshot in snapshots {
            let (l1_index, within) = self.rules.geometry.slice_place(snapshot.slice.index);
            let table = self.table(l1_index)?.ok_or_else(|| {
                Error::corrupt(format!("L1 entry {l1_index} lost its table while the table was changed"))
            })?;
            let place = table + within;
            match &mut pending {
                Some((start, bytes)) if *start + length(bytes.len()) == place => {
                    bytes.extend(&snapshot.bytes)
                }
                _ => {
                    if let Some((start, bytes)) = pending.replace((place, snapshot.bytes.clone())) {
                        self.put(&bytes, start, "writing an L2 table")?;
                    }
                }
            }
        }
        pending.map_or(Ok(()), |(start, bytes)| self.put(&bytes, start, "writing an L2 table"))
    }

    /// Whether the header was changed for it.
    fn retire_log(&self, writer: &Writer) -> Result<bool> {
        let Some(log) = &writer.log else { return Ok(false) };
        let mut changed = false;
        log.retire(|| {
            changed = true;
            self.set_log_nonce(0)
        })
        .map_err(|e| Error::io("taking the log of the image away", e))?;
        Ok(changed)
    }

    fn sync(&self, writer: &Writer) -> Result<()> {
        self.storage.sync().map_err(|e| {
            writer.written.set();
            writer.log.as_ref().inspect(|log| log.void());
            Error::io("syncing the image; it takes no more writes until it is opened again", e)
        })
    }

    fn put(&self, bytes: &[u8], at: HostOffset, what: &str) -> Result<()> {
        self.storage.write_at(bytes, at).map_err(|e| Error::io(what, e))
    }

    /// Gives back what nothing points to any more, durably. Clusters that cannot be given back now wait for the next
    /// commit.
    fn give_back(&self, writer: &Writer, frees: Frees, freed: Freed) -> Result<()> {
        let mut last = BTreeSet::new();
        let mut clusters = frees.clusters.into_iter().flatten();
        let mut dropped = Ok(());
        {
            let mut allocator = writer.allocator.lock();
            for cluster in clusters.by_ref() {
                match allocator.drop_reference(HostCluster(cluster), &self.storage) {
                    Ok(true) => _ = last.insert(cluster),
                    Ok(false) => {}
                    Err(error) => {
                        writer.frees.lock().cluster(HostCluster(cluster));
                        dropped = Err(error);
                        break;
                    }
                }
            }
        }
        clusters.for_each(|cluster| writer.frees.lock().cluster(HostCluster(cluster)));
        self.forget_unpacked();
        let size = self.cluster_size();
        for range in ranges(&last).into_iter().filter(|_| freed == Freed::Punched) {
            self.punch(HostOffset(range.start * size), (range.end - range.start) * size);
        }
        let mut allocator = writer.allocator.lock();
        for cluster in last {
            allocator.release(HostCluster(cluster), &self.storage)?;
        }
        // Durable with the next commit; a crash before leaks these clusters and nothing else.
        allocator.write(&self.storage)?;
        drop(allocator);
        writer.written.set();
        for ((cluster, host), bits) in frees.parts {
            // An entry that cannot be read any more keeps its blocks.
            let _ = self.punch_part(writer, cluster, host, bits);
        }
        dropped
    }

    /// Punches subclusters that are still no data: they may have been written again since. What was written again and freed
    /// again is left to the commit that makes that durable: in the file its entry may say data, and then its bytes count.
    fn punch_part(&self, writer: &Writer, cluster: GuestCluster, host: HostOffset, bits: u32) -> Result<()> {
        let geometry = self.rules.geometry;
        let _exclusive = writer.locks.exclude(cluster, &geometry);
        let Mapping::Standard(standard) = self.mapping(cluster)? else { return Ok(()) };
        let bits = bits & !writer.frees.lock().parts_of(cluster, host);
        if standard.host != Some(host) || !standard.owned {
            return Ok(());
        }
        for (first, count) in bit_runs(bits & !standard.allocated) {
            let at = host + (u64::from(first) << geometry.subcluster_bits);
            self.punch(at, u64::from(count) << geometry.subcluster_bits);
        }
        Ok(())
    }

    /// Gives host blocks back. A failure costs space only: nobody reads these bytes before they are written.
    fn punch(&self, at: HostOffset, len: u64) {
        let _ = self.storage.punch(at, len);
    }
}

/// The runs of neighbours in a set.
pub(super) fn ranges(set: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for cluster in set {
        match ranges.last_mut() {
            Some(range) if range.end == *cluster => range.end += 1,
            _ => ranges.push(*cluster..cluster + 1),
        }
    }
    ranges
}

#[cfg(all(test, not(cowshed_model)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_commit_for_room_is_left_to_the_one_that_runs() {
        let (commit, ran) = (Commit::default(), std::cell::Cell::new(0));
        let run = || {
            ran.set(ran.get() + 1);
            Ok(())
        };
        commit.unless_running(|| commit.unless_running(run)).unwrap();
        assert_eq!(ran.get(), 0, "one ran");
        commit.unless_running(run).unwrap();
        assert_eq!(ran.get(), 1);
        let failed = commit.unless_running(|| Err(Error::new(Kind::NoSpace, "full"))).unwrap_err();
        assert_eq!(failed.kind(), Kind::NoSpace);
        commit.join(run).unwrap();
        assert_eq!(ran.get(), 2, "a failure is over with its round");
    }
}
