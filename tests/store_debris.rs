//! What dead processes left in `tmp` never stands in the way.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::store::{CloneOptions, Store, Target};
use std::fs;
use std::path::Path;

/// A tree that is deeper than any of ours, so that it is not removed.
fn plant_stubborn(folder: &Path) {
    let deep: String = (0..20).map(|level| format!("d{level}/")).collect();
    fs::create_dir_all(folder.join(deep)).unwrap();
}

#[test]
fn debris_that_cannot_be_removed_stops_no_command() {
    let (temp, _) = TempStore::with_base(1 << 20);
    let tmp = temp.root().join("tmp");
    plant_stubborn(&tmp.join("7-7"));
    fs::create_dir(tmp.join("8-8")).unwrap();
    fs::write(tmp.join("file"), "x").unwrap();
    std::os::unix::fs::symlink("/", tmp.join("link")).unwrap();
    temp.clones(&["a"]);
    temp.store.checkpoint(&name("a"), None).unwrap();
    temp.store.remove_clone(&name("a")).unwrap();
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["7-7"]);
}

#[test]
fn a_removal_whose_blocks_stay_says_so() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    plant_stubborn(&temp.clone_folder("a"));
    let error = temp.store.remove_clone(&name("a")).unwrap_err();
    assert!(error.to_string().contains("clone a is removed, but its blocks"), "{error}");
    assert!(temp.store.clones().unwrap().is_empty());
    temp.clones(&["a"]);
    plant_stubborn(&temp.root().join("bases/base/1"));
    temp.store.remove_clone(&name("a")).unwrap();
    let error = temp.store.remove_base(&base_ref("base")).unwrap_err();
    assert!(error.to_string().contains("base base@1 is removed, but its blocks"), "{error}");
    assert!(temp.store.bases().unwrap().is_empty());
}

#[test]
fn a_batch_that_cannot_be_finished_keeps_nobody_from_reading_or_removing() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let batch = temp.root().join("tmp/9-9");
    fs::create_dir(&batch).unwrap();
    must("cp", &["-a", temp.clone_folder("a").to_str().unwrap(), batch.to_str().unwrap()]);
    fs::write(batch.join(".commit"), "").unwrap();
    let store = Store::open(temp.root()).unwrap();
    assert_eq!(store.clones().unwrap().len(), 1);
    let error = store.create_clones(&base_ref("base"), &[name("b")], &CloneOptions::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists, "{error}");
    assert!(error.to_string().contains("tmp"), "{error}");
    store.remove_clone(&name("a")).unwrap();
    store.create_clones(&base_ref("base"), &[name("b")], &CloneOptions::default()).unwrap();
    let names: Vec<String> = store.clones().unwrap().iter().map(|clone| clone.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(temp.tmp_is_empty());
}

#[test]
fn what_is_removed_is_never_taken_for_a_batch() {
    let (temp, _) = TempStore::with_base(1 << 20);
    let removed = temp.root().join("tmp/removed-9-9");
    fs::create_dir_all(removed.join("back")).unwrap();
    fs::write(removed.join(".commit"), "").unwrap();
    let store = Store::open(temp.root()).unwrap();
    temp.clones(&["a"]);
    assert_eq!(store.clones().unwrap().len(), 1);
    assert!(temp.tmp_is_empty() && !temp.clone_folder("back").exists());
}

#[test]
fn commands_at_the_same_time_do_not_trip_over_each_others_ends() {
    let (temp, _) = TempStore::with_base(1 << 20);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &temp.store;
            scope.spawn(move || {
                for round in 0..30 {
                    let clone = name(&format!("c{thread}-{round}"));
                    let names = [clone.clone()];
                    store.create_clones(&base_ref("base"), &names, &CloneOptions::default()).unwrap();
                    drop(store.scratch(&Target::Clone(clone.clone())).unwrap());
                    store.remove_clone(&clone).unwrap();
                }
            });
        }
    });
    assert!(temp.store.clones().unwrap().is_empty());
}
