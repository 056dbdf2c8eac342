//! `gc`: what nothing needs goes, and what stands on it is rewritten; nobody who reads anything notices.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod rng;
    pub mod store;
}

use common::rng::Rng;
use common::store::{TempStore, base_ref, must, name, qemu_check, qemu_content, request, run, sample};
use cowshed::Kind;
use cowshed::ops::gc::{Event, Fate, Step, gc, plan};
use cowshed::ops::import::{Format, ImportRequest, import};
use cowshed::ops::verify::verify;
use cowshed::ops::{Progress, Silent};
use cowshed::storage::{Change, Watch};
use cowshed::store::{Access, BaseRef, CloneOptions, DiskFormat, Store, Target};
use cowshed::units::{GuestOffset, KIB, index};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const SIZE: usize = 2 << 20;
/// Tables, lists and folders of a version that are not counted in a plan.
const TABLES: u64 = 96 << 10;

struct World {
    store: TempStore,
    /// What every version and clone reads.
    content: BTreeMap<String, Vec<u8>>,
}

fn exact(version: u32) -> BaseRef {
    BaseRef::exact(name("base"), version)
}

impl World {
    /// A base with `count` versions; those in `whole` are stored whole, the others as deltas.
    fn new(seed: u64, count: u32, whole: &[u32]) -> Self {
        println!("seed {seed}, {count} versions, whole: {whole:?}");
        let (store, _) = TempStore::with_base(SIZE);
        let mut rng = Rng::new(seed);
        let mut bytes = sample(SIZE);
        let mut content = BTreeMap::from([("base@1".to_owned(), bytes.clone())]);
        for version in 2..=count {
            if whole.contains(&version) {
                bytes = rng.bytes(SIZE);
            } else {
                for _ in 0..4 {
                    let len = index(1 + rng.below(60 * KIB));
                    let at = index(rng.below((bytes.len() - len) as u64));
                    let zeros = rng.chance(30);
                    let new = if zeros { vec![0; len] } else { rng.bytes(len) };
                    bytes[at..at + len].copy_from_slice(&new);
                }
                // Longer and shorter ones.
                let len = SIZE - index(rng.below(300)) * 512;
                bytes.resize(len, 0x77);
            }
            let source = store.dir.path().join("update.source");
            fs::write(&source, &bytes).unwrap();
            let update = ImportRequest { update: true, ..request(&source, "base", Some(Format::Raw)) };
            let base = import(&store.store, &update, &Silent).unwrap();
            assert_eq!(base.parent.is_none(), whole.contains(&version));
            content.insert(format!("base@{version}"), bytes.clone());
        }
        Self { store, content }
    }

    /// A clone of a version with a change of its own, and with a checkpoint when its version is even.
    fn pin(&mut self, version: u32) {
        let clone = format!("clone-{version}");
        let store = &self.store.store;
        store.create_clones(&exact(version), &[name(&clone)], &CloneOptions::default()).unwrap();
        self.store.write(&clone, &[0xc1; 9000], 70_000);
        if version.is_multiple_of(2) {
            store.checkpoint(&name(&clone), None).unwrap();
            self.store.write(&clone, &[0xc2; 5000], 300_000);
        }
        self.content.insert(clone.clone(), self.store.clone_content(&clone));
    }

    fn versions(&self) -> Vec<u32> {
        self.store.store.versions(&name("base")).unwrap()
    }

    fn blocks(&self) -> u64 {
        blocks(&self.store.root().join("bases"))
    }

    /// Every version and clone that is there reads as it did, by us and by QEMU.
    fn is_whole(&self) {
        let store = &self.store.store;
        for version in self.versions() {
            let base = exact(version);
            assert!(
                self.store.content(&Target::Base(base.clone())) == self.content[&base.to_string()],
                "{base}"
            );
            let report = verify(store, &base, &Silent).unwrap();
            assert!(report.is_ok(), "{report:?}");
            let found = store.base(&base).unwrap();
            let path = store.path(&Target::Base(base.clone())).unwrap();
            if found.format == DiskFormat::Qcow2 {
                qemu_check(&path);
            }
            assert!(qemu_content(&path, found.format) == self.content[&base.to_string()], "{base} in QEMU");
        }
        for clone in store.clones().unwrap() {
            let target = Target::Clone(clone.name.clone());
            assert!(self.store.content(&target) == self.content[clone.name.as_str()], "{target}");
            let path = store.path(&target).unwrap();
            qemu_check(&path);
            assert!(
                qemu_content(&path, DiskFormat::Qcow2) == self.content[clone.name.as_str()],
                "{target} in QEMU"
            );
        }
        assert!(self.store.tmp_is_empty());
    }

    fn plan(&self, force: bool) -> Vec<Step> {
        plan(&self.store.store, Some(&name("base")), force).unwrap()
    }

    fn gc(&self, force: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        let told = &mut |event: Event<'_>| {
            if let Event::Done(step) = event {
                steps.push(step.clone());
            }
        };
        gc(&self.store.store, Some(&name("base")), force, &Silent, told).unwrap();
        steps.sort_by_key(|step| step.version);
        steps
    }
}

