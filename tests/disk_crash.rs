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
use common::ops::{Op, Step};
use common::reader::Reader;
use common::rng::{Rng, seed_from_environment};
use common::workload::{Act, Spot, random, record};
use cowshed::storage::Effect;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

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
    let (guest, history) = record(layout, &random(layout, &mut rng, !seed.is_multiple_of(4)));
    // Some hosts cannot punch.
    let history = if seed.is_multiple_of(3) { history.without_punches() } else { history };
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

/// Whether one of the first workloads on `layout` does what `done` looks for in its log.
fn some_workload(layout: &Layout, done: impl Fn(&Effect) -> bool) -> bool {
    (FIRST..FIRST + 5).any(|seed| {
        let (_, history) = record(layout, &random(layout, &mut Rng::new(seed), false));
        history.events().iter().any(|event| done(&event.effect))
    })
}

#[test]
fn the_special_layouts_do_what_they_are_there_for() {
    let header = |effect: &Effect| matches!(effect, Effect::Write(at, _) if at.0 == 48);
    assert!(some_workload(&layouts::growing(), header), "no refcount table grows");
    let adding = layouts::adding();
    let table = u64::from_be_bytes(adding.image[48..56].try_into().unwrap());
    let in_table = |effect: &Effect| matches!(effect, Effect::Write(at, _) if at.0 / 512 == table / 512);
    assert!(some_workload(&adding, in_table), "no refcount block is added");
    assert!(!some_workload(&adding, header), "its refcount table grows");
    let on_demand = layouts::qemus().into_iter().find(|layout| layout.name.contains("on demand")).unwrap();
    let l1 = u64::from_be_bytes(on_demand.image[40..48].try_into().unwrap());
    let in_l1 = |effect: &Effect| matches!(effect, Effect::Write(at, _) if at.0 / 512 == l1 / 512);
    assert!(some_workload(&on_demand, in_l1), "no table is made on demand");
    let small = layouts::ours().into_iter().find(|layout| layout.cache == 0).unwrap();
    let (guest, history) = record(&small, &(0..20).map(|n| write(n * 32768 + 512)).collect::<Vec<_>>());
    assert!(history.events().iter().any(|event| event.effect == Effect::Sync), "no commit is forced");
    assert!(!guest.flushed_in(0..=history.events().len()));
}

/// A write of one sector.
fn write(at: u64) -> Act {
    Act::Step(Step { op: Op::Write(Vec::new()), at, len: 512 })
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

/// Plays the workload with a number.
fn play_numbered(
    layout: &Layout,
    spot: Spot,
    length: u32,
    number: u64,
    reader: &mut Reader,
    care: Care,
) -> Tally {
    let (guest, history) = record(layout, &spot.workload(length, number));
    let trial = Trial { layout, guest: &guest, history: &history, seed: number, from: 0 };
    trial.run(reader, care).unwrap_or_else(|error| panic!("{length} steps at {:#x}, {error}", spot.at))
}

/// Plays every workload of `length` steps at every place, or one of `stride` of them.
fn play_short(length: u32, stride: u64, care: Care) -> Tally {
    let mut tally = Tally::default();
    let mut reader = Reader::default();
    for (layout, spot) in spots() {
        let one = seed_from_environment().map(|seed| seed..seed + 1);
        for number in one.unwrap_or(0..spot.count(length)).step_by(stride as usize) {
            tally.add(play_numbered(&layout, spot, length, number, &mut reader, care));
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

/// States of the soak by default.
const SOAK: u64 = 10_000_000;

/// Plays fresh seeds on every layout, by turns, and every workload of three steps, until there were enough states.
#[test]
#[ignore = "soak"]
fn soak_power_cuts() {
    let wanted = std::env::var("COWSHED_SOAK_STATES").map_or(SOAK, |text| text.parse().unwrap());
    let layouts = [layouts::ours(), layouts::qemus()].concat();
    let spots = spots();
    let (turn, total) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                let mut reader = Reader::default();
                while total.lock().unwrap().states < wanted {
                    let turn = turn.fetch_add(1, Ordering::Relaxed);
                    let tally = soak_turn(&layouts, &spots, turn, &mut reader);
                    let mut total = total.lock().unwrap();
                    let before = total.states;
                    total.add(tally);
                    if before / 100_000 != total.states / 100_000 {
                        println!("turn {turn}: {total:?}");
                    }
                }
            });
        }
    });
    println!("in all: {:?}", total.into_inner().unwrap());
}

/// One turn: a random workload on each layout, dear ones more rarely, and a few workloads of three steps.
fn soak_turn(layouts: &[Layout], spots: &[(Layout, Spot)], turn: u64, reader: &mut Reader) -> Tally {
    let mut tally = Tally::default();
    // The ordinary tests have the first seeds.
    let seed = 1_000_000 + turn;
    for layout in layouts.iter().filter(|layout| turn.is_multiple_of(layout.cost as u64)) {
        tally.add(play(layout, seed, reader, THOROUGH));
    }
    for (layout, spot) in spots {
        // A stride without a common divisor brings every workload up in time.
        let number = turn.wrapping_mul(1_000_003) % spot.count(3);
        tally.add(play_numbered(layout, *spot, 3, number, reader, THOROUGH));
    }
    tally
}
