//! Versions of a base, and clones that are put on them.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod rng;
    pub mod store;
}

use common::rng::Rng;
use common::store::{TempStore, base_ref, name, qemu_check, qemu_content, request, sample};
use cowshed::Kind;
use cowshed::ops::Silent;
use cowshed::ops::import::{Format, ImportRequest, import, promote};
use cowshed::ops::merge::rules::Rules;
use cowshed::ops::rebase::{MergeSettings, Outcome, RebaseRequest, Strategy, plan, rebase};
use cowshed::ops::verify::verify;
use cowshed::store::{Access, Base, BaseRef, DiskFormat, Operation, Target};
use cowshed::units::{GuestOffset, KIB, MIB, index};
use std::fs;
use std::path::PathBuf;

const SIZE: usize = 8 << 20;

struct World {
    store: TempStore,
    rng: Rng,
    versions: Vec<Vec<u8>>,
}

impl World {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let (store, _) = TempStore::with_base(SIZE);
        Self { store, rng: Rng::new(seed), versions: vec![sample(SIZE)] }
    }

    /// Changes a few places of `bytes`.
    fn edit(&mut self, bytes: &mut [u8], places: usize) {
        for _ in 0..places {
            let len = index(1 + self.rng.below(40 * KIB));
            let at = index(self.rng.below((bytes.len() - len) as u64));
            match self.rng.below(3) {
                0 => bytes[at..at + len].fill(0),
                _ => bytes[at..at + len].copy_from_slice(&self.rng.bytes(len)),
            }
        }
    }

    fn update(&mut self, bytes: Vec<u8>) -> Base {
        let source = self.store.dir.path().join("update.source");
        fs::write(&source, &bytes).unwrap();
        let update = ImportRequest { update: true, ..request(&source, "base", Some(Format::Raw)) };
        let base = import(&self.store.store, &update, &Silent).unwrap();
        self.versions.push(bytes);
        base
    }

    /// The next version, which differs in a few places.
    fn next(&mut self) -> Base {
        let mut bytes = self.versions.last().unwrap().clone();
        self.edit(&mut bytes, 12);
        self.update(bytes)
    }

    /// A clone of version 1 with changes of its own, and what it reads.
    fn clone(&mut self, name: &str) -> Vec<u8> {
        self.store.store.create_clones(&exact(1), &[self::name(name)], &Default::default()).unwrap();
        let before = self.versions[0].clone();
        let mut bytes = before.clone();
        self.edit(&mut bytes, 8);
        let open = self.store.store.open_clone(&self::name(name), Access::Write).unwrap();
        for (at, (old, new)) in before.chunks(512).zip(bytes.chunks(512)).enumerate() {
            if old != new {
                open.disk.write(new, GuestOffset(at as u64 * 512)).unwrap();
            }
        }
        open.close().unwrap();
        bytes
    }

    fn read(&self, target: &Target) -> Vec<u8> {
        self.store.content(target)
    }

    fn read_clone(&self, clone: &str) -> Vec<u8> {
        self.read(&Target::Clone(name(clone)))
    }

    fn request(clone: &str, version: u32, strategy: Strategy) -> RebaseRequest {
        let settings = MergeSettings { rules: Rules::preset().unwrap(), program: PathBuf::new() };
        RebaseRequest { clone: name(clone), onto: exact(version), strategy, settings: settings.into() }
    }

    /// Every version reads as it was imported, and its file is what was sealed.
    fn bases_are_whole(&self) {
        for (at, bytes) in self.versions.iter().enumerate() {
            let version = exact(at as u32 + 1);
            if self.store.store.base(&version).is_ok() {
                assert!(verify(&self.store.store, &version, &Silent).unwrap().is_ok(), "{version}");
                assert!(self.read(&Target::Base(version)) == *bytes);
            }
        }
    }

    fn qemu_agrees(&self, clone: &str, bytes: &[u8]) {
        let path = self.store.store.path(&Target::Clone(name(clone))).unwrap();
        qemu_check(&path);
        assert!(qemu_content(&path, DiskFormat::Qcow2) == bytes);
    }
}

fn exact(version: u32) -> BaseRef {
    BaseRef::exact(name("base"), version)
}

#[test]
fn a_version_is_a_delta_over_the_one_before() {
    let mut world = World::new(1);
    for version in 2..6 {
        let base = world.next();
        assert_eq!((base.version, base.format, base.parent), (version, DiskFormat::Qcow2, Some(version - 1)));
        let usage = world.store.store.usage(&Target::Base(exact(version))).unwrap();
        assert!(usage.own_bytes < 2 * MIB, "{usage:?}");
        world.bases_are_whole();
    }
}

#[test]
fn a_version_with_another_size_reads_zeros_where_the_one_before_is_shorter_or_longer() {
    let mut world = World::new(2);
    let mut longer = world.versions[0].clone();
    longer.resize(SIZE + 300 * 1024, 7);
    assert_eq!(world.update(longer).parent, Some(1));
    let shorter = world.versions[0][..SIZE - (100 << 10)].to_vec();
    assert_eq!(world.update(shorter).parent, Some(2));
    let again = world.versions[0].clone();
    assert_eq!(world.update(again).parent, Some(3));
    world.bases_are_whole();
}

