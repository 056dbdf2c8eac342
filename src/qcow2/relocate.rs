//! Moves of a compaction: the one place outside of a commit that makes entries durable.
//!
//! Each thing that is moved is pointed to by one word of 8 bytes, which lies in one sector. A batch of moves does, in this order:
//! 1. counts the targets, which were free, and copies the bytes to them; the host begins to write them meanwhile;
//! 2. syncs: bytes and counts are durable before anything points there;
//! 3. writes the words, and syncs;
//! 4. only then drops the counts of the sources, punches them, and lets others have them.

use super::commit::ranges;
use super::movables::{Closed, Movable, What, sectors};
use crate::error::{Error, Kind, Result};
use crate::pages::Pages;
use crate::storage::{Advice, Storage};
use crate::units::{HostCluster, HostOffset, MIB, index, length};
use std::collections::BTreeSet;
use std::ops::Range;

/// Bytes that are copied at once.
const PIECE: u64 = MIB;
/// Bytes that are copied before the host begins to write them.
const AHEAD: u64 = 4 * MIB;

/// Why a batch was not moved whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// Nothing before it is free.
    NoTarget,
    /// The host has no room for the copy.
    HostFull,
}

/// Gives targets, and moves.
pub(super) struct Mover<'a> {
    pub(super) closed: Closed<'a>,
    /// No cluster before this one is free.
    cursor: u64,
    /// Room for packed bytes, behind others in a cluster of their own.
    room: Range<u64>,
    /// What is copied goes through here.
    piece: Pages,
}

impl<'a> Mover<'a> {
    pub(super) fn new(closed: Closed<'a>) -> Self {
        Self { closed, cursor: 0, room: 0..0, piece: Pages::new(index(PIECE)) }
    }

    /// Moves `movables` (all of one level), or the first of them. Returns how many, and why not all.
    pub(super) fn batch(&mut self, movables: &[Movable]) -> Result<(usize, Option<Short>)> {
        let (mut placed, mut short) = (Vec::new(), None);
        for movable in movables {
            match self.place(movable)? {
                Some(to) => placed.push((*movable, to)),
                None => {
                    short = Some(Short::NoTarget);
                    break;
                }
            }
        }
        let copied = match self.closed.refcounts.write_dirty(self.closed.storage) {
            Err(error) if error.kind() == Kind::NoSpace => None,
            Err(error) => return Err(error),
            Ok(_) => Some(self.copy_all(&placed)?),
        };
        if copied.is_none_or(|copied| copied < placed.len()) {
            short = Some(Short::HostFull);
        }
        let copied = copied.unwrap_or(0);
        self.take_back(placed.split_off(copied))?;
        if !placed.is_empty() {
            self.switch(&placed)?;
        }
        Ok((copied, short))
    }

