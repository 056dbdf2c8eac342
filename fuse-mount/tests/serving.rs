//! Requests at the same time, and requests that fail.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::memory::Op;
use common::{Server, TestView, code, eventually, options};
use fuse_mount::Options;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Lets an operation through only when `wanted` of them are under way together.
fn meeting(wanted: usize) -> impl Fn() -> io::Result<()> + Send + Sync {
    let place = Arc::new((Mutex::new(0), Condvar::new()));
    move || {
        let mut here = place.0.lock().unwrap();
        *here += 1;
        place.1.notify_all();
        let (_here, late) =
            place.1.wait_timeout_while(here, Duration::from_secs(20), |here| *here < wanted).unwrap();
        if late.timed_out() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// How many threads let `wanted` requests run together, whatever processor they come from: each may have threads of its own.
fn together(wanted: usize) -> usize {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    let last: usize = list.trim().rsplit(['-', ',']).next().unwrap().parse().unwrap();
    wanted * (last + 1)
}

#[test]
fn direct_reads_and_writes_of_one_open_file_run_together() {
    let view = TestView::with(Options { threads: together(4), ..options() });
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    let file = view.direct("clones/a.raw");
    let meet = meeting(4);
    disk.probe(move |op| if matches!(op, Op::Read { .. } | Op::Write { .. }) { meet() } else { Ok(()) });
    std::thread::scope(|scope| {
        for at in [0, 65536] {
            let file = &file;
            scope.spawn(move || file.write_all_at(&[1; 4096], at).unwrap());
            scope.spawn(move || file.read_exact_at(&mut [0; 4096], at + 4096).unwrap());
        }
    });
}

#[test]
fn files_are_written_together_also_when_buffered() {
    let view = TestView::with(Options { threads: together(2), ..options() });
    let meet = Arc::new(meeting(2));
    let names = ["clones/a.raw", "clones/b.raw"];
    for name in names {
        let meet = meet.clone();
        let disk = view.memory.add(name, 1 << 20);
        disk.probe(move |op| if matches!(op, Op::Write { .. }) { meet() } else { Ok(()) });
    }
    std::thread::scope(|scope| {
        for name in names {
            let view = &view;
            scope.spawn(move || view.writable(name).write_all_at(&[1; 4096], 0).unwrap());
        }
    });
}

/// Keeps this thread on the first processor it may be on.
fn stay_on_one_processor() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|&number| allowed.is_set(number).unwrap()).unwrap();
    let mut only = CpuSet::new();
    only.set(first).unwrap();
    sched_setaffinity(this, &only).unwrap();
}

#[test]
fn a_request_that_takes_long_holds_up_nobody_on_the_same_processor() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    view.memory.add("clones/b.raw", 1 << 20);
    let (begun, has_begun) = channel();
    let (others_done, may_end) = channel::<()>();
    let may_end = Mutex::new(may_end);
    disk.probe(move |op| match op {
        Op::Flush => {
            begun.send(()).unwrap();
            let end = may_end.lock().unwrap().recv_timeout(Duration::from_secs(20));
            end.map_err(|_| io::ErrorKind::TimedOut.into())
        }
        _ => Ok(()),
    });
    let (slow, quick) = (view.writable("clones/a.raw"), view.direct("clones/b.raw"));
    let folder = view.path("clones");
    std::thread::scope(|scope| {
        let slow = scope.spawn(move || {
            stay_on_one_processor();
            slow.sync_all()
        });
        scope.spawn(move || {
            stay_on_one_processor();
            has_begun.recv().unwrap();
            for at in 0..200 {
                quick.read_exact_at(&mut [0; 4096], at * 4096 % (1 << 20)).unwrap();
            }
            fs::metadata(folder).unwrap();
            others_done.send(()).unwrap();
        });
        slow.join().unwrap().unwrap();
    });
}

#[test]
fn more_reads_wait_together_than_there_are_threads() {
    const WANTED: usize = 8;
    let view = TestView::with(Options { threads: 2, ..options() });
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    let file = view.direct("clones/a.raw");
    // How many are under way, and how many were at most.
    let counts = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let seen = counts.clone();
    disk.probe(move |op| {
        if matches!(op, Op::Read { .. }) {
            let mut now = seen.0.lock().unwrap();
            now.0 += 1;
            now.1 = now.1.max(now.0);
            seen.1.notify_all();
            let wait = Duration::from_millis(100);
            let (mut now, _) = seen.1.wait_timeout_while(now, wait, |now| now.1 < WANTED).unwrap();
            now.0 -= 1;
        }
        Ok(())
    });
    stay_on_one_processor();
    // Threads come as it is seen that reads wait, and a request that came before them may wait for others to be done.
    for _ in 0..100 {
        std::thread::scope(|scope| {
            for at in 0..8 {
                let file = &file;
                scope.spawn(move || file.read_exact_at(&mut [0; 4096], at * 4096).unwrap());
            }
        });
        if counts.0.lock().unwrap().1 == WANTED {
            return;
        }
    }
    panic!("at most {} reads waited together", counts.0.lock().unwrap().1);
}

