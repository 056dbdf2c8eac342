//! A full disk, and a process that dies: before or after, never between.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::ops::Silent;
use cowshed::ops::fold::{plan, remove_checkpoint};
use cowshed::ops::import::{Format, import};
use cowshed::store::{Access, CloneOptions, Name, Store};
use cowshed::units::GuestOffset;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A small filesystem in memory.
struct Small {
    dir: Scrap,
}

impl Small {
    fn new(size: &str) -> Self {
        Self::with_inodes(size, 100_000)
    }

    fn with_inodes(size: &str, inodes: u32) -> Self {
        let dir = Scrap::new();
        let options = format!("size={size},nr_inodes={inodes}");
        must("mount", &["-t", "tmpfs", "-o", &options, "small", dir.path().to_str().unwrap()]);
        Self { dir }
    }

    fn store(&self) -> Store {
        Store::open_or_create(&self.dir.path().join("store")).unwrap()
    }

    fn used(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(self.dir.path()).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unseal_all(self.dir.path());
        must("umount", &[self.dir.path().to_str().unwrap()]);
    }
}

fn empty(path: &Path) -> bool {
    fs::read_dir(path).unwrap().next().is_none()
}

#[test]
fn a_full_disk_during_an_import_leaves_nothing() {
    let small = Small::new("8m");
    let store = small.store();
    let outside = Scrap::new();
    let raw = outside.path().join("large.raw");
    fs::write(&raw, sample(24 << 20)).unwrap();
    let vdi = outside.path().join("large.vdi");
    must("qemu-img", &["convert", "-f", "raw", "-O", "vdi", raw.to_str().unwrap(), vdi.to_str().unwrap()]);
    let used = small.used();
    for source in [&raw, &vdi] {
        let error = import(&store, &request(source, "base", None), &Silent).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        assert!(empty(&store.root().join("tmp")) && empty(&store.root().join("bases")));
        assert_eq!(small.used(), used);
    }
    fs::write(&raw, sample(1 << 20)).unwrap();
    import(&store, &request(&raw, "base", None), &Silent).unwrap();
}

#[test]
fn a_full_disk_while_clones_are_made_leaves_none_of_them() {
    let small = Small::new("8m");
    let store = small.store();
    let outside = Scrap::new();
    let raw = outside.path().join("in.raw");
    fs::write(&raw, sample(1 << 20)).unwrap();
    import(&store, &request(&raw, "base", Some(Format::Raw)), &Silent).unwrap();
    let used = small.used();
    let names: Vec<Name> = (0..2000).map(|number| name(&format!("c{number}"))).collect();
    let error = store.create_clones(&base_ref("base"), &names, &CloneOptions::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!(store.clones().unwrap().is_empty());
    assert!(empty(&store.root().join("tmp")) && empty(&store.root().join("clones")));
    assert_eq!(small.used(), used);
    store.create_clones(&base_ref("base"), &names[..3], &CloneOptions::default()).unwrap();

    // A checkpoint on a full disk: the clone stays as it was.
    let filler = small.dir.path().join("filler");
    let _ = fs::write(&filler, vec![1; 8 << 20]);
    let error = store.checkpoint(&names[0], None).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!(store.checkpoints(&names[0]).unwrap().is_empty());
    fs::remove_file(&filler).unwrap();
    store.checkpoint(&names[0], None).unwrap();
    let folder = store.root().join("clones/c0");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 4);
}

#[test]
fn a_fold_without_room_leaves_all_as_it_was() {
    let small = Small::new("12m");
    let store = small.store();
    let outside = Scrap::new();
    let raw = outside.path().join("in.raw");
    fs::write(&raw, sample(4 << 20)).unwrap();
    import(&store, &request(&raw, "base", Some(Format::Raw)), &Silent).unwrap();
    store.create_clones(&base_ref("base"), &[name("a")], &CloneOptions::default()).unwrap();
    let write = |byte: u8, at: u64| {
        let open = store.open_clone(&name("a"), Access::Write).unwrap();
        open.disk.write(&vec![byte; 1 << 20], GuestOffset(at)).unwrap();
        open.close().unwrap();
    };
    write(1, 0);
    store.checkpoint(&name("a"), None).unwrap();
    write(2, 2 << 20);
    let content = || {
        let open = store.open_clone(&name("a"), Access::Read).unwrap();
        let mut bytes = vec![0; 4 << 20];
        open.disk.read(&mut bytes, GuestOffset(0)).unwrap();
        blake3::hash(&bytes)
    };
    let (before, used) = (content(), small.used());
    let filler = small.dir.path().join("filler");
    let mut refused = 0;
    for left in [0, 64 << 10, 1 << 20, 2 << 20] {
        let _ = fs::write(&filler, vec![1; 12 << 20]);
        let len = fs::metadata(&filler).unwrap().len().saturating_sub(left);
        fs::File::options().write(true).open(&filler).unwrap().set_len(len).unwrap();
        let error = remove_checkpoint(&store, &name("a"), 1, &Silent).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{left} left: {error}");
        fs::remove_file(&filler).unwrap();
        assert!(empty(&store.root().join("tmp")));
        assert_eq!((content(), small.used()), (before, used), "{left} left");
        assert_eq!(store.checkpoints(&name("a")).unwrap().len(), 1);
        refused += 1;
    }
    assert_eq!(refused, 4);
    let planned = plan(&store, &name("a"), 1).unwrap().needs_bytes.unwrap();
    assert!((2 << 20..(2 << 20) + (256 << 10)).contains(&planned), "{planned}");
    remove_checkpoint(&store, &name("a"), 1, &Silent).unwrap();
    assert!(store.checkpoints(&name("a")).unwrap().is_empty() && content() == before);
}

