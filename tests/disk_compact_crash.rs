//! Power cuts while ranges are given back to what is below, and while the file is made shorter.
//!
//! `COWSHED_SEED=N cargo test --test disk_compact_crash` plays one seed on every layout.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod images;
    pub mod judge;
    pub mod layouts;
    pub mod mortal;
    pub mod ops;
    pub mod qemu;
    pub mod reader;
    pub mod rng;
    pub mod scratch;
    pub mod stamps;
    pub mod workload;
}

use common::crash::{Effort, History, Sweep, without};
use common::judge::{Care, Tally, Trial};
use common::layouts::{self, Layout};
use common::mortal::{Host, Life, Mortal, MortalLog};
use common::reader::{Reader, Structure, structures};
use common::rng::{Rng, seed_from_environment};
use common::scratch::Scratch;
use common::stamps::Guest;
use common::workload::{Act, contents, record, shrinking};
use cowshed::qcow2::{Image, OpenOptions, check};
use cowshed::storage::{Effect, Recorder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// States of a layout whose states cost 1.
const STATES: u64 = 4000;
const CARE: Care = Care { effort: Effort { subsets: 32, chosen: 6 }, deep: 2003, repair: 307 };

fn play(layout: &Layout, seed: u64, reader: &mut Reader, care: Care) -> Tally {
    let mut rng = Rng::new(seed);
    let (guest, history) = record(layout, &shrinking(layout, &mut rng));
    // Some hosts cannot punch.
    let history = if seed.is_multiple_of(3) { history.without_punches() } else { history };
    let trial = Trial { layout, guest: &guest, history: &history, seed, from: 0 };
    trial.run(reader, care).unwrap_or_else(|error| panic!("{error}"))
}

/// Plays seeds until each layout has had its share of states.
fn survive(layouts: &[Layout]) {
    let mut reader = Reader::default();
    for layout in layouts {
        let mut tally = Tally::default();
        match seed_from_environment() {
            Some(seed) => tally.add(play(layout, seed, &mut reader, CARE)),
            None => {
                let mut seeds = 1..;
                while tally.states < STATES / layout.cost as u64 {
                    tally.add(play(layout, seeds.next().unwrap(), &mut reader, CARE));
                }
            }
        }
        println!("{}: {tally:?}", layout.name);
    }
}

#[test]
fn images_of_ours_survive_power_cuts_while_they_shrink() {
    survive(&layouts::ours());
}

/// An image whose L1 and refcount tables have moved to the end of its file when they grew, and lie behind free clusters.
fn tables_at_the_end() -> Layout {
    let steps = [
        "img create -q -f qcow2 -o refcount_bits=64,cluster_size=512 t.qcow2 1M",
        "io t.qcow2 write -P 1 0 1000k",
        "img resize -q t.qcow2 2200k",
        "io t.qcow2 write -P 2 1000k 1150k; discard 64k 2000k",
    ];
    Layout::qemus("tables at the end", &steps).stale().costing(12)
}

#[test]
fn images_of_qemus_survive_power_cuts_while_they_shrink() {
    survive(&layouts::qemus());
}

#[test]
fn l1_and_the_refcount_table_survive_power_cuts_while_they_move() {
    // A large disk: few states of each moment, and no repairs of them.
    let care = Care { effort: Effort { subsets: 4, chosen: 2 }, deep: 701, repair: u64::MAX };
    let seed = seed_from_environment().unwrap_or(1);
    println!("{:?}", play(&tables_at_the_end(), seed, &mut Reader::default(), care));
}

/// How often a word of each structure was switched by the workloads of the first seeds, and how often the file was cut.
#[test]
fn the_workloads_move_everything_that_can_be_moved() {
    let (mut switched, mut in_header, mut cuts) = (BTreeMap::new(), BTreeSet::new(), 0);
    let layouts = [layouts::ours(), layouts::qemus(), vec![tables_at_the_end()]].concat();
    for layout in layouts.iter().filter(|layout| layout.cost < 20) {
        for seed in 1..4 {
            let (_, history) = record(layout, &shrinking(layout, &mut Rng::new(seed)));
            let file = Scratch::new(&layout.image);
            for event in history.events() {
                match &event.effect {
                    Effect::Write(at, data) if data.len() == 8 => {
                        let (bits, map) = structures(&file.bytes());
                        let structure = map.get((at.0 >> bits) as usize).copied().unwrap_or(Structure::Data);
                        *switched.entry(structure).or_insert(0) += 1;
                        in_header.extend((structure == Structure::Header).then_some(at.0));
                    }
                    Effect::SetLen(_) => cuts += 1,
                    _ => {}
                }
                file.apply(&event.effect);
            }
        }
    }
    println!("{switched:?}, {cuts} cuts");
    assert!(in_header.is_superset(&[40, 48].into()), "of the header only the words at {in_header:?}");
    for structure in [Structure::RefcountTable, Structure::L1, Structure::L2] {
        assert!(switched.get(&structure).is_some_and(|count| *count > 0), "no word of {structure:?}");
    }
    assert!(cuts > 20, "the file is cut {cuts} times");
}

/// The syncs of a history right before, and right after, the words that moves switch.
fn syncs_of_moves(history: &History) -> [BTreeSet<usize>; 2] {
    let events = history.events();
    let syncs: Vec<usize> = (0..events.len()).filter(|at| events[*at].effect == Effect::Sync).collect();
    let mut found = [BTreeSet::new(), BTreeSet::new()];
    for (at, event) in events.iter().enumerate() {
        if matches!(&event.effect, Effect::Write(_, data) if data.len() == 8) {
            found[0].extend(syncs.iter().rev().find(|sync| **sync < at));
            found[1].extend(syncs.iter().find(|sync| **sync > at));
        }
    }
    found
}

/// The harness itself: a log in which one of these syncs did nothing must be noticed.
#[test]
fn a_compaction_without_one_of_its_syncs_is_noticed() {
    let care = Care { effort: Effort { subsets: 256, chosen: 32 }, deep: u64::MAX, repair: u64::MAX };
    let (mut reader, mut score) = (Reader::default(), [(0, 0); 2]);
    for layout in [Layout::ours(14, true, 10, true).stale(), Layout::ours(12, false, 40, true).stale()] {
        for seed in 1..6 {
            let (guest, history) = record(&layout, &shrinking(&layout, &mut Rng::new(seed)));
            for (syncs, (noticed, all)) in syncs_of_moves(&history).into_iter().zip(&mut score) {
                for sync in syncs {
                    let mutant = history.with(without(history.events(), sync));
                    let trial = Trial { layout: &layout, guest: &guest, history: &mutant, seed, from: sync };
                    *noticed += u64::from(trial.run(&mut reader, care).is_err());
                    *all += 1;
                }
            }
        }
    }
    println!(
        "before the switch {} of {} noticed, after it {} of {}",
        score[0].0, score[0].1, score[1].0, score[1].1
    );
    for (noticed, all) in score {
        assert!(all > 10 && noticed * 2 > all, "{noticed} of {all} noticed");
    }
}

/// A process with a log that is killed at one of its changes, and the next one, which compacts.
fn record_killed(layout: &Layout, seed: u64, changes: u64) -> (Guest, History, bool) {
    let host = Host::new(&[]);
    let recorder = Arc::new(Recorder::new(Scratch::new(&layout.image)));
    let open = |life: &Arc<Life>| {
        let options = OpenOptions { writable: true, ..OpenOptions::default() };
        let place = MortalLog::new(host.clone(), life.clone());
        layout.disk(Image::open_logged(Mortal::new(recorder.clone(), life.clone()), options, place)?)
    };
    let events = || recorder.count();
    let life = Life::of(changes, seed ^ changes);
    let mut guest = Guest::new(contents(&layout.open(Scratch::new(&layout.image)).unwrap()));
    let mut play = || -> cowshed::Result<()> {
        let mut disk = open(&life)?;
        for act in shrinking(layout, &mut Rng::new(seed)) {
            match act {
                Act::Step(step) => guest.run(&disk, step, events)?,
                Act::Close => guest.close(&disk, events)?,
                Act::Uncover(at, len) => guest.uncover(&disk, (at, len), &layout.base, events)?,
                Act::Compact(batches) => drop(guest.compact(&mut disk, batches, events)?),
            }
        }
        Ok(())
    };
    let ended = play().is_ok();
    guest.compact(&mut open(&Life::endless()).unwrap(), u64::MAX, events).unwrap();
    (guest, History::new(layout.image.clone(), recorder.events()), ended)
}

#[test]
fn a_compaction_after_a_kill_builds_on_nothing_that_a_power_cut_takes_away() {
    let (mut kills, mut states) = (0, 0);
    for layout in [Layout::ours(14, true, 10, true).stale(), Layout::ours(12, false, 40, true).stale()] {
        for seed in seed_from_environment().map_or(1..=4, |seed| seed..=seed) {
            let mut rng = Rng::new(seed);
            for changes in (0..).step_by(11) {
                let (guest, history, ended) = record_killed(&layout, seed, changes);
                kills += 1;
                let mut sweep = Sweep::new(&history);
                loop {
                    let count = sweep.count();
                    // What came before the kill is played by the other tests.
                    let late = history.moments() - count < 60;
                    let effort = Effort { subsets: 4, chosen: 3 };
                    let plans = if late { sweep.plans(&mut rng, effort, true) } else { Vec::new() };
                    for plan in plans {
                        states += 1;
                        sweep.put(plan);
                        let what = format!(
                            "{}, COWSHED_SEED={seed}, killed at change {changes}, cut after {count} events, {plan:?}",
                            layout.name
                        );
                        let report = check(sweep.file().clone()).unwrap();
                        assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
                        let disk = layout.open(sweep.file().clone()).unwrap();
                        guest.assert_legal(&contents(&disk), count, &what);
                        drop(disk);
                        sweep.file().rewind();
                    }
                    if !sweep.advance() {
                        break;
                    }
                }
                if ended {
                    break;
                }
            }
        }
    }
    println!("{kills} kills, {states} states");
    assert!(kills > 60 || seed_from_environment().is_some(), "only {kills} kills");
}