    /// Targets that were not used are free again. What the full host does not take of it is a leak.
    fn take_back(&mut self, unused: Vec<(Movable, HostOffset)>) -> Result<()> {
        if unused.is_empty() {
            return Ok(());
        }
        self.room = 0..0;
        for (movable, to) in unused {
            for cluster in self.targets(&movable, to) {
                self.uncount(cluster)?;
            }
        }
        match self.closed.refcounts.write_dirty(self.closed.storage) {
            Err(error) if error.kind() == Kind::NoSpace => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes the words point to the targets, and lets go of the sources.
    fn switch(&mut self, placed: &[(Movable, HostOffset)]) -> Result<()> {
        self.sync()?;
        for (movable, to) in placed {
            let word = movable.pointing_to(*to, &self.closed.header);
            self.put(&word.to_be_bytes(), movable.pointer)?;
        }
        self.sync()?;
        let mut free = BTreeSet::new();
        for (movable, to) in placed {
            self.follow(movable, *to);
            for cluster in movable.clusters(&self.closed.header) {
                if self.uncount(cluster)? {
                    free.insert(cluster);
                }
            }
        }
        self.closed.refcounts.write_dirty(self.closed.storage)?;
        ranges(&free).into_iter().for_each(|range| self.punch(range));
        Ok(())
    }

    /// Gives the host's blocks of clusters back that nothing points to. A failure costs space only: nobody reads these bytes before
    /// they are written.
    pub(super) fn punch(&self, clusters: Range<u64>) {
        let size = self.closed.header.geometry.cluster_size();
        let _ = self
            .closed
            .storage
            .punch(HostOffset(clusters.start * size), (clusters.end - clusters.start) * size);
    }

    /// Remembers where a structure that is in use here lies now.
    fn follow(&mut self, movable: &Movable, to: HostOffset) {
        let Closed { header, refcounts, .. } = &mut self.closed;
        match movable.what {
            What::Block(number) => refcounts.add_block(number, to),
            What::L1(_) => header.l1_offset = to,
            What::RefcountTable(_) => {
                header.refcount_table = to;
                let table = refcounts.table().to_vec();
                refcounts.replace_table(to, table);
            }
            What::Data(_) | What::Packed(_) | What::Table => {}
        }
    }

    /// Finds a free place before something, the first one of the file, and counts it as used. What is not to be written of it keeps
    /// no block of the host from before.
    fn place(&mut self, movable: &Movable) -> Result<Option<HostOffset>> {
        let clusters = movable.clusters(&self.closed.header);
        if let What::Packed(packed) = movable.what {
            let bytes = sectors(packed);
            let Some(at) = self.room_for(bytes.end - bytes.start, clusters.start)? else { return Ok(None) };
            // The place in the first sector is kept, so that the bytes can be copied by whole sectors.
            return Ok(Some(HostOffset(at + (packed.host.0 - bytes.start))));
        }
        let count = clusters.end - clusters.start;
        let Some(first) = self.free_run(count, clusters.start)? else { return Ok(None) };
        if matches!(movable.what, What::Data(some) if some != self.closed.header.geometry.all_subclusters()) {
            self.punch(first..first + count);
        }
        Ok(Some(self.closed.header.geometry.host_start(HostCluster(first))))
    }

    /// Takes `len` bytes, whole sectors, before cluster `before`: behind those that were taken last, or in fresh clusters.
    fn room_for(&mut self, len: u64, before: u64) -> Result<Option<u64>> {
        let size = self.closed.header.geometry.cluster_size();
        let old = self.room.clone();
        let (shared, rest) = (old.start / size, old.end - old.start);
        let may_share = rest > 0 && shared < before && self.may_count(shared)?;
        if may_share && rest >= len {
            self.count(shared)?;
        } else {
            let Some(first) = self.free_run(len.div_ceil(size), before)? else { return Ok(None) };
            self.punch(first..first + len.div_ceil(size));
            self.room = first * size..(first + len.div_ceil(size)) * size;
            if may_share && old.end == self.room.start {
                self.count(shared)?;
                self.room.start = old.start;
                if self.room.end - self.room.start >= len + size {
                    self.room.end -= size;
                    self.uncount(self.room.end / size)?;
                }
            }
        }
        let at = self.room.start;
        self.room.start += len;
        Ok(Some(at))
    }

    /// Whether a cluster can have one reference more.
    fn may_count(&mut self, cluster: u64) -> Result<bool> {
        let Closed { storage, refcounts, .. } = &mut self.closed;
        Ok(refcounts.get(HostCluster(cluster), *storage)? < refcounts.width().max())
    }

    /// A cluster has one reference more.
    fn count(&mut self, cluster: u64) -> Result<()> {
        let Closed { storage, refcounts, .. } = &mut self.closed;
        let count = refcounts.get(HostCluster(cluster), *storage)?;
        refcounts.set(HostCluster(cluster), count + 1, *storage)
    }

    /// The first `count` free clusters in a row that end before cluster `before`, counted as used.
    fn free_run(&mut self, count: u64, before: u64) -> Result<Option<u64>> {
        let Closed { storage, refcounts, .. } = &mut self.closed;
        self.cursor = refcounts.first_zero(HostCluster(self.cursor), *storage)?.0;
        let mut first = self.cursor;
        while first + count <= before {
            let mut taken = None;
            for cluster in (first..first + count).map(HostCluster) {
                if !refcounts.covers(cluster) {
                    return Ok(None);
                }
                if refcounts.get(cluster, *storage)? != 0 {
                    taken = Some(cluster);
                    break;
                }
            }
            let Some(taken) = taken else {
                (first..first + count).try_for_each(|cluster| self.count(cluster))?;
                return Ok(Some(first));
            };
            first = refcounts.first_zero(taken, *storage)?.0;
        }
        Ok(None)
    }

    /// The clusters that something takes at `to`.
    fn targets(&self, movable: &Movable, to: HostOffset) -> Range<u64> {
        let bits = self.closed.header.geometry.cluster_bits;
        match movable.what {
            What::Packed(packed) => to.0 >> bits..((to.0 + packed.len - 1) >> bits) + 1,
            _ => {
                let clusters = movable.clusters(&self.closed.header);
                to.0 >> bits..(to.0 >> bits) + (clusters.end - clusters.start)
            }
        }
    }

    /// A cluster loses a reference. Whether it was the last.
    pub(super) fn uncount(&mut self, cluster: u64) -> Result<bool> {
        let Closed { storage, refcounts, .. } = &mut self.closed;
        let count = refcounts.get(HostCluster(cluster), *storage)?.saturating_sub(1);
        refcounts.set(HostCluster(cluster), count, *storage)?;
        if count == 0 {
            self.cursor = self.cursor.min(cluster);
        }
        Ok(count == 0)
    }

    /// Copies what was placed, as far as the host has room. Returns how many. Beside it the host writes what is copied, and forgets
    /// what it was copied from, which is to be punched and takes it as long as the copy.
    fn copy_all(&mut self, placed: &[(Movable, HostOffset)]) -> Result<usize> {
        let (storage, size) = (self.closed.storage, self.closed.header.geometry.cluster_size());
        let step = index((AHEAD / size).max(1));
        rayon::scope(|beside| {
            let mut copied = 0;
            for some in placed.chunks(step) {
                let done = self.copy_some(some)?;
                copied += done;
                if done < some.len() {
                    break;
                }
                if done == step {
                    storage.advise(Advice::Write);
                    beside.spawn(move |_| forget(storage, some, size));
                }
            }
            Ok(copied)
        })
    }

    fn copy_some(&mut self, placed: &[(Movable, HostOffset)]) -> Result<usize> {
        let mut copied = 0;
        while copied < placed.len() {
            let rest = &placed[copied..];
            let together = self.neighbours(rest);
            let done = match self.copy(&rest[..together]) {
                // Where there is no room for all of them there may be for one.
                Err(error) if error.kind() == Kind::NoSpace && together > 1 => {
                    self.copy(&rest[..1]).map(|()| 1)
                }
                other => other.map(|()| together),
            };
            match done {
                Err(error) if error.kind() == Kind::NoSpace => break,
                other => copied += other?,
            }
        }
        Ok(copied)
    }

    /// How many of the first are whole clusters of data, one behind the other here and there.
    fn neighbours(&self, placed: &[(Movable, HostOffset)]) -> usize {
        let geometry = &self.closed.header.geometry;
        let most = index((PIECE >> geometry.cluster_bits).max(1)).min(placed.len());
        let is_whole = |movable: &Movable| movable.what == What::Data(geometry.all_subclusters());
        let (first, to) = placed[0];
        (1..most)
            .find(|number| {
                let (next, at) = placed[*number];
                let distance = length(*number) << geometry.cluster_bits;
                !is_whole(&first)
                    || !is_whole(&next)
                    || (next.from, at) != (first.from + distance, to + distance)
            })
            .unwrap_or(most)
    }

    /// Copies the bytes of something to its target, of data only the subclusters that have some; or of [`Mover::neighbours`].
    fn copy(&mut self, placed: &[(Movable, HostOffset)]) -> Result<()> {
        let geometry = self.closed.header.geometry;
        let (movable, to) = placed[0];
        match movable.what {
            What::Data(allocated) if allocated != geometry.all_subclusters() => {
                for (first, count) in super::geometry::bit_runs(allocated) {
                    let at = u64::from(first) << geometry.subcluster_bits;
                    self.copy_bytes(
                        movable.from + at,
                        to + at,
                        u64::from(count) << geometry.subcluster_bits,
                    )?;
                }
                Ok(())
            }
            What::Packed(packed) => {
                let bytes = sectors(packed);
                let to = HostOffset(to.0 - (packed.host.0 - bytes.start));
                self.copy_bytes(HostOffset(bytes.start), to, bytes.end - bytes.start)
            }
            What::Data(_) => self.copy_bytes(movable.from, to, length(placed.len()) << geometry.cluster_bits),
            What::Table | What::Block(_) | What::L1(_) | What::RefcountTable(_) => {
                let clusters = movable.clusters(&self.closed.header);
                self.copy_bytes(movable.from, to, (clusters.end - clusters.start) << geometry.cluster_bits)
            }
        }
    }

    fn copy_bytes(&mut self, from: HostOffset, to: HostOffset, len: u64) -> Result<()> {
        let storage = self.closed.storage;
        let mut done = 0;
        while done < len {
            let piece = &mut self.piece[..index((len - done).min(PIECE))];
            storage.read_at(piece, from + done).map_err(|e| Error::io("reading what is to be moved", e))?;
            storage.write_at(piece, to + done).map_err(|e| Error::io("compacting the image", e))?;
            done += PIECE;
        }
        Ok(())
    }

    pub(super) fn put(&self, bytes: &[u8], at: HostOffset) -> Result<()> {
        self.closed.storage.write_at(bytes, at).map_err(|e| Error::io("compacting the image", e))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.closed.storage.sync().map_err(|e| Error::io("compacting the image", e))
    }
}

/// Has the host forget what was copied.
fn forget(storage: &dyn Storage, moved: &[(Movable, HostOffset)], size: u64) {
    for run in moved.chunk_by(|one, next| next.0.from == one.0.from + size) {
        if let [(first, _), ..] = run {
            storage.advise(Advice::Unneeded(first.from..first.from + length(run.len()) * size));
        }
    }
}
