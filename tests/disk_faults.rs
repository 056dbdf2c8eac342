//! The host fails at the n-th operation: the error reaches the caller, flushed data stay, nothing is claimed falsely.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod images;
    pub mod ops;
    pub mod qemu;
    pub mod rng;
    pub mod stamps;
}

use common::ops::{Op, Step};
use common::qemu;
use common::rng::Rng;
use common::stamps::Guest;
use cowshed::Kind;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::{Fault, Memory, Operation, Run, Storage};
use cowshed::units::{GuestOffset, HostOffset};
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u64 = 1 << 20;

fn options(cluster_bits: u32, extended_l2: bool) -> CreateOptions {
    let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
    CreateOptions { cluster_bits, extended_l2, backing, ..CreateOptions::new(SIZE) }
}

fn layouts() -> [CreateOptions; 3] {
    [options(17, true), options(16, false), options(9, false)]
}

fn base() -> Vec<u8> {
    Rng::new(98).bytes(SIZE as usize)
}

fn open(storage: Arc<dyn Storage>) -> cowshed::Result<Disk> {
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let top = Layer::Qcow2(Box::new(Image::open(storage, options)?));
    Disk::new(vec![top, Layer::Raw(RawLayer::new(Arc::new(Memory::from_bytes(&base())), false)?)])
}

fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; SIZE as usize];
    disk.read(&mut bytes, GuestOffset(0)).unwrap_or_else(|error| panic!("reading: {error}"));
    bytes
}

fn write(at: u64, len: u64) -> Step {
    Step { op: Op::Write(Vec::new()), at, len }
}

/// A small workload with every operation, flushed in the middle.
fn workload() -> Vec<Step> {
    let flush = || Step { op: Op::Flush, at: 0, len: 0 };
    vec![
        write(0, 4096),
        write(65_536 - 512, 1024),
        flush(),
        write(200 << 10, 150 << 10),
        Step { op: Op::WriteZeroes, at: 210 << 10, len: 20 << 10 },
        write(0, 512),
        flush(),
        Step { op: Op::Discard, at: 250 << 10, len: 64 << 10 },
        write(900 << 10, 8192),
        flush(),
        write(700 << 10, 4096),
    ]
}

/// What a run with a planned failure ended in.
struct Outcome {
    guest: Guest,
    memory: Arc<Memory>,
    errors: Vec<cowshed::Error>,
    closed: cowshed::Result<()>,
}

fn run(options: &CreateOptions, fault: Option<Fault>) -> Outcome {
    let memory = Arc::new(Memory::new());
    create(&*memory, options).unwrap();
    let disk = open(memory.clone()).unwrap();
    let mut guest = Guest::new(contents(&disk));
    memory.set_fault(fault);
    let mut errors = Vec::new();
    for (number, step) in workload().into_iter().enumerate() {
        errors.extend(guest.run(&disk, step, || number).err());
    }
    let closed = disk.close();
    drop(disk);
    memory.set_fault(None);
    Outcome { guest, memory, errors, closed }
}

/// The host lost nothing here but what it refused: all that holds after a reopening.
fn assert_consistent(run: &Outcome, what: &str) {
    let report = check(run.memory.clone()).unwrap_or_else(|error| panic!("{what}: check: {error}"));
    assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
    let disk = open(run.memory.clone()).unwrap_or_else(|error| panic!("{what}: reopening: {error}"));
    run.guest.assert_legal(&contents(&disk), usize::MAX, what);
    disk.write(&[9; 4096], GuestOffset(512 << 10))
        .unwrap_or_else(|error| panic!("{what}: going on: {error}"));
    disk.close().unwrap_or_else(|error| panic!("{what}: closing: {error}"));
    let report = check(run.memory.clone()).unwrap();
    assert_eq!(report.error_count, 0, "{what}, after going on: {:?}", report.errors);
}

/// Fails one operation after another until the workload is over before the failure.
fn fail_each(options: &CreateOptions, only: Operation, errno: i32, lasting: bool, kind: Kind) {
    let mut after = 0;
    loop {
        let what = format!(
            "{only:?} number {after} fails with error {errno} (lasting {lasting}), cluster bits {}",
            options.cluster_bits
        );
        let run = run(options, Some(Fault { after, only: Some(only), errno, lasting }));
        if run.errors.is_empty() && run.closed.is_ok() {
            let sound = [Operation::Punch, Operation::Read].contains(&only) && after < 1000;
            assert!(after > 0 || sound, "{what}: nobody heard of it");
            // A punch that fails costs host blocks only, so it may be silent: count on until none is left.
            if !(only == Operation::Punch && after < 40) {
                break;
            }
        }
        let first = run.errors.first().or(run.closed.as_ref().err());
        if let Some(first) = first {
            // Punching comes after the syncs of a flush: the flush holds, and what comes next is refused.
            let latched = only == Operation::Punch && first.kind() == Kind::Latched;
            assert!(first.kind() == kind || latched, "{what}: {:?}: {first}", first.kind());
            assert!(first.to_string().len() > 15, "{what}: no sentence: {first}");
        }
        if only != Operation::Read {
            assert_consistent(&run, &what);
        }
        after += 1;
        assert!(after < 5000, "{what}: no end");
    }
    println!("{only:?}, error {errno}: {after} places");
}

