//! A power cut, or a kill, at any moment of any command leaves the store as before the command or as after it.
//!
//! `COWSHED_SEED=N` draws other states; a failure names command, model of names, moment and strategy.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common {
    pub mod commands;
    pub mod cuts;
    pub mod journal;
    pub mod rng;
    pub mod shown;
    pub mod store;
    pub mod world;
}

use common::commands::{Case, Command, Place, all, command, seconds};
use common::cuts::{Cut, Names};
use common::journal::{Event, Journal, Op};
use common::rng::{Rng, seed_from_environment};
use common::shown::{Built, Shown, probe, say};
use common::world::World;
use std::collections::HashSet;
use std::sync::Arc;

/// States that are drawn for each command, more or less.
const STATES: usize = 700;

fn seed() -> u64 {
    seed_from_environment().unwrap_or(1)
}

fn case(name: &str) -> Case {
    let command = command(name);
    Case::new(command, &command.start())
}

/// Runs a command on `world` with everything written down.
fn record(world: &World, run: impl FnOnce(&Place)) -> Arc<Journal> {
    let built = Built::of(world);
    let journal = Journal::of(built.path());
    run(&Place::watched(built.path(), journal.living()));
    journal
}

fn record_case(case: &Case) -> Arc<Journal> {
    record(&case.start, |place| {
        (case.command.run)(place).unwrap_or_else(|error| panic!("{}", say(case.command.name, &error)));
    })
}

/// Draws states after cuts at the given moments (numbers of changes made), and judges each; how many there were, or the first
/// sentence that says what is broken. A state is judged with whether the command had come to its end.
fn cut_at(
    start: &World,
    events: &[Event],
    moments: &[usize],
    states: usize,
    rng: &mut Rng,
    judge: impl Fn(&World, bool) -> Result<(), String>,
) -> Result<usize, String> {
    let mut seen = HashSet::new();
    let keeps = (states / moments.len() / 2).clamp(3, 33);
    for count in moments.iter().copied() {
        for names in [Names::Journal, Names::Folders] {
            let cut = Cut::new(start, &events[..count], names);
            for keep in cut.keeps(rng, keeps) {
                let (world, done) = (cut.state(keep), count == events.len());
                if !seen.insert((world.digest(), done)) {
                    continue;
                }
                judge(&world, done).map_err(|error| {
                    let last = events[..count].last().map(|event| brief(&event.op));
                    format!(
                        "{names:?}, cut after {count} of {} changes ({last:?}), {keep:?}: {error}",
                        events.len()
                    )
                })?;
            }
        }
    }
    Ok(seen.len())
}

/// All moments of a log.
fn every(events: &[Event]) -> Vec<usize> {
    (0..=events.len()).collect()
}

fn brief(op: &Op) -> String {
    format!("{op:?}").chars().take(100).collect()
}

fn told(what: &str, seed: u64, result: Result<usize, String>) -> usize {
    result.unwrap_or_else(|error| panic!("{what}, seed {seed}: {error}"))
}

/// Power goes, or the process is killed (all is kept), at every moment of a command.
fn survives_as(name: &str, states: usize, seed: u64) -> usize {
    let case = case(name);
    let journal = record_case(&case);
    let events = journal.events();
    let judge = |world: &World, done| case.judge(Built::of(world).path(), done);
    let states = told(
        name,
        seed,
        cut_at(&journal.start, &events, &every(&events), states, &mut Rng::new(seed), judge),
    );
    println!("{name}: {} changes, {states} states, seed {seed}", events.len());
    states
}

fn survives(name: &str) {
    survives_as(name, STATES, seed());
}

