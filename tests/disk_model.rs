//! Random operations on random geometry against a byte vector, alone and from several threads.
//!
//! `COWSHED_SEED=N cargo test --test disk_model` plays one seed again in every test here.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod images;
    pub mod ops;
    pub mod qemu;
    pub mod rng;
}

use common::rng::{Rng, fresh_seed, seed_from_environment};
use common::{images, ops, qemu};
use cowshed::disk::{Disk, Layer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::Memory;
use cowshed::units::GuestOffset;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seeds that found a fault once, or that are there to hold the geometry they draw.
const SEEDS: [u64; 8] = [1, 2, 3, 4, 0x5eed, 77, 1234, 987_654];

/// How long fresh seeds are drawn after the listed ones, for each test.
const FRESH: Duration = Duration::from_secs(5);

/// Plays the listed seeds and fresh ones for a while, or only the one of the environment.
fn each_seed(name: &str, play: impl Fn(u64)) {
    if let Some(seed) = seed_from_environment() {
        println!("{name}: seed {seed} from COWSHED_SEED");
        return play(seed);
    }
    SEEDS.iter().for_each(|seed| {
        println!("{name}: seed {seed}");
        play(*seed);
    });
    let start = Instant::now();
    let mut fresh = Rng::new(fresh_seed());
    while start.elapsed() < FRESH {
        let seed = fresh.bits() & 0xffff_ffff;
        println!("{name}: seed {seed}; COWSHED_SEED={seed} plays it again");
        play(seed);
    }
}

/// A folder with a chain of images in it, and what a guest must read from its top.
struct Chain {
    folder: tempfile::TempDir,
    top: PathBuf,
    layers: usize,
    model: Vec<u8>,
}

impl Chain {
    fn new(rng: &mut Rng) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut chain = Self { top: folder.path().join("b.raw"), folder, layers: 0, model: Vec::new() };
        if rng.chance(60) {
            let size = rng.between(1, 8000) * 512;
            chain.model = vec![0; size as usize];
            for _ in 0..3 {
                let at = rng.below(size);
                let len = rng.between(1, (size - at).min(500_000));
                let bytes = rng.bytes(len as usize);
                chain.model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
            }
            std::fs::write(&chain.top, &chain.model).unwrap();
            chain.add_layer(rng, Some("raw"));
        } else {
            chain.add_layer(rng, None);
        }
        chain
    }

    /// Puts an empty overlay on top: same size, smaller, or larger.
    fn add_layer(&mut self, rng: &mut Rng, below: Option<&str>) {
        let old = self.model.len() as u64;
        let size = match rng.below(3) {
            _ if old == 0 => rng.between(1, 9000) * 512,
            0 => old,
            1 => (old / 512 + rng.between(1, 2000)) * 512,
            _ => (old / 512 - rng.below(old / 1024)) * 512,
        };
        let extended_l2 = rng.chance(60);
        let cluster_bits =
            if rng.chance(40) { 17 } else { rng.between(if extended_l2 { 14 } else { 9 }, 19) };
        let backing = below.map(|format| BackingName {
            file: self.top.file_name().unwrap().to_string_lossy().into_owned(),
            format: Some(format.to_owned()),
        });
        let options = CreateOptions {
            cluster_bits: cluster_bits as u32,
            extended_l2,
            backing,
            ..CreateOptions::new(size)
        };
        println!(
            "  layer {}: {size} bytes, cluster bits {cluster_bits}, extended {extended_l2}",
            self.layers
        );
        self.top = self.folder.path().join(format!("l{}.qcow2", self.layers));
        self.layers += 1;
        let storage = images::new_file(&self.top);
        create(&*storage, &options).unwrap();
        storage.sync().unwrap();
        self.model.resize(size as usize, 0);
    }

    fn open(&self) -> Disk {
        images::open(&self.top, true)
    }

    fn verify(&self, what: &str) {
        qemu::assert_clean(&self.top, what);
        let report = images::check(&self.top);
        assert_eq!((report.error_count, report.leaks), (0, 0), "{what}: {:?}", report.errors);
        let model = self.folder.path().join("model.raw");
        std::fs::write(&model, &self.model).unwrap();
        let names = [self.top.to_str().unwrap(), model.to_str().unwrap()];
        qemu::run(
            self.folder.path(),
            "qemu-img",
            &["compare", "-q", "-f", "qcow2", "-F", "raw", names[0], names[1]],
        );
        std::fs::remove_file(model).unwrap();
    }
}

