//! The base's identity in the header outlives what QEMU's tools do to an image.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod images;
    pub mod qemu;
    pub mod rng;
}

use common::{images, qemu};
use cowshed::qcow2::{BackingName, CreateOptions, Identity, Image, OpenOptions, create};
use std::path::Path;

fn identity() -> Identity {
    let mut digest = [0; 32];
    digest.iter_mut().enumerate().for_each(|(at, byte)| *byte = 0xa5 ^ at as u8);
    Identity { name: "ubuntu-24.04".into(), version: 7, digest }
}

fn clone_in(folder: &Path, extended_l2: bool) {
    qemu::step(folder, "raw b.raw 3145728");
    qemu::step(folder, "fill b.raw 0 70000 1");
    let storage = images::new_file(&folder.join("t.qcow2"));
    let options = CreateOptions {
        extended_l2,
        backing: Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) }),
        identity: Some(identity()),
        ..CreateOptions::new(3 << 20)
    };
    create(&*storage, &options).unwrap();
    storage.sync().unwrap();
}

fn assert_identity(folder: &Path, what: &str) {
    let image = Image::open(images::host_file(&folder.join("t.qcow2"), false), OpenOptions::default());
    let image = image.unwrap_or_else(|error| panic!("after {what}: {error}"));
    assert_eq!(image.identity(), Some(&identity()), "after {what}");
}

#[test]
fn the_identity_is_read_back_as_it_was_written() {
    for extended_l2 in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        clone_in(folder.path(), extended_l2);
        assert_identity(folder.path(), "creation");
        let disk = images::open(&folder.path().join("t.qcow2"), true);
        disk.write(&[1; 5000], cowshed::units::GuestOffset(100)).unwrap();
        disk.close().unwrap();
        drop(disk);
        assert_identity(folder.path(), "a write of ours");
        qemu::assert_clean(&folder.path().join("t.qcow2"), "with an identity");
    }
}

#[test]
fn the_identity_survives_every_header_rewrite_by_qemu() {
    let changes = [
        "io t.qcow2 write -P 3 1M 64k",
        "img amend -q -f qcow2 -o lazy_refcounts=on t.qcow2",
        "img amend -q -f qcow2 -o lazy_refcounts=off t.qcow2",
        "img rebase -q -u -f qcow2 -F raw -b another.raw t.qcow2",
        "img rebase -q -u -f qcow2 -F raw -b b.raw t.qcow2",
        "img resize -q t.qcow2 9M",
        "img snapshot -q -c one t.qcow2",
        "img snapshot -q -d one t.qcow2",
        "img bitmap --add t.qcow2 b0",
        "img bitmap --remove t.qcow2 b0",
        "img amend -q -f qcow2 -o refcount_bits=32 t.qcow2",
        "img check -q -r all t.qcow2",
    ];
    for extended_l2 in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        clone_in(folder.path(), extended_l2);
        qemu::step(folder.path(), "raw another.raw 3145728");
        for change in changes {
            qemu::step(folder.path(), change);
            assert_identity(folder.path(), change);
        }
        let disk = images::open(&folder.path().join("t.qcow2"), true);
        assert_eq!(disk.size(), 9 << 20);
        disk.write(&[1; 5000], cowshed::units::GuestOffset(8 << 20)).unwrap();
        disk.close().unwrap();
        drop(disk);
        assert_identity(folder.path(), "a write of ours after all of them");
        qemu::assert_clean(&folder.path().join("t.qcow2"), "after all of them");
    }
}

#[test]
fn an_image_without_identity_has_none() {
    let folder = tempfile::tempdir().unwrap();
    qemu::step(folder.path(), "img create -q -f qcow2 t.qcow2 1M");
    let image = Image::open(images::host_file(&folder.path().join("t.qcow2"), false), OpenOptions::default());
    assert_eq!(image.unwrap().identity(), None);
}