/// After a cut the next command is cut as well.
fn recovery_survives(name: &str, outer: usize, moments: usize, seed: u64) -> usize {
    let case = case(name);
    let journal = record_case(&case);
    let events = journal.events();
    let mut rng = Rng::new(seed);
    let mut states = 0;
    for _ in 0..outer {
        let count = rng.below(events.len() as u64 + 1) as usize;
        let names = *rng.pick(&[Names::Journal, Names::Folders]);
        let cut = Cut::new(&journal.start, &events[..count], names);
        let keep = *rng.pick(&cut.keeps(&mut rng.clone(), 20));
        let world = cut.state(keep);
        let ended = Place::new(Built::of(&world).path()).shown() == Ok(case.after.clone());
        let again = record(&world, |place| match ended && case.before != case.after {
            true => place.tidy(),
            false => (case.command.run)(place).unwrap_or_else(|error| panic!("{}", say(name, &error))),
        });
        let judge = |world: &World, done| case.judge(Built::of(world).path(), done || ended);
        let events = again.events();
        let mut moments: Vec<usize> = (0..moments).map(|_| rng.below(events.len() as u64) as usize).collect();
        moments.push(events.len());
        let result = cut_at(&again.start, &events, &moments, 6 * moments.len(), &mut rng, judge);
        states +=
            told(&format!("{name}, {names:?}, cut after {count} changes, {keep:?}, again"), seed, result);
    }
    println!("{name}: {states} states of cuts in the next command, seed {seed}");
    states
}

/// A command is killed, another one comes to its end, then power goes: what the killed one did may be lost or not, but
/// never what the second one reported, and nothing is ever half.
fn killed_then_cut(first: Command, second: Command, kills: &[usize], states: usize, seed: u64) -> usize {
    let world = World::of(first.start().path()).0;
    let run = |commands: &[Command]| -> Shown {
        let built = Built::of(&world);
        let place = Place::new(built.path());
        commands.iter().for_each(|command| drop((command.run)(&place)));
        place.shown().unwrap_or_else(|error| panic!("{}, {}: {error}", first.name, second.name))
    };
    let ended = [run(&[second]), run(&[first, second])];
    let begun = [run(&[]), run(&[first])];
    let mut rng = Rng::new(seed);
    let mut total = 0;
    for kill in kills {
        let built = Built::of(&world);
        let journal = Journal::of(built.path());
        drop((first.run)(&Place::watched(built.path(), journal.dying(*kill))));
        let from = journal.events().len();
        drop((second.run)(&Place::watched(built.path(), journal.living())));
        let judge = |world: &World, done: bool| {
            let built = Built::of(world);
            let place = Place::new(built.path());
            let seen = place.shown()?;
            if !ended.contains(&seen) && (done || !begun.contains(&seen)) {
                return Err(format!("between (done: {done}): {seen:#?}\nnone of {begun:#?} {ended:#?}"));
            }
            probe(&place.root())?;
            place.shown().map(drop)
        };
        let events = journal.events();
        let mut within = || from + rng.below((events.len() - from) as u64 + 1) as usize;
        let moments = [events.len(), within(), within()];
        let result = cut_at(&journal.start, &events, &moments, states, &mut rng, judge);
        let what = format!("{} killed after {kill} changes, then {}", first.name, second.name);
        total += told(&what, seed, result);
    }
    total
}

fn kill_every_command(most: usize, states: usize, seed: u64, part: usize) {
    let mut rng = Rng::new(seed);
    let mut total = 0;
    for (number, first) in all().into_iter().enumerate() {
        let second = *rng.pick(&seconds(first.first));
        if number % 2 != part {
            continue;
        }
        let changes = record_case(&Case::new(first, &first.start())).events().len();
        let kills: Vec<usize> = match changes <= most {
            true => (0..changes).collect(),
            false => (0..most).map(|_| rng.below(changes as u64) as usize).collect(),
        };
        total += killed_then_cut(first, second, &kills, states, seed);
    }
    println!("{total} states of cuts after kills, seed {seed}");
}

#[test]
fn first_import_survives_power_cuts() {
    survives("first import");
}

#[test]
fn import_survives_power_cuts() {
    survives("import");
}

#[test]
fn import_qcow2_survives_power_cuts() {
    survives("import qcow2");
}

#[test]
fn clone_survives_power_cuts() {
    survives("clone");
}

#[test]
fn clone_3_survives_power_cuts() {
    survives("clone 3");
}

#[test]
fn clone_9_survives_power_cuts() {
    survives("clone 9");
}

#[test]
fn checkpoint_survives_power_cuts() {
    survives("checkpoint");
}

#[test]
fn checkpoint_of_a_clone_without_any_survives_power_cuts() {
    survives("checkpoint of a clone without any");
}

#[test]
fn restore_survives_power_cuts() {
    survives("restore");
}

#[test]
fn restore_and_discard_survives_power_cuts() {
    survives("restore and discard");
}

