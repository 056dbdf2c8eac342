//! Making an image's file shorter: what lies at its end moves to free clusters before it, and the file is cut.
//!
//! No bytes are kept twice but those of one batch of moves, and an image is whole after each; `relocate.rs` holds their order.

use super::check::survey;
use super::header::Header;
use super::image::{Image, Writer, checked_l1};
use super::movables::{Closed, Level, Movable};
use super::relocate::{Mover, Short};
use super::repair::mend_found;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{HostCluster, HostOffset, MIB, index, length};
use std::collections::BTreeSet;

/// Bytes, and things, that are moved between two syncs at most.
const BATCH_BYTES: u64 = 64 * MIB;
const BATCH: u64 = 1024;
/// Things that are moved first, and how much more at most with each batch: a full host, or a wish to stop, is known early.
const FIRST_BATCH: u64 = 8;
const GROWTH: u64 = 3;
/// Looks at the whole file: where packed bytes and tables of several clusters leave gaps, one is not enough.
const ROUNDS: u32 = 8;

/// How a compaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is left that would make the file shorter.
    Complete,
    /// The host has no room for the next batch of copies; what was reached stays.
    HostFull,
    /// It was told to stop; what was reached stays.
    Stopped,
}

/// What a compaction has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes of the file before.
    pub before: u64,
    /// Bytes of the file now.
    pub after: u64,
    /// Things that were moved: guest clusters and tables.
    pub moved: u64,
    /// Things that were moved or are known to have to be.
    pub planned: u64,
    /// End of the last byte that can not be moved (a snapshot has it, or a bitmap), when that makes the file longer than what it
    /// holds.
    pub held: Option<u64>,
    /// How it ended.
    pub ended: Ended,
}

/// Told what is reached before each batch; `false` stops the work.
pub type GoOn<'a> = &'a mut dyn FnMut(&Compacted) -> bool;

impl Image {
    /// Makes the file as short as what it holds, in place. The image is flushed before, and may be used afterwards: for reading
    /// only when the file could not be read again.
    ///
    /// # Errors
    /// `Corrupt` when a check finds errors: nothing is changed then. As [`Image::flush`].
    pub fn compact(&mut self, go_on: GoOn<'_>) -> Result<Compacted> {
        self.close_for_compaction()?;
        // Until the file is read again, no entry in memory is believed.
        self.end.store(0, Ordering::Relaxed);
        let compacted = self.storage.close_on_panic(|| compact(&self.storage, go_on));
        let read = self.read_again();
        let compacted = compacted?;
        read?;
        Ok(compacted)
    }

    /// Takes everything that is kept of the file from there.
    fn read_again(&mut self) -> Result<()> {
        // Whatever fails here: what the old writer knows is not true any more.
        let log = self.writer.take().and_then(|old| old.log);
        let header = Header::read(&self.storage)?;
        let l1 = checked_l1(&header, &self.storage)?;
        let end = self.storage.len().map_err(|e| Error::io("reading the image's length", e))?;
        let writer = Writer::new(&header, &l1, &self.storage)?;
        self.writer = Some(Writer { log, ..writer });
        self.l1 = l1.into_iter().map(AtomicU64::new).collect();
        self.tables = self.tables.emptied();
        self.forget_unpacked();
        self.header = header;
        self.end.store(end, Ordering::Relaxed);
        Ok(())
    }
}

/// Compacts the image in `storage`, which nobody else uses.
fn compact(storage: &dyn Storage, go_on: GoOn<'_>) -> Result<Compacted> {
    // What another program wrote, which may have been killed, must be durable before anything is built on it.
    storage.sync().map_err(|e| Error::io("compacting the image", e))?;
    refuse_damage(storage)?;
    let before = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
    let ended = Ended::Complete;
    let reached = Compacted { before, after: before, moved: 0, planned: 0, held: None, ended };
    let mut compaction = Compaction { mover: Mover::new(Closed::new(storage)?), go_on, reached };
    compaction.cut()?;
    for _ in 0..ROUNDS {
        let moved = compaction.reached.moved;
        compaction.reached.ended = compaction.round()?;
        compaction.cut()?;
        if compaction.reached.ended != Ended::Complete || compaction.reached.moved == moved {
            break;
        }
    }
    compaction.punch_free(0)?;
    compaction.mover.sync()?;
    Ok(compaction.reached)
}

