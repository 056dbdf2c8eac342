//! Tables and clusters that an internal snapshot shares are copied before they change.

use crate::explore;
use crate::guest::{Guest, Start, at_once, base};
use std::process::Command;

/// An image with a snapshot over stamps that it stores itself, made by QEMU.
pub fn with_snapshot() -> Start {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new("qemu-img").current_dir(folder.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let base = base(12 << 14);
    std::fs::write(folder.path().join("b.raw"), &base).unwrap();
    let options = "extended_l2=on,cluster_size=16k";
    run(&["convert", "-f", "raw", "-O", "qcow2", "-o", options, "b.raw", "t.qcow2"]);
    run(&["snapshot", "-q", "-c", "first", "t.qcow2"]);
    Start { image: std::fs::read(folder.path().join("t.qcow2")).unwrap(), base: base.into() }
}

#[test]
fn threads_that_copy_one_shared_table_copy_it_once() {
    let start = with_snapshot();
    explore("shared table", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(Guest::cluster(0), 1);
                    guest.read(Guest::cluster(4), 1);
                },
                &|guest| {
                    guest.write(Guest::cluster(4) + 1, 1);
                    guest.flush();
                },
                &|guest| {
                    guest.flush();
                    guest.read(Guest::cluster(8), 1);
                    guest.discard(Guest::cluster(0) + 1, 1);
                },
            ],
        );
    });
}
