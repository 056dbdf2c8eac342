//! A random load on one queue, which knows what each answer must be.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub, missing_docs)]

use crate::front::{DISCARD, Driver, FLUSH, READ, Request, SLOTS, WRITE, WRITE_ZEROES};
use crate::rng::Rng;

/// A run of sectors for slot `slot` of `slots` in the driver's part of the disk, that no other slot touches.
fn place(rng: &mut Rng, part: (usize, usize), slot: usize) -> (usize, usize) {
    let (first, count) = part;
    let each = count / SLOTS;
    let skip = rng.below(each as u64) as usize;
    let most = if rng.chance(20) { each - skip } else { (each - skip).min(24) };
    (first + slot * each + skip, rng.between(1, most as u64) as usize)
}

fn cuts(rng: &mut Rng) -> Vec<usize> {
    // Also such as no sector is whole in one buffer.
    (0..rng.below(14)).map(|_| *rng.pick(&[1, 100, 512, 4096, 20_000])).collect()
}

/// Rounds of random requests on one queue, several under way at once, against a vector.
pub fn play(driver: &mut Driver, model: &mut [u8], part: (usize, usize), seed: u64, rounds: usize) {
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        let mut expected = Vec::new();
        for slot in 0..rng.between(1, SLOTS as u64) as usize {
            let (first, count) = place(&mut rng, part, slot);
            let (at, len) = (first * 512, count * 512);
            let range = at - part.0 * 512..at + len - part.0 * 512;
            let mut request = match rng.below(10) {
                0..=3 => Request::read(first as u64, len),
                4..=6 => Request::write(first as u64, &rng.bytes(len)),
                7 => Request::ranges(DISCARD, &[(first as u64, count as u32, 0)]),
                8 => Request::ranges(WRITE_ZEROES, &[(first as u64, count as u32, rng.below(2) as u32)]),
                _ => Request::new(FLUSH, 0),
            };
            request.cuts = cuts(&mut rng);
            match request.kind {
                WRITE => model[range.clone()].copy_from_slice(&request.sent),
                DISCARD | WRITE_ZEROES => model[range.clone()].fill(0),
                _ => {}
            }
            let number = driver.send(&request);
            expected.push((number, request.kind, range));
        }
        for _ in 0..expected.len() {
            let done = driver.wait();
            let (_, kind, range) = expected.iter().find(|(number, ..)| *number == done.number).unwrap();
            assert_eq!(done.status, 0, "seed {seed}, round {round}: kind {kind}");
            if *kind == READ {
                assert!(done.data == model[range.clone()], "seed {seed}, round {round}: {range:?}");
                assert_eq!(done.written as usize, range.len() + 1);
            } else {
                assert_eq!(done.written, 1);
            }
        }
    }
}