/// An image with errors is left alone; leaks, which a killed process leaves, are mended first.
fn refuse_damage(storage: &dyn Storage) -> Result<()> {
    let found = survey(storage)?;
    if let Some(first) = found.report.errors.first() {
        return Err(Error::corrupt(format!(
            "a check finds {} errors, the first: {first}; nothing was changed; repair the image first",
            found.report.error_count
        )));
    }
    if found.header.log_nonce() != 0 {
        return Err(Error::new(
            Kind::Busy,
            "the log beside the image is still needed; nothing was changed; open and close the image first",
        ));
    }
    if found.report.leaks > 0 || found.wrong_copied > 0 {
        mend_found(found, storage)?;
    }
    Ok(())
}

struct Compaction<'a, 'b> {
    mover: Mover<'a>,
    go_on: GoOn<'b>,
    reached: Compacted,
}

impl Compaction<'_, '_> {
    /// Moves once what lies behind the place where the file could end.
    fn round(&mut self) -> Result<Ended> {
        let size = self.mover.closed.header.geometry.cluster_size();
        let outlook = self.mover.closed.outlook()?;
        self.reached.held = (outlook.held > outlook.used).then_some(outlook.held * size);
        let limit = outlook.used.max(outlook.held);
        if self.reached.moved == 0 {
            // Before that, what is moved takes the blocks that are there.
            self.punch_free(limit)?;
        }
        // Those that need several clusters in a row come first; blocks that count nothing any more are not moved.
        for level in [Level::RefcountTable, Level::L1, Level::Tables, Level::Data, Level::Blocks] {
            if level == Level::Blocks {
                self.drop_blocks()?;
            }
            loop {
                let before = self.reached.moved;
                let (found, more) = self.mover.closed.behind(level, limit)?;
                if let Some(ended) = self.all(level, found)? {
                    return Ok(ended);
                }
                if !more || self.reached.moved == before {
                    break;
                }
            }
        }
        Ok(Ended::Complete)
    }

    /// Moves everything of a list that is in the file's order from its end on.
    fn all(&mut self, level: Level, mut found: Vec<Movable>) -> Result<Option<Ended>> {
        self.reached.planned = self.reached.moved + length(found.len());
        let mut rest = &mut found[..];
        let mut short = None;
        while !rest.is_empty() && short != Some(Short::NoTarget) {
            if !(self.go_on)(&self.reached) {
                return Ok(Some(Ended::Stopped));
            }
            let len = self.batch(level).min(rest.len());
            // In a batch the order of the file is kept.
            rest[..len].reverse();
            let (done, why) = self.mover.batch(&rest[..len])?;
            if done == 0 && why == Some(Short::HostFull) {
                return Ok(Some(Ended::HostFull));
            }
            // What has no target has no better place than its own.
            short = why;
            self.reached.moved += length(done);
            rest[done..len].reverse();
            rest = &mut rest[done..];
        }
        Ok(None)
    }

    /// How much is moved at once: more and more.
    fn batch(&self, level: Level) -> usize {
        let most = (BATCH_BYTES >> self.mover.closed.header.geometry.cluster_bits).clamp(1, BATCH);
        match level {
            // A block's copy must not miss what is counted in it for another one.
            Level::Blocks => 1,
            _ => index(most.min(FIRST_BATCH.max(GROWTH * self.reached.moved))),
        }
    }

