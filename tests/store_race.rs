//! Several processes work on one store at once, and are killed: nothing is lost, nothing is half.
//!
//! `COWSHED_SEED=N` draws other commands; `COWSHED_SOAK_COMMANDS` and `COWSHED_SOAK_KILLS` say how many the long
//! versions run.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cli;
    pub mod rng;
}

use common::cli::{Shed, noise};
use common::rng::{Rng, seed_from_environment};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

fn seed() -> u64 {
    seed_from_environment().unwrap_or(1)
}

fn from_environment(name: &str, or: usize) -> usize {
    std::env::var(name).map_or(or, |text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

/// A store with a small base, quick to work on.
fn small() -> Shed {
    let shed = Shed::new();
    let image = shed.path("small.raw");
    fs::write(&image, noise(256 << 10, 7)).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "base"]);
    shed
}

/// What a worker knows of the clones that only it works on: the label, and the checkpoints by number.
type Mine = BTreeMap<String, (String, BTreeSet<u64>)>;

/// How often each shared name was taken and given back, over all workers.
type Shared = BTreeMap<String, i64>;

struct Worker<'a> {
    shed: &'a Shed,
    number: usize,
    rng: Rng,
    made: u32,
    mine: Mine,
    shared: Shared,
    busy: usize,
}

/// Names that all workers fight for.
const SHARED: [&str; 4] = ["s-1", "s-2", "s-3", "s-4"];

impl Worker<'_> {
    /// Runs a command: what it printed, or, where `allowed` says so, one of these words of its refusal.
    fn run(&mut self, arguments: &[&str], allowed: &[&str]) -> Option<String> {
        let output = self.shed.output(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            assert!(said.is_empty(), "{arguments:?} said {said}");
            return Some(String::from_utf8(output.stdout).unwrap());
        }
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        if said.contains("in use by another process") || said.contains("being written by another process") {
            self.busy += 1;
            return None;
        }
        let known = allowed.iter().any(|words| said.contains(words));
        assert!(known, "worker {}: {arguments:?}: {said}", self.number);
        None
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("w{}-{}", self.number, self.made)
    }

    fn any(&mut self) -> Option<String> {
        let names: Vec<String> = self.mine.keys().cloned().collect();
        (!names.is_empty()).then(|| self.rng.pick(&names).clone())
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=19 => self.make(),
            20..=29 => self.rename(),
            30..=39 => self.remove(),
            40..=54 => self.checkpoint(),
            55..=64 => self.restore(),
            65..=69 => self.remove_checkpoint(),
            70..=77 => self.look(),
            78..=82 => self.check(),
            _ => self.fight(),
        }
    }

    fn make(&mut self) {
        let count = *self.rng.pick(&[1, 1, 1, 2, 3, 9]);
        let names: Vec<String> = (0..count).map(|_| self.fresh()).collect();
        let label = format!("by={}", self.rng.below(1000));
        let mut arguments = vec!["clone", "base", "--label", &label];
        arguments.extend(names.iter().map(String::as_str));
        if self.run(&arguments, &[]).is_some() {
            let entry = (label.trim_start_matches("by=").to_owned(), BTreeSet::new());
            self.mine.extend(names.into_iter().map(|name| (name, entry.clone())));
        }
    }

    fn rename(&mut self) {
        let (Some(from), to) = (self.any(), self.fresh()) else { return };
        if self.run(&["rename", &from, &to], &[]).is_some() {
            let entry = self.mine.remove(&from).unwrap();
            self.mine.insert(to, entry);
        }
    }

    fn remove(&mut self) {
        let Some(name) = self.any() else { return };
        if self.run(&["rm", &name], &[]).is_some() {
            self.mine.remove(&name);
        }
    }

    fn checkpoint(&mut self) {
        let Some(name) = self.any() else { return };
        if let Some(text) = self.run(&["checkpoint", &name, "--json"], &[]) {
            let made: Value = serde_json::from_str(&text).unwrap();
            let fresh = self.mine.get_mut(&name).unwrap().1.insert(made["number"].as_u64().unwrap());
            assert!(fresh, "{name}: a number was used twice: {text}");
        }
    }

    fn restore(&mut self) {
        let Some(name) = self.any() else { return };
        let Some(number) = self.mine[&name].1.first().copied() else { return };
        if let Some(text) = self.run(&["restore", &name, &number.to_string(), "--json"], &[]) {
            let restored: Value = serde_json::from_str(&text).unwrap();
            let kept = restored["kept"]["number"].as_u64().unwrap();
            assert!(self.mine.get_mut(&name).unwrap().1.insert(kept), "{name}: a number was used twice");
        }
    }

    fn remove_checkpoint(&mut self) {
        let Some(name) = self.any() else { return };
        let Some(number) = self.mine[&name].1.last().copied() else { return };
        if self.run(&["rm", &name, "--checkpoint", &number.to_string()], &["stand on it"]).is_some() {
            self.mine.get_mut(&name).unwrap().1.remove(&number);
        }
    }

    fn look(&mut self) {
        let text = self.run(&["list", "--json"], &[]).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        agree(&list, &self.mine, &format!("w{}-", self.number));
        if let Some(name) = self.any() {
            self.run(&["info", &name], &[]);
            self.run(&["path", &name], &[]);
        }
    }

    fn check(&mut self) {
        let Some(name) = self.any() else { return };
        self.run(&["check", &name], &[]);
        self.run(&["verify", "base"], &[]);
    }

    /// Names that others take and give back at the same time.
    fn fight(&mut self) {
        const LOST: [&str; 4] = ["already", "there is no clone", "no clone or base", "stands on"];
        let (one, two) = (*self.rng.pick(&SHARED), *self.rng.pick(&SHARED));
        match self.rng.below(4) {
            0 if self.run(&["rm", one], &LOST).is_some() => *self.shared.entry(one.into()).or_default() -= 1,
            1 if one != two && self.run(&["rename", one, two], &LOST).is_some() => {
                *self.shared.entry(one.into()).or_default() -= 1;
                *self.shared.entry(two.into()).or_default() += 1;
            }
            2 => drop(self.run(&["checkpoint", one], &LOST)),
            3 if self.run(&["clone", "base", one], &LOST).is_some() => {
                *self.shared.entry(one.into()).or_default() += 1;
            }
            _ => {}
        }
    }
}

