//! Power cuts while several threads write into the same clusters and flush.
//!
//! Which thread runs when is not fixed by the seed: a failure prints the seed and the moment, and the log is real.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod images;
    pub mod layouts;
    pub mod qemu;
    pub mod reader;
    pub mod rng;
    pub mod scratch;
}

use common::crash::{Effort, History, Sweep};
use common::layouts::Layout;
use common::reader::Reader;
use common::rng::Rng;
use common::scratch::Scratch;
use cowshed::disk::Disk;
use cowshed::qcow2::check;
use cowshed::storage::Recorder;
use cowshed::units::GuestOffset;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SECTOR: usize = 512;
const THREADS: u64 = 4;
/// Bytes that belong to one thread before the next one's turn comes: far less than a cluster.
const PIECE: u64 = 2048;
/// States of each layout.
const STATES: u64 = 6000;

/// One operation of one thread, by a clock that all threads share and by the length of the storage's log.
struct Done {
    at: usize,
    /// What it leaves there; nothing for a flush.
    bytes: Vec<u8>,
    clock: (u64, u64),
    events: (usize, usize),
}

struct Workload {
    /// The disk as it was.
    before: Vec<u8>,
    history: History,
    /// What each thread did, in its order.
    threads: Vec<Vec<Done>>,
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
        let all = disk.size() / PIECE / THREADS;
        let turns = if rng.chance(70) { all.min(16) } else { all };
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

fn record(layout: &Layout, seed: u64) -> Workload {
    let recorder = Arc::new(Recorder::new(Scratch::new(&layout.image)));
    let disk = layout.open(recorder.clone()).unwrap();
    let mut before = vec![0; layout.size as usize];
    disk.read(&mut before, GuestOffset(0)).unwrap();
    let (clock, log) = (AtomicU64::new(0), &recorder);
    let events = || log.count();
    let threads = std::thread::scope(|scope| {
        let (disk, clock, events) = (&disk, &clock, &events);
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || work(disk, thread, Rng::new(seed * 10 + thread), clock, events))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    Workload { before, history: History::new(layout.image.clone(), recorder.events()), threads }
}

/// For each sector what it may hold after a cut at `count` events: the last durable content or a later one.
fn legal(workload: &Workload, count: usize) -> Vec<Vec<&[u8]>> {
    let all = || workload.threads.iter().flatten();
    let flushed =
        all().filter(|done| done.bytes.is_empty() && done.events.1 <= count).map(|done| done.clock.0).max();
    let mut legal: Vec<Vec<&[u8]>> = workload.before.chunks(SECTOR).map(|bytes| vec![bytes]).collect();
    // Each sector has one writer, so its thread's order is the order of its contents.
    for done in all().filter(|done| done.events.0 <= count) {
        for (number, bytes) in done.bytes.chunks(SECTOR).enumerate() {
            let choices = &mut legal[done.at / SECTOR + number];
            if flushed.is_some_and(|start| done.clock.1 < start) {
                choices.clear();
            }
            choices.push(bytes);
        }
    }
    legal
}

fn judge(
    layout: &Layout,
    reader: &mut Reader,
    file: &Arc<Scratch>,
    legal: &[Vec<&[u8]>],
) -> Result<(), String> {
    file.with(|bytes| reader.examine(bytes, &layout.base))?;
    for (sector, (bytes, legal)) in reader.contents.chunks(SECTOR).zip(legal).enumerate() {
        if !legal.contains(&bytes) {
            let legal: Vec<_> = legal.iter().map(|bytes| &bytes[..8]).collect();
            return Err(format!("sector {sector} holds {:02x?}.., legal are {legal:02x?}", &bytes[..8]));
        }
    }
    let report = check(file.clone()).map_err(|error| format!("check: {error}"))?;
    if report.error_count != 0 {
        return Err(format!("check: {:?}", report.errors));
    }
    let disk = layout.open(file.clone()).map_err(|error| format!("open: {error}"))?;
    let mut got = vec![0; layout.size as usize];
    disk.read(&mut got, GuestOffset(0)).map_err(|error| format!("read: {error}"))?;
    if got == reader.contents { Ok(()) } else { Err("the engine and the reader read different bytes".into()) }
}

fn survives(layout: &Layout, wanted: u64, first: u64) -> u64 {
    let (mut states, mut reader) = (0, Reader::default());
    let mut seeds = first..;
    while states < wanted {
        let seed = seeds.next().unwrap();
        let workload = record(layout, seed);
        let (mut rng, mut sweep) = (Rng::new(seed), Sweep::new(&workload.history));
        loop {
            let legal = legal(&workload, sweep.count());
            for plan in sweep.plans(&mut rng, Effort { subsets: 16, chosen: 6 }, true) {
                states += 1;
                sweep.put(plan);
                judge(layout, &mut reader, sweep.file(), &legal).unwrap_or_else(|error| {
                    panic!(
                        "{}, seed {seed}, cut after {} events, {plan:?}: {error}",
                        layout.name,
                        sweep.count()
                    )
                });
                sweep.file().rewind();
            }
            if !sweep.advance() {
                break;
            }
        }
    }
    println!("{}: {states} states", layout.name);
    states
}

#[test]
fn threads_in_one_cluster_of_a_clone_survive_power_cuts() {
    survives(&Layout::ours(17, true, 2, true), STATES / 2, 1);
}

#[test]
fn threads_in_one_plain_cluster_survive_power_cuts() {
    survives(&Layout::ours(16, false, 3, true), STATES, 1);
}

#[test]
fn threads_in_small_clusters_survive_power_cuts() {
    survives(&Layout::ours(12, false, 40, true), STATES, 1);
    survives(&Layout::ours(14, true, 10, false), STATES, 1);
}

#[test]
fn threads_over_few_tables_in_memory_survive_power_cuts() {
    survives(&Layout::ours(9, false, 1300, false).evicting(), STATES / 6, 1);
}

/// Fresh seeds on every layout by turns: a twentieth of `COWSHED_SOAK_STATES`, which is ten million by default.
#[test]
#[ignore = "soak"]
fn soak_threads_and_power_cuts() {
    let wanted = std::env::var("COWSHED_SOAK_STATES").map_or(10_000_000, |text| text.parse().unwrap()) / 20;
    let layouts = [
        Layout::ours(17, true, 2, true),
        Layout::ours(16, false, 3, true),
        Layout::ours(12, false, 40, true),
        Layout::ours(14, true, 10, false).stale(),
        Layout::ours(9, false, 1300, false).evicting(),
    ];
    let (mut states, mut turn) = (0, 0);
    while states < wanted {
        turn += 1;
        states += layouts.iter().map(|layout| survives(layout, STATES, turn * 1_000_000)).sum::<u64>();
        println!("{states} states");
    }
}
