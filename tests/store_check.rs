//! Check and repair of a clone's files.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::ops::check::check_clone;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Counts a cluster past the end of the file as used.
fn leak(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // The refcount table's first entry leads to the first block of 16-bit counts.
    let block = number(number(48));
    file.write_all_at(&[0, 1], block + 2 * 100).unwrap();
}

#[test]
fn a_leak_is_told_and_repaired_and_the_content_stays() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    temp.write("a", &[5; 70_000], 3000);
    let expected = temp.clone_content("a");
    let disk = temp.clone_folder("a").join("disk.qcow2");
    leak(&disk);
    let report = check_clone(&temp.store, &name("a"), false).unwrap();
    assert_eq!((report.errors(), report.leaks()), (0, 1), "{report:?}");
    assert_eq!(report.layers[0].file, Path::new("clones/a/disk.qcow2"));
    let report = check_clone(&temp.store, &name("a"), true).unwrap();
    assert_eq!((report.errors(), report.leaks(), report.refused), (0, 0, None));
    qemu_check(&disk);
    assert!(temp.clone_content("a") == expected);
}

#[test]
fn damage_is_told_with_its_layer_and_a_changed_base_with_its_name() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    temp.store.checkpoint(&name("a"), None).unwrap();
    let checkpoint = temp.clone_folder("a").join("checkpoint-1.qcow2");
    fs::write(&checkpoint, "not an image").unwrap();
    temp.meddle(|file| file.set_len(4096).unwrap());
    let report = check_clone(&temp.store, &name("a"), false).unwrap();
    let layers: Vec<_> =
        report.layers.iter().map(|l| (l.file.to_str().unwrap(), l.report.error_count)).collect();
    assert_eq!(layers, [("clones/a/disk.qcow2", 0), ("clones/a/checkpoint-1.qcow2", 1)]);
    assert!(report.refused.is_some() && report.errors() == 2, "{report:?}");
    temp.clones_of_changed_base_are_refused();
    assert_eq!(check_clone(&temp.store, &name("x"), false).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_checkpoint_outside_the_present_chain_is_checked_too() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    temp.store.checkpoint(&name("a"), None).unwrap();
    temp.write("a", &[5; 70_000], 3000);
    temp.store.checkpoint(&name("a"), None).unwrap();
    temp.store.restore(&name("a"), 1, false).unwrap();
    let report = check_clone(&temp.store, &name("a"), false).unwrap();
    assert_eq!(report.errors(), 0, "{report:?}");
    let outside = File::open(temp.clone_folder("a").join("checkpoint-2.qcow2")).unwrap();
    outside.set_modified(std::time::SystemTime::now()).unwrap();
    let report = check_clone(&temp.store, &name("a"), false).unwrap();
    assert_eq!((report.errors(), report.refused.as_deref()), (1, None), "{report:?}");
    assert!(report.refused_checkpoints[0].contains("checkpoint 2 of clone a"), "{report:?}");
}

impl TempStore {
    fn clones_of_changed_base_are_refused(&self) {
        let made = self.store.create_clones(&base_ref("base"), &[name("b")], &Default::default());
        assert_eq!(made.unwrap_err().kind(), Kind::Changed);
    }
}