fn blocks(path: &Path) -> u64 {
    let stat = fs::symlink_metadata(path).unwrap();
    let below: u64 = match stat.is_dir() {
        true => fs::read_dir(path).unwrap().map(|entry| blocks(&entry.unwrap().path())).sum(),
        false => 0,
    };
    stat.blocks() * 512 + below
}

fn fates(steps: &[Step]) -> Vec<(u32, Fate, Option<u32>)> {
    steps.iter().map(|step| (step.version, step.fate, step.parent)).collect()
}

/// What must become of each version, by a rule of its own: what stands on `parents`, of which `needed` stay.
fn expected(parents: &BTreeMap<u32, Option<u32>>, needed: &[u32]) -> Vec<(u32, Fate, Option<u32>)> {
    let fate = |(version, parent): (&u32, &Option<u32>)| {
        if !needed.contains(version) {
            return (*version, Fate::Remove, None);
        }
        let mut onto = *parent;
        while let Some(below) = onto.filter(|below| !needed.contains(below)) {
            onto = parents[&below];
        }
        (*version, if onto == *parent { Fate::Keep } else { Fate::Flatten }, onto)
    };
    parents.iter().map(fate).collect()
}

#[test]
fn whatever_is_needed_of_four_versions_stays_and_reads_the_same_and_the_plan_said_so() {
    for (round, whole) in [&[][..], &[2], &[3], &[4]].into_iter().enumerate() {
        for mask in 0..8_u32 {
            let mut world = World::new(u64::from(mask) + 100 * round as u64, 4, whole);
            let needed: Vec<u32> =
                (1..=4).filter(|version| *version == 4 || mask >> (version - 1) & 1 == 1).collect();
            needed.iter().filter(|version| **version < 4).for_each(|version| world.pin(*version));
            let parents: BTreeMap<u32, Option<u32>> = (1..=4)
                .map(|version| (version, world.store.store.base(&exact(version)).unwrap().parent))
                .collect();
            let before = world.blocks();
            let planned = world.plan(true);
            assert_eq!(world.blocks(), before, "a plan changes nothing");
            assert_eq!(fates(&planned), expected(&parents, &needed), "needed: {needed:?}");
            let done = world.gc(true);
            assert_eq!(fates(&done), fates(&planned));
            assert_eq!(world.versions(), needed);
            world.is_whole();
            numbers_hold(&planned, &done, before, world.blocks());
            assert!(world.gc(true).iter().all(|step| step.fate == Fate::Keep), "there is nothing left to do");
        }
    }
}

/// What was foretold, version by version, is what it came to.
fn numbers_hold(planned: &[Step], done: &[Step], before: u64, after: u64) {
    let sum = |steps: &[Step], of: fn(&Step) -> u64| steps.iter().map(of).sum::<u64>();
    let (frees, costs) = (sum(done, |step| step.frees_bytes), sum(done, |step| step.costs_bytes));
    assert_eq!(before + costs - frees, after, "{done:?}");
    for (planned, done) in planned.iter().zip(done) {
        match planned.fate {
            Fate::Remove => assert_eq!(planned, done),
            _ => {
                let (plan, real) = (planned.costs_bytes, done.costs_bytes);
                assert!(
                    real <= plan + TABLES && plan <= real + done.frees_bytes + TABLES,
                    "{planned:?} {done:?}"
                );
            }
        }
    }
}

#[test]
fn a_version_that_would_have_to_be_copied_twice_is_kept_unless_forced() {
    let mut world = World::new(7, 2, &[]);
    // Another one that stands on the first version, as an import does that was begun before the second one.
    let bytes = world.content["base@1"].clone();
    let (from, to) = (world.store.root().join("bases/base/2"), world.store.root().join("bases/base/3"));
    fs::create_dir(&to).unwrap();
    for file in ["base.json", "blocks.crc", "disk.qcow2"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    cowshed::ops::verify::reseal(&world.store.store, &exact(3), &Silent).unwrap();
    let same = world.content["base@2"].clone();
    world.content.insert("base@3".to_owned(), same);
    assert!(bytes != world.content["base@3"]);
    world.pin(2);
    let steps = world.gc(false);
    assert_eq!(fates(&steps)[0], (1, Fate::Keep, None));
    assert!(steps[0].why.contains("--force"), "{steps:?}");
    world.is_whole();
    assert_eq!(fates(&world.gc(true))[0], (1, Fate::Remove, None));
    assert_eq!(world.versions(), [2, 3]);
    world.is_whole();
}

#[test]
fn who_has_a_version_open_keeps_it_and_all_below() {
    let world = World::new(8, 3, &[]);
    let open = world.store.store.open_base(&exact(2)).unwrap();
    assert!(world.gc(true).iter().all(|step| step.fate == Fate::Keep));
    let mut bytes = vec![0; index(open.disk.size())];
    open.disk.read(&mut bytes, GuestOffset(0)).unwrap();
    assert!(bytes == world.content["base@2"]);
    drop(open);
    world.gc(true);
    assert_eq!(world.versions(), [3]);
    world.is_whole();
}

/// Ends the readers, also when a test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_that_open_and_read_at_any_moment_of_it_notice_nothing() {
    for seed in 20..26 {
        let mut world = World::new(seed, 4, &[]);
        world.pin(2);
        let (store, stop) = (&world.store.store, AtomicBool::new(false));
        let read = |target: &Target, access| -> u64 {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let open =
                    store.open_target(target, access).unwrap_or_else(|error| panic!("{target}: {error}"));
                let mut bytes = vec![0; index(open.disk.size())];
                open.disk.read(&mut bytes, GuestOffset(0)).unwrap();
                assert!(bytes == world.content[&target.to_string()], "{target}");
                count += 1;
            }
            count
        };
        let targets = [Target::Base(exact(4)), Target::Clone(name("clone-2"))];
        thread::scope(|scope| {
            let readers: Vec<_> =
                targets.iter().map(|target| scope.spawn(|| read(target, Access::Inspect))).collect();
            let checker = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let report = verify(store, &exact(4), &Silent).unwrap();
                    assert!(report.is_ok(), "{report:?}");
                    // While it holds its locks nothing is done.
                    thread::sleep(Duration::from_millis(15));
                }
            });
            let ended = Ended(&stop);
            // While a reader holds its locks something stays; in the end all of it is done.
            for _ in 0..200 {
                world.gc(true);
                if world.versions() == [2, 4] {
                    break;
                }
            }
            drop(ended);
            checker.join().unwrap();
            let counts: Vec<u64> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        });
        world.gc(true);
        assert_eq!(world.versions(), [2, 4]);
        world.is_whole();
    }
}

