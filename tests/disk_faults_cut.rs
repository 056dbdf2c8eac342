//! The host fails at the n-th operation of any kind, for every n, and then power goes: what was flushed is there, and what a
//! failed sync lost stays lost.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod images;
    pub mod ops;
    pub mod qemu;
    pub mod rng;
    pub mod scratch;
    pub mod stamps;
}

use common::crash::{History, Plan, Strategy, Sweep};
use common::ops::{Op, Step};
use common::rng::Rng;
use common::stamps::Guest;
use cowshed::Kind;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::{Effect, Event, Fault, Memory, Operation, Recorder, Storage};
use cowshed::units::{GuestOffset, HostOffset};
use std::sync::Arc;

const SIZE: u64 = 384 << 10;

fn options(cluster_bits: u32, extended_l2: bool) -> CreateOptions {
    let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
    CreateOptions { cluster_bits, extended_l2, backing, ..CreateOptions::new(SIZE) }
}

fn layouts() -> [CreateOptions; 4] {
    [options(17, true), options(14, true), options(16, false), options(12, false)]
}

fn open(storage: Arc<dyn Storage>, base: &[u8]) -> cowshed::Result<Disk> {
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let top = Layer::Qcow2(Box::new(Image::open(storage, options)?));
    Disk::new(vec![top, Layer::Raw(RawLayer::new(file(base), false)?)])
}

fn file(bytes: &[u8]) -> Arc<Memory> {
    Arc::new(Memory::from_bytes(bytes))
}

fn contents(disk: &Disk) -> cowshed::Result<Vec<u8>> {
    let mut bytes = vec![0xee; SIZE as usize];
    disk.read(&mut bytes, GuestOffset(0))?;
    Ok(bytes)
}

/// Every operation of a guest, in fresh, allocated, zeroed and freed places, with flushes between.
fn workload() -> Vec<Step> {
    let step = |op: Op, at: u64, len: u64| Step { op, at: at << 10, len: len << 10 };
    let write = |at, len| step(Op::Write(Vec::new()), at, len);
    let flush = || step(Op::Flush, 0, 0);
    vec![
        write(0, 4),
        Step { op: Op::Write(Vec::new()), at: 65_536 - 512, len: 1024 },
        flush(),
        write(80, 90),
        step(Op::WriteZeroes, 84, 20),
        Step { op: Op::Write(Vec::new()), at: 0, len: 512 },
        flush(),
        step(Op::Discard, 100, 64),
        write(330, 8),
        flush(),
        write(100, 12),
        step(Op::Discard, 0, 128),
        write(270, 4),
        flush(),
        write(16, 40),
    ]
}

struct Run {
    guest: Guest,
    before: Vec<u8>,
    events: Vec<Event>,
    errors: Vec<cowshed::Error>,
    closed: cowshed::Result<()>,
}

fn run(options: &CreateOptions, base: &[u8], fault: Fault) -> Run {
    let memory = Arc::new(Memory::new());
    create(&*memory, options).unwrap();
    let before = memory.bytes();
    let recorder = Arc::new(Recorder::new(memory.clone()));
    let disk = open(recorder.clone(), base).unwrap();
    let mut guest = Guest::new(contents(&disk).unwrap());
    memory.set_fault(Some(fault));
    let events = || recorder.events().len();
    let mut errors = Vec::new();
    for step in workload() {
        errors.extend(guest.run(&disk, step, events).err());
    }
    let closed = disk.close();
    drop(disk);
    memory.set_fault(None);
    Run { guest, before, events: recorder.events(), errors, closed }
}

/// Once a sync has failed, nothing more is written and no sync succeeds: what it lost cannot be claimed later.
fn assert_latched(events: &[Event], what: &str) {
    let failed = events.iter().position(|event| event.effect == Effect::Sync && !event.ok);
    if let Some(failed) = failed {
        let later = &events[failed + 1..];
        assert!(later.is_empty(), "{what}: {} operations after a failed sync", later.len());
    }
}

fn judge(base: &[u8], guest: &Guest, state: Vec<u8>, count: usize, what: &str) {
    let report = check(file(&state)).unwrap_or_else(|error| panic!("{what}: check: {error}"));
    assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
    let disk = open(file(&state), base).unwrap_or_else(|error| panic!("{what}: opening: {error}"));
    let got = contents(&disk).unwrap_or_else(|error| panic!("{what}: reading: {error}"));
    guest.assert_legal(&got, count, what);
    disk.write(&[9; 4096], GuestOffset(200 << 10))
        .unwrap_or_else(|error| panic!("{what}: going on: {error}"));
    disk.close().unwrap_or_else(|error| panic!("{what}: closing: {error}"));
}

