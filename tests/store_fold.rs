//! A checkpoint goes from the middle of a clone's layers, and every other state stays what it was, byte for byte.
//!
//! `COWSHED_SEED=N` draws other layers.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod rng;
    pub mod store;
}

use common::rng::{Rng, fresh_seed, seed_from_environment};
use common::store::{TempStore, base_ref, file_digest, must, name, qemu_check, qemu_content, sample};
use cowshed::Kind;
use cowshed::ops::Silent;
use cowshed::ops::check::check_clone;
use cowshed::ops::fold::{plan, remove_checkpoint};
use cowshed::ops::resize::{ResizeRequest, Size, resize};
use cowshed::store::{Access, CloneOptions, DiskFormat};
use cowshed::units::GuestOffset;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
/// Bytes of the base: a small partition, and room behind it that a resize may cut.
const SIZE: u64 = 6 * MIB;

/// A clone `a` and what each state of it reads.
struct World {
    temp: TempStore,
    rng: Rng,
    base: Vec<u8>,
    sealed: blake3::Hash,
    now: Vec<u8>,
    frozen: BTreeMap<u32, Vec<u8>>,
}

impl World {
    fn new(seed: u64, compat: bool) -> Self {
        println!("COWSHED_SEED={seed}, compat: {compat}");
        let temp = TempStore::new();
        let image = temp.dir.path().join("disk");
        let mut base = sample(SIZE as usize);
        base[..MIB as usize].fill(0);
        base[(SIZE - MIB) as usize..].fill(0);
        fs::write(&image, &base).unwrap();
        must("sgdisk", &["-n1:2048:4095", image.to_str().unwrap()]);
        let base = fs::read(&image).unwrap();
        temp.add_base("base", &base);
        let options = CloneOptions { compat, ..CloneOptions::default() };
        temp.store.create_clones(&base_ref("base"), &[name("a")], &options).unwrap();
        let sealed = file_digest(&temp.base_disk());
        let (now, frozen) = (base.clone(), BTreeMap::new());
        Self { temp, rng: Rng::new(seed), base, sealed, now, frozen }
    }

    fn disk(&self) -> PathBuf {
        self.temp.clone_folder("a").join("disk.qcow2")
    }

    fn frozen_disk(&self, number: u32) -> PathBuf {
        self.temp.clone_folder("a").join(format!("checkpoint-{number}.qcow2"))
    }

    /// A range that holds no partition table.
    fn range(&mut self, most: u64) -> (usize, usize) {
        let end = self.now.len() as u64 - 64 * 1024;
        let len = 1 + self.rng.below(most);
        let at = MIB + self.rng.below(end - MIB - len);
        (at as usize, len as usize)
    }

    /// What a guest does: writes, also what the base has and zeros, and discards.
    fn work(&mut self, steps: usize) {
        let open = self.temp.store.open_clone(&name("a"), Access::Write).unwrap();
        for _ in 0..steps {
            let (at, len) = self.range(90_000);
            let place = GuestOffset(at as u64);
            match self.rng.below(8) {
                0 => {
                    open.disk.write_zeroes(place, len as u64).unwrap();
                    self.now[at..at + len].fill(0);
                }
                1 => {
                    open.disk.discard(place, len as u64).unwrap();
                    self.now[at..at + len].fill(0);
                }
                2 => {
                    open.disk.write(&vec![0; len], place).unwrap();
                    self.now[at..at + len].fill(0);
                }
                3 if at + len <= self.base.len() => {
                    open.disk.write(&self.base[at..at + len], place).unwrap();
                    self.now[at..at + len].copy_from_slice(&self.base[at..at + len]);
                }
                _ => {
                    let bytes = self.rng.bytes(len);
                    open.disk.write(&bytes, place).unwrap();
                    self.now[at..at + len].copy_from_slice(&bytes);
                }
            }
        }
        open.close().unwrap();
    }

    /// QEMU writes a compressed cluster.
    fn compress(&mut self) {
        let cluster = 128 << 10;
        let last = (self.now.len() - (64 << 10)) / cluster;
        let at = cluster * (8 + self.rng.below(last as u64 - 8) as usize);
        let pattern = 1 + self.rng.below(255) as u8;
        let write = format!("write -c -P {pattern} {at} {cluster}");
        // It does so only where nothing is stored.
        let discard = format!("discard {at} {cluster}");
        must("qemu-io", &["-f", "qcow2", "-c", &discard, "-c", &write, self.disk().to_str().unwrap()]);
        self.now[at..at + cluster].fill(pattern);
    }