/// Stops at once.
struct Stopped;

impl Progress for Stopped {
    fn total(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        true
    }
}

#[test]
fn one_that_is_stopped_leaves_everything_readable_and_the_next_one_goes_on() {
    let world = World::new(30, 3, &[]);
    let error = gc(&world.store.store, None, true, &Stopped, &mut |_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(world.versions(), [1, 2, 3]);
    world.is_whole();
    gc(&world.store.store, None, true, &Silent, &mut |_| ()).unwrap();
    assert_eq!(world.versions(), [3]);
    world.is_whole();
}

/// A filesystem that cannot exchange names.
#[derive(Debug)]
struct Plain;

impl Watch for Plain {
    fn change(&self, change: Change<'_>, make: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        match change {
            Change::Exchange(..) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            _ => make(),
        }
    }
}

#[test]
fn where_folders_cannot_be_exchanged_a_sentence_says_so_and_nothing_is_changed() {
    let world = World::new(40, 3, &[]);
    let before = world.blocks();
    let store = Store::open_watched(world.store.root(), Arc::new(Plain)).unwrap();
    let error = gc(&store, None, true, &Silent, &mut |_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("cannot exchange two folders"), "{error}");
    assert_eq!((world.versions(), world.blocks()), (vec![1, 2, 3], before));
    world.is_whole();
}

#[test]
fn damage_below_is_never_copied_into_a_rewritten_version() {
    let world = World::new(50, 2, &[]);
    // Under a seal that somebody renewed.
    world.store.meddle(|file| {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&[0xbd; 512], 1_000_000).unwrap();
    });
    let file = world.store.root().join("bases/base/1/base.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let now = cowshed::storage::Fingerprint::of(&fs::File::open(world.store.base_disk()).unwrap()).unwrap();
    manifest["fingerprint"] = serde_json::to_value(now).unwrap();
    fs::write(&file, serde_json::to_vec(&manifest).unwrap()).unwrap();
    let error = gc(&world.store.store, None, true, &Silent, &mut |_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    assert!(error.to_string().contains("cowshed verify base@2"), "{error}");
    assert_eq!(world.versions(), [1, 2]);
    assert!(world.store.tmp_is_empty());
}

#[test]
fn a_removal_that_is_refused_names_the_way() {
    let world = World::new(60, 2, &[]);
    let error = world.store.store.remove_base(&exact(1)).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("`cowshed gc base`"), "{error}");
}

#[test]
fn the_command_says_what_it_would_do_and_then_does_it() {
    let mut world = World::new(70, 3, &[]);
    world.pin(1);
    let root = world.store.root().to_str().unwrap();
    let program = env!("CARGO_BIN_EXE_cowshed");
    let planned = must(program, &["--store", root, "gc", "--plan"]);
    assert!(planned.contains("base@1 is kept: a clone stands on it"), "{planned}");
    assert!(planned.contains("base@2 would be removed") && planned.contains("stands on base@1"), "{planned}");
    assert!(planned.contains("base@3 would be rewritten"), "{planned}");
    assert_eq!(world.versions(), [1, 2, 3]);
    let json = must(program, &["--store", root, "gc", "base", "--json"]);
    let steps: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&steps[1]["fate"], &steps[2]["fate"]), (&"remove".into(), &"flatten".into()), "{json}");
    assert_eq!(must(program, &["--store", root, "gc"]), "every version is needed\n");
    let none = run(program, &["--store", root, "gc", "nobody"]);
    assert_eq!(none.status.code(), Some(1));
    world.is_whole();
    assert!(world.store.store.clones_of(&base_ref("base")).unwrap().contains(&name("clone-1")));
}