#[test]
fn requests_are_up_to_one_mebibyte() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 4 << 20);
    let log = disk.log();
    let file = view.direct("clones/a.raw");
    file.write_all_at(&vec![1; 2 << 20], 0).unwrap();
    file.read_exact_at(&mut vec![0; 2 << 20], 0).unwrap();
    let sizes: Vec<usize> = log
        .lock()
        .unwrap()
        .iter()
        .filter_map(|op| match op {
            Op::Read { len, .. } | Op::Write { len, .. } => Some(*len),
            _ => None,
        })
        .collect();
    // A caller's buffer that starts inside a page costs one page of a request.
    assert!(sizes.len() <= 6 && sizes.iter().any(|&len| len >= (1 << 20) - 4096), "{sizes:?}");
}

#[test]
fn a_second_writer_is_refused_while_the_first_one_lives() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 4096);
    view.memory.show("clones/a.p1.raw", &disk, 0, 2048);
    let write = |name: &str| {
        let script = "exec 3<>\"$0\" && echo opened";
        let output =
            std::process::Command::new("sh").args(["-c", script]).arg(view.path(name)).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let file = view.writable("clones/a.raw");
    for name in ["clones/a.raw", "clones/a.p1.raw"] {
        let (opened, message) = write(name);
        assert!(!opened && message.contains("busy"), "{message}");
    }
    assert!(fs::read(view.path("clones/a.raw")).is_ok(), "readers are not writers");
    drop(file);
    // The release of a closed file comes after close(2) returned; the next opener must not suffer.
    for _ in 0..50 {
        for name in ["clones/a.raw", "clones/a.p1.raw"] {
            assert_eq!(write(name), (true, String::new()));
        }
    }
}

#[test]
fn errors_reach_the_caller_and_the_next_request_succeeds() {
    let view = TestView::with(Options { threads: 1, ..options() });
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    let file = view.direct("clones/a.raw");
    for error in [libc::EIO, libc::ENOSPC, libc::EDQUOT] {
        disk.probe(move |_| Err(io::Error::from_raw_os_error(error)));
        assert_eq!(code(file.read_at(&mut [0; 4096], 0)), error);
        assert_eq!(code(file.write_at(&[0; 4096], 0)), error);
        assert_eq!(code(file.sync_all()), error);
        assert_eq!(code(file.metadata()), error);
    }
    disk.probe(|_| Ok(()));
    file.read_exact_at(&mut [0; 4096], 0).unwrap();
}

#[test]
fn a_code_the_kernel_gives_a_meaning_to_does_not_switch_anything_off() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    let file = view.direct("clones/a.raw");
    for error in [libc::ENOSYS, 0, -1, 512, 100_000] {
        disk.probe(move |_| Err(io::Error::from_raw_os_error(error)));
        assert!(file.sync_all().is_err() && file.read_at(&mut [0; 512], 0).is_err(), "{error}");
    }
    let log = disk.log();
    file.sync_all().unwrap();
    assert!(log.lock().unwrap().contains(&Op::Flush));
}

#[test]
fn close_reports_that_making_durable_failed() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 4096);
    let file = view.writable("clones/a.raw");
    disk.probe(|op| if op == Op::Close { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) });
    assert_eq!(nix::unistd::close(file), Err(nix::errno::Errno::EIO));
}

#[test]
fn a_panic_fails_one_request_and_the_mount_lives_on() {
    let view = TestView::with(Options { threads: 1, ..options() });
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    let file = view.direct("clones/a.raw");
    disk.probe(|op| panic!("on purpose: {op:?}"));
    assert_eq!(code(file.read_at(&mut [0; 4096], 0)), libc::EIO);
    assert_eq!(code(file.write_at(&[0; 4096], 0)), libc::EIO);
    assert_eq!(code(file.sync_all()), libc::EIO);
    assert_eq!(code(file.metadata()), libc::EIO);
    drop(file);
    disk.probe(|_| Ok(()));
    eventually("serving again", || {
        fs::read(view.path("clones/a.raw")).is_ok_and(|data| data.len() == 1 << 20)
    });
}

#[test]
fn what_may_not_be_written_cannot_be_opened_for_writing() {
    let view = TestView::new();
    view.memory.add("bases/b@1.raw", 4096);
    let path = view.path("bases/b@1.raw");
    assert_eq!(code(OpenOptions::new().write(true).open(&path)), libc::EROFS);
    assert!(view.memory.openers.lock().unwrap().is_empty());
    let view = TestView::with(Options { read_only: true, ..options() });
    view.memory.add("clones/a.raw", 4096);
    assert_eq!(code(OpenOptions::new().write(true).open(view.path("clones/a.raw"))), libc::EROFS);
    assert_eq!(fs::read(view.path("clones/a.raw")).unwrap().len(), 4096);
}

#[test]
fn qemu_writes_discards_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let _server = Server::start(dir.path(), &[], &["16777216"]);
    let disk = dir.path().join("clones/disk.raw");
    for cache in ["none", "writeback"] {
        let output = std::process::Command::new("qemu-io")
            .args(["-f", "raw", "-t", cache, "-d", "unmap"])
            .args([
                "-c",
                "write -P 7 0 2M",
                "-c",
                "discard 64k 64k",
                "-c",
                "write -z 256k 64k",
                "-c",
                "flush",
            ])
            .args(["-c", "read -P 7 128k 64k", "-c", "read -P 0 64k 64k", "-c", "read -P 0 256k 64k"])
            .arg(&disk)
            .output()
            .expect("qemu-io runs (package qemu-utils)");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("failed"), "{text}");
    }
    fuse_mount::unmount(dir.path()).unwrap();
}