    /// Takes the refcount blocks away that count nothing but themselves.
    fn drop_blocks(&mut self) -> Result<()> {
        let closed = &mut self.mover.closed;
        let (size, per_block) = (closed.refcounts.block_size(), closed.refcounts.per_block());
        let table = closed.refcounts.table().to_vec();
        let mut needed = BTreeSet::new();
        let number_of = |cluster: u64| index(cluster / per_block);
        closed.refcounts.each_stored(0..u64::MAX, closed.storage, |_, cluster, _| {
            if table[number_of(cluster.0)] != cluster.0 * size {
                needed.insert(number_of(cluster.0));
            }
            Ok(())
        })?;
        let unused: Vec<(usize, u64)> = table
            .iter()
            .enumerate()
            .filter(|(number, place)| **place != 0 && !needed.contains(number))
            .map(|(number, place)| (number, *place))
            .collect();
        if unused.is_empty() {
            return Ok(());
        }
        for (number, _) in &unused {
            self.mover.put(&[0; 8], self.mover.closed.refcounts.entry_place(*number))?;
        }
        self.mover.sync()?;
        for (number, _) in &unused {
            self.mover.closed.refcounts.forget_block(*number);
        }
        for (_, place) in &unused {
            if self.mover.closed.refcounts.covers(HostCluster(place / size)) {
                self.mover.uncount(place / size)?;
            }
        }
        let closed = &mut self.mover.closed;
        closed.refcounts.write_dirty(closed.storage).map(drop)
    }

    /// Gives the host's blocks of free clusters from `first` on back: what was freed just now, and what another program has left.
    fn punch_free(&mut self, first: u64) -> Result<()> {
        let closed = &mut self.mover.closed;
        let (size, storage) = (closed.refcounts.block_size(), closed.storage);
        let mut end = first;
        closed.refcounts.each_stored(first..u64::MAX, storage, |_, cluster, _| {
            if cluster.0 > end {
                let _ = storage.punch(HostOffset(end * size), (cluster.0 - end) * size);
            }
            end = cluster.0 + 1;
            Ok(())
        })
    }

    /// Cuts the file behind the last cluster in use; every word that pointed there is durably another one.
    fn cut(&mut self) -> Result<()> {
        let closed = &mut self.mover.closed;
        let (size, storage) = (closed.refcounts.block_size(), closed.storage);
        let mut end = 0;
        closed.refcounts.each_stored(0..u64::MAX, storage, |_, cluster, _| {
            end = end.max((cluster.0 + 1) * size);
            Ok(())
        })?;
        let len = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
        if end < len {
            self.mover.sync()?;
            storage.set_len(end).map_err(|e| Error::io("cutting the image's file", e))?;
        }
        self.reached.after = len.min(end);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{CreateOptions, Nothing, OpenOptions, check, create};
    use super::*;
    use crate::storage::Memory;
    use crate::units::GuestOffset;
    use std::sync::Arc;

    #[test]
    fn more_moves_than_are_known_at_once_are_all_made() {
        let size = 4 * MIB;
        let memory = Arc::new(Memory::new());
        create(&*memory, &CreateOptions { cluster_bits: 12, extended_l2: false, ..CreateOptions::new(size) })
            .unwrap();
        let options = OpenOptions { writable: true, ..OpenOptions::default() };
        let mut image = Image::open(memory.clone(), options).unwrap();
        let data: Vec<u8> = (0..index(size)).map(|at| (at / 512 % 251).to_le_bytes()[0] + 1).collect();
        image.write(&data, GuestOffset(0), &Nothing).unwrap();
        image.drop_to_below(std::iter::once(0..size / 2)).unwrap();
        let compacted = image.compact(&mut |_| true).unwrap();
        assert!(compacted.moved >= 512, "{compacted:?}");
        let report = check(memory.clone()).unwrap();
        assert_eq!((report.error_count, report.leaks, report.image_end), (0, 0, compacted.after));
        assert_eq!(compacted.after, memory.len().unwrap());
        // Half of the data, three structures, and the L2 tables.
        assert_eq!(compacted.after, size / 2 + 4096 * (4 + size / 4096 / 512));
        let mut got = vec![0xee; index(size)];
        image.read(&mut got, GuestOffset(0), &Nothing).unwrap();
        assert!(got[..index(size / 2)].iter().all(|byte| *byte == 0));
        assert!(got[index(size / 2)..] == data[index(size / 2)..]);
    }
}
