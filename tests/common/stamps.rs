//! Which contents a sector may have after a power cut: each write stamps its sectors.

use super::ops::{Op, Step};
use cowshed::disk::Disk;

const SECTOR: usize = 512;

/// One guest operation and the span of the storage's log that it made.
#[derive(Clone, Debug)]
struct Done {
    op: Op,
    at: usize,
    len: usize,
    /// Events in the log before it began, and after it returned.
    span: (usize, usize),
    /// Whether it returned an error: its sectors are then old or new.
    failed: bool,
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
            self.done.push(Done { op: step.op, at, len, span: (start, events()), failed: result.is_err() });
        }
        result
    }

    /// What was last written everywhere.
    pub fn latest(&self) -> Vec<u8> {
        let mut bytes = self.before.clone();
        self.done.iter().filter(|done| !done.failed).for_each(|done| done.apply(&mut bytes));
        bytes
    }

    /// Asserts that `got` is legal after a cut at which the log had `count` events.
    pub fn assert_legal(&self, got: &[u8], count: usize, what: &str) {
        assert_eq!(got.len(), self.before.len(), "{what}: size");
        // Durable: every operation that returned before the start of a flush that returned before the cut.
        let flushed = self.done.iter().rposition(|done| done.op == Op::Flush && done.span.1 <= count);
        let mut durable = self.before.clone();
        let before = &self.done[..flushed.unwrap_or(0)];
        before.iter().filter(|done| !done.failed).for_each(|done| done.apply(&mut durable));
        let unsure = before.iter().filter(|done| done.failed);
        let later: Vec<&Done> = unsure
            .chain(&self.done[flushed.unwrap_or(0)..])
            .filter(|done| !matches!(done.op, Op::Flush | Op::Read) && done.span.0 <= count)
            .collect();
        for (sector, bytes) in got.chunks(SECTOR).enumerate() {
            let at = sector * SECTOR;
            let legal = bytes == &durable[at..at + bytes.len()]
                || later.iter().any(|done| done.could_leave(at, bytes));
            assert!(
                legal,
                "{what}: sector {sector} holds {}; durable is {}; later operations on it: {:?}",
                name(bytes),
                name(&durable[at..at + bytes.len()]),
                later.iter().filter(|done| done.covers(at)).map(|done| done.short()).collect::<Vec<_>>()
            );
        }
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
