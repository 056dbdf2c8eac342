//! What a guest does before power goes: random operations in few clusters, or every short sequence.

use super::crash::History;
use super::layouts::Layout;
use super::ops::{Op, Step};
use super::rng::Rng;
use super::scratch::Scratch;
use super::stamps::Guest;
use cowshed::disk::Disk;
use cowshed::storage::Recorder;
use cowshed::units::GuestOffset;
use std::sync::Arc;

/// One thing that a guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Step(Step),
    Close,
    /// Lets a range show what is below: place and length.
    Uncover(u64, u64),
    /// Compacts, with at most so many batches of moves.
    Compact(u64),
}

/// A flush.
pub fn flush() -> Act {
    Act::Step(Step { op: Op::Flush, at: 0, len: 0 })
}

/// All bytes of a disk.
pub fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.size() as usize];
    disk.read(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

/// Random acts of whole sectors. A few clusters of the disk are hot, so that operations meet.
pub fn random(layout: &Layout, rng: &mut Rng, closes: bool) -> Vec<Act> {
    let (cluster, sectors) = (1 << layout.bits >> 9, layout.size / 512);
    let hot: Vec<u64> = (0..rng.between(1, 3)).map(|_| rng.below(sectors) / cluster * cluster).collect();
    let longest = (2 * cluster + 9).min(sectors);
    let mut acts = Vec::new();
    for _ in 0..rng.between(6, 28) {
        let spot = if rng.chance(75) { *rng.pick(&hot) } else { rng.below(sectors) };
        let grain = *rng.pick(&[1, 1, cluster.div_ceil(32), cluster]);
        let near = spot + rng.below(cluster + cluster / 2 + 1);
        let at = near.saturating_sub(rng.below(3)).min(sectors - 1) / grain * grain;
        let len = match rng.below(5) {
            0 => rng.between(1, 9),
            1 => cluster.div_ceil(32) * rng.between(1, 8),
            2 => cluster,
            3 => rng.between(1, cluster),
            _ => rng.between(1, longest),
        };
        let op = match rng.below(100) {
            0..=47 => Op::Write(Vec::new()),
            48..=59 => Op::WriteZeroes,
            60..=75 => Op::Discard,
            _ => Op::Flush,
        };
        acts.push(Act::Step(Step { op, at: at * 512, len: len.min(sectors - at) * 512 }));
        if closes && rng.chance(6) {
            acts.push(Act::Close);
        }
    }
    acts.push(if closes && rng.chance(50) { Act::Close } else { flush() });
    acts
}

/// As [`random`], with ranges that show again what is below, and with compactions.
pub fn shrinking(layout: &Layout, rng: &mut Rng) -> Vec<Act> {
    let sectors = layout.size / 512;
    let unit = (1_u64 << layout.bits >> 9).div_ceil(32);
    let mut acts = Vec::new();
    for act in random(layout, rng, false) {
        // A place that was just used has something to lose.
        let near = match &act {
            Act::Step(Step { at, len, op }) if *op != Op::Flush => Some((at / 512, len / 512)),
            _ => None,
        };
        acts.push(act);
        if let Some((at, len)) = near.filter(|_| rng.chance(35)) {
            let (at, len) = match rng.below(3) {
                0 => (at, len),
                1 => (at / unit * unit, len.next_multiple_of(unit)),
                _ => (at.saturating_sub(rng.below(9)), rng.between(1, 4 << layout.bits >> 9)),
            };
            acts.push(Act::Uncover(at * 512, len.min(sectors - at) * 512));
        }
        if rng.chance(9) {
            acts.push(Act::Compact(rng.between(1, 4)));
        }
    }
    acts.push(Act::Uncover(rng.below(sectors / 2) * 512, sectors / 3 * 512));
    acts.push(Act::Compact(u64::MAX));
    acts
}

/// A place on a disk at which every short workload is played.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// First byte of a cluster that has two more behind it.
    pub at: u64,
    /// Bytes of a cluster, and of the unit that has a bit of its own.
    pub cluster: u64,
    pub unit: u64,
}

impl Spot {
    /// What a guest may do here, each once: less than a unit, a unit off its border, whole ones, over a border.
    fn alphabet(&self) -> Vec<Step> {
        let Self { cluster, unit, .. } = *self;
        let writes = [(0, 512), (512, unit), (0, cluster), (cluster - 512, 1024), (0, 2 * cluster)];
        let zeroes = [(0, unit), (512, unit), (0, cluster)];
        let discards = [(unit % cluster, unit), (0, cluster), (cluster - 512, cluster + 512)];
        let all = |ranges: &[(u64, u64)], op: &Op| {
            let steps = ranges.iter().map(|(at, len)| Step { op: op.clone(), at: self.at + at, len: *len });
            steps.collect::<Vec<_>>()
        };
        let mut steps = all(&writes, &Op::Write(Vec::new()));
        steps.extend(all(&zeroes, &Op::WriteZeroes));
        steps.extend(all(&discards, &Op::Discard));
        let mut once: Vec<Step> = Vec::new();
        for step in steps {
            if !once.contains(&step) {
                once.push(step);
            }
        }
        once
    }

    /// How many workloads of `length` steps there are.
    pub fn count(&self, length: u32) -> u64 {
        let letters = self.alphabet().len() as u64;
        letters.pow(length) << (length - 1)
    }

    /// Workload `number` of `length` steps, each followed by a flush or not; the last one is.
    pub fn workload(&self, length: u32, mut number: u64) -> Vec<Act> {
        let alphabet = self.alphabet();
        let mut acts = Vec::new();
        for step in 0..length {
            if step > 0 {
                if number % 2 == 1 {
                    acts.push(flush());
                }
                number /= 2;
            }
            acts.push(Act::Step(alphabet[(number % alphabet.len() as u64) as usize].clone()));
            number /= alphabet.len() as u64;
        }
        acts.push(flush());
        acts
    }
}

/// Plays `acts` on the image and gives what the guest did and the file's history.
pub fn record(layout: &Layout, acts: &[Act]) -> (Guest, History) {
    let recorder = Arc::new(Recorder::new(Scratch::new(&layout.image)));
    let mut disk = layout.open(recorder.clone()).unwrap();
    let mut guest = Guest::new(contents(&disk));
    let events = || recorder.count();
    for act in acts {
        match act {
            Act::Step(step) => guest.run(&disk, step.clone(), events).unwrap(),
            Act::Close => guest.close(&disk, events).unwrap(),
            Act::Uncover(at, len) => guest.uncover(&disk, (*at, *len), &layout.base, events).unwrap(),
            Act::Compact(batches) => drop(guest.compact(&mut disk, *batches, events).unwrap()),
        }
    }
    assert!(contents(&disk) == guest.latest(), "{}: the workload itself reads wrong", layout.name);
    (guest, History::new(layout.image.clone(), recorder.events()))
}
