//! One pass over a disk: the sums of all blocks, and on the way a copy of it, or of what differs from another disk.

use super::{Progress, check_cancelled};
use crate::disk::{Disk, DiskExtent};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::store::{BLOCK, BlockSum, ContentSums, Sums};
use crate::units::{GIB, GuestOffset, HostOffset, MIB, index, length};
use crate::zero::is_zero;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one thread reads at a time: a multiple of [`BLOCK`].
pub(super) const CHUNK: u64 = 4 * MIB;
/// What need not be read is skipped in steps of at most this, a multiple of [`CHUNK`], so that a stop is noticed.
const STRIDE: u64 = 64 * GIB;

/// Where the bytes of a scan go to.
pub(super) trait Sink: Sync {
    /// `data` belongs at `at`. It is all zero only when the disk that is compared with is not.
    fn put(&self, data: &[u8], at: u64) -> Result<()>;

    /// What is the same as before is told in units of this many bytes, a divisor of [`BLOCK`].
    fn grain(&self) -> usize {
        4096
    }

    /// Whether what is put first decides how the result looks: then it is put in the order of the disk, so that the
    /// number of threads never shows.
    fn ordered(&self) -> bool {
        false
    }
}

/// Nowhere.
pub(super) struct Nowhere;

impl Sink for Nowhere {
    fn put(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }
}

/// Nowhere, but counted.
#[derive(Default)]
pub(super) struct Count {
    data: AtomicU64,
    zeros: AtomicU64,
}

impl Count {
    /// Bytes that were put and are not all zero.
    pub(super) fn data(&self) -> u64 {
        self.data.load(Ordering::Relaxed)
    }

    /// All bytes that were put.
    pub(super) fn all(&self) -> u64 {
        self.data() + self.zeros.load(Ordering::Relaxed)
    }
}

impl Sink for Count {
    fn put(&self, data: &[u8], _: u64) -> Result<()> {
        let kind = if is_zero(data) { &self.zeros } else { &self.data };
        kind.fetch_add(length(data.len()), Ordering::Relaxed);
        Ok(())
    }
}

/// A file, at the same places.
pub(super) struct Flat<'a>(pub(super) &'a dyn Storage);

impl Sink for Flat<'_> {
    fn put(&self, data: &[u8], at: u64) -> Result<()> {
        self.0.write_at(data, HostOffset(at)).map_err(|error| Error::io("cannot write the copy", error))
    }
}

/// A disk with clusters of [`BLOCK`] bytes, at the same places.
impl Sink for Disk {
    fn grain(&self) -> usize {
        index(BLOCK)
    }

    fn ordered(&self) -> bool {
        true
    }

    fn put(&self, data: &[u8], at: u64) -> Result<()> {
        self.write(data, GuestOffset(at))
    }
}

/// The disk that a scan compares with: what is the same there is not put.
#[derive(Clone, Copy, Debug)]
pub(super) struct Against<'a> {
    /// The disk.
    pub(super) disk: &'a Disk,
    /// So many layers at the bottom of both disks are the same files: what comes from there need not be read.
    pub(super) shared: usize,
}

/// What was read of a chunk.
#[derive(Default)]
struct Chunk {
    sums: Vec<BlockSum>,
    /// The bytes, when something of them has still to be put.
    bytes: Vec<u8>,
    /// What has to be put.
    runs: Vec<Range<usize>>,
}

/// What a thread reads into.
#[derive(Default)]
struct Buffers {
    new: Vec<u8>,
    old: Vec<u8>,
}

/// What is known of a run of the disk without reading it.
struct Known {
    len: u64,
    /// It reads as zeros.
    zeros: bool,
    /// Nothing of it has to be put.
    settled: bool,
}

/// The work that a scan does on each chunk.
struct Scan<'a> {
    disk: &'a Disk,
    against: Option<Against<'a>>,
    /// Where it begins, a multiple of [`CHUNK`] when sums are wanted.
    start: u64,
    size: u64,
    sink: &'a dyn Sink,
    sums: bool,
    /// Whether a block that cannot be read is told by its sum; else it ends the scan.
    tolerant: bool,
    progress: &'a dyn Progress,
}

