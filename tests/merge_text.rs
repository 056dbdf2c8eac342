//! Text merged line by line: against `diff3` and `git merge-file` on random edits, and in bounded time on hostile
//! texts.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod rng;
}

use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::ops::merge::Three;
use cowshed::ops::merge::text::{TextMerge, merge_text};
use cowshed::ops::merge::unified::{three_way_diff, unified};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A text of `lines` lines, each one of `kinds`: few kinds make many equal lines.
fn text(rng: &mut Rng, lines: u64, kinds: u64) -> Vec<String> {
    (0..lines).map(|_| format!("line {}\n", rng.below(kinds))).collect()
}

/// `text` after a few random edits: lines added, removed, replaced, moved; the last line feed lost.
fn edited(rng: &mut Rng, text: &[String], kinds: u64) -> Vec<String> {
    let mut lines = text.to_vec();
    for _ in 0..rng.below(5) {
        let at = rng.below(lines.len() as u64 + 1) as usize;
        let end = (at + rng.below(4) as usize).min(lines.len());
        let count = rng.below(4);
        let new: Vec<String> = (0..count).map(|_| format!("line {}\n", rng.below(kinds))).collect();
        match rng.below(4) {
            0 => drop(lines.splice(at..at, new)),
            1 => drop(lines.drain(at..end)),
            2 => drop(lines.splice(at..end, new)),
            _ => {
                let moved: Vec<String> = lines.drain(at..end).collect();
                let to = rng.below(lines.len() as u64 + 1) as usize;
                drop(lines.splice(to..to, moved));
            }
        }
    }
    if rng.chance(5) {
        lines.iter_mut().last().map(String::pop);
    }
    lines
}

/// What a program makes of the three texts; nothing when it finds a conflict.
fn oracle(folder: &Path, program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    match output.status.code() {
        Some(0) => Some(output.stdout),
        Some(code) if code < 128 && program != "diff3" || code == 1 => None,
        _ => panic!("{program}: {output:?}"),
    }
}

fn oracles(folder: &Path, texts: Three<&[u8]>) -> [Option<Vec<u8>>; 2] {
    fs::write(folder.join("old"), texts.old).unwrap();
    fs::write(folder.join("base"), texts.base).unwrap();
    fs::write(folder.join("clone"), texts.clone).unwrap();
    [
        oracle(folder, "diff3", &["-m", "-E", "clone", "old", "base"]),
        oracle(folder, "git", &["merge-file", "-p", "clone", "old", "base"]),
    ]
}

#[test]
fn a_merge_is_what_diff3_and_git_make_of_it_or_a_conflict() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let folder = TempDir::new().unwrap();
    let (mut merged, mut missed) = (0, 0);
    for round in 0..600 {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let kinds = [3, 12, 100_000][round as usize % 3];
        let length = rng.below(40);
        let old = text(&mut rng, length, kinds);
        let [base, clone] = [(); 2].map(|()| edited(&mut rng, &old, kinds).concat());
        let old = old.concat();
        let texts = Three { old: old.as_bytes(), base: base.as_bytes(), clone: clone.as_bytes() };
        let theirs = oracles(folder.path(), texts);
        match merge_text(texts) {
            TextMerge::Merged(ours) => {
                merged += 1;
                for (name, their) in ["diff3", "git"].iter().zip(theirs) {
                    let shown = String::from_utf8_lossy(&ours).into_owned();
                    assert_eq!(
                        their.map(|text| String::from_utf8_lossy(&text).into_owned()),
                        Some(shown),
                        "{name}, seed {seed} round {round}: {}",
                        three_way_diff(texts)
                    );
                }
            }
            TextMerge::Conflict(overlaps) => {
                assert!(!overlaps.is_empty());
                missed += u32::from(kinds > 100 && theirs.iter().all(Option::is_some));
            }
            TextMerge::No(reason) => panic!("{reason:?}, seed {seed} round {round}"),
        }
    }
    println!("{merged} of 600 merged; {missed} of 200 with lines of their own merge with diff3 and git only");
    assert!(merged > 130, "seed {seed}: {merged}");
    assert!(missed <= 14, "seed {seed}: {missed}");
}

#[test]
fn patch_makes_the_second_text_of_the_first_and_their_difference() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let folder = TempDir::new().unwrap();
    for round in 0..150 {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let old = text(&mut rng, 60, 12);
        let new = edited(&mut rng, &old, 12).concat();
        let old = old.concat();
        let diff = unified(old.as_bytes(), new.as_bytes(), ["a", "b"]);
        assert_eq!(diff.is_empty(), old == new, "seed {seed} round {round}");
        if !diff.is_empty() {
            fs::write(folder.path().join("a"), &old).unwrap();
            fs::write(folder.path().join("diff"), &diff).unwrap();
            let status = Command::new("patch")
                .args(["--quiet", "--fuzz=0", "--output=b", "a", "diff"])
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "seed {seed} round {round}: {diff}");
            assert_eq!(fs::read(folder.path().join("b")).unwrap(), new.as_bytes(), "{diff}");
        }
    }
}

/// Texts that comparison by lines is slow on, as large as they are taken.
fn hostile(rng: &mut Rng) -> Vec<[String; 3]> {
    let lines = (1 << 17) - 2;
    let mut random =
        |kinds: u64| -> String { (0..lines).map(|_| format!("{}\n", rng.below(kinds))).collect() };
    let few = [random(2), random(2), random(2)];
    let some = [random(300), random(300), random(300)];
    let many = [random(100_000), random(100_000), random(100_000)];
    let counted = |step: u64, turn: bool| -> String {
        let numbers = (0..lines).map(|line| format!("{}\n", line * step % 131_071));
        if turn { numbers.rev().collect() } else { numbers.collect() }
    };
    let shuffled = [counted(1, false), counted(7919, false), counted(1, true)];
    let every =
        |with: &str| -> String { (0..lines / 2).map(|line| format!("{line}\n{with}{line}\n")).collect() };
    let woven = [every("x"), every("y"), every("z")];
    let same = ["\n".repeat(lines as usize), "\n".repeat(lines as usize / 2), "\n".repeat(100)];
    vec![few, some, many, shuffled, woven, same]
}

#[test]
fn hostile_texts_end_in_bounded_time() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    for (index, [old, base, clone]) in hostile(&mut Rng::new(seed)).iter().enumerate() {
        let started = Instant::now();
        let texts = Three { old: old.as_bytes(), base: base.as_bytes(), clone: clone.as_bytes() };
        let merged = merge_text(texts);
        let shown = three_way_diff(texts);
        println!("hostile text {index}: {:?}", started.elapsed());
        assert!(!matches!(merged, TextMerge::No(_)) && shown.len() < 200_000, "text {index}, seed {seed}");
        assert!(started.elapsed() < Duration::from_secs(60), "text {index}, seed {seed}");
    }
}

#[test]
fn random_bytes_are_no_text_or_merge_with_themselves() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..500 {
        let length = rng.below(200) as usize;
        let [old, base, clone] = [(); 3].map(|()| rng.bytes(length));
        let texts = Three { old: &old[..], base: &base[..], clone: &clone[..] };
        assert!(!three_way_diff(texts).contains('\u{1b}'), "seed {seed}");
        let same = Three { old: &old[..], base: &old[..], clone: &old[..] };
        match merge_text(same) {
            TextMerge::Merged(text) => assert_eq!(text, old),
            TextMerge::No(_) => {}
            TextMerge::Conflict(_) => panic!("seed {seed}"),
        }
        assert!(!matches!(merge_text(texts), TextMerge::Merged(_)) || old.is_empty() || base == clone);
    }
}