/// Asserts that the clones of a worker are there, and no others of its names.
fn agree(list: &Value, mine: &Mine, prefix: &str) {
    let there: BTreeMap<&str, &str> = list["clones"]
        .as_array()
        .unwrap()
        .iter()
        .map(|clone| (clone["name"].as_str().unwrap(), clone["labels"]["by"].as_str().unwrap_or("")))
        .filter(|(name, _)| name.starts_with(prefix))
        .collect();
    let known: BTreeMap<&str, &str> =
        mine.iter().map(|(name, (label, _))| (name.as_str(), label.as_str())).collect();
    assert_eq!(there, known, "clones of {prefix}");
}

fn race(workers: usize, commands: usize, seed: u64) {
    let shed = small();
    let ends: Vec<(Mine, Shared, usize)> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..workers)
            .map(|number| {
                let mut worker = Worker {
                    shed: &shed,
                    number,
                    rng: Rng::new(seed.wrapping_mul(1000) + number as u64),
                    made: 0,
                    mine: Mine::new(),
                    shared: Shared::new(),
                    busy: 0,
                };
                scope.spawn(move || {
                    (0..commands / workers).for_each(|_| worker.step());
                    (worker.mine, worker.shared, worker.busy)
                })
            })
            .collect();
        started.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let list = shed.json(&["list"]);
    let mut balance = Shared::new();
    for (number, (mine, shared, _)) in ends.iter().enumerate() {
        agree(&list, mine, &format!("w{number}-"));
        shared.iter().for_each(|(name, count)| *balance.entry(name.clone()).or_default() += count);
        for (name, (_, checkpoints)) in mine {
            let found = shed.json(&["checkpoints", name]);
            let found: BTreeSet<u64> = found["checkpoints"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["number"].as_u64().unwrap())
                .collect();
            assert_eq!(found, *checkpoints, "checkpoints of {name}");
        }
    }
    for name in SHARED {
        let there = list["clones"].as_array().unwrap().iter().any(|clone| clone["name"] == name);
        assert_eq!(
            balance.get(name).copied().unwrap_or(0),
            i64::from(there),
            "{name} was taken or lost twice"
        );
    }
    shed.ok(&["check", "--all"]);
    shed.ok(&["verify", "--all"]);
    shed.ok(&["clone", "base", "last"]);
    assert_eq!(fs::read_dir(shed.root().join("tmp")).unwrap().count(), 0);
    let busy: usize = ends.iter().map(|(_, _, busy)| busy).sum();
    println!("{workers} workers, {commands} commands, {busy} times busy, seed {seed}");
}

#[test]
fn two_processes_lose_nothing_of_each_other() {
    race(2, 400, seed());
}

#[test]
fn four_processes_lose_nothing_of_each_other() {
    race(4, 600, seed() + 1);
}

