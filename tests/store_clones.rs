//! Clones: made, renamed, removed, counted.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::store::{Access, BaseRef, CloneOptions, Name, Store, Target};
use cowshed::units::GuestOffset;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

#[test]
fn a_clone_reads_like_its_base_and_keeps_its_own_writes() {
    let (temp, base) = TempStore::with_base(5 << 20);
    let before = file_digest(&temp.base_disk());
    for compat in [false, true] {
        let clone = if compat { "plain" } else { "extended" };
        let labels = [("who".to_owned(), "me".to_owned())].into();
        let options = CloneOptions { compat, labels };
        let made = temp.store.create_clones(&base_ref("base"), &[name(clone)], &options).unwrap();
        assert_eq!(made, [temp.store.clone_named(&name(clone)).unwrap()]);
        assert_eq!((made[0].base.version, made[0].base.digest, made[0].size), (1, base.digest, 5 << 20));
        assert_eq!(temp.clone_content(clone), sample(5 << 20));
        temp.write(clone, &[7; 9000], 70_001);
        let mut expected = sample(5 << 20);
        expected[70_001..79_001].fill(7);
        assert_eq!(temp.clone_content(clone), expected);
        let disk = temp.store.path(&Target::Clone(name(clone))).unwrap();
        qemu_check(&disk);
        assert_eq!(qemu_content(&disk, cowshed::store::DiskFormat::Qcow2), expected);
    }
    assert_eq!(file_digest(&temp.base_disk()), before);
    assert!(temp.tmp_is_empty());
}

#[test]
fn a_name_is_had_once_by_clones_and_bases_together() {
    let (temp, _) = TempStore::with_base(1 << 20);
    let make = |names: &[&str]| {
        let names: Vec<Name> = names.iter().map(|n| name(n)).collect();
        temp.store.create_clones(&base_ref("base"), &names, &CloneOptions::default()).map(|_| ())
    };
    for taken in [&["a", "b", "a"][..], &["base"], &["c", "base", "d"]] {
        assert_eq!(make(taken).unwrap_err().kind(), Kind::Exists, "{taken:?}");
        assert!(temp.store.clones().unwrap().is_empty(), "all or none");
    }
    make(&["b", "a"]).unwrap();
    assert_eq!(make(&["c", "a"]).unwrap_err().kind(), Kind::Exists);
    let names: Vec<String> = temp.store.clones().unwrap().iter().map(|c| c.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    let source = temp.dir.path().join("base.source");
    let import =
        cowshed::ops::import::import(&temp.store, &request(&source, "a", None), &cowshed::ops::Silent);
    assert_eq!(import.unwrap_err().kind(), Kind::Exists);
    assert_eq!(temp.store.rename(&name("a"), &name("b")).unwrap_err().kind(), Kind::Exists);
    assert_eq!(temp.store.rename(&name("a"), &name("base")).unwrap_err().kind(), Kind::Exists);
    assert_eq!(temp.store.rename(&name("x"), &name("y")).unwrap_err().kind(), Kind::NotFound);
    temp.store.rename(&name("a"), &name("z")).unwrap();
    assert_eq!(temp.clone_content("z"), sample(1 << 20));
    assert_eq!(temp.store.find(&base_ref("z")).unwrap(), Target::Clone(name("z")));
    assert_eq!(temp.store.find(&base_ref("base")).unwrap(), Target::Base(base_ref("base@1")));
    assert_eq!(temp.store.find(&base_ref("a")).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(make(&[]).map_err(|e| e.kind()), Ok(()));
}

#[test]
fn a_base_with_clones_is_neither_removed_nor_renamed_and_they_are_named() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["first", "second"]);
    for error in [
        temp.store.remove_base(&base_ref("base@1")).unwrap_err(),
        temp.store.rename(&name("base"), &name("other")).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Busy);
        let said = error.to_string();
        assert!(said.contains("clone first") && said.contains("clone second"), "{said}");
    }
    assert_eq!(temp.store.clones_of(&base_ref("base")).unwrap(), [name("first"), name("second")]);
    temp.store.remove_clone(&name("first")).unwrap();
    temp.store.remove_clone(&name("second")).unwrap();
    temp.store.rename(&name("base"), &name("other")).unwrap();
    assert_eq!(temp.content(&Target::Base(base_ref("other@1"))), sample(1 << 20));
    let used = temp.store.usage(&Target::Base(base_ref("other"))).unwrap();
    let freed = temp.store.remove_base(&base_ref("other")).unwrap();
    assert_eq!(freed.bytes, used.freed_if_deleted);
    assert!(freed.bytes > 500_000, "{freed:?}");
    assert!(temp.store.bases().unwrap().is_empty() && temp.tmp_is_empty());
    assert_eq!(temp.store.remove_base(&base_ref("other")).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(temp.store.remove_clone(&name("first")).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn what_somebody_has_open_is_neither_removed_nor_renamed() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    for access in [Access::Read, Access::Write] {
        let open = temp.store.open_clone(&name("a"), access).unwrap();
        assert_eq!(temp.store.remove_clone(&name("a")).unwrap_err().kind(), Kind::Busy);
        assert_eq!(temp.store.rename(&name("a"), &name("b")).unwrap_err().kind(), Kind::Busy);
        assert_eq!(temp.store.checkpoint(&name("a"), None).unwrap_err().kind(), Kind::Busy);
        open.close().unwrap();
    }
    temp.store.remove_clone(&name("a")).unwrap();
    let scratch = temp.store.scratch(&Target::Base(base_ref("base"))).unwrap();
    assert_eq!(temp.store.remove_base(&base_ref("base")).unwrap_err().kind(), Kind::Busy);
    drop(scratch);
    temp.store.remove_base(&base_ref("base")).unwrap();
}

#[test]
fn a_throw_away_layer_takes_writes_and_leaves_nothing() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    temp.write("a", &[5; 4096], 4096);
    let clone = file_digest(&temp.clone_folder("a").join("disk.qcow2"));
    for target in [Target::Clone(name("a")), Target::Base(base_ref("base"))] {
        let before = temp.content(&target);
        let scratch = temp.store.scratch(&target).unwrap();
        let mut after = vec![0; 1 << 20];
        scratch.disk.disk.write(&[9; 5000], GuestOffset(600_000)).unwrap();
        scratch.disk.disk.read(&mut after, GuestOffset(0)).unwrap();
        let mut expected = before.clone();
        expected[600_000..605_000].fill(9);
        assert_eq!(after, expected);
        scratch.disk.disk.flush().unwrap();
        assert_eq!(scratch.disk.files()[0], scratch.path());
        let path = scratch.path().to_str().unwrap();
        must("qemu-img", &["check", "-U", "-f", "qcow2", path]);
        let from_qemu = must("qemu-io", &["-U", "-r", "-f", "qcow2", "-c", "read -P 9 600000 5000", path]);
        assert!(!from_qemu.contains("failed"), "{from_qemu}");
        // Another command's clean-up leaves a living process's layer alone.
        temp.clones(&[if matches!(target, Target::Base(_)) { "c1" } else { "c2" }]);
        assert!(scratch.path().exists());
        drop(scratch);
        assert_eq!(temp.content(&target), before);
        assert!(temp.tmp_is_empty());
    }
    assert_eq!(file_digest(&temp.clone_folder("a").join("disk.qcow2")), clone);
}