#[test]
fn rm_checkpoint_survives_power_cuts() {
    survives("rm --checkpoint");
}

#[test]
fn rm_checkpoint_of_the_present_chain_survives_power_cuts() {
    survives("rm --checkpoint of the present chain");
}

#[test]
fn rm_checkpoint_between_others_survives_power_cuts() {
    survives("rm --checkpoint between others");
}

#[test]
fn resize_without_undo_survives_power_cuts() {
    survives("resize --no-undo");
}

#[test]
fn rename_survives_power_cuts() {
    survives("rename");
}

#[test]
fn rename_a_base_survives_power_cuts() {
    survives("rename a base");
}

#[test]
fn rm_of_a_clone_survives_power_cuts() {
    survives("rm of a clone");
}

#[test]
fn rm_of_a_clone_with_checkpoints_survives_power_cuts() {
    survives("rm of a clone with checkpoints");
}

#[test]
fn rm_of_a_base_survives_power_cuts() {
    survives("rm of a base");
}

#[test]
fn verify_reseal_survives_power_cuts() {
    survives("verify --reseal");
}

#[test]
fn check_reseal_survives_power_cuts() {
    survives("check --reseal");
}

#[test]
fn check_repair_survives_power_cuts() {
    survives("check --repair");
}

#[test]
fn export_raw_survives_power_cuts() {
    survives("export raw");
}

#[test]
fn export_qcow2_survives_power_cuts() {
    survives("export qcow2");
}

#[test]
fn export_force_survives_power_cuts() {
    survives("export --force");
}

#[test]
fn run_ephemeral_survives_power_cuts() {
    survives("run --ephemeral");
}

#[test]
fn clone_8_survives_power_cuts() {
    survives("clone 8");
}

#[test]
fn rename_of_a_clone_with_checkpoints_survives_power_cuts() {
    survives("rename of a clone with checkpoints");
}

#[test]
fn import_update_survives_power_cuts() {
    survives("import --update");
}

#[test]
fn promote_survives_power_cuts() {
    survives("promote");
}

#[test]
fn rebase_keep_survives_power_cuts() {
    survives("rebase --strategy keep");
}

#[test]
fn rebase_replace_survives_power_cuts() {
    survives("rebase --strategy replace");
}

#[test]
fn rebase_merge_survives_power_cuts() {
    survives_as("rebase --strategy merge", STATES / 4, seed());
}

#[test]
fn shrink_survives_power_cuts() {
    survives("shrink");
}

#[test]
fn shrink_recompress_survives_power_cuts() {
    survives("shrink --recompress");
}

#[test]
fn shrink_of_a_base_survives_power_cuts() {
    survives("shrink of a base");
}

#[test]
fn resize_image_only_survives_power_cuts() {
    survives("resize --image-only");
}

#[test]
fn resize_smaller_survives_power_cuts() {
    survives_as("resize smaller", STATES / 4, seed());
}

#[test]
fn undo_survives_power_cuts() {
    survives("undo");
}

#[test]
fn rebase_at_next_start_survives_power_cuts() {
    survives("rebase --at-next-start");
}

#[test]
fn rebase_at_next_start_of_a_clone_that_waits_survives_power_cuts() {
    survives("rebase --at-next-start of a clone that waits");
}

#[test]
fn the_cancel_of_what_waits_survives_power_cuts() {
    survives("rebase --at-next-start --cancel");
}

#[test]
fn the_start_of_a_clone_that_waits_survives_power_cuts() {
    survives("start of a clone that waits");
}

#[test]
fn rebase_canary_survives_power_cuts() {
    survives("rebase --canary");
}

#[test]
fn the_end_of_rebase_continue_survives_power_cuts() {
    survives("the end of rebase --continue");
}

#[test]
fn gc_survives_power_cuts() {
    survives("gc");
}

#[test]
fn gc_of_a_version_between_others_survives_power_cuts() {
    survives("gc of a version between others");
}

#[test]
fn a_cut_in_the_next_command_is_survived_too() {
    for command in all() {
        recovery_survives(command.name, 2, 8, seed());
    }
}

#[test]
fn a_kill_and_then_a_cut_lose_nothing_that_was_reported() {
    kill_every_command(4, 36, seed(), 0);
}

#[test]
fn a_kill_and_then_a_cut_lose_nothing_that_was_reported_by_the_other_half() {
    kill_every_command(4, 36, seed(), 1);
}

