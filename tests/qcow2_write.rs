//! What our engine writes, into its own images and into QEMU's, QEMU finds clean and reads the same.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cases;
    pub mod each;
    pub mod images;
    pub mod ops;
    pub mod qemu;
    pub mod rng;
}

use common::cases::{Case, State, all};
use common::each::each_case;
use common::rng::Rng;
use common::{images, ops, qemu};
use cowshed::qcow2::{BackingName, CreateOptions, create};
use cowshed::units::GuestOffset;
use std::path::Path;

/// Writes to `t.qcow2` of `folder` twice, with a close between, and asserts all that must hold afterwards.
fn writes_stay_right(folder: &Path, what: &str, seed: u64) {
    let path = folder.join("t.qcow2");
    let mut model = qemu::convert(&path);
    let snapshots = qemu::snapshots(&path);
    let others = images::files_but(folder, "t.qcow2");
    let mut rng = Rng::new(seed);
    for round in 0..2 {
        let what = format!("{what}, seed {seed}, round {round}");
        let disk = images::open(&path, true);
        ops::play(&disk, &mut model, &mut rng, 40, &what);
        images::assert_same(&images::read_all(&disk, seed), &model, &format!("{what}, before the close"));
        disk.close().unwrap_or_else(|error| panic!("{what}: close: {error}"));
        drop(disk);
        qemu::assert_clean(&path, &what);
        let report = images::check(&path);
        assert_eq!((report.error_count, report.leaks), (0, 0), "{what}: {:?}", report.errors);
        images::assert_same(&qemu::convert(&path), &model, &format!("{what}, as QEMU reads it"));
    }
    for ((name, after), (_, before)) in qemu::snapshots(&path).iter().zip(&snapshots) {
        images::assert_same(after, before, &format!("{what}: snapshot {name}"));
    }
    assert!(others == images::files_but(folder, "t.qcow2"), "{what}: a file below the image was changed");
}

fn qemu_case_can_be_written(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    case.make(folder.path());
    writes_stay_right(folder.path(), &case.name, 11);
}

#[test]
fn every_image_made_by_qemu_takes_writes_and_stays_clean() {
    let cases: Vec<Case> = all()
        .into_iter()
        .filter(|case| case.state == State::Clean && !case.name.contains("bitmap"))
        .collect();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    each_case(&cases, |case| case.name.clone(), qemu_case_can_be_written);
    println!("{} images written", cases.len());
}

#[test]
fn an_image_with_dirty_bitmaps_is_written_without_errors_or_refused() {
    for case in all().iter().filter(|case| case.name.contains("bitmap")) {
        let folder = tempfile::tempdir().unwrap();
        case.make(folder.path());
        let path = folder.path().join("t.qcow2");
        let mut model = qemu::convert(&path);
        let disk = match images::try_open(&path, true) {
            Ok(disk) => disk,
            Err(error) => {
                assert_eq!(error.kind(), cowshed::Kind::Unsupported, "{}: {error}", case.name);
                continue;
            }
        };
        ops::play(&disk, &mut model, &mut Rng::new(3), 40, &case.name);
        disk.close().unwrap();
        drop(disk);
        // The bitmap does not know of these writes: QEMU must not believe it any more, and its clusters may leak.
        let verdict = qemu::check(&path);
        assert!(matches!(verdict.code, 0 | 3), "{}: {}", case.name, verdict.text);
        assert_eq!(images::check(&path).leaks, verdict.leaks, "{}: {}", case.name, verdict.text);
        images::assert_same(&qemu::convert(&path), &model, &case.name);
        let info = qemu::run(folder.path(), "qemu-img", &["info", "--output=json", "t.qcow2"]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let bitmaps = &info["format-specific"]["data"]["bitmaps"];
        let trusted = bitmaps
            .as_array()
            .is_some_and(|list| list.iter().any(|bitmap| !bitmap["flags"].to_string().contains("in-use")));
        assert!(!trusted, "{}: a bitmap that missed writes is still believed: {bitmaps}", case.name);
    }
}

#[test]
fn an_image_left_by_a_crash_is_repaired_on_the_way_or_refused() {
    for case in all().iter().filter(|case| case.state == State::Dirty) {
        let folder = tempfile::tempdir().unwrap();
        case.make(folder.path());
        let path = folder.path().join("t.qcow2");
        match images::try_open(&path, true) {
            Ok(disk) => {
                drop(disk);
                writes_stay_right(folder.path(), &case.name, 12);
            }
            Err(error) => {
                assert!(error.to_string().contains("repair"), "{}: {error}", case.name);
                let report = cowshed::qcow2::repair(images::host_file(&path, true)).unwrap();
                assert_eq!((report.error_count, report.leaks), (0, 0), "{}: {:?}", case.name, report.errors);
                qemu::assert_clean(&path, &case.name);
                writes_stay_right(folder.path(), &case.name, 12);
            }
        }
    }
}

fn geometries() -> Vec<CreateOptions> {
    let geometry = |bits, extended_l2, virtual_size| CreateOptions {
        cluster_bits: bits,
        extended_l2,
        ..CreateOptions::new(virtual_size)
    };
    let mut all: Vec<CreateOptions> = (9..=21).map(|bits| geometry(bits, false, 3 << 20)).collect();
    all.extend((14..=21).map(|bits| geometry(bits, true, 5 << 20)));
    all.extend([512, 66_048, (4 << 20) + 512].map(|size| geometry(17, true, size)));
    all.extend([512, 66_048, (4 << 20) + 512].map(|size| geometry(16, false, size)));
    all
}

fn describe(options: &CreateOptions) -> String {
    format!(
        "our image, cluster bits {}, extended {}, {} bytes, backing {:?}",
        options.cluster_bits, options.extended_l2, options.virtual_size, options.backing
    )
}

fn create_at(path: &Path, options: &CreateOptions) {
    let storage = images::new_file(path);
    create(&*storage, options).unwrap_or_else(|error| panic!("{}: {error}", describe(options)));
    storage.sync().unwrap();
}

fn our_image_can_be_written(options: &CreateOptions) {
    let folder = tempfile::tempdir().unwrap();
    for step in ["raw b.raw 3145728", "fill b.raw 0 70000 1", "fill b.raw 500000 300000 2"] {
        qemu::step(folder.path(), step);
    }
    create_at(&folder.path().join("t.qcow2"), options);
    qemu::assert_clean(&folder.path().join("t.qcow2"), &describe(options));
    writes_stay_right(folder.path(), &describe(options), 13);
}

#[test]
fn images_of_our_own_are_clean_from_creation_on() {
    each_case(&geometries(), describe, our_image_can_be_written);
}

#[test]
fn clones_of_our_own_are_clean_and_leave_their_base_alone() {
    let clones: Vec<CreateOptions> = geometries()
        .into_iter()
        .map(|options| CreateOptions {
            backing: Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) }),
            ..options
        })
        .collect();
    each_case(&clones, describe, our_image_can_be_written);
}

