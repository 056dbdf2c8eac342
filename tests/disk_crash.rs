//! After a power cut at any moment the image opens, checks without error, and holds what was flushed.
//!
//! `COWSHED_SEED=N cargo test --test disk_crash` plays one seed; a failure names seed, moment and strategy.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod images;
    pub mod ops;
    pub mod qemu;
    pub mod rng;
    pub mod stamps;
}

use common::crash::{Bytes, History};
use common::ops::{Op, Step};
use common::rng::{Rng, seed_from_environment};
use common::stamps::Guest;
use common::{images, qemu};
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::{Effect, Event, Recorder, Storage};
use cowshed::units::GuestOffset;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// Seeds of each layout's workload.
const SEEDS: [u64; 4] = [1, 2, 3, 5];
/// States for each workload.
const STATES: usize = 600;
/// Bytes of the disk.
const SIZE: u64 = 1 << 20;

/// An image before the workload, and the bytes of the raw file below it.
struct Start {
    image: Vec<u8>,
    base: Option<Vec<u8>>,
}

impl Start {
    /// An image of ours.
    fn ours(cluster_bits: u32, extended_l2: bool, over_base: bool) -> Self {
        let storage = Bytes::new(Vec::new());
        // The name is not needed: the base is given by hand.
        let options = CreateOptions { cluster_bits, extended_l2, ..CreateOptions::new(SIZE) };
        let backing = cowshed::qcow2::BackingName { file: "b.raw".into(), format: Some("raw".into()) };
        let options = CreateOptions { backing: over_base.then_some(backing), ..options };
        create(&*storage, &options).unwrap();
        Self { image: storage.bytes(), base: over_base.then(|| Rng::new(99).bytes(SIZE as usize - 70_000)) }
    }

    /// An image of QEMU's.
    fn qemus(steps: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        steps.iter().for_each(|step| qemu::step(folder.path(), step));
        Self { image: std::fs::read(folder.path().join("t.qcow2")).unwrap(), base: None }
    }

    fn open(&self, storage: Arc<dyn Storage>) -> cowshed::Result<Disk> {
        let options = OpenOptions { writable: true, ..OpenOptions::default() };
        let mut layers = vec![Layer::Qcow2(Box::new(Image::open(storage, options)?))];
        if let Some(base) = &self.base {
            layers.push(Layer::Raw(RawLayer::new(Bytes::new(base.clone()), false)?));
        }
        Disk::new(layers)
    }
}

fn contents(disk: &Disk) -> cowshed::Result<Vec<u8>> {
    let mut bytes = vec![0xee; disk.size() as usize];
    disk.read(&mut bytes, GuestOffset(0))?;
    Ok(bytes)
}

/// A guest step of whole sectors, within a few hot spots.
fn step(rng: &mut Rng) -> Step {
    let (sectors, grain) = (SIZE / 512, *rng.pick(&[1, 1, 8, 8, 32, 256]));
    let near = if rng.chance(60) { 600 } else { sectors };
    let at = rng.below(near) / grain * grain;
    let len = match rng.below(4) {
        0 => rng.between(1, 9),
        1 | 2 => 8 * rng.between(1, 8),
        _ => rng.between(1, 500),
    };
    let len = len.min(sectors - at);
    let op = match rng.below(100) {
        0..=49 => Op::Write(Vec::new()),
        50..=61 => Op::WriteZeroes,
        62..=76 => Op::Discard,
        _ => Op::Flush,
    };
    Step { op, at: at * 512, len: len * 512 }
}

/// Runs a workload and gives its history; with `closes`, the disk is closed now and then and at its end.
fn record(start: &Start, rng: &mut Rng, closes: bool) -> (Guest, History) {
    let recorder = Arc::new(Recorder::new(Bytes::new(start.image.clone())));
    let disk = start.open(recorder.clone()).unwrap();
    let mut guest = Guest::new(contents(&disk).unwrap());
    let events = || recorder.events().len();
    for _ in 0..rng.between(12, 40) {
        guest.run(&disk, step(rng), events).unwrap();
        if closes && rng.chance(8) {
            disk.close().unwrap();
        }
    }
    if closes {
        disk.close().unwrap();
    }
    let flush = Step { op: Op::Flush, at: 0, len: 0 };
    guest.run(&disk, flush, events).unwrap();
    assert!(contents(&disk).unwrap() == guest.latest(), "the workload itself reads wrong");
    (guest, History::new(start.image.clone(), recorder.events()))
}

/// Asserts all promises of one state.
fn judge(start: &Start, guest: &Guest, bytes: Vec<u8>, count: usize, deep: bool, what: &str) {
    let report = check(Bytes::new(bytes.clone())).unwrap_or_else(|error| panic!("{what}: check: {error}"));
    assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
    let storage = Bytes::new(bytes.clone());
    let disk = start.open(storage.clone()).unwrap_or_else(|error| panic!("{what}: open: {error}"));
    let got = contents(&disk).unwrap_or_else(|error| panic!("{what}: read: {error}"));
    guest.assert_legal(&got, count, what);
    if !deep {
        return;
    }
    as_qemu_sees_it(start, &bytes, Some(&got), what);
    // Life goes on: what is written now is there, and nothing else moves.
    let mut model = got;
    let mut rng = Rng::new(count as u64);
    common::ops::play(&disk, &mut model, &mut rng, 10, what);
    disk.close().unwrap_or_else(|error| panic!("{what}: close: {error}"));
    assert!(contents(&disk).unwrap() == model, "{what}: wrong bytes after going on");
    as_qemu_sees_it(start, &storage.bytes(), Some(&model), &format!("{what}, after going on"));
}

