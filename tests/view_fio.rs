//! The workload that finds engines whose queues disturb each other: many jobs with deep queues, blocks of 4 to 64 KiB,
//! seven of ten requests writes, over a backing file, with fresh clones and with clones whose tables are warm.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::{file_digest, must, qemu_check};
use common::{Shed, View, noise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Jobs, and bytes of the disk that belong to each of them.
const JOBS: u64 = 16;
const SHARE: u64 = 4 << 20;

/// A store with one base: noise, and a hole in each job's share.
fn shed() -> Shed {
    let shed = Shed::new();
    let image = shed.path("deb.raw");
    let file = File::create(&image).unwrap();
    file.set_len(JOBS * SHARE).unwrap();
    for job in 0..JOBS {
        file.write_all_at(&noise(3 << 20, job), job * SHARE).unwrap();
    }
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb", "--format", "raw"]);
    fs::remove_file(image).unwrap();
    shed
}

/// One pass of all jobs over their shares; fio reads back and checks what each job wrote.
fn fio(view: &View<'_>, clone: &str, seed: u64) {
    let (filename, seed) =
        (format!("--filename={}", view.clone_file(clone).display()), format!("--randseed={seed}"));
    let (size, jobs) = (format!("--size={SHARE}"), format!("--numjobs={JOBS}"));
    let increment = format!("--offset_increment={SHARE}");
    let said = must(
        "fio",
        &[
            "--name=mixed",
            "--thread",
            "--ioengine=libaio",
            "--direct=1",
            "--rw=randrw",
            "--rwmixwrite=70",
            "--bssplit=4k/40:8k/20:16k/15:32k/15:64k/10",
            "--iodepth=32",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--fallocate=none",
            "--end_fsync=1",
            "--group_reporting",
            &jobs,
            &size,
            &increment,
            &filename,
            &seed,
        ],
    );
    assert!(!said.contains("verify: bad"), "{seed}: {said}");
}

/// Passes over clones until `time` is over; every third one takes a fresh clone, and each is followed by a new mount.
fn many_queues(time: Duration) {
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let (start, mut pass, mut clone) = (Instant::now(), 0, String::new());
    while pass < 3 || start.elapsed() < time {
        if pass % 3 == 0 {
            clone = format!("c{pass}");
            shed.ok(&["clone", "deb", &clone]);
        }
        println!("pass {pass} on {clone}");
        let view = shed.mount();
        // Reading it whole makes all tables warm.
        file_digest(&view.clone_file(&clone));
        fio(&view, &clone, pass);
        let written = file_digest(&view.clone_file(&clone));
        view.unmount();
        let view = shed.mount();
        assert_eq!(
            file_digest(&view.clone_file(&clone)),
            written,
            "pass {pass}: not the same after a new mount"
        );
        view.unmount();
        qemu_check(&shed.delta(&clone));
        shed.ok(&["check", &clone]);
        assert_eq!(file_digest(&shed.base_disk()), base, "pass {pass}: the base was changed");
        pass += 1;
        if pass % 3 == 0 {
            shed.ok(&["rm", &clone]);
        }
    }
    println!("{pass} passes");
}

#[test]
fn sixteen_jobs_with_deep_queues_over_a_backing_file_read_what_they_wrote() {
    many_queues(Duration::from_secs(10));
}

#[test]
#[ignore = "soak"]
fn soak_sixteen_jobs_with_deep_queues_over_a_backing_file() {
    let seconds = std::env::var("COWSHED_SOAK_SECONDS").map_or(3600, |text| text.parse().unwrap());
    many_queues(Duration::from_secs(seconds));
}