/// Syncs whose absence no state here shows, and why they are made all the same.
const ELSEWHERE: [(&str, &str, &str); 84] = [
    ("import", "sync 1 of 7: SyncFolder", MADE_BY_THE_DEAD),
    ("import qcow2", "sync 1 of 7: SyncFolder", MADE_BY_THE_DEAD),
    (
        "clone 8",
        "sync 3 of 4: SyncFolder",
        "fewer clones need it: their file system is not synced as a whole",
    ),
    (
        "clone 9",
        "sync 3 of 4: SyncFolder",
        "fewer clones need it: their file system is not synced as a whole",
    ),
    ("checkpoint", "sync 1 of 6: SyncFile", UNFLUSHED),
    ("checkpoint of a clone without any", "sync 1 of 6: SyncFile", UNFLUSHED),
    ("restore", "sync 1 of 6: SyncFile", UNFLUSHED),
    (
        "check --reseal",
        "sync 1 of 3: SyncFile",
        "the file may just have been copied: here it was durable before",
    ),
    ("check --repair", "sync 1 of 5: SyncData", LEAKS),
    ("check --repair", "sync 2 of 5: SyncData", LEAKS),
    ("check --repair", "sync 3 of 5: SyncData", LEAKS),
    ("check --repair", "sync 4 of 5: SyncData", LEAKS),
    ("check --repair", "sync 5 of 5: SyncData", LEAKS),
    ("export qcow2", "sync 1 of 5: SyncData", NAMELESS),
    ("export qcow2", "sync 2 of 5: SyncData", NAMELESS),
    ("export qcow2", "sync 3 of 5: SyncData", NAMELESS),
    ("export qcow2", "sync 4 of 5: SyncData", NAMELESS),
    ("run --ephemeral", "sync 1 of 2: SyncData", THROWN_AWAY),
    ("run --ephemeral", "sync 2 of 2: SyncData", THROWN_AWAY),
    ("first import", "sync 4 of 13: SyncFolder", ABOVE),
    ("import --update", "sync 1 of 10: SyncFolder", MADE_BY_THE_DEAD),
    ("import --update", "sync 2 of 10: SyncData", STAGED),
    ("import --update", "sync 3 of 10: SyncData", STAGED),
    ("import --update", "sync 4 of 10: SyncData", STAGED),
    ("import --update", "sync 9 of 10: SyncFolder", FIRST_VERSION),
    ("promote", "sync 1 of 9: SyncData", STAGED),
    ("promote", "sync 2 of 9: SyncData", STAGED),
    ("promote", "sync 3 of 9: SyncData", STAGED),
    ("promote", "sync 8 of 9: SyncFolder", FIRST_VERSION),
    ("gc", "sync 1 of 9: SyncData", STAGED),
    ("gc", "sync 2 of 9: SyncData", STAGED),
    ("gc", "sync 3 of 9: SyncData", STAGED),
    ("gc of a version between others", "sync 1 of 9: SyncData", STAGED),
    ("gc of a version between others", "sync 2 of 9: SyncData", STAGED),
    ("gc of a version between others", "sync 3 of 9: SyncData", STAGED),
    ("rebase --strategy keep", "sync 1 of 13: SyncData", STAGED),
    ("rebase --strategy keep", "sync 2 of 13: SyncData", STAGED),
    ("rebase --strategy keep", "sync 3 of 13: SyncData", STAGED),
    ("rebase --strategy keep", "sync 4 of 13: SyncData", EMPTY_LAYER),
    ("shrink", "sync 1 of 8: SyncData", IMAGE),
    ("shrink", "sync 3 of 8: SyncData", IMAGE),
    ("shrink", "sync 4 of 8: SyncData", IMAGE),
    ("shrink", "sync 7 of 8: SyncData", IMAGE),
    ("shrink", "sync 8 of 8: SyncData", IMAGE),
    ("shrink --recompress", "sync 1 of 11: SyncData", IMAGE),
    ("shrink --recompress", "sync 2 of 11: SyncData", IMAGE),
    ("shrink --recompress", "sync 5 of 11: SyncData", IMAGE),
    ("shrink --recompress", "sync 6 of 11: SyncData", IMAGE),
    ("shrink --recompress", "sync 7 of 11: SyncData", IMAGE),
    ("shrink --recompress", "sync 10 of 11: SyncData", IMAGE),
    ("shrink --recompress", "sync 11 of 11: SyncData", IMAGE),
    ("shrink of a base", "sync 1 of 8: SyncData", STAGED),
    ("shrink of a base", "sync 2 of 8: SyncData", STAGED),
    ("shrink of a base", "sync 7 of 8: SyncFolder", FIRST_VERSION),
    ("rebase --strategy keep", "sync 5 of 13: SyncFile", UNFLUSHED),
    ("rebase --strategy keep", "sync 8 of 13: SyncFolder", AGAIN),
    ("rebase --strategy keep", "sync 13 of 13: SyncFolder", TIDY),
    ("rebase --strategy replace", "sync 2 of 10: SyncFile", UNFLUSHED),
    ("rebase --strategy replace", "sync 5 of 10: SyncFolder", AGAIN),
    ("rebase --strategy replace", "sync 10 of 10: SyncFolder", TIDY),
    ("resize --image-only", "sync 2 of 10: SyncFile", UNFLUSHED),
    ("resize --image-only", "sync 5 of 10: SyncFolder", AGAIN),
    ("resize --image-only", "sync 10 of 10: SyncFolder", TIDY),
    ("undo", "sync 1 of 10: SyncFile", UNFLUSHED),
    ("undo", "sync 4 of 10: SyncFolder", AGAIN),
    ("undo", "sync 10 of 10: SyncFolder", TIDY),
    ("start of a clone that waits", "sync 2 of 10: SyncFile", UNFLUSHED),
    ("start of a clone that waits", "sync 5 of 10: SyncFolder", AGAIN),
    ("start of a clone that waits", "sync 10 of 10: SyncFolder", TIDY),
    ("rm --checkpoint of the present chain", "sync 1 of 8: SyncData", STAGED),
    ("rm --checkpoint of the present chain", "sync 2 of 8: SyncData", STAGED),
    ("rm --checkpoint of the present chain", "sync 3 of 8: SyncData", STAGED),
    ("rm --checkpoint between others", "sync 1 of 10: SyncData", STAGED),
    ("rm --checkpoint between others", "sync 2 of 10: SyncData", STAGED),
    ("rm --checkpoint between others", "sync 3 of 10: SyncData", STAGED),
    ("resize --no-undo", "sync 1 of 9: SyncData", STAGED),
    ("resize --no-undo", "sync 2 of 9: SyncData", STAGED),
    ("resize --no-undo", "sync 3 of 9: SyncData", STAGED),
    ("rm --checkpoint of the present chain", "sync 4 of 8: SyncFile", EMPTY_LAYER),
    ("resize --no-undo", "sync 4 of 9: SyncFile", EMPTY_LAYER),
    ("rm --checkpoint of the present chain", "sync 6 of 8: SyncFolder", UNMARKED),
    ("rm --checkpoint of the present chain", "sync 8 of 8: SyncFolder", MARKED),
    ("rm --checkpoint between others", "sync 10 of 10: SyncFolder", MARKED),
    ("resize --no-undo", "sync 9 of 9: SyncFolder", TIDY),
];
const UNMARKED: &str =
    "a checkpoint whose mark is lost is there, and nothing stands on it: all is shown as before";