#[test]
fn a_failed_read_is_an_error_and_never_bytes() {
    for options in layouts() {
        fail_each(&options, Operation::Read, libc::EIO, false, Kind::Io);
    }
}

#[test]
fn a_failed_write_surfaces_and_flushed_data_stay() {
    for options in layouts() {
        fail_each(&options, Operation::Write, libc::EIO, false, Kind::Io);
        fail_each(&options, Operation::Write, libc::EIO, true, Kind::Io);
    }
}

#[test]
fn a_failed_sync_surfaces() {
    for options in layouts() {
        fail_each(&options, Operation::Sync, libc::EIO, false, Kind::Io);
        fail_each(&options, Operation::Sync, libc::EIO, true, Kind::Io);
    }
}

#[test]
fn a_failed_punch_or_resize_leaves_the_image_consistent() {
    for options in layouts() {
        fail_each(&options, Operation::Punch, libc::EIO, false, Kind::Io);
        let run = run(
            &options,
            Some(Fault { after: 0, only: Some(Operation::SetLen), errno: libc::EIO, lasting: true }),
        );
        assert_consistent(&run, "no change of length succeeds");
    }
}

#[test]
fn a_full_host_is_an_error_of_its_own_kind_and_loses_nothing() {
    for options in layouts() {
        fail_each(&options, Operation::Write, libc::ENOSPC, true, Kind::NoSpace);
        fail_each(&options, Operation::Write, libc::ENOSPC, false, Kind::NoSpace);
        fail_each(&options, Operation::Write, libc::EFBIG, false, Kind::NoSpace);
    }
}

#[test]
fn work_goes_on_once_a_full_host_has_room_again() {
    for options in layouts() {
        for after in 0..40 {
            let what = format!("room for {after} writes, cluster bits {}", options.cluster_bits);
            let memory = Arc::new(Memory::new());
            create(&*memory, &options).unwrap();
            let disk = open(memory.clone()).unwrap();
            let fault = Fault { after, only: Some(Operation::Write), errno: libc::ENOSPC, lasting: true };
            memory.set_fault(Some(fault));
            let mut model = base();
            for (number, at) in (0..SIZE).step_by(100 << 10).enumerate() {
                let data = vec![number as u8 + 1; 6000];
                if disk.write(&data, GuestOffset(at)).is_ok() {
                    model[at as usize..at as usize + 6000].copy_from_slice(&data);
                }
            }
            let full = disk.flush();
            memory.set_fault(None);
            if let Err(error) = full {
                assert_eq!(error.kind(), Kind::NoSpace, "{what}: {error}");
            }
            disk.flush()
                .unwrap_or_else(|error| panic!("{what}: the flush after there is room again: {error}"));
            let got = contents(&disk);
            for (at, (got, want)) in got.chunks(512).zip(model.chunks(512)).enumerate() {
                let within = (at * 512) % (100 << 10);
                // A write that was refused may have left some of its sectors.
                assert!(got == want || within < 6144, "{what}: sector {at} that nobody wrote has changed");
            }
            for (number, at) in (0..SIZE).step_by(100 << 10).enumerate() {
                let data = vec![number as u8 + 101; 6000];
                disk.write(&data, GuestOffset(at)).unwrap_or_else(|error| panic!("{what}: {error}"));
                model[at as usize..at as usize + 6000].copy_from_slice(&data);
            }
            disk.close().unwrap_or_else(|error| panic!("{what}: {error}"));
            drop(disk);
            let report = check(memory.clone()).unwrap();
            assert_eq!((report.error_count, report.leaks), (0, 0), "{what}: {:?}", report.errors);
            assert!(contents(&open(memory).unwrap()) == model, "{what}: wrong bytes at the end");
        }
    }
}