fn play_alone(seed: u64) {
    let mut rng = Rng::new(seed);
    let what = format!("seed {seed}");
    let mut chain = Chain::new(&mut rng);
    let mut below: Vec<(String, Vec<u8>)> = images::files_but(chain.folder.path(), "l0.qcow2");
    for round in 0..rng.between(2, 5) {
        let disk = chain.open();
        assert_eq!(disk.size(), chain.model.len() as u64);
        let what = format!("{what}, round {round}");
        ops::play(&disk, &mut chain.model, &mut rng, 40, &what);
        images::assert_same(&images::read_all(&disk, seed), &chain.model, &what);
        disk.close().unwrap();
        drop(disk);
        chain.verify(&what);
        let top = chain.top.file_name().unwrap().to_string_lossy().into_owned();
        assert!(below == images::files_but(chain.folder.path(), &top), "{what}: a lower layer was changed");
        if rng.chance(50) {
            chain.add_layer(&mut rng, Some("qcow2"));
            let top = chain.top.file_name().unwrap().to_string_lossy().into_owned();
            below = images::files_but(chain.folder.path(), &top);
        }
    }
}

#[test]
fn random_operations_give_what_a_byte_vector_gives() {
    each_seed("alone", play_alone);
}

/// One thread's share of a disk: every piece of `grain` bytes whose number is `mine` modulo `threads`.
struct Share {
    grain: u64,
    threads: u64,
    mine: u64,
}

impl Share {
    /// A range inside one of the thread's pieces.
    fn range(&self, rng: &mut Rng, size: u64) -> Option<(u64, u64)> {
        let pieces = size / self.grain;
        // Half of the work goes to the first megabyte, where all threads meet in few clusters.
        let pieces = if rng.chance(50) { pieces.min((1 << 20) / self.grain) } else { pieces };
        let turns = (pieces + self.threads - 1 - self.mine) / self.threads;
        if turns == 0 {
            return None;
        }
        let piece = rng.below(turns) * self.threads + self.mine;
        let from = rng.below(self.grain / 512) * 512;
        let len = rng.between(1, (self.grain - from) / 512) * 512;
        Some((piece * self.grain + from, len))
    }
}

/// Works on its share only, beside a whole copy of the model of which only that share is true afterwards.
fn work(disk: &Disk, mut model: Vec<u8>, share: &Share, mut rng: Rng, what: &str) -> Vec<u8> {
    for number in 0..150 {
        let Some((at, len)) = share.range(&mut rng, model.len() as u64) else { break };
        let op = match rng.below(20) {
            0..=5 => ops::Op::Read,
            6..=12 => ops::Op::Write(rng.bytes(len as usize)),
            13..=15 => ops::Op::WriteZeroes,
            16..=18 => ops::Op::Discard,
            _ => ops::Op::Flush,
        };
        let what = format!("{what}, thread {}, step {number}", share.mine);
        ops::Step { op, at, len }.apply(disk, &mut model, &what);
        if number % 40 == 7 {
            let place = GuestOffset(rng.below(model.len() as u64));
            disk.extent(place).unwrap_or_else(|error| panic!("{what}: extent at {place}: {error}"));
        }
    }
    model
}

