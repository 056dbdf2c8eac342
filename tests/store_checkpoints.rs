//! Checkpoints: frozen, gone back to, removed.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::ops::check::check_clone;
use cowshed::store::{Access, CloneOptions, DiskFormat, Target};
use std::fs;
use std::os::unix::fs::MetadataExt;

const SIZE: usize = 2 << 20;

/// Every layer is clean for QEMU and for us, and QEMU reads what we read.
fn sound(temp: &TempStore, expected: &[u8]) {
    assert!(temp.clone_content("a") == expected, "our content");
    let folder = temp.clone_folder("a");
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "qcow2") {
            qemu_check(&path);
        }
    }
    assert!(qemu_content(&folder.join("disk.qcow2"), DiskFormat::Qcow2) == expected, "QEMU's content");
    let report = check_clone(&temp.store, &name("a"), false).unwrap();
    assert_eq!((report.errors(), report.leaks(), &report.refused), (0, 0, &None));
    assert_eq!(report.layers.len(), 1 + temp.store.checkpoints(&name("a")).unwrap().len());
    assert!(temp.tmp_is_empty());
}

#[test]
fn going_back_and_forth_gives_each_state_again() {
    for compat in [false, true] {
        let (temp, _) = TempStore::with_base(SIZE);
        let base = file_digest(&temp.base_disk());
        let options = CloneOptions { compat, ..CloneOptions::default() };
        temp.store.create_clones(&base_ref("base"), &[name("a")], &options).unwrap();
        let clone = name("a");
        let mut one = sample(SIZE);
        one[100_000..300_000].fill(1);
        temp.write("a", &[1; 200_000], 100_000);
        let first = temp.store.checkpoint(&clone, Some("fresh")).unwrap();
        assert_eq!((first.number, first.parent, first.note.as_deref()), (1, None, Some("fresh")));
        sound(&temp, &one);
        let mut two = one.clone();
        two[200_000..500_000].fill(2);
        temp.write("a", &[2; 300_000], 200_000);
        assert_eq!(temp.store.checkpoint(&clone, None).unwrap().parent, Some(1));
        let mut three = two.clone();
        three[..70_000].fill(3);
        temp.write("a", &[3; 70_000], 0);
        sound(&temp, &three);

        let kept = temp.store.restore(&clone, 1, true).unwrap().kept.unwrap();
        assert_eq!((kept.number, kept.parent), (3, Some(2)));
        assert_eq!(temp.store.current_checkpoint(&clone).unwrap(), Some(1));
        sound(&temp, &one);
        temp.write("a", &[4; 4096], 1 << 20);
        temp.store.restore(&clone, 3, false).unwrap();
        sound(&temp, &three);
        assert_eq!(temp.store.restore(&clone, 2, false).unwrap().kept, None);
        sound(&temp, &two);
        let all: Vec<_> =
            temp.store.checkpoints(&clone).unwrap().iter().map(|c| (c.number, c.parent)).collect();
        assert_eq!(all, [(1, None), (2, Some(1)), (3, Some(2))]);
        temp.store.rename(&clone, &name("b")).unwrap();
        temp.store.rename(&name("b"), &clone).unwrap();
        sound(&temp, &two);
        assert_eq!(file_digest(&temp.base_disk()), base);
    }
}

#[test]
fn a_checkpoint_that_something_stands_on_stays() {
    let (temp, _) = TempStore::with_base(SIZE);
    temp.clones(&["a"]);
    let clone = name("a");
    temp.write("a", &vec![1; 1 << 20], 0);
    temp.store.checkpoint(&clone, None).unwrap();
    temp.store.checkpoint(&clone, None).unwrap();
    for (number, above) in [(1, "checkpoint 2"), (2, "its present state")] {
        let error = temp.store.remove_checkpoint(&clone, number).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains(above), "{error}");
    }
    assert_eq!(temp.store.remove_checkpoint(&clone, 3).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(temp.store.restore(&clone, 3, true).unwrap_err().kind(), Kind::NotFound);
    temp.store.restore(&clone, 1, false).unwrap();
    temp.write("a", &vec![2; 1 << 20], 1 << 20);
    let before = temp.store.usage(&Target::Clone(clone.clone())).unwrap();
    let freed = temp.store.remove_checkpoint(&clone, 2).unwrap();
    let after = temp.store.usage(&Target::Clone(clone.clone())).unwrap();
    assert_eq!(before.own_bytes - after.own_bytes, freed.bytes);
    assert!(freed.bytes > 0);
    let mut expected = sample(SIZE);
    expected[..1 << 20].fill(1);
    expected[1 << 20..].fill(2);
    sound(&temp, &expected);
}