#[test]
fn a_failed_sync_latches_the_disk_until_it_is_opened_again() {
    for options in layouts() {
        let memory = Arc::new(Memory::new());
        create(&*memory, &options).unwrap();
        let disk = open(memory.clone()).unwrap();
        disk.write(&[1; 4096], GuestOffset(0)).unwrap();
        disk.flush().unwrap();
        disk.write(&[2; 4096], GuestOffset(0)).unwrap();
        disk.write(&[2; 4096], GuestOffset(300 << 10)).unwrap();
        let fault = Fault { after: 0, only: Some(Operation::Sync), errno: libc::EIO, lasting: false };
        memory.set_fault(Some(fault));
        let first = disk.flush().expect_err("the failed sync");
        assert_eq!(first.kind(), Kind::Io, "{first}");
        // The host would say yes now; the pages that it dropped are lost all the same.
        for again in 0..3 {
            let error = disk.flush().expect_err("a flush after a failed one");
            assert_eq!(error.kind(), Kind::Latched, "flush {again}: {error}");
        }
        assert_eq!(disk.write(&[3; 512], GuestOffset(0)).expect_err("write").kind(), Kind::Latched);
        assert_eq!(disk.write_zeroes(GuestOffset(0), 512).expect_err("write_zeroes").kind(), Kind::Latched);
        assert_eq!(disk.discard(GuestOffset(0), 4096).expect_err("discard").kind(), Kind::Latched);
        assert!(disk.close().is_err(), "close claims success");
        let mut buf = [0; 512];
        disk.read(&mut buf, GuestOffset(300 << 10)).unwrap();
        drop(disk);
        let disk = open(memory).unwrap();
        disk.write(&[4; 512], GuestOffset(0)).unwrap();
        disk.close().unwrap();
    }
}

/// A file in memory whose next sync panics when it is told to.
#[derive(Debug, Default)]
struct Panicking {
    inner: Memory,
    armed: AtomicBool,
}

impl Storage for Panicking {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.inner.read_at(buf, at)
    }
    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.inner.write_at(data, at)
    }
    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.inner.punch(at, len)
    }
    fn sync(&self) -> io::Result<()> {
        assert!(!self.armed.swap(false, Ordering::SeqCst), "this sync was told to panic");
        self.inner.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        self.inner.run_at(at)
    }
}

#[test]
fn a_flush_that_panics_latches_the_disk_as_a_failed_one_does() {
    for options in layouts() {
        let file = Arc::new(Panicking::default());
        create(&*file, &options).unwrap();
        let disk = open(file.clone()).unwrap();
        disk.write(&[1; 4096], GuestOffset(0)).unwrap();
        file.armed.store(true, Ordering::SeqCst);
        std::panic::catch_unwind(AssertUnwindSafe(|| disk.flush())).expect_err("the sync panics");
        // The entries of the write were taken by the flush that ended half-way: no later one may claim them.
        assert_eq!(disk.flush().expect_err("flush").kind(), Kind::Latched);
        assert_eq!(disk.write(&[2; 512], GuestOffset(0)).expect_err("write").kind(), Kind::Latched);
        assert!(disk.close().is_err(), "close claims success");
        drop(disk);
        assert_eq!(check(file).unwrap().error_count, 0);
    }
}

/// A file system of a few MiB in memory.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (options, place) = (format!("size={size}"), folder.path().to_str().unwrap());
        qemu::run(folder.path(), "mount", &["-t", "tmpfs", "-o", &options, "small", place]);
        Self(folder)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        qemu::run(&std::env::temp_dir(), "umount", &[self.0.path().to_str().unwrap()]);
    }
}

#[test]
fn a_file_system_that_is_really_full_loses_no_acknowledged_write() {
    let small = Small::new("3m");
    let path = small.0.path().join("t.qcow2");
    let storage = common::images::new_file(&path);
    create(&*storage, &CreateOptions::new(8 << 20)).unwrap();
    storage.sync().unwrap();
    let disk = common::images::open(&path, true);
    let mut kept = Vec::new();
    for at in (0..8u64 << 20).step_by(64 << 10) {
        match disk.write(&vec![(at >> 16) as u8 + 1; 64 << 10], GuestOffset(at)) {
            Ok(()) => kept.push(at),
            Err(error) => {
                assert_eq!(error.kind(), Kind::NoSpace, "{error}");
                break;
            }
        }
    }
    assert!((2..100).contains(&kept.len()), "the file system took {} writes", kept.len());
    // Whatever a flush needs was set aside by the writes.
    disk.flush().unwrap();
    // Room comes from the disk itself.
    disk.discard(GuestOffset(0), 128 << 10).unwrap();
    disk.flush().unwrap();
    disk.write(&vec![0xaa; 64 << 10], GuestOffset(7 << 20)).unwrap();
    disk.close().unwrap();
    drop(disk);
    qemu::assert_clean(&path, "after the file system was full");
    let disk = common::images::open(&path, false);
    for at in &kept[2..] {
        let mut buf = vec![0; 64 << 10];
        disk.read(&mut buf, GuestOffset(*at)).unwrap();
        assert!(buf.iter().all(|byte| *byte == (at >> 16) as u8 + 1), "the write at {at:#x} is lost");
    }
}