#[test]
fn usage_is_what_the_filesystem_says() {
    let (temp, _) = TempStore::with_base(4 << 20);
    temp.clones(&["a", "b"]);
    temp.write("a", &vec![3; 1 << 20], 0);
    temp.store.checkpoint(&name("a"), None).unwrap();
    temp.write("a", &vec![4; 512 << 10], 0);
    let usage = temp.store.usage(&Target::Clone(name("a"))).unwrap();
    let folder = temp.clone_folder("a");
    let files: u64 =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert_eq!(usage.own_bytes, files + fs::metadata(&folder).unwrap().blocks() * 512);
    assert!((3 << 19..3 << 20).contains(&usage.own_bytes), "{usage:?}");
    assert_eq!(usage.shared_bytes, fs::metadata(temp.base_disk()).unwrap().blocks() * 512);
    let base = temp.store.usage(&Target::Base(base_ref("base"))).unwrap();
    assert_eq!((base.freed_if_deleted, base.shared_bytes), (0, 0));
    // A second name elsewhere keeps the blocks.
    fs::hard_link(folder.join("disk.qcow2"), temp.dir.path().join("second")).unwrap();
    let linked = temp.store.usage(&Target::Clone(name("a"))).unwrap();
    assert_eq!(linked.own_bytes, usage.own_bytes);
    assert!(linked.freed_if_deleted + (512 << 10) <= usage.freed_if_deleted);
    fs::remove_file(temp.dir.path().join("second")).unwrap();
    let overview = temp.store.overview().unwrap();
    assert_eq!(overview.bases[0].1, base);
    assert_eq!(overview.clones[0].1, usage);
    assert_eq!(temp.store.remove_clone(&name("a")).unwrap().bytes, usage.freed_if_deleted);
}

