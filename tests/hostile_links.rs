//! A link that somebody planted in a store makes no command write, make or remove anything elsewhere.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/cli.rs"]
mod common;

use common::Shed;
use common::store::{must, unseal_all};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

/// Everything below a folder: length, mode, time of change and content of each file.
fn picture(folder: &Path, into: &mut BTreeMap<String, (u64, u32, i64, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { blake3_of(&path) } else { Vec::new() };
        let length = if meta.is_dir() { 0 } else { meta.len() };
        let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        into.insert(path.display().to_string(), (length, meta.mode(), time, content));
        if meta.is_dir() {
            picture(&path, into);
        }
    }
}

fn blake3_of(path: &Path) -> Vec<u8> {
    common::store::file_digest(path).as_bytes().to_vec()
}

/// The places of a link, below the store.
const PLACES: [&str; 17] = [
    "cowshed.json",
    "bases",
    "clones",
    "tmp",
    "run",
    "bases/b",
    "bases/b/1",
    "bases/b/1/disk.raw",
    "bases/b/1/base.json",
    "bases/b/1/blocks.crc",
    "clones/c",
    "clones/c/disk.qcow2",
    "clones/c/clone.json",
    "clones/c/checkpoint-1.qcow2",
    "clones/c/checkpoint-1.json",
    "clones/c/.checkpoint-1.json.new",
    "tmp/1-1",
];

/// Every command that changes something.
fn run_everything(shed: &Shed, source: &str) {
    let (out, view) = (shed.path("out.raw"), shed.path("view"));
    fs::create_dir_all(&view).unwrap();
    let (out, view) = (out.to_str().unwrap(), view.to_str().unwrap());
    for arguments in [
        &["list"][..],
        &["import", source, "--name", "b2", "--format", "raw"],
        &["clone", "b", "d"],
        &["clone", "b", "e", "f"],
        &["checkpoint", "c"],
        &["restore", "c", "1"],
        &["restore", "c", "1", "--discard"],
        &["check", "c", "--repair"],
        &["check", "c", "--reseal"],
        &["check", "--all"],
        &["verify", "b"],
        &["verify", "b", "--reseal"],
        &["export", "c", out, "--force"],
        &["mount", view],
        &["umount", view],
        &["rename", "c", "c2"],
        &["rename", "c2", "c"],
        &["rm", "c", "--checkpoint", "1"],
        &["rm", "c"],
        &["rm", "d", "e", "f"],
        &["rm", "b2"],
        &["rm", "b"],
    ] {
        let output = shed.output(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some(), "{arguments:?}: {output:?}");
        assert!(!said.contains("panick"), "{arguments:?}: {said}");
    }
}

fn store_of_one() -> (Shed, String) {
    let shed = Shed::new();
    let source = shed.path("source.raw");
    fs::write(&source, common::noise(1 << 20, 3)).unwrap();
    let source = source.to_str().unwrap().to_owned();
    shed.ok(&["import", &source, "--name", "b", "--format", "raw"]);
    shed.ok(&["clone", "b", "c"]);
    shed.ok(&["checkpoint", "c"]);
    (shed, source)
}

#[test]
fn a_link_in_any_place_changes_nothing_outside() {
    for place in PLACES {
        let (shed, source) = store_of_one();
        unseal_all(&shed.root());
        let (planted, outside) = (shed.root().join(place), shed.path("outside"));
        fs::create_dir(&outside).unwrap();
        // The link leads to what was there, so that following it would seem right.
        let target = outside.join("target");
        if planted.exists() {
            fs::rename(&planted, &target).unwrap();
        } else {
            fs::create_dir(&target).unwrap();
            fs::write(target.join("mine"), "mine").unwrap();
            fs::write(target.join(".commit"), "").unwrap();
        }
        symlink(&target, &planted).unwrap();
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        picture(&outside, &mut before);
        run_everything(&shed, &source);
        picture(&outside, &mut after);
        assert_eq!(before, after, "a link at {place} was followed");
    }
}

#[test]
fn links_inside_a_decided_batch_and_inside_debris_lead_nowhere() {
    let (shed, source) = store_of_one();
    let outside = shed.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "mine").unwrap();
    for staged in ["7-7", "removed-8-8"] {
        let staged = shed.root().join("tmp").join(staged);
        fs::create_dir(&staged).unwrap();
        symlink(outside.join("mine"), staged.join("evil")).unwrap();
        symlink(&outside, staged.join("folder")).unwrap();
        symlink(outside.join("new"), staged.join(".commit")).unwrap();
    }
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    picture(&outside, &mut before);
    run_everything(&shed, &source);
    picture(&outside, &mut after);
    assert_eq!(before, after);
}

#[test]
fn the_root_of_a_store_may_be_a_link_of_the_user() {
    let (shed, _) = store_of_one();
    let link = shed.path("link");
    symlink(shed.root(), &link).unwrap();
    must(env!("CARGO_BIN_EXE_cowshed"), &["--store", link.to_str().unwrap(), "clone", "b", "z"]);
}