    fn resize(&mut self) {
        let size = (7 + self.rng.below(13)) * MIB / 2;
        let request = ResizeRequest {
            clone: base_ref("a"),
            size: Size::Bytes(size),
            image_only: false,
            no_undo: false,
            program: PathBuf::from(env!("CARGO_BIN_EXE_cowshed")),
        };
        let before = self.now.clone();
        let done = resize(&self.temp.store, &request, &Silent).unwrap();
        if let Some(number) = done.checkpoint {
            self.frozen.insert(number, before);
        }
        self.now = self.temp.clone_content("a");
        assert_eq!(self.now.len() as u64, size);
    }

    fn freeze(&mut self) {
        let number = self.temp.store.checkpoint(&name("a"), None).unwrap().number;
        self.frozen.insert(number, self.now.clone());
    }

    fn go_back(&mut self) {
        let numbers: Vec<u32> = self.frozen.keys().copied().collect();
        let number = *self.rng.pick(&numbers);
        let kept = self.temp.store.restore(&name("a"), number, true).unwrap().kept.unwrap();
        self.frozen.insert(kept.number, std::mem::replace(&mut self.now, self.frozen[&number].clone()));
    }

    /// Every state is what it was, by QEMU and by us, and every file is in order.
    fn holds(&self, what: &str) {
        assert!(self.temp.clone_content("a") == self.now, "{what}: the present state");
        let files = self.frozen.iter().map(|(number, bytes)| (self.frozen_disk(*number), bytes));
        for (file, bytes) in files.chain([(self.disk(), &self.now)]) {
            let what = format!("{what}: {}", file.display());
            assert!(file.exists(), "{what} is missing");
            qemu_check(&file);
            assert!(qemu_content(&file, DiskFormat::Qcow2) == *bytes, "{what}");
        }
        let store = &self.temp.store;
        let report = check_clone(store, &name("a"), false).unwrap();
        assert!(
            report.errors() + report.leaks() == 0 && report.refused_checkpoints.is_empty(),
            "{what}: {report:?}"
        );
        let known: Vec<u32> = store.checkpoints(&name("a")).unwrap().iter().map(|one| one.number).collect();
        assert_eq!(known, self.frozen.keys().copied().collect::<Vec<_>>(), "{what}");
        assert_eq!(file_digest(&self.temp.base_disk()), self.sealed, "{what}: the base changed");
        assert!(self.temp.tmp_is_empty(), "{what}");
    }

    fn blocks(&self) -> u64 {
        let entries = fs::read_dir(self.temp.clone_folder("a")).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
    }

    /// Removes a checkpoint that may have layers on it; whether it could be.
    fn remove(&mut self, number: u32) -> bool {
        let (store, clone) = (&self.temp.store, name("a"));
        let planned = plan(store, &clone, number);
        let before = self.blocks();
        let done = match (planned, remove_checkpoint(store, &clone, number, &Silent)) {
            (Ok(planned), Ok(done)) => {
                let given = before.saturating_sub(self.blocks());
                assert!(given >= planned.freed_bytes, "{given} of {planned:?}");
                assert!(given.abs_diff(done.freed_bytes) <= 8192, "{given}, {done:?}");
                assert_eq!(planned.into, done.into);
                planned
            }
            (Err(planned), Err(done)) => {
                assert_eq!((planned.kind(), done.kind()), (Kind::Busy, Kind::Busy));
                assert!(done.to_string().contains("stand on it; remove all of them but one first"), "{done}");
                return false;
            }
            other => panic!("{other:?}"),
        };
        if let (Some(into), Some(needs)) = (&done.into, done.needs_bytes) {
            let file = match into.strip_prefix("checkpoint ") {
                Some(number) => self.frozen_disk(number.parse().unwrap()),
                None => self.disk(),
            };
            let took = blocks(&file);
            assert!(took <= needs, "{took} of {done:?}");
        }
        self.frozen.remove(&number);
        true
    }
}

fn blocks(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks() * 512
}

fn seeds(count: u64) -> Vec<u64> {
    let first = seed_from_environment().unwrap_or_else(fresh_seed);
    (0..count).map(|number| first.wrapping_add(number)).collect()
}

/// A random tree of states, of which one after the other goes in any order.
fn any_order(seed: u64, compat: bool) -> usize {
    let mut world = World::new(seed, compat);
    let layers = 2 + world.rng.below(3);
    for _ in 0..layers {
        world.work(8);
        if world.rng.below(2) == 0 {
            world.compress();
        }
        match world.rng.below(4) {
            0 => world.resize(),
            1 if !world.frozen.is_empty() => world.go_back(),
            _ => world.freeze(),
        }
    }
    world.work(6);
    world.holds("before");
    let mut refused = 0;
    while !world.frozen.is_empty() {
        let numbers: Vec<u32> = world.frozen.keys().copied().collect();
        let number = *world.rng.pick(&numbers);
        match world.remove(number) {
            true => world.holds(&format!("seed {seed}, {number} of {numbers:?} removed")),
            false => refused += 1,
        }
        assert!(refused < 200, "seed {seed}: nothing of {numbers:?} can go");
    }
    // Life goes on.
    world.freeze();
    world.work(4);
    world.holds("afterwards");
    refused
}