#[test]
fn removing_works_on_a_full_disk() {
    let small = Small::with_inodes("8m", 300);
    let store = small.store();
    let outside = Scrap::new();
    let raw = outside.path().join("in.raw");
    fs::write(&raw, sample(1 << 20)).unwrap();
    import(&store, &request(&raw, "base", Some(Format::Raw)), &Silent).unwrap();
    store.create_clones(&base_ref("base"), &[name("a")], &CloneOptions::default()).unwrap();
    let full =
        (0..300).any(|number| fs::write(small.dir.path().join(format!("filler{number}")), "").is_err());
    assert!(full);
    let _ = fs::write(small.dir.path().join("filler0"), vec![1; 8 << 20]);
    let error = store.create_clones(&base_ref("base"), &[name("b")], &CloneOptions::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    store.remove_clone(&name("a")).unwrap();
    assert!(store.clones().unwrap().is_empty() && empty(&store.root().join("tmp")));
}

const DIE: &str = "COWSHED_TEST_STORE";
const PHASE: &str = "COWSHED_TEST_PHASE";

/// The body of the process that is killed: it changes the store until it dies. Without the variable it is no test.
#[test]
fn worker_that_is_killed() {
    let Some(path) = std::env::var_os(DIE).map(PathBuf::from) else { return };
    let store = Store::open(&path).unwrap();
    let phase: usize = std::env::var(PHASE).unwrap().parse().unwrap();
    let batch: Vec<Name> = (0..10).map(|number| name(&format!("batch{number}"))).collect();
    let source = path.parent().unwrap().join("base.source");
    let kept = name("kept");
    let phases: [&dyn Fn(); 3] = [
        &|| {
            store.create_clones(&base_ref("base"), &batch, &CloneOptions::default()).unwrap();
            for clone in &batch {
                store.remove_clone(clone).unwrap();
            }
        },
        &|| {
            let frozen = store.checkpoint(&kept, None).unwrap();
            let undo = store.restore(&kept, frozen.number, true).unwrap().kept.unwrap();
            store.remove_checkpoint(&kept, undo.number).unwrap();
            store.restore(&kept, 1, false).unwrap();
            store.remove_checkpoint(&kept, frozen.number).unwrap();
        },
        &|| {
            import(&store, &request(&source, "other", None), &Silent).unwrap();
            store.rename(&name("other"), &name("third")).unwrap();
            store.remove_base(&base_ref("third")).unwrap();
        },
    ];
    for phase in phases.iter().cycle().skip(phase) {
        phase();
    }
}

#[test]
fn a_killed_command_leaves_the_state_before_or_after() {
    let (temp, _) = TempStore::with_base(1 << 20);
    let base = file_digest(&temp.base_disk());
    temp.clones(&["kept"]);
    temp.write("kept", &[6; 100_000], 50_000);
    temp.store.checkpoint(&name("kept"), None).unwrap();
    let mut expected = sample(1 << 20);
    expected[50_000..150_000].fill(6);
    for round in 0..45_u64 {
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker_that_is_killed", "--nocapture"])
            .env(DIE, temp.root())
            .env(PHASE, (round % 3).to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 + round * 7919 % 83));
        let ended = worker.try_wait().unwrap();
        worker.kill().unwrap();
        let output = worker.wait_with_output().unwrap();
        assert!(ended.is_none(), "round {round}: {}", String::from_utf8_lossy(&output.stderr));
        let store = Store::open(temp.root()).unwrap();
        check_names(&store, round);
        assert!(temp.clone_content("kept") == expected, "round {round}");
        // The next change cleans up, and goes on from there.
        for clone in store.clones().unwrap().iter().filter(|clone| clone.name != name("kept")) {
            store.remove_clone(&clone.name).unwrap();
        }
        for other in store.bases().unwrap().iter().filter(|other| other.name != name("base")) {
            store.remove_base(&cowshed::store::BaseRef::exact(other.name.clone(), 1)).unwrap();
        }
        store.restore(&name("kept"), 1, false).unwrap();
        for checkpoint in store.checkpoints(&name("kept")).unwrap().iter().rev().filter(|c| c.number > 1) {
            store.remove_checkpoint(&name("kept"), checkpoint.number).unwrap();
        }
        assert!(temp.tmp_is_empty(), "round {round}");
        assert_eq!(fs::read_dir(temp.clone_folder("kept")).unwrap().count(), 4, "round {round}");
        qemu_check(&temp.clone_folder("kept").join("disk.qcow2"));
    }
    assert_eq!(file_digest(&temp.base_disk()), base);
}

/// Of a batch all clones are there or none, unless they were being removed, one after the other from the first.
fn check_names(store: &Store, round: u64) {
    let clones = store.clones().unwrap();
    let numbers: Vec<&str> =
        clones.iter().filter_map(|clone| clone.name.as_str().strip_prefix("batch")).collect();
    let first = numbers.first().map_or(10, |number| number.parse::<usize>().unwrap());
    let expected: Vec<String> = (first..10).map(|number| number.to_string()).collect();
    assert_eq!(numbers, expected, "round {round}");
    for base in store.bases().unwrap() {
        store.open_base(&cowshed::store::BaseRef::exact(base.name, base.version)).unwrap();
    }
}
