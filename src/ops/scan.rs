//! One pass over a disk: the sums of all blocks, and a sparse copy on the way.

use super::Progress;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::storage::Storage;
use crate::store::{BLOCK, BlockSum, ContentSums, SumList};
use crate::units::{GIB, GuestOffset, HostOffset, MIB, index, length};
use crate::zero::is_zero;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::collections::BTreeSet;

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
    /// Where first bytes of blocks go that cannot be read; an error ends the scan when `None`.
    unreadable: Option<&'a Mutex<BTreeSet<u64>>>,
    progress: &'a dyn Progress,
}

/// Reads the first `size` bytes of `disk` (zeros past its end), gives what is not zero to `sink`, and returns the sums.
pub(super) fn scan(disk: &Disk, size: u64, sink: &dyn Sink, progress: &dyn Progress) -> Result<SumList> {
    let mut sums = ContentSums::new(size);
    Scan { disk, size, sink, sums: true, unreadable: None, progress }.run(|sum| sums.push(sum))?;
    Ok(sums.finish())
}

/// The same with the first bytes of blocks that cannot be read, which count as zeros in the sums.
pub(super) fn scan_damaged(
    disk: &Disk,
    size: u64,
    progress: &dyn Progress,
) -> Result<(SumList, BTreeSet<u64>)> {
    let (mut sums, unreadable) = (ContentSums::new(size), Mutex::default());
    Scan { disk, size, sink: &Nowhere, sums: true, unreadable: Some(&unreadable), progress }
        .run(|sum| sums.push(sum))?;
    Ok((sums.finish(), unreadable.into_inner()))
}

/// The same without sums: what is not zero goes to `sink`.
pub(super) fn copy(disk: &Disk, size: u64, sink: &dyn Sink, progress: &dyn Progress) -> Result<()> {
    Scan { disk, size, sink, sums: false, unreadable: None, progress }.run(|_| ())
}

impl Scan<'_> {
    fn run(&self, mut each: impl FnMut(&BlockSum)) -> Result<()> {
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
                    (0..hole / BLOCK).for_each(|_| each(&BlockSum::zeros()));
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
                chunk.sums.iter().for_each(&mut each);
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
        if let Err(error) = self.disk.read(&mut buf[..there], GuestOffset(start)) {
            self.read_blocks(&mut buf[..there], start, error)?;
        }
        buf[there..].fill(0);
        let sums = if self.sums { buf.chunks(index(BLOCK)).map(sum_of).collect() } else { Vec::new() };
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

    /// Reads a chunk that cannot be read in one piece block by block.
    fn read_blocks(&self, buf: &mut [u8], start: u64, error: Error) -> Result<()> {
        let Some(unreadable) = self.unreadable else { return Err(error) };
        for (number, block) in buf.chunks_mut(index(BLOCK)).enumerate() {
            self.check_cancelled()?;
            let at = start + length(number) * BLOCK;
            if self.disk.read(block, GuestOffset(at)).is_err() {
                block.fill(0);
                unreadable.lock().insert(at);
            }
        }
        Ok(())
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
        assert!(scan(&disk, 4 * BLOCK, &Nowhere, &Silent).is_err());
        let (_, unreadable) = scan_damaged(&disk, 4 * BLOCK, &Silent).unwrap();
        assert_eq!(unreadable, (0..4).map(|block| block * BLOCK).collect());
        // A failure that passes: the whole chunk once, its blocks not.
        memory.set_fault(Some(Fault { lasting: false, ..fault }));
        let (sums, unreadable) = scan_damaged(&disk, 4 * BLOCK, &Silent).unwrap();
        assert!(unreadable.is_empty());
        assert_eq!(sums.digest, scan(&disk, 4 * BLOCK, &Nowhere, &Silent).unwrap().digest);
    }
}