#[test]
fn checkpoints_go_in_any_order_and_every_other_state_stays() {
    let refused: usize = seeds(5).into_iter().map(|seed| any_order(seed, false)).sum();
    println!("{refused} removals were refused because of several layers");
}

#[test]
fn so_they_do_with_plain_l2_tables() {
    for seed in seeds(2) {
        any_order(seed, true);
    }
}

#[test]
#[ignore = "soak"]
fn soak_checkpoints_go_in_any_order() {
    for seed in seeds(400) {
        any_order(seed, seed % 3 == 0);
    }
}

#[test]
fn what_an_upper_layer_hides_or_discards_does_not_come_back() {
    let mut world = World::new(1, false);
    let write = |world: &World, byte: u8, at: u64, len: usize| world.temp.write("a", &vec![byte; len], at);
    let discard = |world: &World, at: u64, len: u64| {
        let open = world.temp.store.open_clone(&name("a"), Access::Write).unwrap();
        open.disk.discard(GuestOffset(at), len).unwrap();
        open.close().unwrap();
    };
    // Over data of the lower layer, over data of the base, and over both.
    write(&world, 1, 2 * MIB, 300_000);
    world.now = world.temp.clone_content("a");
    world.freeze();
    discard(&world, 2 * MIB + 4096, 100_000);
    discard(&world, MIB, 200_000);
    write(&world, 2, 2 * MIB + 150_000, 8192);
    world.now = world.temp.clone_content("a");
    world.freeze();
    discard(&world, 2 * MIB + 140_000, 20_000);
    world.now = world.temp.clone_content("a");
    assert!(world.remove(1));
    world.holds("the lowest");
    assert!(world.remove(2));
    world.holds("the last");
    assert!(blocks(&world.disk()) < 280_000, "{}", blocks(&world.disk()));
}

#[test]
fn a_layer_whose_disk_was_cut_hides_what_lies_behind() {
    let mut world = World::new(2, false);
    world.work(10);
    for size in [4 * MIB, 9 * MIB, 5 * MIB, 8 * MIB] {
        let before = world.now.clone();
        let request = ResizeRequest {
            clone: base_ref("a"),
            size: Size::Bytes(size),
            image_only: false,
            no_undo: false,
            program: PathBuf::from(env!("CARGO_BIN_EXE_cowshed")),
        };
        let done = resize(&world.temp.store, &request, &Silent).unwrap();
        world.frozen.insert(done.checkpoint.unwrap(), before);
        world.now = world.temp.clone_content("a");
        world.work(2);
    }
    for number in [2, 1, 4, 3] {
        assert!(world.remove(number));
        world.holds(&format!("{number} removed"));
    }
}

#[test]
fn a_file_that_holds_more_than_its_disk_is_left() {
    let mut world = World::new(3, false);
    world.work(3);
    world.freeze();
    world.work(3);
    let disk = world.disk();
    let disk = disk.to_str().unwrap();
    for (add, remove, what) in [
        (
            ["snapshot", "-c", "one", disk].to_vec(),
            ["snapshot", "-d", "one", disk].to_vec(),
            "internal snapshots",
        ),
        (
            ["bitmap", "--add", disk, "bits"].to_vec(),
            ["bitmap", "--remove", disk, "bits"].to_vec(),
            "bitmaps",
        ),
    ] {
        must("qemu-img", &add);
        let error = remove_checkpoint(&world.temp.store, &name("a"), 1, &Silent).unwrap_err();
        let said = error.to_string();
        assert!(
            error.kind() == Kind::Unsupported && said.contains(what) && said.contains("qemu-img"),
            "{said}"
        );
        world.holds(what);
        must("qemu-img", &remove);
    }
    assert!(world.remove(1));
    world.holds("without them");
}

#[test]
fn a_clone_in_use_keeps_its_layers() {
    let mut world = World::new(4, false);
    world.work(3);
    world.freeze();
    world.work(3);
    for access in [Access::Write, Access::Read] {
        let open = world.temp.store.open_clone(&name("a"), access).unwrap();
        let error = remove_checkpoint(&world.temp.store, &name("a"), 1, &Silent).unwrap_err();
        assert!(error.kind() == Kind::Busy && error.to_string().contains("in use"), "{error}");
        drop(open);
    }
    world.holds("afterwards");
    let error = remove_checkpoint(&world.temp.store, &name("a"), 7, &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}
