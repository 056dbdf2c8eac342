//! Clusters that rest are packed: content, size, QEMU's opinion, power cuts, kills, failing and full hosts.
//!
//! `COWSHED_SEED=N` draws other states after a cut.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod images;
    pub mod mortal;
    pub mod ops;
    pub mod qemu;
    pub mod rng;
    pub mod scratch;
}

use common::crash::{Effort, History, Sweep, without};
use common::mortal::{Host, Life, Mortal, MortalLog};
use common::rng::{Rng, seed_from_environment};
use common::scratch::Scratch;
use common::{images, ops, qemu};
use cowshed::Kind;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{
    BackingName, Compression, CreateOptions, Ended, Image, OpenOptions, Packed, Source, check, create,
};
use cowshed::storage::{Effect, Fault, Memory, Operation, Recorder, Storage};
use cowshed::units::GuestOffset;
use std::path::Path;
use std::sync::{Arc, OnceLock};

const SIZE: u64 = 2 << 20;
const LAYOUTS: [(u32, bool); 4] = [(17, true), (14, true), (16, false), (12, false)];

fn base() -> Vec<u8> {
    Rng::new(98).bytes(SIZE as usize - 100_000)
}

/// Bytes that get smaller by a half, more or less.
fn letters(rng: &mut Rng, len: usize) -> Vec<u8> {
    rng.bytes(len).into_iter().map(|byte| b'a' + byte % 16).collect()
}

fn options(cluster_bits: u32, extended_l2: bool) -> CreateOptions {
    let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
    CreateOptions { cluster_bits, extended_l2, backing, ..CreateOptions::new(SIZE) }
}

fn disk(image: Image) -> cowshed::Result<Disk> {
    static BASE: OnceLock<Arc<Memory>> = OnceLock::new();
    let below = RawLayer::new(BASE.get_or_init(|| Arc::new(Memory::from_bytes(&base()))).clone(), false)?;
    Disk::new(vec![Layer::qcow2(image), Layer::Raw(below)])
}

fn open(file: Arc<dyn Storage>) -> cowshed::Result<Disk> {
    disk(Image::open(file, OpenOptions { writable: true, ..OpenOptions::default() })?)
}

fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.size() as usize];
    disk.read(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

fn pack(disk: &mut Disk) -> Packed {
    disk.pack(&mut |_| true).unwrap()
}

/// Fills a disk: letters, then noise, then clusters that are written in part, letters with zeros between them, and nothing.
fn fill(disk: &Disk, seed: u64) {
    let mut rng = Rng::new(seed);
    let put = |data: &[u8], at: u64| disk.write(data, GuestOffset(at)).unwrap();
    put(&letters(&mut rng, 900_000), 0);
    put(&rng.bytes(300_000), 900_000);
    (0..6_u64).for_each(|n| put(&letters(&mut rng, 5000), 1_250_000 + n * 40_000));
    put(&letters(&mut rng, 393_216), 1_572_864);
    disk.write_zeroes(GuestOffset(1_572_864 + 65_536), 40_960).unwrap();
}

/// An image that is filled, and what it reads.
fn filled(cluster_bits: u32, extended_l2: bool) -> (Vec<u8>, Vec<u8>) {
    let file = Scratch::new(&[]);
    create(&*file, &options(cluster_bits, extended_l2)).unwrap();
    let disk = open(file.clone()).unwrap();
    fill(&disk, 5);
    disk.close().unwrap();
    (file.bytes(), contents(&disk))
}

/// Bytes of the disk that are packed.
fn packed_bytes(disk: &Disk) -> u64 {
    let runs = disk.runs(0..disk.size()).map(Result::unwrap);
    runs.filter(|(_, extent)| extent.compressed).map(|(range, _)| range.end - range.start).sum()
}

fn assert_in_order(file: &Arc<impl Storage + 'static>, what: &str) {
    let report = check(file.clone()).unwrap();
    assert_eq!((report.error_count, report.leaks), (0, 0), "{what}: {:?}", report.errors);
}

#[test]
fn what_is_packed_reads_the_same_takes_less_and_is_what_qemu_reads() {
    for (bits, extended) in LAYOUTS {
        let folder = tempfile::tempdir().unwrap();
        let (path, what) = (folder.path().join("t.qcow2"), format!("bits {bits}, extended {extended}"));
        std::fs::write(folder.path().join("b.raw"), base()).unwrap();
        create(&*images::new_file(&path), &options(bits, extended)).unwrap();
        let mut disk = images::open(&path, true);
        fill(&disk, 5);
        disk.flush().unwrap();
        let (model, before) = (contents(&disk), images::host_bytes(&path));
        let mut full = Vec::new();
        disk.each_full(0..SIZE, |at, _| full.push(at)).unwrap();
        let promised = disk.would_save(&full).unwrap();
        let packed = pack(&mut disk);
        assert_eq!(
            (packed.ended, packed.before - packed.after),
            (Ended::Complete, promised),
            "{what}: {packed:?}"
        );
        assert!(packed.after * 10 < packed.before * 7 && packed.before > 1_100_000, "{what}: {packed:?}");
        assert!(packed.full >= packed.before + 250_000, "{what}: noise is not looked at: {packed:?}");
        let back = before - images::host_bytes(&path);
        assert!(back * 20 > promised * 19, "{what}: {back} of {promised}");
        images::assert_same(&contents(&disk), &model, &what);
        assert_eq!(pack(&mut disk).clusters, 0, "{what}: once was not enough");
        let compacted = disk.compact(&mut |_| true).unwrap();
        assert!(compacted.after + promised / 2 < compacted.before, "{what}: {compacted:?}");
        images::assert_same(&contents(&disk), &model, &what);
        assert!(packed_bytes(&disk) > 1_100_000 - 4 * disk.cluster_size().unwrap(), "{what}");
        drop(disk);
        qemu::assert_clean(&path, &what);
        images::assert_same(&qemu::convert(&path), &model, &format!("{what}, as QEMU reads it"));
        goes_on(&path, model, &what);
    }
}

/// Writes, zeros and discards over what is packed, by us and by QEMU, and packs again.
fn goes_on(path: &Path, mut model: Vec<u8>, what: &str) {
    for round in 0..3 {
        let what = format!("{what}, going on, round {round}");
        let mut disk = images::open(path, true);
        ops::play(&disk, &mut model, &mut Rng::new(round), 25, &what);
        images::assert_same(&contents(&disk), &model, &what);
        pack(&mut disk);
        disk.compact(&mut |_| true).unwrap();
        images::assert_same(&contents(&disk), &model, &what);
        drop(disk);
        qemu::assert_clean(path, &what);
        images::assert_same(&qemu::convert(path), &model, &format!("{what}, as QEMU reads it"));
        let at = 100_000 + round * 150_000;
        let write = format!("write -P {} {at} 9k", round + 1);
        qemu::run(path.parent().unwrap(), "qemu-io", &["-f", "qcow2", "-c", &write, "t.qcow2"]);
        model[at as usize..at as usize + 9216].fill(round as u8 + 1);
        qemu::assert_clean(path, &format!("{what}, after QEMU's write"));
    }
}

/// What a process does that packs: all of it is written down.
fn recorded(image: &[u8]) -> History {
    let recorder = Arc::new(Recorder::new(Scratch::new(image)));
    let mut disk = open(recorder.clone()).unwrap();
    assert!(pack(&mut disk).clusters > 2);
    disk.compact(&mut |_| true).unwrap();
    disk.close().unwrap();
    History::new(Arc::new(image.to_vec()), recorder.events())
}

/// Cuts the power at every moment; how many states there were, or the first in which something is lost.
fn cut(history: &History, model: &[u8], effort: Effort, seed: u64) -> Result<usize, String> {
    let (mut sweep, mut rng, mut states) = (Sweep::new(history), Rng::new(seed), 0_usize);
    loop {
        for plan in sweep.plans(&mut rng, effort, true) {
            states += 1;
            sweep.put(plan);
            let what = format!("COWSHED_SEED={seed}, cut after {} events, {plan:?}", sweep.count());
            let file = sweep.file().clone();
            let report = check(file.clone()).map_err(|error| format!("{what}: {error}"))?;
            if report.error_count > 0 {
                return Err(format!("{what}: {:?}", report.errors));
            }
            let mut got = vec![0xee; model.len()];
            let mut disk = open(file.clone()).map_err(|error| format!("{what}: {error}"))?;
            disk.read(&mut got, GuestOffset(0)).map_err(|error| format!("{what}: {error}"))?;
            if got != model {
                return Err(format!("{what}: other bytes are read"));
            }
            if states.is_multiple_of(97) {
                pack(&mut disk);
                disk.compact(&mut |_| true).unwrap();
                assert!(contents(&disk) == model, "{what}: packed again");
                assert_in_order(&file, &what);
            }
            drop(disk);
            sweep.file().rewind();
        }
        if !sweep.advance() {
            return Ok(states);
        }
    }
}

#[test]
fn a_power_cut_while_clusters_are_packed_loses_nothing() {
    let seed = seed_from_environment().unwrap_or(1);
    for (bits, extended) in LAYOUTS {
        let (image, model) = filled(bits, extended);
        let history = recorded(&image);
        // Some hosts cannot punch.
        for history in
            [Some(history.without_punches()).filter(|_| extended), Some(history)].into_iter().flatten()
        {
            let effort = Effort { subsets: 12, chosen: 4 };
            let states =
                cut(&history, &model, effort, seed).unwrap_or_else(|error| panic!("bits {bits}: {error}"));
            println!("bits {bits}: {} moments, {states} states", history.moments());
            assert!(states > 200, "bits {bits}: only {states} states");
        }
    }
}

/// The harness itself: a log in which a sync before entries, or before what they pointed to is given back, did nothing must
/// be noticed.
#[test]
fn packing_without_one_of_its_syncs_is_noticed() {
    let (image, model) = filled(14, true);
    let history = recorded(&image);
    let events = history.events();
    let punch = events.iter().position(|event| matches!(event.effect, Effect::Punch(..))).unwrap();
    let syncs: Vec<usize> = (0..punch).filter(|at| events[*at].effect == Effect::Sync).collect();
    // The last two of them belong to the first batch.
    for sync in syncs.iter().rev().take(2) {
        let mutant = history.with(without(events, *sync));
        let effort = Effort { subsets: 128, chosen: 32 };
        let noticed = cut(&mutant, &model, effort, 1);
        assert!(noticed.is_err(), "the sync at event {sync} of {punch} is not missed");
    }
}

#[test]
fn a_process_killed_while_it_packs_loses_nothing() {
    for (bits, extended) in LAYOUTS {
        let (image, model) = filled(bits, extended);
        let open = |host: &Arc<Host>, life: &Arc<Life>| {
            let place = MortalLog::new(host.clone(), life.clone());
            let options = OpenOptions { writable: true, ..OpenOptions::default() };
            disk(Image::open_logged(Mortal::new(host.image.clone(), life.clone()), options, place)?)
        };
        let work = |host: &Arc<Host>, life: &Arc<Life>| -> cowshed::Result<()> {
            let mut disk = open(host, life)?;
            disk.pack(&mut |_| true)?;
            disk.close()
        };
        // With small clusters there are many changes that are alike.
        let step = if bits == 12 { 11 } else { 1 };
        for changes in (0..).step_by(step) {
            let what = format!("bits {bits}, killed at change {changes}");
            let host = Host::new(&image);
            let ended = work(&host, &Life::of(changes, changes)).is_ok();
            let report = check(host.image.clone()).unwrap();
            assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
            // Who opens it next replays the log.
            assert!(
                contents(&open(&host, &Life::endless()).unwrap()) == model,
                "{what}: other bytes are read"
            );
            work(&host, &Life::endless()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(host.log.lock().unwrap().is_none(), "{what}: a log is left");
            let mut disk = open(&host, &Life::endless()).unwrap();
            disk.compact(&mut |_| true).unwrap();
            assert!(contents(&disk) == model && packed_bytes(&disk) > 0, "{what}: wrong in the end");
            assert_in_order(&host.image, &what);
            if ended {
                assert!(changes > 15, "{what}: too few changes");
                break;
            }
        }
    }
}

/// Fails the n-th operation of a kind while clusters are packed, for every n.
fn fail_each(only: Operation, errno: i32, lasting: bool) {
    for (bits, extended) in LAYOUTS {
        let (image, model) = filled(bits, extended);
        let mut places = 0;
        for after in (0..).step_by(if bits == 12 { 7 } else { 1 }) {
            let what = format!("{only:?} {after} fails with {errno} (lasting {lasting}), bits {bits}");
            let memory = Arc::new(Memory::from_bytes(&image));
            let mut disk = open(memory.clone()).unwrap();
            memory.set_fault(Some(Fault { after, only: Some(only), errno, lasting }));
            let result = disk.pack(&mut |_| true);
            // What a lasting fault left is told once more by the next one who asks.
            let hit = memory.fault_was_hit();
            memory.set_fault(None);
            match &result {
                Ok(packed) => assert!(
                    !hit || errno == libc::ENOSPC || only == Operation::Punch,
                    "{what}: an error was swallowed: {packed:?}"
                ),
                Err(error) => {
                    let kinds = [Kind::Io, Kind::NoSpace, Kind::Latched];
                    assert!(kinds.contains(&error.kind()), "{what}: {error}");
                }
            }
            if errno == libc::ENOSPC
                && let Ok(packed) = &result
            {
                assert!(contents(&disk) == model, "{what}: {packed:?}");
                disk.close().unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_in_order(&memory, &what);
            }
            drop(disk);
            let report = check(memory.clone()).unwrap();
            assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
            let mut disk = open(memory.clone()).unwrap();
            assert!(contents(&disk) == model, "{what}: other bytes are read");
            assert_eq!(pack(&mut disk).ended, Ended::Complete, "{what}");
            disk.compact(&mut |_| true).unwrap();
            assert!(contents(&disk) == model, "{what}: wrong bytes in the end");
            assert_in_order(&memory, &what);
            if !hit {
                break;
            }
            places += 1;
        }
        println!("{only:?}, error {errno}, bits {bits}: {places} places");
        assert!(places >= 2, "{only:?}, bits {bits}: {places} places");
    }
}

#[test]
fn a_failed_operation_while_clusters_are_packed_loses_nothing() {
    fail_each(Operation::Sync, libc::EIO, true);
    fail_each(Operation::Write, libc::EIO, false);
    fail_each(Operation::Read, libc::EIO, false);
    fail_each(Operation::Punch, libc::EIO, false);
}

#[test]
fn a_full_host_ends_packing_with_what_was_reached() {
    fail_each(Operation::Write, libc::ENOSPC, true);
    fail_each(Operation::Write, libc::ENOSPC, false);
}

#[test]
fn a_file_system_that_is_really_full_is_packed_with_room_for_one_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    qemu::run(folder.path(), "mount", &["-t", "tmpfs", "-o", "size=12m", "small", place]);
    let result = std::panic::catch_unwind(|| {
        let path = folder.path().join("t.qcow2");
        create(&*images::new_file(&path), &CreateOptions::new(64 << 20)).unwrap();
        let mut disk = images::open(&path, true);
        let data = letters(&mut Rng::new(3), 8 << 20);
        disk.write(&data, GuestOffset(0)).unwrap();
        disk.flush().unwrap();
        let (rest, room) = (folder.path().join("rest"), 256 << 10);
        std::fs::write(&rest, vec![1; 12 << 20]).expect_err("the file system is full");
        let len = std::fs::metadata(&rest).unwrap().len();
        std::fs::File::options().write(true).open(&rest).unwrap().set_len(len - room).unwrap();
        let packed = pack(&mut disk);
        assert_eq!((packed.ended, packed.before), (Ended::Complete, 8 << 20), "{packed:?}");
        let mut got = vec![0; 8 << 20];
        disk.read(&mut got, GuestOffset(0)).unwrap();
        assert!(got == data);
        disk.close().unwrap();
        drop(disk);
        qemu::assert_clean(&path, "on a full host");
    });
    qemu::run(&std::env::temp_dir(), "umount", &[place]);
    result.unwrap();
}

#[test]
fn packing_can_be_stopped_and_goes_on_later() {
    let (image, model) = filled(14, true);
    let file = Scratch::new(&image);
    let mut calls = 0;
    loop {
        calls += 1;
        let (mut disk, mut batches) = (open(file.clone()).unwrap(), 0);
        let packed = disk
            .pack(&mut |_| {
                batches += 1;
                batches < 3
            })
            .unwrap();
        disk.close().unwrap();
        assert!(contents(&disk) == model, "{packed:?}");
        assert_in_order(&file, "stopped");
        if packed.ended == Ended::Complete {
            break;
        }
        assert!(packed.ended == Ended::Stopped && packed.clusters > 0, "{packed:?}");
    }
    assert!(calls > 3, "{calls} calls");
}

#[test]
fn an_image_that_is_packed_in_another_way_or_open_for_reading_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("source.raw"), letters(&mut Rng::new(1), 1 << 20)).unwrap();
    let steps: [&[&str]; 4] = [
        &["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "source.raw", "zlib.qcow2"],
        &["convert", "-q", "-f", "raw", "-O", "qcow2", "source.raw", "snapshot.qcow2"],
        &["snapshot", "-c", "one", "snapshot.qcow2"],
        &["convert", "-q", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", "source.raw", "old.qcow2"],
    ];
    steps.iter().for_each(|step| drop(qemu::run(at, "qemu-img", step)));
    for (file, why) in
        [("zlib.qcow2", "zlib"), ("snapshot.qcow2", "internal snapshots"), ("old.qcow2", "header")]
    {
        let path = at.join(file);
        let before = std::fs::read(&path).unwrap();
        let mut disk = images::open(&path, true);
        let error = disk.pack(&mut |_| true).expect_err(file);
        assert!(error.kind() == Kind::Unsupported && error.to_string().contains(why), "{file}: {error}");
        drop(disk);
        assert!(std::fs::read(&path).unwrap() == before, "{file} was changed");
    }
    let mut disk = images::open(&at.join("zlib.qcow2"), false);
    assert_eq!(disk.pack(&mut |_| true).expect_err("read only").kind(), Kind::ReadOnly);
    let raw = RawLayer::new(Arc::new(Memory::from_bytes(&[1; 4096])), true).unwrap();
    let mut disk = Disk::new(vec![Layer::Raw(raw)]).unwrap();
    assert_eq!(disk.pack(&mut |_| true).expect_err("raw").kind(), Kind::Invalid);
}

#[test]
fn an_image_of_qemus_that_is_packed_with_zstd_takes_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.qcow2");
    let data = letters(&mut Rng::new(1), 1 << 20);
    std::fs::write(folder.path().join("source.raw"), &data).unwrap();
    let convert = ["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"];
    qemu::run(folder.path(), "qemu-img", &[&convert[..], &["source.raw", "t.qcow2"]].concat());
    qemu::run(folder.path(), "qemu-io", &["-f", "qcow2", "-c", "write -P 7 64k 200k", "t.qcow2"]);
    let mut model = data;
    model[65_536..65_536 + 204_800].fill(7);
    let mut disk = images::open(&path, true);
    let packed = pack(&mut disk);
    assert!(packed.clusters >= 3, "{packed:?}");
    let Layer::Qcow2(image) = &disk.layers()[0] else { panic!("a raw layer") };
    assert_eq!(image.header().compression, Compression::Zstd);
    assert_eq!(disk.own_extent(GuestOffset(65_536)).unwrap().source, Source::Compressed);
    images::assert_same(&contents(&disk), &model, "packed");
    disk.close().unwrap();
    drop(disk);
    qemu::assert_clean(&path, "packed");
    images::assert_same(&qemu::convert(&path), &model, "as QEMU reads it");
}
