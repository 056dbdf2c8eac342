//! A process that is killed, at any of its changes of the host's files, loses no acknowledged write, flushed or not.
//!
//! The host stays up: it keeps every change that was made. `COWSHED_SEED=N cargo test --test disk_kill` plays one seed.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod images;
    pub mod mortal;
    pub mod ops;
    pub mod qemu;
    pub mod rng;
    pub mod scratch;
    pub mod stamps;
}

use common::crash::{Effort, History, Sweep};
use common::mortal::{Host, Life, Mortal, MortalLog};
use common::ops::{Op, Step, random_step};
use common::rng::{Rng, seed_from_environment};
use common::scratch::Scratch;
use common::stamps::Guest as Stamps;
use common::{images, qemu};
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::{Fault, Memory, Operation, Recorder, Storage};
use cowshed::units::GuestOffset;
use std::sync::Arc;

const SEEDS: [u64; 6] = [1, 2, 3, 4, 5, 6];
const SIZE: u64 = 1 << 20;
/// Kills of each workload.
const STATES: u64 = 120;
/// A run of clusters is reserved ahead of use.
const RESERVED: u64 = 64;

/// An image before the workload, and what lies below it.
struct Start {
    image: Vec<u8>,
    base: Vec<u8>,
    size: u64,
}

impl Start {
    fn ours(cluster_bits: u32, extended_l2: bool) -> Self {
        let storage = Memory::new();
        let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
        create(&storage, &CreateOptions { cluster_bits, extended_l2, backing, ..CreateOptions::new(SIZE) })
            .unwrap();
        Self { image: storage.bytes(), base: Rng::new(99).bytes(SIZE as usize - 70_000), size: SIZE }
    }

    fn qemus(steps: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        steps.iter().for_each(|step| qemu::step(folder.path(), step));
        Self { image: std::fs::read(folder.path().join("t.qcow2")).unwrap(), base: Vec::new(), size: SIZE }
    }

    /// Opens the image as a process does that lives for `life`.
    fn open(&self, host: &Arc<Host>, life: &Arc<Life>, options: OpenOptions) -> cowshed::Result<Disk> {
        self.open_file(Mortal::new(host.image.clone(), life.clone()), host, life, options)
    }

    fn open_file(
        &self,
        file: Arc<dyn Storage>,
        host: &Arc<Host>,
        life: &Arc<Life>,
        options: OpenOptions,
    ) -> cowshed::Result<Disk> {
        let place = MortalLog::new(host.clone(), life.clone());
        let image = Image::open_logged(file, options, place)?;
        let mut layers = vec![Layer::qcow2(image)];
        if !self.base.is_empty() {
            layers.push(Layer::Raw(RawLayer::new(Arc::new(Memory::from_bytes(&self.base)), false)?));
        }
        Disk::new(layers)
    }
}

fn writable() -> OpenOptions {
    OpenOptions { writable: true, ..OpenOptions::default() }
}

fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.size() as usize];
    disk.read(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

/// What a guest knows when its server was killed: acknowledged bytes, and the step that got no answer.
struct Guest {
    model: Vec<u8>,
    unanswered: Option<Step>,
}

impl Guest {
    fn assert_legal(&self, got: &[u8], what: &str) {
        let Some(step) = &self.unanswered else {
            return images::assert_same(got, &self.model, what);
        };
        let mut done = self.model.clone();
        step.apply_to(&mut done);
        if got == self.model || got == done {
            return;
        }
        for (at, byte) in got.iter().enumerate() {
            assert!(
                *byte == self.model[at] || *byte == done[at],
                "{what}: byte {at:#x} is {byte:#x}, acknowledged {:#x}, unanswered {:#x} ({:?} {:#x}+{:#x})",
                self.model[at],
                done[at],
                std::mem::discriminant(&step.op),
                step.at,
                step.len
            );
        }
    }
}

/// Plays steps until the process dies or `count` are done.
fn play(disk: &Disk, life: &Life, before: Vec<u8>, rng: &mut Rng, count: u64) -> Guest {
    let mut guest = Guest { model: before, unanswered: None };
    for _ in 0..count {
        let step = random_step(rng, guest.model.len() as u64, 150_000);
        let at = GuestOffset(step.at);
        let answer = match &step.op {
            Op::Read => Ok(()),
            Op::Write(data) => disk.write(data, at),
            Op::WriteZeroes => disk.write_zeroes(at, step.len),
            Op::Discard => disk.discard(at, step.len),
            // Few flushes, so that much is in memory only.
            Op::Flush if rng.chance(40) => disk.flush(),
            Op::Flush => Ok(()),
        };
        if answer.is_err() {
            assert!(life.is_over(), "{answer:?} from a living host");
            guest.unanswered = Some(step);
            return guest;
        }
        step.apply_to(&mut guest.model);
        if rng.chance(3) && disk.close().is_err() {
            return guest;
        }
    }
    guest
}

/// Asserts that the files hold what the guest knows, for readers and for a new writer, and that the image is sound.
fn judge(start: &Start, host: &Arc<Host>, guest: &Guest, what: &str) {
    let report = check(host.image.clone()).unwrap();
    assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
    let reader = start.open(host, &Life::endless(), OpenOptions::default()).unwrap();
    guest.assert_legal(&contents(&reader), &format!("{what}, read only"));
    let writer = start.open(host, &Life::endless(), writable()).unwrap();
    let mut now = contents(&writer);
    guest.assert_legal(&now, what);
    let mut rng = Rng::new(now.len() as u64 ^ what.len() as u64);
    common::ops::play(&writer, &mut now, &mut rng, 6, what);
    writer.close().unwrap();
    assert!(host.log.lock().unwrap().is_none(), "{what}: a clean close leaves a log");
    let report = check(host.image.clone()).unwrap();
    assert_eq!(report.error_count, 0, "{what}, after going on: {:?}", report.errors);
    assert!(report.leaks <= 2 * RESERVED + 8, "{what}: {} leaks", report.leaks);
    let reader = start.open(host, &Life::endless(), OpenOptions::default()).unwrap();
    images::assert_same(&contents(&reader), &now, &format!("{what}, after going on"));
}

/// One process of `changes` changes on `host`; the guest's knowledge at its end, and how many changes it made.
fn one_life(start: &Start, host: &Arc<Host>, seed: u64, changes: u64) -> (Guest, u64) {
    let before = contents(&start.open(host, &Life::endless(), OpenOptions::default()).unwrap());
    let life = Life::of(changes, seed ^ changes.wrapping_mul(0x9e37));
    let guest = match start.open(host, &life, writable()) {
        Ok(disk) => play(&disk, &life, before, &mut Rng::new(seed), 30),
        Err(_) => Guest { model: before, unanswered: None },
    };
    (guest, changes - life.left())
}

fn survives(layout: &str, start: &Start) {
    let seeds = seed_from_environment().map_or(SEEDS.to_vec(), |seed| vec![seed]);
    let (mut kills, mut recoveries) = (0, 0);
    for seed in seeds {
        let (_, total) = one_life(start, &Host::new(&start.image), seed, u64::MAX >> 1);
        let every = (total / STATES).max(1);
        for changes in (seed % every..total).step_by(every as usize) {
            let host = Host::new(&start.image);
            let (guest, _) = one_life(start, &host, seed, changes);
            let what = format!("{layout}, seed {seed}, killed at change {changes}");
            kills += 1;
            if kills % 3 == 0 {
                recoveries += killed_while_recovering(start, &host, &guest, &what);
            }
            judge(start, &host.copy(), &guest, &what);
            // The next process goes on with the same log, and is killed too.
            let (guest, _) = one_life(start, &host, seed + 100, changes / 2 + 3);
            judge(start, &host, &guest, &format!("{what}, and the next one at change {}", changes / 2 + 3));
        }
    }
    println!("{layout}: twice {kills} kills, {recoveries} more while the next process recovered");
    assert!(
        kills > 200 && recoveries > 100 || seed_from_environment().is_some(),
        "{layout}: only {kills} kills"
    );
}

/// Kills the next process at each of its first changes: it closes at once, which makes durable what it replayed.
fn killed_while_recovering(start: &Start, host: &Arc<Host>, guest: &Guest, what: &str) -> u64 {
    for changes in 0.. {
        let host = host.copy();
        let life = Life::of(changes, changes);
        let closed = start.open(&host, &life, writable()).is_ok_and(|disk| disk.close().is_ok());
        judge(start, &host, guest, &format!("{what}, then at change {changes} of the recovery"));
        if closed {
            return changes;
        }
    }
    unreachable!()
}

#[test]
fn a_clone_keeps_every_acknowledged_write() {
    survives("extended 128 KiB", &Start::ours(17, true));
}

#[test]
fn plain_l2_keeps_every_acknowledged_write() {
    survives("plain 64 KiB", &Start::ours(16, false));
}

#[test]
fn small_clusters_keep_every_acknowledged_write() {
    survives("plain 4 KiB", &Start::ours(12, false));
}

#[test]
fn an_image_with_a_snapshot_keeps_every_acknowledged_write() {
    let create = "img create -q -f qcow2 -o extended_l2=on,cluster_size=32k t.qcow2 1M";
    let fill =
        "io t.qcow2 write -P 1 0 300k; write -c -P 2 320k 32k; write -c -P 3 384k 32k; write -z 512k 64k";
    survives("snapshot", &Start::qemus(&[create, fill, "img snapshot -q -c one t.qcow2"]));
}

/// A killed process with unflushed writes: its host, and what the guest knows.
fn killed(start: &Start) -> (Arc<Host>, Vec<u8>) {
    let host = Host::new(&start.image);
    let disk = start.open(&host, &Life::endless(), writable()).unwrap();
    let mut model = contents(&disk);
    model[4096..12288].fill(5);
    disk.write(&[5; 8192], GuestOffset(4096)).unwrap();
    std::mem::forget(disk);
    (host, model)
}

/// Processes that are killed one after the other, on a file whose changes are recorded, and what the guest did.
fn record_with_kills(start: &Start, seed: u64) -> (Stamps, History, u64) {
    let mut rng = Rng::new(seed);
    let host = Host::new(&[]);
    let recorder = Arc::new(Recorder::new(Scratch::new(&start.image)));
    let open = || start.open_file(recorder.clone(), &host, &Life::endless(), writable()).unwrap();
    let mut disk = open();
    let mut guest = Stamps::new(contents(&disk));
    let mut kills = 0;
    for _ in 0..26 {
        let (at, len) = (rng.below(start.size / 512 - 300) * 512, rng.between(1, 300) * 512);
        let op = match rng.below(10) {
            0..=5 => Op::Write(Vec::new()),
            6 => Op::WriteZeroes,
            7 => Op::Discard,
            _ => Op::Flush,
        };
        guest.run(&disk, Step { op, at, len }, || recorder.events().len()).unwrap();
        if rng.chance(15) {
            kills += 1;
            drop(disk);
            disk = open();
        }
    }
    assert!(contents(&disk) == guest.latest(), "seed {seed}: a kill lost something");
    (guest, History::new(Arc::new(start.image.clone()), recorder.events()), kills)
}

#[test]
fn a_power_cut_after_kills_loses_nothing_that_was_flushed() {
    for (bits, extended) in [(17, true), (16, false), (12, false)] {
        let start = Start::ours(bits, extended);
        let (mut states, mut killed) = (0, 0);
        for seed in seed_from_environment().map_or(1..=4, |seed| seed..=seed) {
            let (guest, history, kills) = record_with_kills(&start, seed);
            killed += kills;
            let mut rng = Rng::new(seed);
            let mut sweep = Sweep::new(&history);
            loop {
                let count = sweep.count();
                for plan in sweep.plans(&mut rng, Effort { subsets: 8, chosen: 4 }, true) {
                    states += 1;
                    sweep.put(plan);
                    let host = Host::new(&sweep.file().bytes());
                    sweep.file().rewind();
                    let what =
                        format!("cluster bits {bits}, seed {seed}, cut after {count} events, {plan:?}");
                    let report = check(host.image.clone()).unwrap();
                    assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
                    let disk = start.open(&host, &Life::endless(), writable()).unwrap();
                    guest.assert_legal(&contents(&disk), count, &what);
                }
                if !sweep.advance() {
                    break;
                }
            }
        }
        println!("cluster bits {bits}: {killed} kills, {states} states");
        assert!(killed > 5 && states > 300 || seed_from_environment().is_some());
    }
}

#[test]
fn after_a_power_cut_a_log_is_not_replayed() {
    let start = Start::ours(17, true);
    let (host, model) = killed(&start);
    let mut old = start.base.clone();
    old.resize(SIZE as usize, 0);
    let read =
        |host: &Arc<Host>| contents(&start.open(host, &Life::endless(), OpenOptions::default()).unwrap());
    assert!(read(&host) == model);
    assert!(read(&host.restarted()) == old, "the log of another session was replayed");
}

#[test]
fn who_does_not_know_the_log_and_writes_the_image_makes_it_void() {
    let start = Start::ours(17, true);
    let (host, model) = killed(&start);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.qcow2");
    std::fs::write(folder.path().join("b.raw"), &start.base).unwrap();
    std::fs::write(&path, host.image.bytes()).unwrap();
    let verdict = qemu::check(&path);
    assert!(matches!(verdict.code, 0 | 3), "{}", verdict.text);
    assert!(std::fs::read(&path).unwrap() == host.image.bytes(), "a check changed the image");
    qemu::step(folder.path(), "io t.qcow2 write -P 9 512k 4k");
    let by_qemu = Host::new(&std::fs::read(&path).unwrap());
    *by_qemu.log.lock().unwrap() = host.log.lock().unwrap().clone();
    let disk = start.open(&by_qemu, &Life::endless(), writable()).unwrap();
    let got = contents(&disk);
    disk.close().unwrap();
    images::assert_same(&got, &qemu::convert(&path), "QEMU's write counts, and no old log");
    assert!(got != model);
}

#[test]
fn what_cannot_be_logged_is_durable_when_it_is_acknowledged() {
    let start = Start::ours(17, true);
    let host = Host::new(&start.image);
    let life = Life::endless();
    let disk = start.open(&host, &life, writable()).unwrap();
    disk.write(&[1; 4096], GuestOffset(0)).unwrap();
    let log = host.log.lock().unwrap().clone().unwrap();
    let full = Fault { after: 0, only: Some(Operation::Write), errno: libc::ENOSPC, lasting: true };
    log.set_fault(Some(full));
    disk.write(&[2; 4096], GuestOffset(1 << 19)).unwrap();
    log.set_fault(None);
    std::mem::forget(disk);
    let after = contents(&start.open(&host.restarted(), &Life::endless(), OpenOptions::default()).unwrap());
    assert!(after[..4096] == [1; 4096] && after[1 << 19..(1 << 19) + 4096] == [2; 4096]);
}

#[test]
fn after_a_failed_sync_nothing_is_replayed_that_the_host_may_have_lost() {
    let start = Start::ours(17, true);
    let host = Host::new(&start.image);
    let disk = start.open(&host, &Life::endless(), writable()).unwrap();
    disk.write(&[1; 4096], GuestOffset(0)).unwrap();
    disk.flush().unwrap();
    disk.write(&[2; 4096], GuestOffset(1 << 19)).unwrap();
    host.image.set_fault(Some(Fault {
        after: 0,
        only: Some(Operation::Sync),
        errno: libc::EIO,
        lasting: false,
    }));
    disk.flush().unwrap_err();
    disk.close().unwrap_err();
    std::mem::forget(disk);
    let after = contents(&start.open(&host, &Life::endless(), writable()).unwrap());
    assert!(after[..4096] == [1; 4096]);
    assert!(
        after[1 << 19..(1 << 19) + 4096] == start.base[1 << 19..(1 << 19) + 4096],
        "a write that was not flushed came back"
    );
}

#[test]
fn a_full_log_ends_in_a_commit_and_stays_short_when_it_is_settled() {
    let start = Start::ours(9, false);
    let host = Host::new(&start.image);
    let disk = start.open(&host, &Life::endless(), writable()).unwrap();
    let mut rng = Rng::new(5);
    for round in 0..400_u64 {
        disk.write(&rng.bytes(SIZE as usize), GuestOffset(0)).unwrap();
        disk.discard(GuestOffset(0), SIZE).unwrap();
        let log = host.log.lock().unwrap().clone().unwrap();
        assert!(log.len().unwrap() < 11 << 20, "round {round}");
    }
    disk.write(&[3; 4096], GuestOffset(0)).unwrap();
    std::mem::forget(disk);
    let after = contents(&start.open(&host, &Life::endless(), writable()).unwrap());
    assert!(after[..4096] == [3; 4096] && after[4096..].iter().all(|byte| *byte == 0));
}