/// What is told the sum of each block, in order.
pub(super) type EachSum<'a> = &'a mut dyn FnMut(&BlockSum) -> Result<()>;

/// Reads the first `size` bytes of `disk` (zeros past its end), gives what is not zero to `sink` and each block's sum to
/// `each`, and returns the sums of the whole.
pub(super) fn scan(
    disk: &Disk,
    size: u64,
    sink: &dyn Sink,
    progress: &dyn Progress,
    each: EachSum<'_>,
) -> Result<Sums> {
    Scan { disk, against: None, start: 0, size, sink, sums: true, tolerant: false, progress }.sum(each)
}

/// The same, but `sink` gets what differs from another disk, which reads as zeros past its end.
pub(super) fn scan_against(
    disk: &Disk,
    against: Against<'_>,
    size: u64,
    sink: &dyn Sink,
    progress: &dyn Progress,
    each: EachSum<'_>,
) -> Result<Sums> {
    Scan { disk, against: Some(against), start: 0, size, sink, sums: true, tolerant: false, progress }
        .sum(each)
}

/// As [`scan`] without a copy; blocks that cannot be read say so in their sums, and count as zeros in the whole's.
pub(super) fn scan_damaged(
    disk: &Disk,
    size: u64,
    progress: &dyn Progress,
    each: EachSum<'_>,
) -> Result<Sums> {
    Scan { disk, against: None, start: 0, size, sink: &Nowhere, sums: true, tolerant: true, progress }
        .sum(each)
}

/// As [`scan`] without sums: what is not zero goes to `sink`.
pub(super) fn copy(disk: &Disk, size: u64, sink: &dyn Sink, progress: &dyn Progress) -> Result<()> {
    Scan { disk, against: None, start: 0, size, sink, sums: false, tolerant: false, progress }.run(|_| Ok(()))
}

/// As [`scan_against`] without sums: what differs goes to `sink`.
pub(super) fn difference(
    disk: &Disk,
    against: Against<'_>,
    sink: &dyn Sink,
    progress: &dyn Progress,
) -> Result<()> {
    difference_in(disk, against, 0..disk.size(), sink, progress)
}

/// The same of a range of the disk; zeros are compared past its end.
pub(super) fn difference_in(
    disk: &Disk,
    against: Against<'_>,
    range: Range<u64>,
    sink: &dyn Sink,
    progress: &dyn Progress,
) -> Result<()> {
    let Range { start, end: size } = range;
    Scan { disk, against: Some(against), start, size, sink, sums: false, tolerant: false, progress }
        .run(|_| Ok(()))
}

impl Against<'_> {
    /// Whether two extents at the same place of two disks come from the same file.
    pub(super) fn is_shared(&self, disk: &Disk, new: Option<usize>, old: Option<usize>) -> bool {
        let below = |disk: &Disk, depth: usize| disk.layers().len() - depth <= self.shared;
        match (new, old) {
            (Some(new), Some(old)) => below(disk, new) && below(self.disk, old),
            _ => false,
        }
    }
}

/// What `disk` has at `at`; past its end zeros.
fn extent(disk: &Disk, at: u64) -> Result<DiskExtent> {
    if at < disk.size() {
        return disk.extent(GuestOffset(at));
    }
    Ok(DiskExtent { len: u64::MAX - at, data: false, depth: None, host: None, compressed: false })
}

/// Reads `disk` (zeros past its end).
fn read(disk: &Disk, buf: &mut [u8], at: u64) -> Result<()> {
    let there = index(disk.size().saturating_sub(at).min(length(buf.len())));
    let (inside, outside) = buf.split_at_mut(there);
    outside.fill(0);
    if inside.is_empty() { Ok(()) } else { disk.read(inside, GuestOffset(at)) }
}

