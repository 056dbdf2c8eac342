//! Random guest operations beside a byte vector that says what must come back.

use super::rng::Rng;
use cowshed::disk::Disk;
use cowshed::units::GuestOffset;
use std::ops::Range;

/// What a guest asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Op {
    Read,
    Write(Vec<u8>),
    WriteZeroes,
    Discard,
    #[default]
    Flush,
}

/// One operation and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub op: Op,
    pub at: u64,
    pub len: u64,
}

/// A step for a disk of `size` bytes (at least 512), any byte of it.
///
/// Places favour a few spots and borders of powers of two, so that operations meet each other.
pub fn random_step(rng: &mut Rng, size: u64, longest: u64) -> Step {
    let grain = *rng.pick(&[1, 512, 512, 4096, 4096, 65536, 131_072]);
    let mut at = if rng.chance(30) { rng.below(size.min(300_000)) } else { rng.below(size) };
    at -= at % grain;
    if rng.chance(20) {
        at = at.saturating_sub(rng.below(700));
    }
    let len = match rng.below(5) {
        0 => rng.between(1, 600),
        1 | 2 => rng.between(1, 16) * 512,
        3 => rng.between(1, 40) * 4096,
        _ => rng.between(1, longest),
    };
    let len = len.min(longest).min(size - at).max(1);
    let op = match rng.below(20) {
        0..=4 => Op::Read,
        5..=11 => Op::Write(if rng.chance(12) { vec![0; len as usize] } else { rng.bytes(len as usize) }),
        12..=14 => Op::WriteZeroes,
        15..=17 => Op::Discard,
        _ => Op::Flush,
    };
    Step { op, at, len }
}

impl Step {
    fn range(&self) -> Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }

    /// Does it to `model` alone.
    pub fn apply_to(&self, model: &mut [u8]) {
        match &self.op {
            Op::Read | Op::Flush => {}
            Op::Write(data) => model[self.range()].copy_from_slice(data),
            Op::WriteZeroes | Op::Discard => model[self.range()].fill(0),
        }
    }

    /// Does it to `disk` and to `model`; reads are compared.
    pub fn apply(&self, disk: &Disk, model: &mut [u8], what: &str) {
        let at = GuestOffset(self.at);
        let say = |error: cowshed::Error| panic!("{what}: {self:.40?}: {error}");
        match &self.op {
            Op::Read => {
                let mut buf = vec![0xee; self.len as usize];
                disk.read(&mut buf, at).unwrap_or_else(say);
                let place = format!("{what}: read of {} bytes at {:#x}", self.len, self.at);
                super::images::assert_same(&buf, &model[self.range()], &place);
            }
            Op::Write(data) => disk.write(data, at).unwrap_or_else(say),
            Op::WriteZeroes => disk.write_zeroes(at, self.len).unwrap_or_else(say),
            Op::Discard => disk.discard(at, self.len).unwrap_or_else(say),
            Op::Flush => disk.flush().unwrap_or_else(say),
        }
        self.apply_to(model);
    }
}

/// Plays `count` random steps; the last of the trace is printed when one of them fails.
pub fn play(disk: &Disk, model: &mut [u8], rng: &mut Rng, count: usize, what: &str) {
    let size = model.len() as u64;
    if size == 0 {
        return;
    }
    for number in 0..count {
        random_step(rng, size, 400_000).apply(disk, model, &format!("{what}, step {number}"));
    }
}