#[test]
#[ignore = "soak"]
fn soak_many_processes_lose_nothing_of_each_other() {
    let commands = from_environment("COWSHED_SOAK_COMMANDS", 20_000);
    (0..4).for_each(|round| race(2 + round % 3, commands / 4, seed() + round as u64));
}

/// What the store shows, but for times and bytes.
fn shown(shed: &Shed) -> Value {
    let mut list = shed.json(&["list"]);
    for part in ["bases", "clones"] {
        for one in list[part].as_array_mut().unwrap() {
            let name = one["name"].as_str().unwrap().to_owned();
            if part == "clones" {
                one["checkpoints"] = shed.json(&["checkpoints", &name]);
            }
            let fields = one.as_object_mut().unwrap();
            fields.retain(|field, _| {
                matches!(field.as_str(), "name" | "base" | "digest" | "labels" | "checkpoints")
            });
        }
    }
    let text = list.to_string();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    forget_times(&mut value);
    value
}

fn forget_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("created");
            fields.values_mut().for_each(forget_times);
        }
        Value::Array(all) => all.iter_mut().for_each(forget_times),
        _ => {}
    }
}

/// One command to kill; `undo` are the commands that bring the store back to where it was.
struct Killed {
    command: &'static [&'static str],
    undo: &'static [&'static [&'static str]],
}

const KILLED: [Killed; 9] = [
    Killed { command: &["import", "IMAGE", "--name", "two"], undo: &[&["rm", "two"]] },
    Killed { command: &["clone", "base", "x"], undo: &[&["rm", "x"]] },
    Killed { command: &["clone", "base", "x", "--count", "4"], undo: &[&["rm", "x-1", "x-2", "x-3", "x-4"]] },
    Killed {
        command: &["clone", "base", "x", "--count", "9"],
        undo: &[&["rm", "x-1", "x-2", "x-3", "x-4", "x-5", "x-6", "x-7", "x-8", "x-9"]],
    },
    Killed {
        command: &["checkpoint", "a"],
        undo: &[&["restore", "a", "1", "--discard"], &["rm", "a", "--checkpoint", "2"]],
    },
    Killed { command: &["restore", "a", "1"], undo: &[&["rm", "a", "--checkpoint", "2"]] },
    Killed { command: &["rename", "b", "c"], undo: &[&["rename", "c", "b"]] },
    Killed { command: &["rm", "b"], undo: &[&["clone", "base", "b"]] },
    Killed { command: &["check", "a", "--repair"], undo: &[] },
];

/// Kills each command at random moments; the store is as before or as after, and the next command cleans up.
fn kills(rounds: usize, seed: u64) {
    let shed = small();
    shed.ok(&["clone", "base", "a", "b"]);
    shed.ok(&["checkpoint", "a"]);
    let image = shed.path("small.raw");
    let before = shown(&shed);
    let mut rng = Rng::new(seed);
    let (mut died, mut done) = (0, 0);
    for Killed { command, undo } in KILLED {
        let arguments: Vec<&str> = command
            .iter()
            .map(|word| if *word == "IMAGE" { image.to_str().unwrap() } else { word })
            .collect();
        // Once unkilled, to know what is after.
        shed.ok(&arguments);
        let after = shown(&shed);
        undo.iter().for_each(|undo| drop(shed.ok(undo)));
        assert_eq!(shown(&shed), before, "{undo:?} does not undo {command:?}");
        for _ in 0..rounds {
            let mut child =
                shed.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(rng.below(6000)));
            child.kill().unwrap();
            died += usize::from(!child.wait().unwrap().success());
            let seen = shown(&shed);
            assert!(seen == before || seen == after, "{arguments:?} was killed: {seen:#}");
            // Finds what was left behind.
            shed.fails(1, &["rename", "nobody", "somebody"]);
            assert_eq!(fs::read_dir(shed.root().join("tmp")).unwrap().count(), 0, "{arguments:?}");
            shed.ok(&["check", "--all"]);
            if seen == after && before != after {
                done += 1;
                undo.iter().for_each(|undo| drop(shed.ok(undo)));
            }
        }
    }
    shed.ok(&["verify", "--all"]);
    println!("{died} commands killed, {done} had come to their end, seed {seed}");
    assert!(died > rounds, "only {died} kills came in time");
}

#[test]
fn a_killed_process_leaves_the_store_as_before_or_as_after() {
    kills(25, seed());
}

#[test]
#[ignore = "soak"]
fn soak_killed_processes_leave_the_store_as_before_or_as_after() {
    kills(from_environment("COWSHED_SOAK_KILLS", 1000), seed() + 1);
}