impl Scan<'_> {
    fn sum(&self, each: EachSum<'_>) -> Result<Sums> {
        let mut sums = ContentSums::new(self.size);
        self.run(|sum| {
            sums.push(sum);
            each(sum)
        })?;
        Ok(sums.finish())
    }

    fn run(&self, mut each: impl FnMut(&BlockSum) -> Result<()>) -> Result<()> {
        self.progress.total(self.size - self.start);
        // Enough chunks to keep all threads busy, few enough to keep the sums in order with little memory.
        let each_thread = if self.sink.ordered() { 1 } else { 4 };
        let window = CHUNK * length(rayon::current_num_threads().max(1)) * each_thread;
        let mut at = self.start;
        while at < self.size {
            check_cancelled(self.progress)?;
            let skipped = self.skip(at, self.size.min(at + STRIDE))? / CHUNK * CHUNK;
            if skipped > 0 {
                if self.sums {
                    (0..skipped / BLOCK).try_for_each(|_| each(&BlockSum::zeros()))?;
                }
                self.progress.advance(skipped);
                at += skipped;
                continue;
            }
            let end = self.size.min(at + window);
            let chunks: Vec<u64> = (at..end).step_by(index(CHUNK)).collect();
            let results: Vec<Result<Chunk>> =
                chunks.par_iter().map_init(Buffers::default, |buf, start| self.chunk(*start, buf)).collect();
            for (start, result) in chunks.into_iter().zip(results) {
                let chunk = result?;
                self.put(&chunk.bytes, &chunk.runs, start)?;
                chunk.sums.iter().try_for_each(&mut each)?;
            }
            at = end;
        }
        Ok(())
    }

    fn known(&self, at: u64) -> Result<Known> {
        let new = extent(self.disk, at)?;
        let Some(against) = &self.against else {
            return Ok(Known { len: new.len.max(1), zeros: !new.data, settled: !new.data });
        };
        let old = extent(against.disk, at)?;
        let settled = (!new.data && !old.data) || against.is_shared(self.disk, new.depth, old.depth);
        Ok(Known { len: new.len.min(old.len).max(1), zeros: !new.data, settled })
    }

    /// Bytes from `at` on, up to `end`, of which nothing has to be read.
    fn skip(&self, at: u64, end: u64) -> Result<u64> {
        let mut here = at;
        while here < end {
            let known = self.known(here)?;
            if !known.settled || (self.sums && !known.zeros) {
                break;
            }
            here = here.saturating_add(known.len);
        }
        Ok(here.min(end) - at)
    }

    /// The parts of a chunk of which something may have to be put, in whole grains from its start.
    fn unsettled(&self, start: u64, len: u64) -> Result<Vec<Range<usize>>> {
        let grain = self.sink.grain();
        let mut found: Vec<Range<usize>> = Vec::new();
        let mut at = 0;
        while at < len {
            let known = self.known(start + at)?;
            let end = len.min(at.saturating_add(known.len));
            if !known.settled {
                let from = index(at) / grain * grain;
                let to = index(end).next_multiple_of(grain).min(index(len));
                match found.last_mut() {
                    Some(last) if last.end >= from => last.end = to,
                    _ => found.push(from..to),
                }
            }
            at = end;
        }
        Ok(found)
    }

    fn chunk(&self, start: u64, buf: &mut Buffers) -> Result<Chunk> {
        check_cancelled(self.progress)?;
        let len = CHUNK.min(self.size - start);
        if self.skip(start, start + len)? == len && len == CHUNK {
            self.progress.advance(len);
            let sums = if self.sums { vec![BlockSum::zeros(); index(CHUNK / BLOCK)] } else { Vec::new() };
            return Ok(Chunk { sums, ..Chunk::default() });
        }
        buf.new.resize(index(len), 0);
        let parts = self.unsettled(start, len)?;
        let sums = self.read_new(&mut buf.new, start, &parts)?;
        let runs = self.runs(buf, start, &parts)?;
        self.progress.advance(len);
        if self.sink.ordered() {
            let bytes = if runs.is_empty() { Vec::new() } else { std::mem::take(&mut buf.new) };
            return Ok(Chunk { sums, bytes, runs });
        }
        self.put(&buf.new, &runs, start)?;
        Ok(Chunk { sums, ..Chunk::default() })
    }

    /// Reads the whole chunk when its sums are wanted, else only the parts that may have to be put.
    fn read_new(&self, new: &mut [u8], start: u64, parts: &[Range<usize>]) -> Result<Vec<BlockSum>> {
        if !self.sums {
            for part in parts {
                read(self.disk, &mut new[part.clone()], start + length(part.start))?;
            }
            return Ok(Vec::new());
        }
        let unreadable = match read(self.disk, new, start) {
            Ok(()) => Vec::new(),
            Err(error) => self.read_blocks(new, start, error)?,
        };
        let mut sums: Vec<_> = new.chunks(index(BLOCK)).map(sum_of).collect();
        for number in unreadable {
            sums.get_mut(number).into_iter().for_each(|sum| sum.readable = false);
        }
        Ok(sums)
    }

    /// What of `parts` has to be put: neighbours of the same kind (zeros, or not) in one run.
    fn runs(&self, buf: &mut Buffers, start: u64, parts: &[Range<usize>]) -> Result<Vec<Range<usize>>> {
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        for part in parts {
            if let Some(against) = &self.against {
                buf.old.resize(part.len(), 0);
                read(against.disk, &mut buf.old, start + length(part.start))?;
            }
            let mut at = part.start;
            for piece in buf.new[part.clone()].chunks(self.sink.grain()) {
                let (here, zeros) = (at..at + piece.len(), is_zero(piece));
                at = here.end;
                let same = match &self.against {
                    Some(_) => piece == &buf.old[here.start - part.start..here.end - part.start],
                    None => zeros,
                };
                match runs.last_mut() {
                    _ if same => {}
                    Some((last, kind)) if last.end == here.start && *kind == zeros => last.end = here.end,
                    _ => runs.push((here, zeros)),
                }
            }
        }
        Ok(runs.into_iter().map(|(run, _)| run).collect())
    }

    /// Gives runs of a chunk to the sink.
    fn put(&self, bytes: &[u8], runs: &[Range<usize>], start: u64) -> Result<()> {
        runs.iter().try_for_each(|run| self.sink.put(&bytes[run.clone()], start + length(run.start)))
    }

    /// Reads a chunk that cannot be read in one piece block by block; the numbers of those that cannot be read.
    fn read_blocks(&self, buf: &mut [u8], start: u64, error: Error) -> Result<Vec<usize>> {
        if !self.tolerant {
            return Err(error);
        }
        let mut unreadable = Vec::new();
        for (number, block) in buf.chunks_mut(index(BLOCK)).enumerate() {
            check_cancelled(self.progress)?;
            if read(self.disk, block, start + length(number) * BLOCK).is_err() {
                block.fill(0);
                unreadable.push(number);
            }
        }
        Ok(unreadable)
    }
}