#[test]
fn qemu_and_our_engine_take_turns_on_one_image() {
    for extended_l2 in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.qcow2");
        create_at(&path, &CreateOptions { extended_l2, ..CreateOptions::new(6 << 20) });
        let mut model = vec![0; 6 << 20];
        let mut rng = Rng::new(21);
        for turn in 0..4 {
            let what = format!("turn {turn}, extended {extended_l2}");
            let disk = images::open(&path, true);
            ops::play(&disk, &mut model, &mut rng, 25, &what);
            disk.close().unwrap();
            drop(disk);
            let (at, byte) = (rng.below(5000) * 1024, rng.between(1, 255));
            let write =
                format!("io t.qcow2 write -P {byte} {at} 70000; write -z -u {at} 5000; discard 1M 200k");
            if turn == 1 {
                qemu::step(folder.path(), "img snapshot -q -c kept t.qcow2");
            }
            qemu::step(folder.path(), &write);
            model[at as usize..at as usize + 70000].fill(byte as u8);
            model[at as usize..at as usize + 5000].fill(0);
            model = {
                let after = qemu::convert(&path);
                // Only what QEMU was asked to change may have changed.
                for (place, (new, old)) in after.iter().zip(&model).enumerate() {
                    let discarded = (1 << 20..(1 << 20) + (200 << 10)).contains(&place);
                    assert!(
                        new == old || discarded && *new == 0,
                        "{what}: QEMU reads {new} at {place:#x}, not {old}"
                    );
                }
                after
            };
            qemu::assert_clean(&path, &what);
            let disk = images::open(&path, false);
            images::assert_same(&images::read_all(&disk, 4), &model, &what);
        }
        assert_eq!(qemu::snapshots(&path).len(), 1);
    }
}

#[test]
fn a_sequential_write_of_a_whole_disk_is_clean_and_no_larger_than_qemus() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.qcow2");
    create_at(&path, &CreateOptions::new(64 << 20));
    let disk = images::open(&path, true);
    let mut rng = Rng::new(5);
    for at in (0..64u64 << 20).step_by(1 << 20) {
        disk.write(&rng.bytes(1 << 20), GuestOffset(at)).unwrap();
    }
    disk.close().unwrap();
    drop(disk);
    qemu::assert_clean(&path, "sequential");
    let length = std::fs::metadata(&path).unwrap().len();
    assert!(length < (64 << 20) + (2 << 20), "the file has {length} bytes for 64 MiB of data");
}

#[test]
fn discarding_a_whole_disk_gives_the_host_its_blocks_back() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.qcow2");
    create_at(&path, &CreateOptions::new(32 << 20));
    let disk = images::open(&path, true);
    disk.write(&Rng::new(6).bytes(32 << 20), GuestOffset(0)).unwrap();
    disk.flush().unwrap();
    let full = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(full >= 32 << 20, "{full} bytes on the host for 32 MiB of data");
    disk.discard(GuestOffset(0), 32 << 20).unwrap();
    disk.close().unwrap();
    let freed = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(freed < 1 << 20, "{freed} bytes stay on the host after the discard of everything");
    drop(disk);
    qemu::assert_clean(&path, "discarded");
    assert!(qemu::convert(&path).iter().all(|byte| *byte == 0));
}