const MARKED: &str = "the mark says that the checkpoint is gone, with its file or without";
const ABOVE: &str = "folders above a new store may have been made by somebody who was killed";
const STAGED: &str = "nobody looks at the new layer before it is durable as a whole";
const FIRST_VERSION: &str = "a first version needs it: there the folder above is moved";
const EMPTY_LAYER: &str = "a layer that nothing was written to is synced by nothing else";
const AGAIN: &str = "a change of the base syncs the folder once more before the rename that counts";
const TIDY: &str = "the header of the disk says which base holds as long as the manifest names two";
const MADE_BY_THE_DEAD: &str = "whoever made the store may have been killed before it was durable";
const UNFLUSHED: &str = "a guest may not have flushed: here it had";
const LEAKS: &str = "leaks are no loss, and this is all that the repair finds here";
const IMAGE: &str = "nothing that is read changes here: disk_crash_mutants, disk_compact_crash and disk_pack leave out those of an image";
const NAMELESS: &str = "the file has no name before the last of them";
const THROWN_AWAY: &str = "nobody looks at it after a cut";

/// Leaves out each sync of a command in turn, but for those that `spared` knows, as if it had not been asked for. All that
/// there are, and those that no state misses.
fn mutants(name: &str, rng: &mut Rng, spared: impl Fn(&str) -> bool) -> [Vec<String>; 2] {
    let case = case(name);
    let journal = record_case(&case);
    let events = journal.events();
    let judge = |world: &World, done| case.judge(Built::of(world).path(), done);
    let syncs: Vec<usize> = (0..events.len()).filter(|at| events[*at].op.is_sync()).collect();
    let (mut all, mut missed) = (Vec::new(), Vec::new());
    for (number, lost) in (1..).zip(&syncs) {
        let mut mutant = events.clone();
        let op = brief(&mutant.remove(*lost).op);
        let label = format!("sync {number} of {}: {}", syncs.len(), op.split('(').next().unwrap());
        let moments: Vec<usize> = (*lost..=mutant.len()).rev().collect();
        if !spared(&label)
            && cut_at(&journal.start, &mutant, &moments, 66 * moments.len(), rng, judge).is_ok()
        {
            missed.push(label.clone());
        }
        all.push(label);
    }
    [all, missed]
}