#[test]
fn a_thousand_clones_of_100_gib_cost_next_to_nothing() {
    let temp = TempStore::new();
    let source = temp.dir.path().join("large");
    File::create(&source).unwrap().set_len(100 << 30).unwrap();
    let import = request(&source, "base", Some(cowshed::ops::import::Format::Raw));
    let base = cowshed::ops::import::import(&temp.store, &import, &cowshed::ops::Silent).unwrap();
    assert_eq!(base.size, 100 << 30);
    let names: Vec<Name> = (0..1000).map(|number| name(&format!("c{number:04}"))).collect();
    temp.store.create_clones(&base_ref("base"), &names, &CloneOptions::default()).unwrap();
    let overview = temp.store.overview().unwrap();
    let listed: Vec<Name> = overview.clones.iter().map(|(clone, _)| clone.name.clone()).collect();
    assert_eq!(listed, names);
    for (clone, usage) in &overview.clones {
        assert!(usage.own_bytes < 200 << 10, "{}: {usage:?}", clone.name);
    }
    qemu_check(&temp.clone_folder("c0999").join("disk.qcow2"));
    let [manifest, away] = ["clone.json", "away"].map(|file| temp.clone_folder("c0500").join(file));
    fs::rename(&manifest, &away).unwrap();
    let without = temp.store.overview().unwrap();
    assert_eq!(without.clones.len(), 999);
    let broken: Vec<&str> = without.broken.iter().map(|broken| broken.name.as_str()).collect();
    assert_eq!(broken, ["c0500"]);
    fs::rename(&away, &manifest).unwrap();
    assert!(temp.tmp_is_empty());
    let error = temp.store.remove_base(&BaseRef::exact(name("base"), 1)).unwrap_err().to_string();
    assert!(error.contains("and 988 more") && error.len() < 400, "{error}");
}

#[test]
fn a_batch_whose_process_died_after_its_decision_is_finished() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a", "b", "c"]);
    let staged = temp.root().join("tmp/4711-0");
    fs::create_dir(&staged).unwrap();
    fs::rename(temp.clone_folder("b"), staged.join("b")).unwrap();
    fs::rename(temp.clone_folder("c"), staged.join("c")).unwrap();
    fs::write(staged.join(".commit"), "").unwrap();
    let again = Store::open(temp.root()).unwrap();
    assert_eq!(again.clones().unwrap().len(), 3);
    assert!(temp.tmp_is_empty());
    assert_eq!(temp.clone_content("c"), sample(1 << 20));
}

#[test]
fn debris_of_the_dead_goes_and_the_living_stay() {
    let (temp, _) = TempStore::with_base(1 << 20);
    let tmp = temp.root().join("tmp");
    fs::create_dir_all(tmp.join("1-0/base")).unwrap();
    fs::write(tmp.join("1-0/base/disk.raw"), "half").unwrap();
    let sealed = File::open(tmp.join("1-0/base/disk.raw")).unwrap();
    cowshed::storage::seal(&cowshed::storage::HostFile::new(sealed)).unwrap();
    fs::create_dir(tmp.join("2-0")).unwrap();
    fs::write(tmp.join("stray"), "").unwrap();
    let living = File::open(tmp.join("2-0")).unwrap();
    let living = nix::fcntl::Flock::lock(living, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    // An import that died between two steps left an empty folder: its name is free.
    fs::create_dir(temp.root().join("bases/half")).unwrap();
    assert_eq!(temp.store.bases().unwrap().len(), 1);
    temp.clones(&["half"]);
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["2-0"]);
    drop(living);
    temp.store.remove_clone(&name("half")).unwrap();
    assert!(temp.tmp_is_empty());
    temp.store.rename(&name("base"), &name("half")).unwrap();
    assert_eq!(temp.store.bases().unwrap()[0].name, name("half"));
}

#[test]
fn of_many_that_make_the_same_clone_one_does() {
    let (temp, _) = TempStore::with_base(1 << 20);
    let made = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (temp, made) = (&temp, &made);
            scope.spawn(move || {
                let store = Store::open(temp.root()).unwrap();
                let options = CloneOptions::default();
                for number in 0..5 {
                    let names = [name(&format!("own{thread}-{number}")), name(&format!("same{number}"))];
                    match store.create_clones(&base_ref("base"), &names, &options) {
                        Ok(_) => _ = made.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
                        Err(error) => assert_eq!(error.kind(), Kind::Exists, "{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(made.into_inner(), 5);
    assert_eq!(temp.store.clones().unwrap().len(), 10);
    assert!(temp.tmp_is_empty());
}
