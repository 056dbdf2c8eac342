//! The states in which a power cut may leave one file, built from the log of a [`Recorder`].
//!
//! A write is durable at a moment when a successful sync began after the write had returned and ended by that
//! moment. Of what is not durable, any subset of 512-byte sectors may be there. For lengths and punched holes, which
//! are changes of the file system's metadata, there are two models: they hold as a prefix, as in a journal, or each
//! by itself and in part. The file's length follows the data that are there, or is ahead of them.
//!
//! [`Recorder`]: cowshed::storage::Recorder

use super::rng::Rng;
use super::scratch::Scratch;
use cowshed::storage::{Effect, Event};
use cowshed::units::HostOffset;
use std::sync::Arc;

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
    /// Each operation with an even chance.
    Half(u64),
    /// Each sector of each write with an even chance.
    Sectors(u64),
    /// All before the n-th, and that one cut at a sector.
    Torn(usize, u64),
    /// Each pending operation by its bit.
    Mask(u64),
}

/// One state of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which operations are there.
    pub strategy: Strategy,
    /// Whether punches and lengths hold each by itself, and not as a prefix.
    pub free: bool,
    /// Whether the length is already what the lost writes would have made it.
    pub ahead: bool,
}

/// How many states are made of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// All subsets while that is at most so many.
    pub subsets: usize,
    /// Chosen ones otherwise, about so many.
    pub chosen: usize,
}

/// The file as it was before the log began, and the log.
#[derive(Clone, Debug)]
pub struct History {
    before: Arc<Vec<u8>>,
    events: Vec<Event>,
}

impl History {
    /// A history over `before`, which is durable. Failed operations other than syncs have no place in it.
    pub fn new(before: Arc<Vec<u8>>, mut events: Vec<Event>) -> Self {
        assert!(events.iter().all(|event| event.ok || event.effect == Effect::Sync));
        events.sort_by_key(|event| event.end);
        Self { before, events }
    }

    /// The same beginning with another log.
    pub fn with(&self, events: Vec<Event>) -> Self {
        Self { before: self.before.clone(), events }
    }

    /// The same on a host that gives no blocks back: whatever is punched keeps its bytes.
    pub fn without_punches(&self) -> Self {
        let mut events = self.events.clone();
        for event in &mut events {
            if let Effect::Punch(_, len) = &mut event.effect {
                *len = 0;
            }
        }
        self.with(events)
    }

    /// The log.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many moments there are at which power can go: after no event, after one, .. after all.
    pub fn moments(&self) -> usize {
        self.events.len() + 1
    }
}

/// A walk over the moments of a history, with the file as it durably is.
#[derive(Debug)]
pub struct Sweep<'a> {
    events: &'a [Event],
    file: Arc<Scratch>,
    /// Events that have ended.
    count: usize,
    /// Those of them that are durable: events are in the order of their end, so these are the first ones.
    durable: usize,
    pending: Vec<usize>,
    /// Whether an operation had begun and not ended; only several threads bring that about.
    in_flight: bool,
}

impl<'a> Sweep<'a> {
    /// A walk that stands at the moment before the first event.
    pub fn new(history: &'a History) -> Self {
        Self {
            events: &history.events,
            file: Scratch::new(&history.before),
            count: 0,
            durable: 0,
            pending: Vec::new(),
            in_flight: false,
        }
    }

    /// How many events have ended.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many operations may be there or not.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The file: durable, or the state that [`Sweep::put`] made of it.
    pub fn file(&self) -> &Arc<Scratch> {
        &self.file
    }

    /// Goes on to the next moment. `false`: there is none.
    pub fn advance(&mut self) -> bool {
        let Some(event) = self.events.get(self.count) else { return false };
        self.count += 1;
        if event.ok && event.effect == Effect::Sync {
            while self.durable < self.count && self.events[self.durable].end < event.start {
                self.file.apply(&self.events[self.durable].effect);
                self.durable += 1;
            }
            self.file.settle();
        }
        let now = event.end;
        let running = (self.count..self.events.len()).filter(|number| self.events[*number].start < now);
        let running: Vec<usize> = running.collect();
        self.in_flight = !running.is_empty();
        self.pending.clear();
        self.pending.extend(
            (self.durable..self.count).chain(running).filter(|n| self.events[*n].effect != Effect::Sync),
        );
        true
    }

    /// The states of this moment. Those without the newest operation were an earlier moment's: they count again only
    /// when a promise was made `since`, by a flush that returned.
    pub fn plans(&self, rng: &mut Rng, effort: Effort, since: bool) -> Vec<Plan> {
        let count = self.pending.len();
        let again =
            since || self.in_flight || self.count > 0 && self.events[self.count - 1].effect == Effect::Sync;
        let free_bits = if again { count } else { count.saturating_sub(1) };
        let mut strategies = Vec::new();
        if count == 0 {
            strategies.push(Strategy::None);
        } else if count <= 12 && 1 << free_bits <= effort.subsets {
            let newest = (1_u64 << count) - (1 << free_bits);
            strategies.extend((0..1 << free_bits).map(|mask| Strategy::Mask(newest | mask)));
            strategies.push(Strategy::Torn(count - 1, rng.bits()));
            strategies.push(Strategy::Sectors(rng.bits()));
        } else {
            if again {
                strategies.push(Strategy::None);
            }
            self.choose(rng, effort.chosen, &mut strategies);
        }
        strategies
            .into_iter()
            .map(|strategy| {
                // With each by itself the subsets contain the prefixes.
                let free = matches!(strategy, Strategy::Mask(_)) || rng.chance(50);
                Plan { strategy, free, ahead: rng.chance(30) }
            })
            .collect()
    }

