//! Damage: a write through it destroys nothing more, and a repair mends what counting again can mend.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod images;
    pub mod qemu;
    pub mod rng;
}

use common::images::{check, host_file, open, try_open};
use common::qemu;
use cowshed::qcow2::{CreateOptions, create, repair};
use cowshed::units::{GuestOffset, HostOffset};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CLUSTER: u64 = 1 << 17;

/// A clone-like image of 4 MiB with three clusters written: header, refcount table, block, L1, L2, data.
fn written() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.qcow2");
    let storage = common::images::new_file(&path);
    create(&*storage, &CreateOptions::new(4 << 20)).unwrap();
    storage.sync().unwrap();
    let disk = open(&path, true);
    for cluster in 0..3 {
        disk.write(&vec![cluster as u8 + 1; CLUSTER as usize], GuestOffset(cluster * CLUSTER)).unwrap();
    }
    disk.close().unwrap();
    qemu::assert_clean(&path, "before the damage");
    (folder, path)
}

fn word(path: &Path, at: u64) -> u64 {
    let mut raw = [0; 8];
    host_file(path, false).read_at(&mut raw, HostOffset(at)).unwrap();
    u64::from_be_bytes(raw)
}

fn patch(path: &Path, at: u64, word: u64) {
    host_file(path, true).write_at(&word.to_be_bytes(), HostOffset(at)).unwrap();
}

/// The disk reads as [`written`] made it.
fn assert_content(path: &Path) {
    let disk = open(path, false);
    let mut bytes = vec![0; CLUSTER as usize];
    for cluster in 0..3 {
        disk.read(&mut bytes, GuestOffset(cluster * CLUSTER)).unwrap();
        assert!(bytes.iter().all(|byte| *byte == cluster as u8 + 1), "guest cluster {cluster}");
    }
}

#[test]
fn a_lost_refcount_block_stops_writes_before_they_destroy_the_header() {
    let (_folder, path) = written();
    patch(&path, CLUSTER, 0);
    let before = std::fs::read(&path).unwrap();
    let error =
        try_open(&path, true).and_then(|disk| disk.write(&[9; 4096], GuestOffset(2 << 20))).unwrap_err();
    assert!(error.to_string().contains("check"), "{error}");
    assert!(std::fs::read(&path).unwrap() == before, "the refused write changed the file");
    let report = repair(host_file(&path, true)).unwrap();
    assert!(report.is_consistent() && report.leaks == 0, "{report:?}");
    qemu::assert_clean(&path, "after the repair");
    assert_content(&path);
    let disk = open(&path, true);
    disk.write(&[9; 4096], GuestOffset(2 << 20)).unwrap();
    disk.close().unwrap();
    qemu::assert_clean(&path, "after a write");
}

#[test]
fn a_refcount_table_entry_that_nobody_needs_is_mended() {
    let (_folder, path) = written();
    patch(&path, CLUSTER + 8 * 5, 0x123);
    assert!(!check(&path).is_consistent());
    let report = repair(host_file(&path, true)).unwrap();
    assert!(report.is_consistent() && report.leaks == 0, "{report:?}");
    qemu::assert_clean(&path, "after the repair");
    assert_content(&path);
}

#[test]
fn data_over_a_refcount_block_are_kept_and_the_counts_move() {
    let (_folder, path) = written();
    let (l2, block) = (word(&path, 3 * CLUSTER) & !(1 << 63), word(&path, CLUSTER));
    patch(&path, l2 + 2 * 16, 1 << 63 | block);
    let report = repair(host_file(&path, true)).unwrap();
    assert!(report.is_consistent() && report.leaks == 0, "one repair is enough: {report:?}");
    qemu::assert_clean(&path, "after the repair");
}

#[test]
fn leaks_and_wrong_copied_bits_go_in_one_repair_and_a_second_one_does_nothing() {
    let (_folder, path) = written();
    let (l2, block) = (word(&path, 3 * CLUSTER) & !(1 << 63), word(&path, CLUSTER));
    patch(&path, l2, word(&path, l2) & !(1 << 63));
    // Counts 5 to 8, of 16 bits: data and free clusters, all counted twice.
    patch(&path, block + 2 * 4, 0x0001_0002_0002_0002);
    let report = repair(host_file(&path, true)).unwrap();
    assert!(report.is_consistent() && report.leaks == 0, "{report:?}");
    qemu::assert_clean(&path, "after the repair");
    assert_content(&path);
    let before = std::fs::read(&path).unwrap();
    repair(host_file(&path, true)).unwrap();
    assert!(std::fs::read(&path).unwrap() == before, "a repair of a good image changed it");
}

#[test]
fn a_bad_l1_entry_is_one_error_among_others_and_is_not_repaired() {
    let (_folder, path) = written();
    patch(&path, 3 * CLUSTER, 0x1234_5678);
    let report = check(&path);
    assert!(report.errors.iter().any(|error| error.contains("L1 entry 0")), "{report:?}");
    assert!(report.total_clusters > 0);
    let before = std::fs::read(&path).unwrap();
    assert!(repair(host_file(&path, true)).is_err());
    assert!(std::fs::read(&path).unwrap() == before, "a refused repair changed the file");
}

#[test]
fn a_compressed_entry_that_points_to_the_header_gives_nothing_away() {
    let (_folder, path) = written();
    let l2 = word(&path, 3 * CLUSTER) & !(1 << 63);
    patch(&path, l2, 1 << 62 | 512);
    patch(&path, l2 + 8, 0);
    let header = std::fs::read(&path).unwrap()[..512].to_vec();
    let disk = open(&path, true);
    disk.discard(GuestOffset(0), CLUSTER).unwrap();
    disk.write(&vec![7; CLUSTER as usize], GuestOffset(0)).unwrap();
    disk.close().unwrap();
    drop(disk);
    assert!(std::fs::read(&path).unwrap()[..512] == header, "the header was punched");
    assert!(open(&path, false).size() == 4 << 20);
}

#[test]
fn bits_past_the_end_of_a_shrunk_disk_do_no_harm() {
    let (_folder, path) = written();
    // The disk ends in the fourth subcluster of its third cluster, which still has all bits, and is shared.
    patch(&path, 24, 2 * CLUSTER + 3 * 4096 + 512);
    let l2 = word(&path, 3 * CLUSTER) & !(1 << 63);
    patch(&path, l2 + 2 * 16, word(&path, l2 + 2 * 16) & !(1 << 63));
    let disk = open(&path, true);
    disk.write(&[8; 512], GuestOffset(2 * CLUSTER + 3 * 4096)).unwrap();
    let mut bytes = vec![0; 3 * 4096 + 512];
    disk.read(&mut bytes, GuestOffset(2 * CLUSTER)).unwrap();
    assert!(
        bytes[..3 * 4096].iter().all(|byte| *byte == 3) && bytes[3 * 4096..].iter().all(|byte| *byte == 8)
    );
    disk.close().unwrap();
}
