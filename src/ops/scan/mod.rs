//! One pass over a disk: the sums of all blocks, and on the way a copy of it, or of what differs from another disk.

mod early;
mod line;

use super::{Progress, check_cancelled};
use crate::disk::{Disk, DiskExtent, Walk};
use crate::error::{Error, Result};
use crate::pages::Pages;
use crate::storage::Storage;
use crate::store::{BLOCK, BlockSum, ContentSums, Sums};
use crate::units::{GIB, GuestOffset, HostOffset, MIB, index, length};
use crate::zero::is_zero;
use line::Line;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use early::Early;

/// What one thread reads at a time: a multiple of [`BLOCK`], and no more than stays in a processor's own cache from the reading
/// to the writing.
pub(super) const CHUNK: u64 = MIB;
/// So many chunks may be done before their turn: a thread that the host lets wait does not hold up the others.
const AHEAD: usize = 64;
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

    /// Told now and then while the scan goes on, by any of its threads: more was put.
    fn more(&self) {}
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
        let at = HostOffset(at);
        let put = match is_zero(data) {
            true => self.0.punch(at, length(data.len())),
            false => self.0.write_at(data, at),
        };
        put.map_err(|error| Error::io("cannot write the copy", error))
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
    /// Whether its layer right above those says nothing but what differs from them, as the delta of a base's version does: it
    /// is not read where the other disk shows them.
    pub(super) exact: bool,
}

/// A piece of the work, in the order of the disk.
struct Chunk {
    /// So many bytes before it are known without reading them.
    skipped: u64,
    start: u64,
    len: u64,
    /// What is not known to be zeros, when sums are wanted.
    stored: Vec<Range<usize>>,
    /// Where something may have to be put.
    parts: Vec<Part>,
}

/// A part of a chunk, in whole grains from its start, of which something may have to be put.
struct Part {
    range: Range<usize>,
    /// All of it differs, it is known.
    differs: bool,
}

/// What was found in a chunk.
struct Found {
    sums: Vec<BlockSum>,
    /// What has still to be put.
    runs: Vec<Range<usize>>,
}

/// What a thread reads into.
#[derive(Default)]
struct Buffers {
    new: Pages,
    old: Pages,
}

/// What is known of a run of the disk without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing.
    Unread,
    /// All of it differs.
    Differs,
    /// Nothing of it has to be put.
    Same {
        /// It reads as zeros.
        zeros: bool,
    },
}

/// Both disks' runs, from the start to the end.
struct Walks<'a> {
    new: Walk<'a>,
    old: Option<(Walk<'a>, Against<'a>)>,
    /// What the sink has already, in order.
    had: &'a [Range<u64>],
}

/// The work that a scan does on each chunk.
struct Scan<'a> {
    disk: &'a Disk,
    against: Option<Against<'a>>,
    /// What the sink has already, in order; only without sums.
    had: &'a [Range<u64>],
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
pub(super) type EachSum<'a> = &'a mut (dyn FnMut(&BlockSum) -> Result<()> + Send);

/// Reads the first `size` bytes of `disk` (zeros past its end), gives what is not zero to `sink` and each block's sum to
/// `each`, and returns the sums of the whole.
pub(super) fn scan(
    disk: &Disk,
    size: u64,
    sink: &dyn Sink,
    progress: &dyn Progress,
    each: EachSum<'_>,
) -> Result<Sums> {
    Scan { sums: true, ..Scan::new(disk, size, sink, progress) }.sum(each)
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
    Scan { against: Some(against), sums: true, ..Scan::new(disk, size, sink, progress) }.sum(each)
}

/// As [`scan`] without a copy; blocks that cannot be read say so in their sums, and count as zeros in the whole's.
pub(super) fn scan_damaged(
    disk: &Disk,
    size: u64,
    progress: &dyn Progress,
    each: EachSum<'_>,
) -> Result<Sums> {
    Scan { sums: true, tolerant: true, ..Scan::new(disk, size, &Nowhere, progress) }.sum(each)
}

/// As [`scan`] without sums: what is not zero goes to `sink`.
pub(super) fn copy(disk: &Disk, size: u64, sink: &dyn Sink, progress: &dyn Progress) -> Result<()> {
    Scan::new(disk, size, sink, progress).run(|_| Ok(()))
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
    let scan = Scan { against: Some(against), start, ..Scan::new(disk, size, sink, progress) };
    scan.run(|_| Ok(()))
}