#[test]
fn an_unfinished_checkpoint_is_none_and_goes() {
    let (temp, _) = TempStore::with_base(SIZE);
    temp.clones(&["a"]);
    let folder = temp.clone_folder("a");
    temp.write("a", &[1; 5000], 0);
    // Died before the rename: the same file under two names, with and without its manifest.
    temp.store.checkpoint(&name("a"), None).unwrap();
    let manifest = fs::read(folder.join("checkpoint-1.json")).unwrap();
    fs::hard_link(folder.join("disk.qcow2"), folder.join("checkpoint-2.qcow2")).unwrap();
    fs::write(folder.join("checkpoint-2.json"), &manifest).unwrap();
    fs::write(folder.join(".checkpoint-3.json.new"), "{").unwrap();
    // Half of a checkpoint that is being put back from a backup: it stays, and its number is not used again.
    fs::write(folder.join("checkpoint-9.json"), &manifest).unwrap();
    let numbers = || -> Vec<u32> {
        temp.store.checkpoints(&name("a")).unwrap().iter().map(|checkpoint| checkpoint.number).collect()
    };
    assert_eq!(numbers(), [1]);
    temp.write("a", &[2; 5000], 0);
    temp.store.checkpoint(&name("a"), None).unwrap();
    assert_eq!(numbers(), [1, 10]);
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = "checkpoint-1.json checkpoint-1.qcow2 checkpoint-10.json checkpoint-10.qcow2 checkpoint-9.json clone.json disk.qcow2";
    assert_eq!(names.join(" "), expected);
    // Died while it removed one: the file without its manifest goes, unless something stands on it.
    temp.store.restore(&name("a"), 1, false).unwrap();
    fs::remove_file(folder.join("checkpoint-10.json")).unwrap();
    assert_eq!(numbers(), [1]);
    temp.store.checkpoint(&name("a"), None).unwrap();
    assert_eq!(numbers(), [1, 10]);
    let mut content = sample(SIZE);
    content[..5000].fill(1);
    sound(&temp, &content);
    fs::remove_file(folder.join("checkpoint-1.json")).unwrap();
    assert!(temp.store.checkpoint(&name("a"), None).is_err());
    assert!(folder.join("checkpoint-1.qcow2").exists(), "a layer that is stood on was removed");
}

#[test]
fn a_checkpoint_that_was_written_to_is_refused() {
    let (temp, _) = TempStore::with_base(SIZE);
    temp.clones(&["a"]);
    temp.write("a", &[1; 5000], 0);
    temp.store.checkpoint(&name("a"), None).unwrap();
    let path = temp.clone_folder("a").join("checkpoint-1.qcow2");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o400);
    must("qemu-io", &["-f", "qcow2", "-c", "write 0 512", path.to_str().unwrap()]);
    let error = temp.store.open_clone(&name("a"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    assert!(error.to_string().contains("checkpoint 1 of clone a"), "{error}");
}

#[test]
fn a_chain_has_a_bound() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    for _ in 0..62 {
        temp.store.checkpoint(&name("a"), None).unwrap();
    }
    let error = temp.store.checkpoint(&name("a"), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    assert!(error.to_string().contains("64"), "{error}");
    assert_eq!(temp.store.restore(&name("a"), 62, true).unwrap().kept.unwrap().number, 63);
    assert_eq!(temp.clone_content("a"), sample(1 << 20));
    temp.store.restore(&name("a"), 5, true).unwrap();
    assert_eq!(temp.clone_content("a"), sample(1 << 20));
}

#[test]
fn a_note_with_control_characters_is_refused() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    assert_eq!(temp.store.checkpoint(&name("a"), Some("a\u{1b}[2J")).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(temp.store.checkpoint(&name("a"), Some(&"x".repeat(5000))).unwrap_err().kind(), Kind::Invalid);
    assert!(temp.store.checkpoints(&name("a")).unwrap().is_empty());
}
