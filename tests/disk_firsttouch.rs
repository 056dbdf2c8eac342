//! The first write to a cluster of a clone copies nothing from the base.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod images;
    pub mod qemu;
    pub mod rng;
}

use common::{images, qemu};
use cowshed::qcow2::{BackingName, CreateOptions, create};
use cowshed::units::GuestOffset;
use std::os::unix::fs::MetadataExt;

const WRITES: u64 = 8000;
const STRIDE: u64 = 128 << 10;
const BOUND: u64 = 34_000_000;

#[test]
fn eight_thousand_first_touches_of_4_kib_take_at_most_34_mb_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("b.raw"), folder.path().join("t.qcow2"));
    let size = WRITES * STRIDE;
    std::fs::File::create(&base).unwrap().set_len(size).unwrap();
    qemu::step(folder.path(), "fill b.raw 0 1048576 1");
    let storage = images::new_file(&path);
    let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
    create(&*storage, &CreateOptions { backing, ..CreateOptions::new(size) }).unwrap();
    storage.sync().unwrap();

    let disk = images::open(&path, true);
    for number in 0..WRITES {
        let data = [(number % 255) as u8 + 1; 4096];
        disk.write(&data, GuestOffset(number * STRIDE + (number % 32) * 4096)).unwrap();
    }
    disk.close().unwrap();
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks >= WRITES * 4096, "{blocks} bytes cannot hold the data: is the host file system sparse?");
    assert!(blocks <= BOUND, "{blocks} bytes of host blocks, more than {BOUND}");

    let mut buf = [0; 4096];
    for number in 0..WRITES {
        disk.read(&mut buf, GuestOffset(number * STRIDE + (number % 32) * 4096)).unwrap();
        assert!(buf.iter().all(|byte| *byte == (number % 255) as u8 + 1), "write {number}");
    }
    drop(disk);
    qemu::assert_clean(&path, "after the first touches");
}