/// What `sink` lacks of the first `size` bytes of `disk`: it has the ranges `had`, in order, and beside them what another disk
/// shows, or zeros.
pub(super) fn complete(
    disk: &Disk,
    against: Option<Against<'_>>,
    had: &[Range<u64>],
    size: u64,
    sink: &dyn Sink,
    progress: &dyn Progress,
) -> Result<()> {
    Scan { against, had, ..Scan::new(disk, size, sink, progress) }.run(|_| Ok(()))
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

    /// Whether extents at the same place of two disks are known to differ all over.
    fn differs(&self, disk: &Disk, new: Option<usize>, old: Option<usize>) -> bool {
        let shared = new.is_some_and(|depth| disk.layers().len() - depth <= self.shared);
        self.exact && shared && old.is_some_and(|depth| self.disk.layers().len() - depth == self.shared + 1)
    }
}

/// Reads `disk` (zeros past its end).
fn read(disk: &Disk, buf: &mut [u8], at: u64) -> Result<()> {
    let there = index(disk.size().saturating_sub(at).min(length(buf.len())));
    let (inside, outside) = buf.split_at_mut(there);
    outside.fill(0);
    if inside.is_empty() { Ok(()) } else { disk.read(inside, GuestOffset(at)) }
}

impl<'a> Walks<'a> {
    fn new(new: &'a Disk, against: Option<Against<'a>>, had: &'a [Range<u64>]) -> Self {
        Self { new: Walk::new(new), old: against.map(|against| (Walk::new(against.disk), against)), had }
    }

    /// What is known of the run that starts at `at`, and its length, at least 1.
    fn known(&mut self, at: u64) -> Result<(u64, Known)> {
        let next = self.had.get(self.had.partition_point(|range| range.end <= at));
        match next.map(|range| (range.start, range.end)) {
            Some((start, end)) if start <= at => Ok((end - at, Known::Same { zeros: false })),
            Some((start, _)) => self.known_of_disks(at).map(|(len, known)| (len.min(start - at), known)),
            None => self.known_of_disks(at),
        }
    }

    fn known_of_disks(&mut self, at: u64) -> Result<(u64, Known)> {
        let new = extent(&mut self.new, at)?;
        let Some((walk, against)) = &mut self.old else {
            let known = if new.data { Known::Unread } else { Known::Same { zeros: true } };
            return Ok((new.len.max(1), known));
        };
        let old = extent(walk, at)?;
        let disk = self.new.disk();
        let known = if (!new.data && !old.data) || against.is_shared(disk, new.depth, old.depth) {
            Known::Same { zeros: !new.data }
        } else if against.differs(disk, new.depth, old.depth) {
            Known::Differs
        } else {
            Known::Unread
        };
        Ok((new.len.min(old.len).max(1), known))
    }
}

/// What a disk has at `at`; past its end zeros.
fn extent(walk: &mut Walk<'_>, at: u64) -> Result<DiskExtent> {
    if at < walk.disk().size() {
        return walk.extent(GuestOffset(at));
    }
    Ok(DiskExtent { len: u64::MAX - at, data: false, depth: None, host: None, compressed: false })
}

impl<'a> Scan<'a> {
    /// Of what is not zero, without sums.
    fn new(disk: &'a Disk, size: u64, sink: &'a dyn Sink, progress: &'a dyn Progress) -> Self {
        Self { disk, against: None, had: &[], start: 0, size, sink, sums: false, tolerant: false, progress }
    }

    fn sum(&self, each: EachSum<'_>) -> Result<Sums> {
        let mut sums = ContentSums::new(self.size);
        self.run(|sum| {
            sums.push(sum);
            each(sum)
        })?;
        Ok(sums.finish())
    }

    fn run(&self, mut each: impl FnMut(&BlockSum) -> Result<()> + Send) -> Result<()> {
        self.progress.total(self.size - self.start);
        let (mut at, mut walks) = (self.start, Walks::new(self.disk, self.against, self.had));
        let next = move || self.next(&mut at, &mut walks);
        let finish = move |chunk: &Chunk, found: Found, buf: &mut Buffers| {
            if self.sums {
                (0..chunk.skipped / BLOCK).try_for_each(|_| each(&BlockSum::zeros()))?;
            }
            self.put(&buf.new, &found.runs, chunk.start)?;
            found.sums.iter().try_for_each(&mut each)
        };
        let ahead = if self.sink.ordered() { 0 } else { AHEAD };
        Line::new(ahead, next, finish).run(|chunk, buf| self.work(chunk, buf))
    }

