//! Which contents a sector may have after a power cut: each write stamps its sectors.

use super::ops::{Op, Step};
use cowshed::disk::Disk;

const SECTOR: usize = 512;

/// One guest operation and the span of the storage's log that it made.
#[derive(Clone, Debug, Default)]
struct Done {
    op: Op,
    at: usize,
    len: usize,
    /// Events in the log before it began, and after it returned.
    span: (usize, usize),
    /// Whether it returned an error: its sectors are then old or new.
    failed: bool,
    /// Whether it is the flush of a close.
    closes: bool,
    /// Whether it is a compaction, which is a flush and leaves no leak when it ends.
    compacts: bool,
}

/// Everything the guest did, over what the disk held before.
#[derive(Debug)]
pub struct Guest {
    before: Vec<u8>,
    done: Vec<Done>,
}

impl Guest {
    /// A guest that finds `before` on the disk.
    pub fn new(before: Vec<u8>) -> Self {
        Self { before, done: Vec::new() }
    }

    /// Does `step` (whole sectors) to `disk`; `events` counts the events in the storage's log.
    ///
    /// What a write holds is replaced by stamps of operation and sector.
    pub fn run(&mut self, disk: &Disk, mut step: Step, events: impl Fn() -> usize) -> cowshed::Result<()> {
        use cowshed::units::GuestOffset;
        if let Op::Write(data) = &mut step.op {
            *data = stamps(self.done.len(), step.at as usize, step.len as usize);
        }
        let start = events();
        let at = GuestOffset(step.at);
        let result = match &step.op {
            Op::Write(data) => disk.write(data, at),
            Op::WriteZeroes => disk.write_zeroes(at, step.len),
            Op::Discard => disk.discard(at, step.len),
            Op::Flush => disk.flush(),
            Op::Read => Ok(()),
        };
        let (at, len) = (step.at as usize, step.len as usize);
        let failed_flush = result.is_err() && step.op == Op::Flush;
        // A write that failed may have happened in part; a flush that failed has not happened.
        if !failed_flush {
            let span = (start, events());
            self.done.push(Done { op: step.op, at, len, span, failed: result.is_err(), ..Done::default() });
        }
        result
    }

    /// Closes `disk`, which stays usable.
    pub fn close(&mut self, disk: &Disk, events: impl Fn() -> usize) -> cowshed::Result<()> {
        let start = events();
        disk.close()?;
        let span = (start, events());
        self.done.push(Done { span, closes: true, ..Done::default() });
        Ok(())
    }

    /// Lets `len` bytes of `disk` show what is below, as far as they can; each sector of them is then old or `below`'s.
    pub fn uncover(
        &mut self,
        disk: &Disk,
        (at, len): (u64, u64),
        below: &[u8],
        events: impl Fn() -> usize,
    ) -> cowshed::Result<()> {
        let start = events();
        let result = disk.drop_to_below(std::iter::once(at..at + len));
        let span = (start, events());
        let (at, len) = (at as usize, len as usize);
        let (old, mut shown) = (self.latest(), below.to_vec());
        shown.resize(old.len(), 0);
        if let Err(error) = result {
            let op = Op::Write(shown[at..at + len].to_vec());
            self.done.push(Done { op, at, len, span, failed: true, ..Done::default() });
            return Err(error);
        }
        let mut left = vec![0xee; len];
        disk.read(&mut left, cowshed::units::GuestOffset(at as u64))?;
        for from in (0..len).step_by(SECTOR) {
            let got = &left[from..from + SECTOR];
            let place = at + from..at + from + SECTOR;
            assert!(
                got == &old[place.clone()] || got == &shown[place],
                "sector {} is neither what it was nor what is below",
                (at + from) / SECTOR
            );
        }
        self.done.push(Done { op: Op::Write(left), at, len, span, ..Done::default() });
        Ok(())
    }

    /// Compacts `disk`, at most `batches` of moves.
    pub fn compact(
        &mut self,
        disk: &mut Disk,
        mut batches: u64,
        events: impl Fn() -> usize,
    ) -> cowshed::Result<cowshed::qcow2::Compacted> {
        let start = events();
        let compacted = disk.compact(&mut |_| {
            batches = batches.saturating_sub(1);
            batches > 0
        })?;
        let span = (start, events());
        self.done.push(Done { span, closes: true, compacts: true, ..Done::default() });
        Ok(compacted)
    }

    /// What the guest did, one line for each operation.
    pub fn story(&self) -> String {
        self.done.iter().map(|done| format!("  {}\n", done.short())).collect()
    }

    /// Whether a flush returned when the log had a number of events in `counts`.
    pub fn flushed_in(&self, counts: std::ops::RangeInclusive<usize>) -> bool {
        self.done.iter().any(|done| done.op == Op::Flush && counts.contains(&done.span.1))
    }

    /// What is legal before the log's first event; [`Legal::advance`] brings it to a later moment.
    pub fn legal(&self) -> Legal<'_> {
        Legal { guest: self, durable: self.before.clone(), flushed: 0, before_last: 0, begun: 0, count: 0 }
    }

    /// What was last written everywhere.
    pub fn latest(&self) -> Vec<u8> {
        let mut bytes = self.before.clone();
        self.done.iter().filter(|done| !done.failed).for_each(|done| done.apply(&mut bytes));
        bytes
    }

    /// Asserts that `got` is legal after a cut at which the log had `count` events.
    pub fn assert_legal(&self, got: &[u8], count: usize, what: &str) {
        let mut legal = self.legal();
        legal.advance(count);
        legal.judge(got).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// What may be read after a cut at one moment.
#[derive(Debug)]
pub struct Legal<'a> {
    guest: &'a Guest,
    /// The operations that returned before the start of a flush that returned by now, over the disk as it was.
    durable: Vec<u8>,
    /// The number of that flush, and of the one before it.
    flushed: usize,
    before_last: usize,
    /// Operations that have begun.
    begun: usize,
    count: usize,
}

