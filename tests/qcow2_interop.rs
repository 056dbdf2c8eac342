//! Images made by QEMU's tools read the same through our engine, map the same, and check the same.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cases;
    pub mod each;
    pub mod images;
    pub mod qemu;
    pub mod rng;
}

use common::cases::{Case, State, all};
use common::each::each_case;
use common::{images, qemu};
use cowshed::units::GuestOffset;

fn reads_maps_and_checks_as_qemu_does(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    case.make(folder.path());
    let path = folder.path().join("t.qcow2");

    let (ours, theirs) = (images::check(&path), qemu::check(&path));
    match case.state {
        State::Clean => {
            assert_eq!(theirs.code, 0, "{}: QEMU made a broken image: {}", case.name, theirs.text);
            assert_eq!(ours.error_count, 0, "{}: {:#?}", case.name, ours.errors);
        }
        State::Dirty => assert_eq!(
            ours.error_count > 0,
            theirs.errors > 0,
            "{}: ours {:#?}, qemu-img's {}",
            case.name,
            ours.errors,
            theirs.text
        ),
    }
    assert_eq!(ours.leaks, theirs.leaks, "{}: leaks; qemu-img says {}", case.name, theirs.text);
    assert_eq!(ours.allocated_clusters, theirs.allocated, "{}: allocated guest clusters", case.name);

    // Before anything opens the image for writing: QEMU repairs a dirty one then.
    let disk = images::open(&path, false);
    let got = images::read_all(&disk, 7);
    let origins = images::origins(&disk);
    images::assert_same(&got, &qemu::convert(&path), &case.name);
    let theirs = images::origins_by_qemu(&path, disk.size());
    if let Some(at) = (0..theirs.len()).find(|at| origins[*at] != theirs[*at]) {
        panic!(
            "{}: sector {at} comes from {:?}, by qemu-img map from {:?}",
            case.name, origins[at], theirs[at]
        );
    }
}

#[test]
fn every_image_made_by_qemu_reads_maps_and_checks_as_it_does_there() {
    let cases = all();
    for (number, case) in cases.iter().enumerate() {
        println!("{:3} {}", number + 1, case.name);
    }
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "two cases share a name");
    each_case(&cases, |case| case.name.clone(), reads_maps_and_checks_as_qemu_does);
    println!("{} images read, mapped and checked", cases.len());
}

#[test]
fn a_disk_of_many_terabytes_reads_right_at_its_far_end() {
    for options in ["cluster_size=64k", "cluster_size=2M", "extended_l2=on,cluster_size=128k"] {
        let folder = tempfile::tempdir().unwrap();
        let create = format!("img create -q -f qcow2 -o {options} t.qcow2 8T");
        qemu::step(folder.path(), &create);
        qemu::step(
            folder.path(),
            "io t.qcow2 write -P 5 0 4k; write -P 6 5000G 70k; write -P 7 8796093018112 4k",
        );
        let disk = images::open(&folder.path().join("t.qcow2"), false);
        assert_eq!(disk.size(), 8 << 40);
        let far = 5000u64 << 30;
        for (at, len, byte) in
            [(0, 4096, 5), (far, 70 << 10, 6), ((8u64 << 40) - 4096, 4096, 7), (1 << 40, 4096, 0)]
        {
            let mut buf = vec![0xee; len];
            disk.read(&mut buf, GuestOffset(at)).unwrap();
            assert!(buf.iter().all(|got| *got == byte), "{options}: at {at:#x}");
        }
        let report = images::check(&folder.path().join("t.qcow2"));
        assert_eq!((report.error_count, report.leaks), (0, 0), "{options}: {:?}", report.errors);
    }
}

#[test]
fn what_qemu_makes_and_we_do_not_read_is_refused_with_a_sentence() {
    let recipes: [(&str, &[&str]); 3] = [
        ("external data file", &["img create -q -f qcow2 -o data_file=d.raw t.qcow2 1M"]),
        (
            "raw external data file",
            &["img create -q -f qcow2 -o data_file=d.raw,data_file_raw=on t.qcow2 1M"],
        ),
        (
            "LUKS",
            &[
                "img create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 t.qcow2 1M",
            ],
        ),
    ];
    for (what, steps) in recipes {
        let folder = tempfile::tempdir().unwrap();
        steps.iter().for_each(|step| qemu::step(folder.path(), step));
        let error = images::try_open(&folder.path().join("t.qcow2"), false).expect_err(what);
        assert_eq!(error.kind(), cowshed::Kind::Unsupported, "{what}: {error}");
        assert!(error.to_string().len() > 20 && !error.to_string().contains('\n'), "{what}: {error:?}");
    }
}
