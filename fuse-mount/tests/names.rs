//! Folders and names: what is listed, what comes and goes, what cannot be made.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use common::{TestView, code};

fn names(view: &TestView, folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(view.path(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_root_shows_the_folders_and_nothing_else() {
    let view = TestView::new();
    assert_eq!(names(&view, ""), BTreeSet::from(["bases".to_owned(), "clones".to_owned()]));
    assert!(view.path("bases").is_dir());
    assert_eq!(code(fs::metadata(view.path("other"))), libc::ENOENT);
    assert_eq!(code(fs::metadata(view.path("clones/none.raw"))), libc::ENOENT);
    assert_eq!(code(fs::metadata(view.path(&format!("clones/{}", "x".repeat(256))))), libc::ENAMETOOLONG);
}

#[test]
fn stat_is_true() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    view.memory.add("bases/b@1.raw", 12345);
    disk.put(0, b"x");
    let clone = fs::metadata(view.path("clones/a.raw")).unwrap();
    assert_eq!((clone.len(), clone.blocks()), (1 << 20, 128));
    assert_eq!(clone.modified().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_001));
    assert_eq!(clone.permissions().mode(), 0o100_600);
    assert_eq!((clone.uid(), clone.gid()), (0, 0));
    let base = fs::metadata(view.path("bases/b@1.raw")).unwrap();
    assert_eq!((base.len(), base.permissions().mode()), (12345, 0o100_444));
    let file = view.writable("clones/a.raw");
    file.write_all_at(b"y", 500_000).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 256, "an open file answers for itself");
}

#[test]
fn files_appear_and_vanish_at_once() {
    let view = TestView::new();
    for round in 0..3 {
        assert_eq!(code(fs::metadata(view.path("clones/a.raw"))), libc::ENOENT, "round {round}");
        view.memory.add("clones/a.raw", 4096);
        assert_eq!(fs::metadata(view.path("clones/a.raw")).unwrap().len(), 4096);
        assert_eq!(names(&view, "clones"), BTreeSet::from(["a.raw".to_owned()]));
        view.memory.remove("clones/a.raw");
        assert_eq!(code(fs::File::open(view.path("clones/a.raw"))), libc::ENOENT);
        assert!(names(&view, "clones").is_empty());
    }
}

#[test]
fn a_folder_of_thousands_is_listed_whole_and_without_impossible_names() {
    let view = TestView::new();
    let all: BTreeSet<String> = (0..3000).map(|i| format!("{}-{i}.raw", "long".repeat(i % 30))).collect();
    for name in &all {
        view.memory.add(&format!("clones/{name}"), 4096);
    }
    for bad in ["..", "a/b", "", "nul\0"] {
        view.memory.add(&format!("clones/{bad}"), 4096);
    }
    assert_eq!(names(&view, "clones"), all);
}

#[test]
fn numbers_stay_while_a_name_is_known_and_listings_agree() {
    let view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    let listed = fs::read_dir(view.path("clones")).unwrap().next().unwrap().unwrap().ino();
    let first = fs::metadata(view.path("clones/a.raw")).unwrap().ino();
    let again = fs::metadata(view.path("clones/a.raw")).unwrap().ino();
    assert_eq!((listed, first), (first, again));
}

#[test]
fn an_open_file_stays_usable_after_its_name_is_gone_or_stands_for_another_disk() {
    let view = TestView::new();
    let old = view.memory.add("clones/a.raw", 8192);
    let file = view.writable("clones/a.raw");
    let number = file.metadata().unwrap().ino();
    file.write_all_at(b"old", 0).unwrap();
    view.memory.remove("clones/a.raw");
    let mut buffer = [0; 3];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!((&buffer, file.metadata().unwrap().len()), (b"old", 8192));
    // The name was not looked up while it was gone: only the source's identity tells the disks apart.
    let new = view.memory.add("clones/a.raw", 4096);
    new.put(0, b"new");
    let other = view.read_only("clones/a.raw");
    assert_ne!(other.metadata().unwrap().ino(), number);
    other.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"new");
    file.write_all_at(b"OLD", 0).unwrap();
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!((&buffer, old.get(0, 3), new.get(0, 3)), (b"OLD", b"OLD".to_vec(), b"new".to_vec()));
}

#[test]
fn nothing_can_be_made_renamed_or_removed() {
    let view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    let (a, b) = (view.path("clones/a.raw"), view.path("clones/b.raw"));
    assert_eq!(code(fs::File::create(&b)), libc::EROFS);
    assert_eq!(code(fs::remove_file(&a)), libc::EROFS);
    assert_eq!(code(fs::rename(&a, &b)), libc::EROFS);
    assert_eq!(code(fs::hard_link(&a, &b)), libc::EROFS);
    assert_eq!(code(std::os::unix::fs::symlink(&a, &b)), libc::EROFS);
    assert_eq!(code(fs::create_dir(view.path("clones/d"))), libc::EROFS);
    assert_eq!(code(fs::create_dir(view.path("d"))), libc::EROFS);
    assert_eq!(code(fs::remove_dir(view.path("clones"))), libc::EROFS);
    assert_eq!(names(&view, "clones"), BTreeSet::from(["a.raw".to_owned()]));
}

#[test]
fn the_source_learns_process_and_user_of_an_opener() {
    let view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    std::thread::scope(|scope| {
        scope.spawn(|| view.writable("clones/a.raw"));
    });
    view.read_only("clones/a.raw");
    let openers = view.memory.openers.lock().unwrap().clone();
    let pid = std::process::id();
    let seen: Vec<_> = openers.iter().map(|opener| (opener.write, opener.pid, opener.uid)).collect();
    assert_eq!(seen, [(true, pid, 0), (false, pid, 0)]);
}