fn as_qemu_sees_it(start: &Start, image: &[u8], model: Option<&[u8]>, what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("t.qcow2");
    std::fs::write(path, image).unwrap();
    if let Some(base) = &start.base {
        std::fs::write(folder.path().join("b.raw"), base).unwrap();
    }
    let verdict = qemu::check(path);
    assert!(matches!(verdict.code, 0 | 3), "{what}: qemu-img check: {}", verdict.text);
    if let Some(model) = model {
        images::assert_same(&qemu::convert(path), model, &format!("{what}, by QEMU"));
    }
}

/// The log as if the engine had not asked for the sync at place `lost`.
fn without_sync(events: &[Event], lost: usize) -> Vec<Event> {
    let mut mutant = events.to_vec();
    // It stays in the log, so that moments keep their numbers, but it makes nothing durable.
    mutant[lost].ok = false;
    mutant
}

#[test]
fn the_harness_notices_when_a_sync_is_left_out() {
    let start = Start::ours(17, true, true);
    let mut rng = Rng::new(11);
    // Without closing: a close syncs again right after its flush, so nothing depends on either sync alone.
    let (guest, history) = record(&start, &mut rng, false);
    let events = history.events();
    let syncs: Vec<usize> = (0..events.len()).filter(|at| events[*at].effect == Effect::Sync).collect();
    let mut noticed = 0;
    for lost in &syncs {
        let mutant = History::new(start.image.clone(), without_sync(events, *lost));
        let found = (*lost..mutant.moments()).any(|count| {
            let cut = mutant.cut(count);
            cut.strategies(&mut rng, 12).into_iter().any(|strategy| {
                let state = cut.state(strategy);
                catch_unwind(AssertUnwindSafe(|| judge(&start, &guest, state, count, false, ""))).is_err()
            })
        });
        println!("without the sync after event {lost}: noticed {found}");
        noticed += usize::from(found);
    }
    let mutants = syncs.len();
    assert!(
        mutants >= 6 && noticed * 10 >= mutants * 9,
        "{noticed} of {mutants} left-out syncs were noticed"
    );
}

fn survives(layout: &str, start: &Start) {
    let seeds = seed_from_environment().map_or(SEEDS.to_vec(), |seed| vec![seed]);
    let mut states = 0;
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let (guest, history) = record(start, &mut rng, true);
        let share = (STATES / history.moments()).max(3);
        for count in 0..history.moments() {
            let cut = history.cut(count);
            for strategy in cut.strategies(&mut rng, share) {
                let what = format!("{layout}, seed {seed}, cut after {count} events, {strategy:?}");
                states += 1;
                judge(start, &guest, cut.state(strategy), count, states % 149 == 0, &what);
            }
        }
    }
    println!("{layout}: {states} states");
    assert!(states > 1000 || seed_from_environment().is_some(), "{layout}: only {states} states");
}

#[test]
fn the_clone_layout_survives_power_cuts() {
    survives("extended 128 KiB over a base", &Start::ours(17, true, true));
}

#[test]
fn extended_l2_without_a_base_survives_power_cuts() {
    survives("extended 16 KiB", &Start::ours(14, true, false));
}

#[test]
fn plain_l2_over_a_base_survives_power_cuts() {
    survives("plain 64 KiB over a base", &Start::ours(16, false, true));
}

#[test]
fn small_clusters_survive_power_cuts() {
    survives("plain 4 KiB", &Start::ours(12, false, false));
    survives("plain 512 bytes", &Start::ours(9, false, true));
}

const FILL: &str = "io t.qcow2 write -P 1 0 300k; write -c -P 2 320k 64k; write -c -P 3 384k 64k; write -z 512k 64k; write -P 4 600k 3k";

#[test]
fn an_image_with_a_snapshot_survives_power_cuts() {
    let create = "img create -q -f qcow2 -o cluster_size=64k t.qcow2 1M";
    survives("snapshot", &Start::qemus(&[create, FILL, "img snapshot -q -c one t.qcow2"]));
    let create = "img create -q -f qcow2 -o extended_l2=on,cluster_size=32k t.qcow2 1M";
    let fill = FILL.replace(
        "write -c -P 2 320k 64k; write -c -P 3 384k 64k",
        "write -c -P 2 320k 32k; write -c -P 3 384k 32k",
    );
    survives("extended snapshot", &Start::qemus(&[create, &fill, "img snapshot -q -c one t.qcow2"]));
}

#[test]
fn images_of_old_and_of_odd_refcounts_survive_power_cuts() {
    let create = "img create -q -f qcow2 -o compat=0.10,cluster_size=4k t.qcow2 1M";
    survives(
        "v2",
        &Start::qemus(&[create, "io t.qcow2 write -P 1 0 300k; write -c -P 2 320k 4k; write -P 4 600k 3k"]),
    );
    let create = "img create -q -f qcow2 -o refcount_bits=1,cluster_size=512 t.qcow2 1M";
    survives(
        "refcount width 1",
        &Start::qemus(&[create, "io t.qcow2 write -P 1 0 300k; write -P 4 600k 3k"]),
    );
}
