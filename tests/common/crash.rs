//! The states in which a power cut may leave one file, built from the log of a [`Recorder`].
//!
//! A write is durable at a moment when a successful sync began after the write had returned and ended by that
//! moment. Of what is not durable, any subset of 512-byte sectors may be there. Lengths and punched holes are changes
//! of the file system's metadata: they come into force in their order, so a state holds a prefix of them.

use super::rng::Rng;
use cowshed::storage::{Effect, Event, Run, Storage};
use cowshed::units::HostOffset;
use std::io;
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;

/// What is kept of the operations that are not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Nothing: finds a missing sync.
    None,
    /// Everything.
    All,
    /// Everything but the n-th: finds a wrong order.
    Lost(usize),
    /// Only the n-th: finds a wrong order.
    Kept(usize),
    /// Each write with an even chance.
    Half(u64),
    /// Each sector of each write with an even chance.
    Sectors(u64),
    /// All before the n-th, and that one cut at a sector.
    Torn(usize, u64),
    /// Each pending operation by its bit.
    Mask(u64),
}

/// The file as it was before the log began, and the log.
#[derive(Debug)]
pub struct History {
    before: Vec<u8>,
    events: Vec<Event>,
}

impl History {
    /// A history over `before`, which is durable.
    pub fn new(before: Vec<u8>, events: Vec<Event>) -> Self {
        Self { before, events }
    }

    /// The log.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many moments there are at which power can go: after no event, after one, .. after all.
    pub fn moments(&self) -> usize {
        self.events.len() + 1
    }

    /// The cut after `count` events.
    pub fn cut(&self, count: usize) -> Cut<'_> {
        let now = self.events[..count].iter().map(|event| event.end).max().unwrap_or(0);
        let done = &self.events[..count];
        let sync = done
            .iter()
            .filter(|event| event.ok && event.effect == Effect::Sync)
            .map(|event| event.start)
            .max();
        let mut durable = self.before.clone();
        let mut pending = Vec::new();
        for (number, event) in self.events.iter().enumerate() {
            let finished = number < count;
            if event.effect == Effect::Sync || !finished && event.start > now {
                continue;
            }
            if finished && sync.is_some_and(|start| event.end < start) {
                apply(&mut durable, &event.effect);
            } else {
                pending.push(&event.effect);
            }
        }
        Cut { durable, pending }
    }
}

/// One moment at which power goes.
#[derive(Debug)]
pub struct Cut<'a> {
    durable: Vec<u8>,
    pending: Vec<&'a Effect>,
}

impl Cut<'_> {
    /// How many operations may be there or not.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The strategies for this moment, at most `most` of them: exhaustive when few operations are pending.
    pub fn strategies(&self, rng: &mut Rng, most: usize) -> Vec<Strategy> {
        let count = self.pending.len();
        if count == 0 {
            return vec![Strategy::None];
        }
        if count <= 6 && 1 << count <= most {
            let mut all: Vec<Strategy> = (0..1 << count).map(Strategy::Mask).collect();
            all.extend((0..2).map(|_| Strategy::Torn(rng.below(count as u64) as usize, rng.bits())));
            return all;
        }
        let mut all = vec![Strategy::None, Strategy::All];
        while all.len() < most {
            let one = rng.below(count as u64) as usize;
            all.push(match rng.below(6) {
                0 | 1 => Strategy::Lost(one),
                2 => Strategy::Kept(one),
                3 => Strategy::Half(rng.bits()),
                4 => Strategy::Sectors(rng.bits()),
                _ => Strategy::Torn(one, rng.bits()),
            });
        }
        all
    }

    /// The file's bytes after the cut.
    pub fn state(&self, strategy: Strategy) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let mut rng = Rng::new(match strategy {
            Strategy::Half(seed) | Strategy::Sectors(seed) | Strategy::Torn(_, seed) => seed,
            _ => 0,
        });
        // A prefix of the file system's own changes: those before the first that is lost.
        let mut ordered_lost = false;
        for (number, effect) in self.pending.iter().enumerate() {
            let kept = match strategy {
                Strategy::None => false,
                Strategy::All | Strategy::Sectors(_) => true,
                Strategy::Lost(one) => number != one,
                Strategy::Kept(one) => number == one,
                Strategy::Half(_) => rng.chance(50),
                Strategy::Torn(one, _) => number <= one,
                Strategy::Mask(mask) => mask >> number & 1 == 1,
            };
            match effect {
                Effect::Write(at, data) if kept => match strategy {
                    Strategy::Sectors(_) => sectors(&mut bytes, *at, data, |_| rng.chance(50)),
                    Strategy::Torn(one, _) if one == number => {
                        let border = rng.below((data.len() / SECTOR) as u64 + 1) as usize;
                        let first = rng.chance(50);
                        sectors(&mut bytes, *at, data, |sector| (sector < border) == first);
                    }
                    _ => apply(&mut bytes, effect),
                },
                Effect::Write(..) | Effect::Sync => {}
                Effect::Punch(..) | Effect::SetLen(_) => {
                    ordered_lost |= !kept;
                    if !ordered_lost {
                        apply(&mut bytes, effect);
                    }
                }
            }
        }
        bytes
    }
}

fn sectors(bytes: &mut Vec<u8>, at: HostOffset, data: &[u8], mut kept: impl FnMut(usize) -> bool) {
    // Torn where the medium's sectors are, not where the write happens to begin.
    let start = at.0 as usize;
    let (mut from, mut number) = (start, 0);
    while from < start + data.len() {
        let to = ((from / SECTOR + 1) * SECTOR).min(start + data.len());
        if kept(number) {
            write(bytes, from, &data[from - start..to - start]);
        }
        (from, number) = (to, number + 1);
    }
}

fn write(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

fn apply(bytes: &mut Vec<u8>, effect: &Effect) {
    match effect {
        Effect::Write(at, data) => write(bytes, at.0 as usize, data),
        Effect::Punch(at, len) => {
            let end = (at.0.saturating_add(*len) as usize).min(bytes.len());
            if (at.0 as usize) < end {
                bytes[at.0 as usize..end].fill(0);
            }
        }
        Effect::SetLen(len) => bytes.resize(*len as usize, 0),
        Effect::Sync => {}
    }
}

/// A file that is one vector of bytes: quick to make, for thousands of states.
#[derive(Debug)]
pub struct Bytes(Mutex<Vec<u8>>);

impl Bytes {
    /// A file with these bytes.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(bytes)))
    }

    /// What it holds now.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Storage for Bytes {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let start = (at.0.min(bytes.len() as u64)) as usize;
        let end = bytes.len().min(start.saturating_add(buf.len()));
        buf[..end - start].copy_from_slice(&bytes[start..end]);
        buf[end - start..].fill(0);
        Ok(())
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        write(&mut self.0.lock().unwrap(), at.0 as usize, data);
        Ok(())
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        apply(&mut self.0.lock().unwrap(), &Effect::Punch(at, len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        let len = self.0.lock().unwrap().len() as u64;
        if at.0 >= len {
            return Ok(Run { len: u64::MAX - at.0, data: false });
        }
        Ok(Run { len: len - at.0, data: true })
    }

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }
}