/// Leaves out the syncs of one half of the commands; with `sparing` not those of which it is known why no state misses them.
fn leave_out(seed: u64, sparing: bool, half: usize) {
    let mut rng = Rng::new(seed);
    let (mut total, mut unknown) = (0, Vec::new());
    // These start programs each time; what they sync beyond the others of their kind is thrown away on a cut.
    let slow = ["rebase --strategy merge", "resize smaller"];
    let commands = all().into_iter().filter(|command| !slow.contains(&command.name));
    for command in commands.skip(half).step_by(2) {
        let known: Vec<_> = ELSEWHERE.iter().filter(|(name, _, _)| *name == command.name).collect();
        let is_known = |label: &str| known.iter().any(|(_, sync, _)| *sync == label);
        let [all, missed] = mutants(command.name, &mut rng, |label| sparing && is_known(label));
        let gone = known.iter().find(|(_, sync, _)| !all.iter().any(|label| label == sync));
        assert_eq!(gone, None, "{} has {all:?}", command.name);
        total += all.iter().filter(|label| !(sparing && is_known(label))).count();
        unknown
            .extend(missed.into_iter().filter(|label| !is_known(label)).map(|label| (command.name, label)));
    }
    println!("{} of {total} left-out syncs were noticed or are known, seed {seed}", total - unknown.len());
    assert!(unknown.is_empty(), "nothing misses {unknown:#?}");
}

#[test]
fn the_harness_notices_when_a_sync_of_a_command_is_left_out() {
    leave_out(seed(), true, 0);
}

#[test]
fn the_harness_notices_when_a_sync_of_a_command_is_left_out_of_the_other_half() {
    leave_out(seed(), true, 1);
}

#[test]
#[ignore = "soak"]
fn soak_the_harness_notices_left_out_syncs_with_other_seeds() {
    soak(|seed| (0..2).for_each(|half| leave_out(seed, false, half)));
}

/// How often the long versions run, with a seed of its own each time.
fn soak(run: impl Fn(u64)) {
    let text = std::env::var("COWSHED_SOAK_ROUNDS").unwrap_or_else(|_| "10".to_owned());
    let rounds: u64 = text.parse().unwrap_or_else(|_| panic!("COWSHED_SOAK_ROUNDS is {text:?}"));
    (0..rounds).for_each(|round| run(seed() + 1 + round));
}

#[test]
#[ignore = "soak"]
fn soak_every_command_survives_power_cuts() {
    soak(|seed| all().iter().for_each(|command| assert!(survives_as(command.name, 20 * STATES, seed) > 0)));
}

#[test]
#[ignore = "soak"]
fn soak_cuts_in_the_next_command_are_survived_too() {
    soak(|seed| all().iter().for_each(|command| assert!(recovery_survives(command.name, 20, 60, seed) > 0)));
}

#[test]
#[ignore = "soak"]
fn soak_kills_and_then_cuts_lose_nothing_that_was_reported() {
    soak(|seed| (0..2).for_each(|part| kill_every_command(60, 120, seed, part)));
}