#[test]
fn a_version_that_shares_less_than_half_is_stored_whole() {
    let mut world = World::new(3);
    let other = world.rng.bytes(SIZE);
    let base = world.update(other);
    assert_eq!((base.version, base.format, base.parent), (2, DiskFormat::Raw, None));
    world.bases_are_whole();
}

#[test]
fn versions_do_not_stand_on_each_other_without_end() {
    let mut world = World::new(4);
    let parents: Vec<_> = (0..20).map(|_| world.next().parent).collect();
    assert_eq!(parents.iter().filter(|parent| parent.is_none()).count(), 1, "{parents:?}");
    world.bases_are_whole();
}

#[test]
fn a_clone_becomes_the_next_version_and_stays_what_it_is() {
    let mut world = World::new(5);
    let bytes = world.clone("gold");
    let base = promote(&world.store.store, &name("gold"), &name("base"), &Silent).unwrap();
    assert_eq!((base.version, base.parent), (2, Some(1)));
    world.versions.push(bytes.clone());
    assert_eq!(world.read_clone("gold"), bytes);
    assert_eq!(world.store.store.clone_named(&name("gold")).unwrap().base.version, 1);
    world.bases_are_whole();
    let none = promote(&world.store.store, &name("gold"), &name("other"), &Silent).unwrap_err();
    assert_eq!(none.kind(), Kind::NotFound);
}

#[test]
fn keep_changes_no_byte_of_the_clone_on_whichever_version() {
    for seed in 10..16 {
        let mut world = World::new(seed);
        let bytes = world.clone("web");
        if seed.is_multiple_of(2) {
            world.store.store.checkpoint(&name("web"), None).unwrap();
        }
        (0..3).for_each(|_| drop(world.next()));
        for version in [3, 2, 4, 1] {
            let request = World::request("web", version, Strategy::Keep);
            let planned = plan(&world.store.store, &request, &Silent).unwrap().done().unwrap();
            let done = rebase(&world.store.store, &request, &Silent).unwrap().done().unwrap();
            assert_eq!(planned.own_bytes, done.own_bytes);
            assert_eq!(world.store.store.clone_named(&name("web")).unwrap().base.version, version);
            assert_eq!(world.read_clone("web"), bytes);
            world.qemu_agrees("web", &bytes);
            assert_eq!(rebase(&world.store.store, &request, &Silent).unwrap(), Outcome::UpToDate);
        }
        world.bases_are_whole();
    }
}

#[test]
fn what_equals_the_new_base_is_no_longer_the_clones() {
    let mut world = World::new(20);
    let bytes = world.clone("web");
    let own = world.store.store.usage(&Target::Clone(name("web"))).unwrap().own_bytes;
    world.update(bytes.clone());
    let done = rebase(&world.store.store, &World::request("web", 2, Strategy::Keep), &Silent)
        .unwrap()
        .done()
        .unwrap();
    assert_eq!(done.own_bytes, Some(0));
    world.store.store.remove_checkpoint(&name("web"), 1).unwrap();
    let after = world.store.store.usage(&Target::Clone(name("web"))).unwrap().own_bytes;
    assert!(after < own && after <= 64 * KIB, "{own} {after}");
    world.qemu_agrees("web", &bytes);
}

#[test]
fn replace_starts_anew_and_undo_brings_everything_back() {
    let mut world = World::new(30);
    let bytes = world.clone("web");
    world.next();
    let store = world.store.store.clone();
    let web = name("web");
    assert_eq!(store.undo(&web).unwrap_err().kind(), Kind::NotFound);
    rebase(&store, &World::request("web", 2, Strategy::Replace), &Silent).unwrap().done().unwrap();
    assert_eq!(world.read_clone("web"), world.versions[1]);
    let refused = store.remove_base(&exact(1)).unwrap_err();
    assert_eq!(refused.kind(), Kind::Busy, "a checkpoint stands on it: {refused}");
    let undone = store.undo(&web).unwrap();
    assert_eq!((undone.operation, undone.restored, undone.base.version), (Operation::Rebase, 1, 1));
    assert_eq!(world.read_clone("web"), bytes);
    world.qemu_agrees("web", &bytes);
    assert_eq!(store.clone_named(&web).unwrap().base.version, 1);
    assert_eq!(store.undo(&web).unwrap_err().kind(), Kind::NotFound, "it is undone already");
    // And to what it was before the undo, which stands on the other version.
    store.restore(&web, undone.kept.number, false).unwrap();
    assert_eq!(world.read_clone("web"), world.versions[1]);
    assert_eq!(store.clone_named(&web).unwrap().base.version, 2);
    world.bases_are_whole();
}

#[test]
fn a_clone_in_use_is_left_as_it_is() {
    let mut world = World::new(40);
    let bytes = world.clone("web");
    world.next();
    let open = world.store.store.open_clone(&name("web"), Access::Write).unwrap();
    for strategy in [Strategy::Keep, Strategy::Replace] {
        let error = rebase(&world.store.store, &World::request("web", 2, strategy), &Silent).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy, "{error}");
    }
    open.close().unwrap();
    assert_eq!(world.read_clone("web"), bytes);
    assert_eq!(world.store.store.checkpoints(&name("web")).unwrap(), []);
    let missing = rebase(&world.store.store, &World::request("web", 9, Strategy::Keep), &Silent).unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    assert!(world.store.store.clones_of(&base_ref("base")).unwrap().contains(&name("web")));
}