/// An operation that failed did nothing; it keeps its place, by which moments are counted.
fn without_effect(mut event: Event) -> Event {
    if !event.ok && event.effect != Effect::Sync {
        event.effect = Effect::Punch(HostOffset(0), 0);
        event.ok = true;
    }
    event
}

fn strategies(pending: usize, rng: &mut Rng) -> Vec<Strategy> {
    let mut all =
        vec![Strategy::None, Strategy::All, Strategy::Half(rng.bits()), Strategy::Sectors(rng.bits())];
    if pending > 0 {
        let one = rng.below(pending as u64) as usize;
        all.extend([Strategy::Lost(one), Strategy::Kept(one)]);
    }
    all
}

/// Fails the n-th operation for every n, and cuts the power at once and at the end; how many states there were.
fn fail_each(options: &CreateOptions, only: Option<Operation>, errno: i32, lasting: bool) -> u32 {
    let base = Rng::new(98).bytes(SIZE as usize);
    let mut states = 0;
    for after in 0.. {
        let what = format!(
            "{only:?} {after} fails with {errno} (lasting {lasting}), cluster bits {}, extended {}",
            options.cluster_bits, options.extended_l2
        );
        let run = run(options, &base, Fault { after, only, errno, lasting });
        assert_latched(&run.events, &what);
        let failed = run.events.iter().position(|event| !event.ok);
        if failed.is_none() && run.errors.is_empty() && run.closed.is_ok() {
            let rare = matches!(only, Some(Operation::SetLen | Operation::Punch));
            assert!(after > 3 || rare, "{what}: the workload is too short");
            return states;
        }
        let errors: Vec<_> = run.errors.iter().chain(run.closed.as_ref().err()).collect();
        if let Some(error) = errors.iter().find(|error| error.kind() == Kind::NoSpace) {
            assert!(errno != libc::EIO, "{what}: {error}");
            let sync = run.events.iter().any(|event| event.effect == Effect::Sync && !event.ok);
            assert!(
                !sync || errors.iter().any(|error| error.kind() == Kind::Io),
                "{what}: a failed sync is no refusal"
            );
        }
        let history =
            History::new(Arc::new(run.before), run.events.into_iter().map(without_effect).collect());
        let mut rng = Rng::new(after);
        let cuts = [failed.map(|failed| failed + 1), Some(history.moments() - 1)];
        for count in cuts.into_iter().flatten() {
            let mut sweep = Sweep::new(&history);
            while sweep.count() < count && sweep.advance() {}
            for strategy in strategies(sweep.pending(), &mut rng) {
                states += 1;
                sweep.put(Plan { strategy, free: false, ahead: false });
                let state = sweep.file().bytes();
                sweep.file().rewind();
                let what = format!("{what}, cut after {count} events, {strategy:?}");
                judge(&base, &run.guest, state, count, &what);
            }
        }
    }
    unreachable!("the workload ends");
}

fn all_kinds(layouts: &[CreateOptions], errno: i32) {
    let kinds = [
        None,
        Some(Operation::Write),
        Some(Operation::Sync),
        Some(Operation::Punch),
        Some(Operation::SetLen),
    ];
    for options in layouts {
        let mut states = 0;
        for only in kinds {
            states += fail_each(options, only, errno, true);
        }
        // A short failure of one kind is one of any kind.
        states += fail_each(options, None, errno, false);
        println!(
            "error {errno}, cluster bits {}, extended {}: {states} states",
            options.cluster_bits, options.extended_l2
        );
        assert!(states > 300, "only {states} states");
    }
}

#[test]
fn a_failed_operation_before_a_power_cut_loses_nothing_that_was_flushed() {
    all_kinds(&layouts(), libc::EIO);
}

#[test]
fn a_full_host_before_a_power_cut_loses_nothing_that_was_flushed() {
    all_kinds(&layouts(), libc::ENOSPC);
}

#[test]
#[ignore = "soak"]
fn soak_a_failed_operation_before_a_power_cut_with_the_smallest_clusters() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EFBIG, libc::EDQUOT] {
        all_kinds(&[options(9, false), options(14, true)], errno);
    }
}