    /// Before a sync, when most is at stake, each operation is lost once and kept once; at other moments a few are.
    fn choose(&self, rng: &mut Rng, most: usize, strategies: &mut Vec<Strategy>) {
        let count = self.pending.len();
        let syncs = self.events.get(self.count).is_none_or(|event| event.effect == Effect::Sync);
        if syncs && !self.in_flight {
            let step = count.div_ceil(32);
            let first = rng.below(step as u64) as usize;
            strategies.extend((first..count).step_by(step).map(Strategy::Lost));
            strategies.extend((first..count).step_by(step).map(Strategy::Kept));
        }
        strategies.extend([Strategy::All, Strategy::Kept(count - 1)]);
        let most = strategies.len() + most.saturating_sub(2);
        while strategies.len() < most {
            let one = rng.below(count as u64) as usize;
            strategies.push(match rng.below(6) {
                0 | 1 => Strategy::Lost(one),
                2 => Strategy::Kept(one),
                3 => Strategy::Half(rng.bits()),
                4 => Strategy::Sectors(rng.bits()),
                _ => Strategy::Torn(one, rng.bits()),
            });
        }
    }

    /// Makes the file what `plan` leaves of it, until it is rewound.
    pub fn put(&self, plan: Plan) {
        let seed = match plan.strategy {
            Strategy::Half(seed) | Strategy::Sectors(seed) | Strategy::Torn(_, seed) => seed,
            _ => 0,
        };
        let mut rng = Rng::new(seed);
        let mut prefix = true;
        for (number, event) in self.pending.iter().enumerate() {
            let effect = &self.events[*event].effect;
            let part = plan.strategy.part(number, &mut rng);
            match effect {
                Effect::Write(at, data) if part != Part::Nothing => {
                    self.write(part, at.0 as usize, data, &mut rng);
                }
                Effect::Write(..) | Effect::Sync => {}
                Effect::Punch(..) | Effect::SetLen(_) => {
                    prefix &= part != Part::Nothing;
                    let there = if plan.free { part != Part::Nothing } else { prefix };
                    match effect {
                        Effect::Punch(at, len) if there && plan.free && part == Part::Torn => {
                            let len = rng.below(len / SECTOR as u64 + 1) * SECTOR as u64;
                            self.file.apply(&Effect::Punch(*at, len));
                        }
                        _ if there => self.file.apply(effect),
                        _ => {}
                    }
                }
            }
        }
        if plan.ahead {
            self.file.reach(self.full_length());
        }
    }

    fn full_length(&self) -> u64 {
        let ends = self.pending.iter().map(|event| match &self.events[*event].effect {
            Effect::Write(at, data) => at.0 + data.len() as u64,
            _ => 0,
        });
        ends.max().unwrap_or(0)
    }

    /// Writes the part of `data` that is there, cut where the medium's sectors are, not where the write begins.
    fn write(&self, part: Part, at: usize, data: &[u8], rng: &mut Rng) {
        if part == Part::Whole {
            return self.file.write(at, data);
        }
        let border = rng.below((data.len() / SECTOR) as u64 + 1) as usize;
        let first = rng.chance(50);
        let (mut from, mut number, end) = (at, 0, at + data.len());
        while from < end {
            let to = ((from / SECTOR + 1) * SECTOR).min(end);
            let kept = if part == Part::Torn { (number < border) == first } else { rng.chance(50) };
            if kept {
                self.file.write(from, &data[from - at..to - at]);
            }
            (from, number) = (to, number + 1);
        }
    }
}

/// How much of one operation is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Nothing,
    Whole,
    /// All sectors on one side of a border.
    Torn,
    /// Any sectors.
    Some,
}

impl Strategy {
    fn part(self, number: usize, rng: &mut Rng) -> Part {
        let whole = match self {
            Self::None => false,
            Self::All => true,
            Self::Lost(one) => number != one,
            Self::Kept(one) => number == one,
            Self::Half(_) => rng.chance(50),
            Self::Torn(one, _) if number == one => return Part::Torn,
            Self::Torn(one, _) => number < one,
            Self::Sectors(_) => return Part::Some,
            Self::Mask(mask) => mask >> number & 1 == 1,
        };
        if whole { Part::Whole } else { Part::Nothing }
    }
}

/// The log with the event at `from` moved to place `to`. Ticks stay with the places, so that moments keep their numbers.
pub fn moved(events: &[Event], from: usize, to: usize) -> Vec<Event> {
    let mut mutant = events.to_vec();
    let event = mutant.remove(from);
    mutant.insert(to, event);
    for (mutant, event) in mutant.iter_mut().zip(events) {
        (mutant.start, mutant.end) = (event.start, event.end);
    }
    mutant
}

/// The log as if the event at `place` had not happened. A sync stays, and makes nothing durable.
pub fn without(events: &[Event], place: usize) -> Vec<Event> {
    let mut mutant = events.to_vec();
    match mutant[place].effect {
        Effect::Sync => mutant[place].ok = false,
        _ => mutant[place].effect = Effect::Punch(HostOffset(0), 0),
    }
    mutant
}