impl Legal<'_> {
    /// Goes to the moment at which the log has `count` events; never back.
    pub fn advance(&mut self, count: usize) {
        self.count = count;
        let done = &self.guest.done;
        while done.get(self.begun).is_some_and(|done| done.span.0 <= count) {
            self.begun += 1;
        }
        let flush = |done: &Done| done.op == Op::Flush && done.span.1 <= count;
        while let Some(more) = done[self.flushed..self.begun].iter().skip(1).position(flush) {
            let next = self.flushed + 1 + more;
            done[self.flushed..next]
                .iter()
                .filter(|done| !done.failed)
                .for_each(|d| d.apply(&mut self.durable));
            (self.before_last, self.flushed) = (self.flushed, next);
        }
    }

    /// The operations whose effect is not certain.
    fn unsure(&self) -> impl Iterator<Item = &Done> {
        let done = &self.guest.done;
        let failed = done[..self.flushed].iter().filter(|done| done.failed);
        failed.chain(&done[self.flushed..self.begun]).filter(|done| !matches!(done.op, Op::Flush | Op::Read))
    }

    /// Says which sector of `got` is not legal.
    pub fn judge(&self, got: &[u8]) -> Result<(), String> {
        if got.len() != self.durable.len() {
            return Err(format!("the disk has {} bytes, not {}", got.len(), self.durable.len()));
        }
        for (number, (block, durable)) in got.chunks(4096).zip(self.durable.chunks(4096)).enumerate() {
            if block == durable {
                continue;
            }
            for (sector, (bytes, durable)) in block.chunks(SECTOR).zip(durable.chunks(SECTOR)).enumerate() {
                let at = number * 4096 + sector * SECTOR;
                if bytes != durable && !self.unsure().any(|done| done.could_leave(at, bytes)) {
                    return Err(self.complaint(at, bytes));
                }
            }
        }
        Ok(())
    }

    fn complaint(&self, at: usize, bytes: &[u8]) -> String {
        format!(
            "sector {} holds {}; durable is {}; later operations on it: {:?}",
            at / SECTOR,
            name(bytes),
            name(&self.durable[at..at + bytes.len()]),
            self.unsure().filter(|done| done.covers(at)).map(Done::short).collect::<Vec<_>>()
        )
    }

    /// Whether a close has just returned, so that nothing may be left over.
    pub fn is_closed(&self) -> bool {
        let done = &self.guest.done[..self.begun];
        done.iter().any(|done| done.closes && done.span.1 == self.count)
    }

    /// Guest clusters of `1 << bits` bytes that may have been taken since the last flush, and that may have been
    /// freed since the flush before that: its drops become durable with the next flush only.
    pub fn taken_and_freed(&self, bits: u32) -> (u64, u64) {
        let clusters = |done: &Done| match done.op {
            Op::Write(_) | Op::WriteZeroes | Op::Discard if done.len > 0 => {
                ((done.at + done.len - 1) >> bits) as u64 - (done.at >> bits) as u64 + 1
            }
            _ => 0,
        };
        let sum = |from: usize| self.guest.done[from..self.begun].iter().map(clusters).sum::<u64>();
        // A batch of moves has its sources and its targets.
        let compacts = self.guest.done[self.before_last..self.begun].iter().any(|done| done.compacts);
        let moved = if compacts { 2 * (self.durable.len() >> bits) as u64 } else { 0 };
        (sum(self.flushed) + moved, sum(self.before_last))
    }
}

impl Done {
    fn covers(&self, at: usize) -> bool {
        (self.at..self.at + self.len).contains(&at)
    }

    fn could_leave(&self, at: usize, bytes: &[u8]) -> bool {
        self.covers(at)
            && match &self.op {
                Op::Write(data) => bytes == &data[at - self.at..at - self.at + bytes.len()],
                _ => bytes.iter().all(|byte| *byte == 0),
            }
    }

    fn apply(&self, bytes: &mut [u8]) {
        let range = self.at..self.at + self.len;
        match &self.op {
            Op::Write(data) => bytes[range].copy_from_slice(data),
            Op::WriteZeroes | Op::Discard => bytes[range].fill(0),
            Op::Read | Op::Flush => {}
        }
    }

    fn short(&self) -> String {
        let op = match self.op {
            Op::Read => "read",
            Op::Write(_) => "write",
            Op::WriteZeroes => "write_zeroes",
            Op::Discard => "discard",
            Op::Flush => "flush",
        };
        let op = if self.closes { "close" } else { op };
        let op = if self.compacts { "compact" } else { op };
        format!("{op} {:#x}+{:#x} events {:?}", self.at, self.len, self.span)
    }
}

/// `len` bytes, each sector stamped with the number of the operation and its own.
fn stamps(operation: usize, at: usize, len: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(len);
    for sector in at / SECTOR..(at + len) / SECTOR {
        let stamp = (operation as u64 + 1) << 32 | sector as u64;
        (0..SECTOR / 8).for_each(|_| data.extend_from_slice(&stamp.to_le_bytes()));
    }
    data
}

fn name(bytes: &[u8]) -> String {
    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    if bytes.iter().all(|byte| *byte == 0) {
        "zeros".into()
    } else if bytes.chunks(8).all(|word| word == stamp.to_le_bytes()) {
        format!("the stamp of operation {} for sector {}", (stamp >> 32).wrapping_sub(1), stamp & 0xffff_ffff)
    } else {
        format!("{:02x?}..", &bytes[..8])
    }
}