fn play_in_threads(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut chain = Chain::new(&mut rng);
    let grain = *rng.pick(&[512, 1024, 4096, 4096, 8192, 65536]);
    let threads = rng.between(2, 5);
    println!("  {threads} threads, pieces of {grain} bytes");
    for round in 0..2 {
        let what = format!("seed {seed}, round {round}");
        let disk = chain.open();
        let results: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|mine| {
                    let (disk, model, what) = (&disk, chain.model.clone(), &what);
                    let rng = Rng::new(rng.bits());
                    scope.spawn(move || work(disk, model, &Share { grain, threads, mine }, rng, what))
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        for (number, piece) in chain.model.chunks_mut(grain as usize).enumerate() {
            let at = number * grain as usize;
            piece.copy_from_slice(&results[number % threads as usize][at..at + piece.len()]);
        }
        images::assert_same(&images::read_all(&disk, seed), &chain.model, &what);
        disk.close().unwrap();
        drop(disk);
        chain.verify(&what);
    }
}

#[test]
fn threads_that_share_clusters_do_not_disturb_each_other() {
    each_seed("threads", play_in_threads);
}

#[test]
fn what_was_flushed_is_there_without_a_close() {
    each_seed("flushed", |seed| {
        let mut rng = Rng::new(seed);
        let mut chain = Chain::new(&mut rng);
        let disk = chain.open();
        ops::play(&disk, &mut chain.model, &mut rng, 60, &format!("seed {seed}"));
        disk.flush().unwrap();
        let copy = chain.folder.path().join("copy.qcow2");
        std::fs::copy(&chain.top, &copy).unwrap();
        let verdict = qemu::check(&copy);
        assert!(matches!(verdict.code, 0 | 3), "seed {seed}: {}", verdict.text);
        images::assert_same(&qemu::convert(&copy), &chain.model, &format!("seed {seed}, before the close"));
        disk.close().unwrap();
        drop(disk);
        chain.verify(&format!("seed {seed}"));
    });
}

#[test]
fn one_write_over_more_tables_than_there_is_room_for_ends() {
    let memory = Arc::new(Memory::new());
    create(&*memory, &CreateOptions { cluster_bits: 9, extended_l2: false, ..CreateOptions::new(4 << 20) })
        .unwrap();
    let options = OpenOptions { writable: true, metadata_cache: 0 };
    let disk = Disk::new(vec![Layer::qcow2(Image::open(memory.clone(), options).unwrap())]).unwrap();
    let data = Rng::new(7).bytes(3 << 20);
    disk.write(&data, GuestOffset(512)).unwrap();
    let mut seen = vec![0; data.len()];
    disk.read(&mut seen, GuestOffset(512)).unwrap();
    assert!(seen == data, "what was written is read");
    disk.close().unwrap();
    let report = check(memory).unwrap();
    assert_eq!((report.error_count, report.leaks), (0, 0), "{:?}", report.errors);
}

#[test]
fn requests_outside_the_disk_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("t.qcow2");
    let storage = images::new_file(path);
    create(&*storage, &CreateOptions::new(1 << 20)).unwrap();
    let disk = images::open(path, true);
    let end = 1u64 << 20;
    let mut buf = [0; 1024];
    for at in [end - 512, end, end + 512, u64::MAX - 512, u64::MAX] {
        assert!(disk.read(&mut buf, GuestOffset(at)).is_err(), "read at {at:#x}");
        assert!(disk.write(&buf, GuestOffset(at)).is_err(), "write at {at:#x}");
        assert!(disk.write_zeroes(GuestOffset(at), 1024).is_err(), "write_zeroes at {at:#x}");
        assert!(disk.discard(GuestOffset(at), 1024).is_err(), "discard at {at:#x}");
    }
    for len in [end + 1, u64::MAX] {
        assert!(disk.write_zeroes(GuestOffset(0), len).is_err(), "write_zeroes of {len} bytes");
        assert!(disk.discard(GuestOffset(0), len).is_err(), "discard of {len} bytes");
    }
    assert!(disk.extent(GuestOffset(end)).is_err());
    disk.read(&mut [], GuestOffset(end)).unwrap();
    disk.write(&[], GuestOffset(0)).unwrap();
    disk.close().unwrap();
    drop(disk);
    assert!(qemu::convert(path).iter().all(|byte| *byte == 0));
    qemu::assert_clean(path, "after refused requests");
}

#[test]
fn a_disk_that_is_open_for_reading_refuses_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("t.qcow2");
    create(&*images::new_file(path), &CreateOptions::new(1 << 20)).unwrap();
    let before = std::fs::read(path).unwrap();
    let disk = images::open(path, false);
    let kinds = [
        disk.write(&[1; 512], GuestOffset(0)).expect_err("write").kind(),
        disk.write_zeroes(GuestOffset(0), 512).expect_err("write_zeroes").kind(),
        disk.discard(GuestOffset(0), 512).expect_err("discard").kind(),
    ];
    assert_eq!(kinds, [cowshed::Kind::ReadOnly; 3]);
    drop(disk);
    assert_eq!(before, std::fs::read(path).unwrap());
}
