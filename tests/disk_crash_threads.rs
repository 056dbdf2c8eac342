//! Power cuts while several threads write into the same clusters and flush.
//!
//! Which thread runs when is not fixed by the seed: a failure prints the seed and the moment, and the log is real.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod rng;
}

use common::crash::{Bytes, History};
use common::rng::Rng;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::{Recorder, Storage};
use cowshed::units::GuestOffset;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SIZE: u64 = 1 << 20;
const SECTOR: usize = 512;
const THREADS: u64 = 4;
/// Bytes that belong to one thread before the next one's turn comes: far less than a cluster.
const PIECE: u64 = 2048;

/// One operation of one thread, by a clock that all threads share and by the length of the storage's log.
struct Done {
    at: usize,
    /// What it leaves there; nothing for a flush.
    bytes: Vec<u8>,
    clock: (u64, u64),
    events: (usize, usize),
}

struct Workload {
    start: Vec<u8>,
    base: Vec<u8>,
    history: History,
    /// What each thread did, in its order.
    threads: Vec<Vec<Done>>,
}

fn open(storage: Arc<dyn Storage>, base: &[u8]) -> cowshed::Result<Disk> {
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let top = Layer::Qcow2(Box::new(Image::open(storage, options)?));
    Disk::new(vec![top, Layer::Raw(RawLayer::new(Bytes::new(base.to_vec()), false)?)])
}

fn stamp(thread: u64, number: u64, at: u64, len: u64) -> Vec<u8> {
    let words = (at / 512..(at + len) / 512).flat_map(|sector| {
        let word = (thread + 1) << 56 | (number + 1) << 32 | sector;
        std::iter::repeat_n(word.to_le_bytes(), SECTOR / 8)
    });
    words.flatten().collect()
}

fn work(
    disk: &Disk,
    thread: u64,
    mut rng: Rng,
    clock: &AtomicU64,
    events: &(dyn Fn() -> usize + Sync),
) -> Vec<Done> {
    let mut done = Vec::new();
    for number in 0..14 {
        // Few clusters for all threads, so that they meet.
        let turns = if rng.chance(70) { 16 } else { SIZE / PIECE / THREADS };
        let turn = rng.below(turns);
        let at = (turn * THREADS + thread) * PIECE;
        let len = rng.between(1, PIECE / 512) * 512;
        let place = GuestOffset(at);
        let (begin, before) = (clock.fetch_add(1, Ordering::SeqCst), events());
        let bytes = match rng.below(10) {
            0..=5 => {
                let data = stamp(thread, number, at, len);
                disk.write(&data, place).unwrap();
                data
            }
            6 => {
                disk.write_zeroes(place, len).unwrap();
                vec![0; len as usize]
            }
            7 => {
                disk.discard(place, len).unwrap();
                vec![0; len as usize]
            }
            _ => {
                disk.flush().unwrap();
                Vec::new()
            }
        };
        let events = (before, events());
        let clock = (begin, clock.fetch_add(1, Ordering::SeqCst));
        done.push(Done { at: at as usize, bytes, clock, events });
    }
    done
}

fn record(options: &CreateOptions, seed: u64) -> Workload {
    let storage = Bytes::new(Vec::new());
    create(&*storage, options).unwrap();
    let (start, base) = (storage.bytes(), Rng::new(97).bytes(SIZE as usize));
    let recorder = Arc::new(Recorder::new(storage));
    let disk = open(recorder.clone(), &base).unwrap();
    let (clock, log) = (AtomicU64::new(0), &recorder);
    let events = || log.events().len();
    let threads = std::thread::scope(|scope| {
        let (disk, clock, events) = (&disk, &clock, &events);
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || work(disk, thread, Rng::new(seed * 10 + thread), clock, events))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    Workload { history: History::new(start.clone(), recorder.events()), start, base, threads }
}

/// Asserts that each sector is the last durable state or a later one, for a cut after `count` events.
fn assert_legal(workload: &Workload, got: &[u8], count: usize, what: &str) {
    let all = || workload.threads.iter().flatten();
    let flushed =
        all().filter(|done| done.bytes.is_empty() && done.events.1 <= count).map(|done| done.clock.0).max();
    for (sector, bytes) in got.chunks(SECTOR).enumerate() {
        let at = sector * SECTOR;
        let owner = at as u64 / PIECE % THREADS;
        let mut legal: Vec<&[u8]> = vec![&workload.base[at..at + SECTOR]];
        for done in &workload.threads[owner as usize] {
            let covers = (done.at..done.at + done.bytes.len()).contains(&at);
            if !covers || done.events.0 > count {
                continue;
            }
            if flushed.is_some_and(|start| done.clock.1 < start) {
                legal.clear();
            }
            legal.push(&done.bytes[at - done.at..at - done.at + SECTOR]);
        }
        assert!(
            legal.contains(&bytes),
            "{what}: sector {sector} of thread {owner} holds {:02x?}.., legal are {:02x?}",
            &bytes[..8],
            legal.iter().map(|bytes| &bytes[..8]).collect::<Vec<_>>()
        );
    }
}

fn survives(options: &CreateOptions) {
    let mut states = 0;
    for seed in 1..=6 {
        let workload = record(options, seed);
        let mut rng = Rng::new(seed);
        for count in 0..workload.history.moments() {
            let cut = workload.history.cut(count);
            for strategy in cut.strategies(&mut rng, 4) {
                states += 1;
                let what = format!("seed {seed}, cut after {count} events, {strategy:?}");
                let bytes = cut.state(strategy);
                let report = check(Bytes::new(bytes.clone())).unwrap();
                assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
                let disk = open(Bytes::new(bytes), &workload.base).unwrap();
                let mut got = vec![0; SIZE as usize];
                disk.read(&mut got, GuestOffset(0)).unwrap();
                assert_legal(&workload, &got, count, &what);
            }
        }
    }
    println!("{states} states");
    assert!(states > 1000, "only {states} states");
}

fn options(cluster_bits: u32, extended_l2: bool) -> CreateOptions {
    let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
    CreateOptions { cluster_bits, extended_l2, backing, ..CreateOptions::new(SIZE) }
}

#[test]
fn threads_in_one_cluster_of_a_clone_survive_power_cuts() {
    survives(&options(17, true));
}

#[test]
fn threads_in_one_plain_cluster_survive_power_cuts() {
    survives(&options(16, false));
}

#[test]
fn threads_in_small_clusters_survive_power_cuts() {
    survives(&options(12, false));
}