fn sum_of(block: &[u8]) -> BlockSum {
    if length(block.len()) == BLOCK && is_zero(block) { BlockSum::zeros() } else { BlockSum::of(block) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::{Layer, RawLayer};
    use crate::ops::Silent;
    use crate::storage::{Fault, Memory, Operation};
    use std::sync::Arc;

    #[test]
    fn what_cannot_be_read_is_named_by_its_block_and_the_rest_is_read() {
        let memory = Arc::new(Memory::from_bytes(&vec![7; index(4 * BLOCK)]));
        let disk = Disk::new(vec![Layer::Raw(RawLayer::new(memory.clone(), false).unwrap())]).unwrap();
        let fault = Fault { after: 0, only: Some(Operation::Read), errno: libc::EIO, lasting: true };
        memory.set_fault(Some(fault));
        let unreadable = |disk: &Disk| {
            let (mut number, mut found) = (0, Vec::new());
            let sums = scan_damaged(disk, 4 * BLOCK, &Silent, &mut |sum| {
                if !sum.readable {
                    found.push(number);
                }
                number += 1;
                Ok(())
            });
            assert_eq!(number, 4);
            (sums.unwrap(), found)
        };
        let whole = || scan(&disk, 4 * BLOCK, &Nowhere, &Silent, &mut |_| Ok(()));
        assert!(whole().is_err());
        assert_eq!(unreadable(&disk).1, [0, 1, 2, 3]);
        // A failure that passes: the whole chunk once, its blocks not.
        memory.set_fault(Some(Fault { lasting: false, ..fault }));
        let (sums, found) = unreadable(&disk);
        assert!(found.is_empty());
        assert_eq!(sums.digest, whole().unwrap().digest);
    }
}
