//! After a power cut at any moment the image opens, checks without error, and holds what was flushed.
//!
//! A failure names layout, seed, moment and strategy. `COWSHED_SEED=N cargo test --test disk_crash` plays one seed on
//! every layout, and workload N of the short ones. `COWSHED_SOAK_STATES` says how long the soak is.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod images;
    pub mod judge;
    pub mod layouts;
    pub mod ops;
    pub mod qemu;
    pub mod reader;
    pub mod rng;
    pub mod scratch;
    pub mod stamps;
    pub mod workload;
}

use common::crash::Effort;
use common::judge::{Care, Tally, Trial};
use common::layouts::{self, Layout};
use common::reader::Reader;
use common::rng::{Rng, seed_from_environment};
use common::workload::{Spot, random, record};

/// States of a layout whose states cost 1.
const STATES: u64 = 9000;
/// First seed of the random workloads.
const FIRST: u64 = 1;
/// The ordinary tests' care.
const CARE: Care = Care { effort: Effort { subsets: 32, chosen: 6 }, deep: 6007, repair: 211 };
/// Every subset, as far as twelve operations are pending.
const THOROUGH: Care = Care { effort: Effort { subsets: 2048, chosen: 24 }, deep: 9001, repair: 307 };

/// Plays the random workload of one seed.
fn play(layout: &Layout, seed: u64, reader: &mut Reader, care: Care) -> Tally {
    let mut rng = Rng::new(seed);
    let (guest, history) = record(layout, &random(layout, &mut rng, seed % 4 != 0));
    // Some hosts cannot punch.
    let history = if seed % 3 == 0 { history.without_punches() } else { history };
    let trial = Trial { layout, guest: &guest, history: &history, seed, from: 0 };
    trial.run(reader, care).unwrap_or_else(|error| panic!("{error}"))
}

/// Plays the seeds from [`FIRST`] on until a layout has had its share of states.
fn survive(layouts: &[Layout]) {
    let mut reader = Reader::default();
    for layout in layouts {
        let mut tally = Tally::default();
        match seed_from_environment() {
            Some(seed) => tally.add(play(layout, seed, &mut reader, CARE)),
            None => {
                let mut seeds = FIRST..;
                while tally.states < STATES / layout.cost as u64 {
                    tally.add(play(layout, seeds.next().unwrap(), &mut reader, CARE));
                }
            }
        }
        println!("{}: {tally:?}", layout.name);
    }
}

#[test]
fn images_of_ours_survive_power_cuts() {
    survive(&layouts::ours());
}

#[test]
fn images_of_qemus_survive_power_cuts() {
    survive(&layouts::qemus());
}

/// Each kind of cluster as a place for short workloads: layout and place.
fn spots() -> Vec<(Layout, Spot)> {
    let mut spots = Vec::new();
    let mut add = |layout: &Layout, places: &[u64]| {
        let cluster = 1 << layout.bits;
        let unit = if layout.name.contains("extended") { cluster / 32 } else { cluster };
        spots.extend(places.iter().map(|at| (layout.clone(), Spot { at: *at, cluster, unit })));
    };
    for layout in layouts::qemus() {
        match layout.name.trim_end_matches(", stale") {
            // Data, zeros without and with a cluster, compressed, nothing.
            "every kind of entry" => add(&layout, &[16 << 10, 4 << 10, 80 << 10, 64 << 10, 140 << 10]),
            "every kind of extended entry" => add(&layout, &[16 << 10, 0, 96 << 10, 64 << 10, 128 << 10]),
            "snapshot" | "extended snapshot" => add(&layout, &[16 << 10, 64 << 10]),
            "version 2" | "tables made on demand" => add(&layout, &[0, 64 << 10]),
            _ => {}
        }
    }
    add(&Layout::ours(12, false, 6, true).stale(), &[0]);
    add(&Layout::ours(14, true, 4, true).stale(), &[0]);
    spots
}

/// Plays every workload of `length` steps at every place, or one of `stride` of them.
fn play_short(length: u32, stride: u64, care: Care) -> Tally {
    let mut tally = Tally::default();
    let mut reader = Reader::default();
    for (layout, spot) in spots() {
        let one = seed_from_environment().map(|seed| seed..seed + 1);
        for number in one.unwrap_or(0..spot.count(length)).step_by(stride as usize) {
            let (guest, history) = record(&layout, &spot.workload(length, number));
            let trial = Trial { layout: &layout, guest: &guest, history: &history, seed: number, from: 0 };
            let result = trial.run(&mut reader, care);
            tally.add(result.unwrap_or_else(|error| panic!("{length} steps at {:#x}, {error}", spot.at)));
        }
    }
    println!("{length} steps, each {stride}.: {tally:?}");
    tally
}

#[test]
fn every_workload_of_one_or_two_steps_survives_every_power_cut() {
    play_short(1, 1, THOROUGH);
    play_short(2, 1, THOROUGH);
}

#[test]
fn workloads_of_three_steps_survive_every_power_cut() {
    play_short(3, 37, THOROUGH);
}