    /// The next chunk behind what need not be read.
    fn next(&self, at: &mut u64, walks: &mut Walks<'_>) -> Result<Option<Chunk>> {
        let from = *at;
        loop {
            check_cancelled(self.progress)?;
            let skipped = self.skip(walks, *at, self.size.min(*at + STRIDE))? / CHUNK * CHUNK;
            if skipped == 0 {
                break;
            }
            self.progress.advance(skipped);
            *at += skipped;
        }
        let (skipped, start, len) = (*at - from, *at, CHUNK.min(self.size - *at));
        if skipped + len == 0 {
            return Ok(None);
        }
        let (stored, parts) = self.parts(walks, start, len)?;
        *at += len;
        Ok(Some(Chunk { skipped, start, len, stored, parts }))
    }

    /// Bytes from `at` on, up to `end`, of which nothing has to be read.
    fn skip(&self, walks: &mut Walks<'_>, at: u64, end: u64) -> Result<u64> {
        let mut here = at;
        while here < end {
            match walks.known(here)? {
                (len, Known::Same { zeros }) if zeros || !self.sums => here = here.saturating_add(len),
                _ => break,
            }
        }
        Ok(here.min(end) - at)
    }

    /// What of a chunk is not known to be zeros, when sums are wanted; and the parts of which something may have to be put.
    fn parts(&self, walks: &mut Walks<'_>, start: u64, len: u64) -> Result<(Vec<Range<usize>>, Vec<Part>)> {
        let grain = self.sink.grain();
        let (mut stored, mut found): (Vec<Range<usize>>, Vec<Part>) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < len {
            let (run, known) = walks.known(start + at)?;
            let (from, end) = (index(at), index(len.min(at.saturating_add(run))));
            at = length(end);
            if self.sums && known != (Known::Same { zeros: true }) {
                match stored.last_mut() {
                    Some(last) if last.end == from => last.end = end,
                    _ => stored.push(from..end),
                }
            }
            if matches!(known, Known::Same { .. }) {
                continue;
            }
            let whole = from.is_multiple_of(grain) && (end.is_multiple_of(grain) || at == len);
            let differs = known == Known::Differs && whole;
            let range = from / grain * grain..end.next_multiple_of(grain).min(index(len));
            match found.last_mut() {
                Some(last) if last.range.end >= range.start && last.differs == differs => {
                    last.range.end = range.end
                }
                _ => found.push(Part { range, differs }),
            }
        }
        Ok((stored, found))
    }

    /// Reads a chunk, and finds out what of it has to be put.
    fn work(&self, chunk: &Chunk, buf: &mut Buffers) -> Result<Found> {
        check_cancelled(self.progress)?;
        self.sink.more();
        buf.new.resize(index(chunk.len));
        let sums = self.read_new(&mut buf.new, chunk)?;
        let runs = self.runs(buf, chunk)?;
        self.progress.advance(chunk.len);
        if self.sink.ordered() {
            return Ok(Found { sums, runs });
        }
        self.put(&buf.new, &runs, chunk.start)?;
        Ok(Found { sums, runs: Vec::new() })
    }

    /// Reads all that is stored of a chunk when its sums are wanted, else only the parts that may have to be put.
    fn read_new(&self, new: &mut [u8], chunk: &Chunk) -> Result<Vec<BlockSum>> {
        if !self.sums {
            for Part { range, .. } in &chunk.parts {
                read(self.disk, &mut new[range.clone()], chunk.start + length(range.start))?;
            }
            return Ok(Vec::new());
        }
        let unreadable = match self.read_stored(new, chunk) {
            Ok(()) => Vec::new(),
            Err(error) => self.read_blocks(new, chunk.start, error)?,
        };
        let mut stored = chunk.stored.iter().peekable();
        let mut sums: Vec<_> = (0..)
            .step_by(index(BLOCK))
            .zip(new.chunks(index(BLOCK)))
            .map(|(at, block)| {
                while stored.next_if(|range| range.end <= at).is_some() {}
                let none = stored.peek().is_none_or(|range| range.start >= at + block.len());
                if none { sum_of_zeros(block.len()) } else { sum_of(block) }
            })
            .collect();
        for number in unreadable {
            sums.get_mut(number).into_iter().for_each(|sum| sum.readable = false);
        }
        Ok(sums)
    }

