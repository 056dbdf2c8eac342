//! One pass over a disk: the sums of all blocks, and a sparse copy on the way.

use super::Progress;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::store::{BLOCK, BlockSum, ContentSums, Sums};
use crate::units::{GIB, GuestOffset, HostOffset, MIB, index, length};
use crate::zero::is_zero;
use rayon::prelude::*;

/// What one thread reads at a time: a multiple of [`BLOCK`].
pub(super) const CHUNK: u64 = 4 * MIB;
/// A hole is skipped in steps of at most this, a multiple of [`CHUNK`], so that a stop is noticed.
const STRIDE: u64 = 64 * GIB;

/// Where the bytes of a scan go to.
pub(super) trait Sink: Sync {
    /// `data`, which is not all zero, belongs at `at`. Ranges that are never put read as zeros.
    fn put(&self, data: &[u8], at: u64) -> Result<()>;

    /// Zeros shorter than this many bytes, or not aligned to it, are put like data.
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

/// What was read of a chunk.
#[derive(Default)]
struct Chunk {
    sums: Vec<BlockSum>,
    /// The bytes, when they have still to be put.
    bytes: Vec<u8>,
}

/// The work that a scan does on each chunk.
struct Scan<'a> {
    disk: &'a Disk,
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
    Scan { disk, size, sink, sums: true, tolerant: false, progress }.sum(each)
}

/// The same without a copy; blocks that cannot be read say so in their sums, and count as zeros in the whole's.
pub(super) fn scan_damaged(
    disk: &Disk,
    size: u64,
    progress: &dyn Progress,
    each: EachSum<'_>,
) -> Result<Sums> {
    Scan { disk, size, sink: &Nowhere, sums: true, tolerant: true, progress }.sum(each)
}

/// The same without sums: what is not zero goes to `sink`.
pub(super) fn copy(disk: &Disk, size: u64, sink: &dyn Sink, progress: &dyn Progress) -> Result<()> {
    Scan { disk, size, sink, sums: false, tolerant: false, progress }.run(|_| Ok(()))
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
        self.progress.total(self.size);
        // Enough chunks to keep all threads busy, few enough to keep the sums in order with little memory.
        let each_thread = if self.sink.ordered() { 1 } else { 4 };
        let window = CHUNK * length(rayon::current_num_threads().max(1)) * each_thread;
        let mut at = 0;
        while at < self.size {
            self.check_cancelled()?;
            let hole = self.hole(at, self.size.min(at + STRIDE))? / CHUNK * CHUNK;
            if hole > 0 {
                if self.sums {
                    (0..hole / BLOCK).try_for_each(|_| each(&BlockSum::zeros()))?;
                }
                self.progress.advance(hole);
                at += hole;
                continue;
            }
            let end = self.size.min(at + window);
            let chunks: Vec<u64> = (at..end).step_by(index(CHUNK)).collect();
            let results: Vec<Result<Chunk>> =
                chunks.par_iter().map_init(Vec::new, |buf, start| self.chunk(*start, buf)).collect();
            for (start, result) in chunks.into_iter().zip(results) {
                let chunk = result?;
                self.put_blocks(&chunk.bytes, start)?;
                chunk.sums.iter().try_for_each(&mut each)?;
            }
            at = end;
        }
        Ok(())
    }

    fn check_cancelled(&self) -> Result<()> {
        match self.progress.cancelled() {
            true => Err(Error::new(Kind::Interrupted, "stopped; nothing was changed")),
            false => Ok(()),
        }
    }

    /// Bytes from `at` on, up to `end`, that surely read as zeros.
    fn hole(&self, at: u64, end: u64) -> Result<u64> {
        let mut here = at;
        while here < end.min(self.disk.size()) {
            let extent = self.disk.extent(GuestOffset(here))?;
            if extent.data {
                break;
            }
            here += extent.len.max(1);
        }
        let here = if here >= self.disk.size() { end } else { here.min(end) };
        Ok(here - at)
    }

    fn chunk(&self, start: u64, buf: &mut Vec<u8>) -> Result<Chunk> {
        self.check_cancelled()?;
        let len = CHUNK.min(self.size - start);
        if self.hole(start, start + len)? == len && len == CHUNK {
            self.progress.advance(len);
            let sums = if self.sums { vec![BlockSum::zeros(); index(CHUNK / BLOCK)] } else { Vec::new() };
            return Ok(Chunk { sums, ..Chunk::default() });
        }
        buf.resize(index(len), 0);
        let there = index(self.disk.size().saturating_sub(start).min(len));
        let unreadable = match self.disk.read(&mut buf[..there], GuestOffset(start)) {
            Ok(()) => Vec::new(),
            Err(error) => self.read_blocks(&mut buf[..there], start, error)?,
        };
        buf[there..].fill(0);
        let mut sums: Vec<_> =
            if self.sums { buf.chunks(index(BLOCK)).map(sum_of).collect() } else { Vec::new() };
        for number in unreadable {
            sums.get_mut(number).into_iter().for_each(|sum| sum.readable = false);
        }
        self.progress.advance(len);
        if self.sink.ordered() {
            return Ok(Chunk { sums, bytes: std::mem::take(buf) });
        }
        self.put_blocks(buf, start)?;
        Ok(Chunk { sums, ..Chunk::default() })
    }

    /// Gives all blocks of a chunk that are not zero to the sink.
    fn put_blocks(&self, bytes: &[u8], start: u64) -> Result<()> {
        for (number, block) in bytes.chunks(index(BLOCK)).enumerate() {
            if !is_zero(block) {
                self.put_data(block, start + length(number) * BLOCK)?;
            }
        }
        Ok(())
    }

    /// Reads a chunk that cannot be read in one piece block by block; the numbers of those that cannot be read.
    fn read_blocks(&self, buf: &mut [u8], start: u64, error: Error) -> Result<Vec<usize>> {
        if !self.tolerant {
            return Err(error);
        }
        let mut unreadable = Vec::new();
        for (number, block) in buf.chunks_mut(index(BLOCK)).enumerate() {
            self.check_cancelled()?;
            let at = start + length(number) * BLOCK;
            if self.disk.read(block, GuestOffset(at)).is_err() {
                block.fill(0);
                unreadable.push(number);
            }
        }
        Ok(unreadable)
    }

    /// Gives the runs of a block that are not zero to the sink, neighbours in one piece.
    fn put_data(&self, block: &[u8], at: u64) -> Result<()> {
        let mut start = None;
        let grain = self.sink.grain();
        for (number, piece) in block.chunks(grain).enumerate() {
            let here = number * grain;
            match (is_zero(piece), start) {
                (false, None) => start = Some(here),
                (true, Some(from)) => {
                    self.sink.put(&block[from..here], at + length(from))?;
                    start = None;
                }
                _ => {}
            }
        }
        match start {
            Some(from) => self.sink.put(&block[from..], at + length(from)),
            None => Ok(()),
        }
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
