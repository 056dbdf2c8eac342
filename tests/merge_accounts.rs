//! The account databases merged by name, with `pwck` and `grpck` as judges.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod rng;
}

use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::ops::merge::Three;
use cowshed::ops::merge::accounts::{Database, merge};
use cowshed::ops::merge::rules::Winner;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use tempfile::TempDir;

const ALL: [Database; 6] = [
    Database::Passwd,
    Database::Group,
    Database::Shadow,
    Database::Gshadow,
    Database::Subuid,
    Database::Subgid,
];

/// One system's accounts: number by name, and who is in the group `all`.
#[derive(Clone, Debug, Default)]
struct System {
    users: BTreeMap<String, u32>,
    members: Vec<String>,
}

impl System {
    /// passwd, group, shadow, gshadow.
    fn files(&self) -> [String; 4] {
        let lines = |line: &dyn Fn(&str, u32) -> String| -> String {
            self.users.iter().map(|(name, id)| line(name, *id)).collect()
        };
        let members = self.members.join(",");
        [
            lines(&|name, id| format!("{name}:x:{id}:{id}:::/bin/sh\n")),
            lines(&|name, id| format!("{name}:x:{id}:\n")) + &format!("all:x:900:{members}\n"),
            lines(&|name, _| format!("{name}:!*:19000:0:99999:7:::\n")),
            lines(&|name, _| format!("{name}:!::\n")) + &format!("all:!::{members}\n"),
        ]
    }

    /// A few users come and go, with numbers of `numbers`.
    fn change(&self, rng: &mut Rng, side: &str, numbers: std::ops::Range<u32>) -> Self {
        let mut system = self.clone();
        for count in 0..rng.below(4) {
            let id = numbers.start + (rng.below(u64::from(numbers.end - numbers.start)) as u32);
            if !system.users.values().any(|used| *used == id) {
                system.users.insert(format!("{side}{count}"), id);
                system.members.push(format!("{side}{count}"));
            }
        }
        if rng.chance(40)
            && let Some(name) = system.users.keys().next().cloned()
        {
            system.users.remove(&name);
            system.members.retain(|member| *member != name);
        }
        system
    }
}

/// What the merged files are, and the conflicts.
fn merged(old: &System, base: &System, clone: &System) -> ([Vec<u8>; 4], Vec<String>) {
    let (old, base, clone) = (old.files(), base.files(), clone.files());
    let mut conflicts = Vec::new();
    let files = [0, 1, 2, 3].map(|at| {
        let three = Three { old: old[at].as_bytes(), base: base[at].as_bytes(), clone: clone[at].as_bytes() };
        let merged = merge(ALL[at], three, Winner::Fail).unwrap();
        conflicts.extend(merged.conflicts);
        merged.bytes
    });
    (files, conflicts)
}

/// What `pwck` and `grpck` say of errors; missing homes are none.
fn judged(files: &[Vec<u8>; 4]) -> String {
    let folder = TempDir::new().unwrap();
    let paths = ["passwd", "group", "shadow", "gshadow"].map(|name| folder.path().join(name));
    for (path, file) in paths.iter().zip(files) {
        fs::write(path, file).unwrap();
    }
    let mut said = String::new();
    for (program, one, two) in [("pwck", 0, 2), ("grpck", 1, 3)] {
        let output = Command::new(program)
            .args(if program == "pwck" { &["-r", "-q"][..] } else { &["-r"] })
            .args([&paths[one], &paths[two]])
            .env("LC_ALL", "C")
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        said += &String::from_utf8(output.stdout).unwrap();
    }
    let wrong = ["no matching", "duplicate", "invalid", "already"];
    said.lines()
        .filter(|line| wrong.iter().any(|word| line.contains(word)))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn merged_accounts_are_sound_to_pwck_and_grpck() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut taken = 0;
    for round in 0..120 {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let old = System::default().change(&mut rng, "old", 100..200);
        // Every third round both sides give out the same numbers.
        let clones = if round % 3 == 0 { 200..204 } else { 300..400 };
        let (base, clone) = (old.change(&mut rng, "base", 200..204), old.change(&mut rng, "clone", clones));
        let (files, conflicts) = merged(&old, &base, &clone);
        let twice = clone.users.iter().any(|(name, id)| {
            !old.users.contains_key(name)
                && base.users.iter().any(|(other, used)| used == id && other != name)
        });
        taken += u32::from(twice);
        assert_eq!(!conflicts.is_empty(), twice, "seed {seed} round {round}: {conflicts:?}");
        if !twice {
            let known = |name: &&String| {
                !(base.users.contains_key(*name) ^ clone.users.contains_key(*name))
                    || !old.users.contains_key(*name)
            };
            let expected = base
                .users
                .keys()
                .chain(clone.users.keys())
                .filter(known)
                .collect::<std::collections::BTreeSet<_>>();
            let passwd = String::from_utf8(files[0].clone()).unwrap();
            let names = passwd
                .lines()
                .map(|line| line.split(':').next().unwrap().to_owned())
                .collect::<std::collections::BTreeSet<_>>();
            assert_eq!(
                names.iter().collect::<std::collections::BTreeSet<_>>(),
                expected,
                "seed {seed} round {round}"
            );
            assert_eq!(judged(&files), "", "seed {seed} round {round}");
        }
    }
    assert!(taken > 3, "seed {seed}: {taken}");
}

#[test]
fn the_judges_find_what_is_wrong() {
    let lost = [&b"a:x:1:1::/:/bin/sh\na:x:1:1::/:/bin/sh\n"[..], b"g:x:1:nobody-here\n", b"", b""];
    assert!(judged(&lost.map(<[u8]>::to_vec)).contains("no matching"));
}

#[test]
fn damaged_databases_keep_their_lines_and_nothing_panics() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..2000 {
        let mut file = || -> Vec<u8> {
            let parts = [
                "a",
                "b",
                ":",
                ":",
                "x:",
                "0",
                "7",
                "4294967295",
                ",",
                "\n",
                "\n",
                "+",
                "-",
                "#",
                "\u{fc}",
                "a:x:5:b,c\n",
                "a:1:65536\n",
            ];
            let mut bytes: Vec<u8> =
                (0..rng.below(60)).flat_map(|_| rng.pick(&parts).bytes().collect::<Vec<u8>>()).collect();
            if rng.chance(20) && !bytes.is_empty() {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.bits() as u8;
            }
            bytes
        };
        let [old, base, clone] = [file(), file(), file()];
        for database in ALL {
            for winner in [Winner::Fail, Winner::Base, Winner::Clone] {
                let three = Three { old: &old[..], base: &base[..], clone: &clone[..] };
                merge(database, three, winner).unwrap();
            }
            let same = Three { old: &old[..], base: &old[..], clone: &clone[..] };
            let one = merge(database, same, Winner::Fail).unwrap();
            let lines = |file: &[u8]| {
                let mut lines: Vec<Vec<u8>> = file
                    .split(|&byte| byte == b'\n')
                    .map(<[u8]>::to_vec)
                    .filter(|line| !line.is_empty())
                    .collect();
                lines.sort();
                lines
            };
            assert_eq!(
                lines(&one.bytes),
                lines(&clone),
                "{database:?}, seed {seed}: what one side alone changed is taken"
            );
        }
    }
}