    /// Reads what is stored of a chunk. Zeros are put beside it, up to the borders of its blocks: the rest of `new` is not looked at.
    fn read_stored(&self, new: &mut [u8], chunk: &Chunk) -> Result<()> {
        let (block, mut done) = (index(BLOCK), 0);
        for Range { start, end } in chunk.stored.iter().cloned() {
            let gap = done..start;
            let (head, tail) = (gap.end.min(gap.start.next_multiple_of(block)), gap.end / block * block);
            new[gap.start..head].fill(0);
            new[tail.max(head)..gap.end].fill(0);
            read(self.disk, &mut new[start..end], chunk.start + length(start))?;
            done = end;
        }
        let last = done.next_multiple_of(block).min(new.len());
        new[done..last].fill(0);
        Ok(())
    }

    /// What of a chunk has to be put: neighbours of the same kind (zeros, or not) in one run.
    fn runs(&self, buf: &mut Buffers, chunk: &Chunk) -> Result<Vec<Range<usize>>> {
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        for Part { range, differs } in &chunk.parts {
            let against = self.against.filter(|_| !differs);
            if let Some(against) = against {
                buf.old.resize(range.len());
                read(against.disk, &mut buf.old, chunk.start + length(range.start))?;
            }
            let mut at = range.start;
            for piece in buf.new[range.clone()].chunks(self.sink.grain()) {
                let (here, zeros) = (at..at + piece.len(), is_zero(piece));
                at = here.end;
                let same = match against {
                    Some(_) => piece == &buf.old[here.start - range.start..here.end - range.start],
                    None => zeros && !differs,
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

/// The sums of a block that is a hole; the last one of a disk may be short.
fn sum_of_zeros(len: usize) -> BlockSum {
    if length(len) == BLOCK { BlockSum::zeros() } else { BlockSum::of(&vec![0; len]) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::{Layer, RawLayer};
    use crate::ops::Silent;
    use crate::qcow2::{CreateOptions, Image, OpenOptions, create};
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
    /// What a scan puts, in its order.
    #[derive(Default)]
    struct Noted(parking_lot::Mutex<Vec<(u64, Vec<u8>)>>);

    impl Sink for Noted {
        fn ordered(&self) -> bool {
            true
        }

        fn put(&self, data: &[u8], at: u64) -> Result<()> {
            self.0.lock().push((at, data.to_vec()));
            Ok(())
        }
    }

    fn image(file: &Arc<Memory>, writable: bool) -> Layer {
        Layer::qcow2(Image::open(file.clone(), OpenOptions { writable, metadata_cache: MIB }).unwrap())
    }

    #[test]
    fn what_is_known_to_differ_is_not_read_and_all_is_put_in_the_order_of_the_disk() {
        const SIZE: u64 = 19 * MIB;
        let bottom = Arc::new(Memory::from_bytes(&vec![7; index(SIZE)]));
        let raw = || Layer::Raw(RawLayer::new(bottom.clone(), false).unwrap());
        let [clone, version]: [Arc<Memory>; 2] = std::array::from_fn(|_| Arc::default());
        // The version differs every 64 KiB, the clone in some of the same places and in others.
        for (file, step, with) in [(&version, 65_536, 1), (&clone, 163_840, 2)] {
            create(&**file, &CreateOptions::new(SIZE)).unwrap();
            let disk = Disk::new(vec![image(file, true), raw()]).unwrap();
            (0..SIZE).step_by(step).for_each(|at| disk.write(&[with; 4096], GuestOffset(at)).unwrap());
            disk.close().unwrap();
        }
        let disk = |file| Disk::new(vec![image(file, false), raw()]).unwrap();
        let (clone, new) = (disk(&clone), disk(&version));
        let put = |exact| {
            let noted = Noted::default();
            difference(&clone, Against { disk: &new, shared: 1, exact }, &noted, &Silent)?;
            Ok::<_, Error>(noted.0.into_inner())
        };
        let all = put(false).unwrap();
        assert!(all.is_sorted_by_key(|(at, _)| *at));
        let bytes = |put: &[(u64, Vec<u8>)]| put.iter().map(|(_, data)| data.len()).sum::<usize>();
        let places = (0..SIZE).step_by(4096).filter(|at| at % 65_536 == 0 || at % 163_840 == 0).count();
        assert_eq!(bytes(&all), places * 4096);
        assert_eq!(put(true).unwrap(), all);
        // Only where the clone has bytes of its own the version's are read: here it has none.
        let untouched = Disk::new(vec![raw()]).unwrap();
        let fault = Fault { after: 0, only: Some(Operation::Read), errno: libc::EIO, lasting: true };
        version.set_fault(Some(fault));
        let differing = |exact| {
            let count = Count::default();
            let against = Against { disk: &new, shared: 1, exact };
            difference(&untouched, against, &count, &Silent).map(|()| count.all())
        };
        assert_eq!(differing(true).unwrap(), SIZE / 65_536 * 4096);
        assert_eq!(differing(false).unwrap_err().kind(), crate::error::Kind::Io);
    }

    #[test]
    fn what_is_there_already_is_neither_read_nor_put() {
        const SIZE: u64 = 5 * MIB;
        let had = [(4096, 8192), (MIB - 5000, MIB + 5000), (2 * MIB, 4 * MIB + 1)].map(|(from, to)| from..to);
        let bytes: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at / 4096 % 250 + 1).unwrap()).collect();
        let is_had = |at: &u64| had.iter().any(|range| range.contains(at));
        let disk = |bytes: &[u8]| {
            let raw = RawLayer::new(Arc::new(Memory::from_bytes(bytes)), false).unwrap();
            Disk::new(vec![Layer::Raw(raw)]).unwrap()
        };
        // The other disk has something in the second half, which zeros hide in one place.
        let other: Vec<u8> = (0..SIZE).map(|at| if at < 3 * MIB { 0 } else { 251 }).collect();
        for (against, hole) in [(false, 0), (true, 8192)] {
            let mut bytes = bytes.clone();
            let hidden = index(4 * MIB + 12_288);
            bytes[hidden..hidden + hole].fill(0);
            let before = if against { other.clone() } else { vec![0; index(SIZE)] };
            let (copy, old) = (Memory::from_bytes(&before), disk(&before));
            let against = against.then_some(Against { disk: &old, shared: 0, exact: false });
            complete(&disk(&bytes), against, &had, SIZE, &Flat(&copy), &Silent).unwrap();
            let mut copied = vec![0; index(SIZE)];
            copy.read_at(&mut copied, HostOffset(0)).unwrap();
            for at in 0..SIZE {
                // A grain of which a part is not there is put whole.
                let inside = is_had(&(at / 4096 * 4096)) && is_had(&(at / 4096 * 4096 + 4095));
                let wanted = if inside { before[index(at)] } else { bytes[index(at)] };
                assert_eq!(copied[index(at)], wanted, "at {at}");
            }
        }
    }

    #[test]
    fn the_first_failure_in_the_order_of_the_disk_ends_a_scan() {
        let disk = Disk::new(vec![Layer::Raw(
            RawLayer::new(Arc::new(Memory::from_bytes(&vec![7; index(9 * CHUNK)])), false).unwrap(),
        )])
        .unwrap();
        struct Refused(AtomicU64);
        impl Sink for Refused {
            fn ordered(&self) -> bool {
                true
            }

            fn put(&self, _: &[u8], at: u64) -> Result<()> {
                self.0.fetch_add(1, Ordering::Relaxed);
                if at < 3 * CHUNK { Ok(()) } else { Err(Error::invalid(format!("at {at}"))) }
            }
        }
        let sink = Refused(AtomicU64::new(0));
        let failed = copy(&disk, disk.size(), &sink, &Silent).unwrap_err();
        assert_eq!(failed.to_string(), format!("at {}", 3 * CHUNK));
        assert_eq!(sink.0.into_inner(), 4);
        struct Panics;
        impl Sink for Panics {
            fn ordered(&self) -> bool {
                true
            }

            fn put(&self, _: &[u8], at: u64) -> Result<()> {
                assert!(at < 2 * CHUNK, "on purpose");
                Ok(())
            }
        }
        let run = std::panic::AssertUnwindSafe(|| copy(&disk, disk.size(), &Panics, &Silent));
        assert!(std::panic::catch_unwind(run).is_err());
    }

    /// Runs a scan on three threads, whatever the machine has.
    fn on_three<R: Send>(run: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(run)
    }

    #[test]
    fn holes_are_not_read_and_count_as_the_zeros_that_they_are() {
        let size = 3 * CHUNK + 5 * BLOCK + 1024;
        let (memory, mut bytes) = (Arc::new(Memory::from_bytes(&[])), vec![0; index(size)]);
        memory.set_len(size).unwrap();
        // Runs that begin and end anywhere, at the borders of blocks and chunks too; some of them zeros that are stored.
        let runs = [(0, 5000, 7), (BLOCK - 100, 300, 9), (3 * BLOCK, BLOCK, 0), (CHUNK - 4096, 8192, 1)];
        let last = [(2 * CHUNK, CHUNK, 5), (size - 700, 700, 3)];
        for (at, len, with) in runs.into_iter().chain(last) {
            memory.write_at(&vec![with; index(len)], HostOffset(at)).unwrap();
            bytes[index(at)..index(at + len)].fill(with);
        }
        let disk = Disk::new(vec![Layer::Raw(RawLayer::new(memory.clone(), false).unwrap())]).unwrap();
        let mut expected = ContentSums::new(size);
        bytes.chunks(index(BLOCK)).for_each(|block| expected.push(&BlockSum::of(block)));
        let expected = expected.finish();
        let copy = Memory::from_bytes(&[]);
        copy.set_len(size).unwrap();
        let mut blocks = 0;
        let sums = on_three(|| {
            scan(&disk, size, &Flat(&copy), &Silent, &mut |_| {
                blocks += 1;
                Ok(())
            })
        });
        assert_eq!(sums.unwrap().digest, expected.digest);
        assert_eq!(blocks, size.div_ceil(BLOCK));
        let mut copied = vec![1; index(size)];
        copy.read_at(&mut copied, HostOffset(0)).unwrap();
        assert!(copied == bytes);
        // All over: what a chunk holds beside its runs is not what another one left in the buffer.
        for (step, end) in [(7, size - 4096), (17, size - 2 * BLOCK)] {
            let step = step * 4096;
            let (memory, mut expected) = (Arc::new(Memory::from_bytes(&[])), ContentSums::new(size));
            memory.set_len(size).unwrap();
            for at in (0..end).step_by(step) {
                memory.write_at(&[9; 4096], HostOffset(at)).unwrap();
            }
            let mut all = vec![0; index(size)];
            memory.read_at(&mut all, HostOffset(0)).unwrap();
            all.chunks(index(BLOCK)).for_each(|block| expected.push(&BlockSum::of(block)));
            let disk = Disk::new(vec![Layer::Raw(RawLayer::new(memory, false).unwrap())]).unwrap();
            let sums = scan(&disk, size, &Nowhere, &Silent, &mut |_| Ok(())).unwrap();
            assert_eq!(sums.digest, expected.finish().digest, "every {step}");
        }
    }

    #[test]
    fn a_slow_chunk_holds_nobody_up_and_what_was_found_is_told_in_order() {
        const CHUNKS: u64 = 9;
        let file = Arc::new(Memory::from_bytes(&vec![7; index(CHUNKS * CHUNK)]));
        file.write_at(&[1; 8], HostOffset(CHUNK)).unwrap();
        let disk = Disk::new(vec![Layer::Raw(RawLayer::new(file, false).unwrap())]).unwrap();
        /// The first chunk is put when all others are; it fails when it shall.
        struct Slow(parking_lot::Mutex<u64>, parking_lot::Condvar, bool);
        impl Sink for Slow {
            fn put(&self, _: &[u8], at: u64) -> Result<()> {
                let mut others = self.0.lock();
                if at > 0 {
                    *others += 1;
                    self.1.notify_all();
                    return if self.2 { Err(Error::invalid(format!("at {at}"))) } else { Ok(()) };
                }
                let all = if self.2 { 1 } else { CHUNKS - 1 };
                while *others < all {
                    let late = self.1.wait_for(&mut others, std::time::Duration::from_secs(60)).timed_out();
                    assert!(!late, "{others} of {all} chunks are put: they wait for the first one");
                }
                if self.2 { Err(Error::invalid("at 0")) } else { Ok(()) }
            }
        }
        let run = |fail| {
            let slow = Slow(parking_lot::Mutex::new(0), parking_lot::Condvar::new(), fail);
            let mut told = Vec::new();
            let sums = on_three(|| {
                scan(&disk, disk.size(), &slow, &Silent, &mut |sum| {
                    told.push(sum.crc());
                    Ok(())
                })
            });
            (sums, told)
        };
        let (sums, told) = run(false);
        let expected = scan(&disk, disk.size(), &Nowhere, &Silent, &mut |_| Ok(())).unwrap();
        assert_eq!(sums.unwrap().digest, expected.digest);
        let other = told.iter().position(|crc| *crc != told[0]);
        assert_eq!((told.len(), other), (index(CHUNKS * CHUNK / BLOCK), Some(index(CHUNK / BLOCK))));
        // The failure that is told is the first one on the disk, not the first one in time.
        assert_eq!(run(true).0.unwrap_err().to_string(), "at 0");
    }
}
