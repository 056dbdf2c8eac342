//! `run`: a guest of one sector that copies itself to sector 8 and powers off.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::Shed;
use common::store::{file_digest, qemu_check};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

/// A boot sector for a BIOS.
fn boot_sector() -> [u8; 512] {
    let code = [
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xbe, 0x40, 0x7c, // mov si, 0x7c40: the address packet
        0xb8, 0x00, 0x43, // mov ax, 0x4300: write to the disk in dl
        0xcd, 0x13, // int 0x13
        0xba, 0x04, 0x06, // mov dx, 0x604: power management of this machine
        0xb8, 0x00, 0x20, // mov ax, 0x2000: off
        0xef, // out dx, ax
        0xf4, // hlt
        0xeb, 0xfd, // back to hlt
    ];
    // One sector from 0000:7c00 to sector 8.
    let packet = [0x10, 0, 1, 0, 0x00, 0x7c, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[0x40..0x50].copy_from_slice(&packet);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn shed() -> Shed {
    let shed = Shed::new();
    let image = shed.path("boot.raw");
    let mut bytes = vec![0; 4 << 20];
    bytes[..512].copy_from_slice(&boot_sector());
    fs::write(&image, &bytes).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb", "--format", "raw"]);
    shed.ok(&["clone", "deb", "web"]);
    shed
}

/// Runs the guest to its end.
fn run(shed: &Shed, arguments: &[&str]) {
    let all = [&["run", "--accel", "tcg", "--serial", "none", "--memory", "64M"], arguments].concat();
    let output = shed.command(&all).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}\n{said}", output.status);
}

fn sector_8(shed: &Shed) -> [u8; 512] {
    let out = shed.path("out.raw");
    shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw", "--force"]);
    let mut sector = [0; 512];
    File::open(&out).unwrap().read_exact_at(&mut sector, 8 * 512).unwrap();
    sector
}

#[test]
fn a_guest_boots_and_keeps_its_changes_in_the_clone() {
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    run(&shed, &["web", "--ephemeral"]);
    run(&shed, &["web", "--snapshot"]);
    run(&shed, &["deb", "--ephemeral"]);
    assert_eq!(sector_8(&shed), [0; 512], "throw-away runs change nothing");
    assert_eq!(fs::read_dir(shed.root().join("tmp")).unwrap().count(), 0, "and leave nothing");

    run(&shed, &["web"]);
    assert_eq!(sector_8(&shed), boot_sector());
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn a_guest_runs_on_the_file_of_a_view_that_is_there() {
    let shed = shed();
    let view = shed.mount();
    run(&shed, &["web", "--view", view.dir.to_str().unwrap()]);
    let mut sector = [0; 512];
    File::open(view.clone_file("web")).unwrap().read_exact_at(&mut sector, 8 * 512).unwrap();
    assert_eq!(sector, boot_sector());
    view.unmount();
    qemu_check(&shed.delta("web"));
    let said = shed.fails(1, &["run", "web", "--view", shed.path("nowhere").to_str().unwrap()]);
    assert!(said.contains("no file of a mounted view"), "{said}");
}

#[test]
fn a_machine_that_cannot_start_says_why_and_leaves_no_mount() {
    let shed = shed();
    let said = shed.fails(1, &["run", "web", "--qemu", "/nonexistent/qemu", "--accel", "tcg"]);
    assert!(said.contains("/nonexistent/qemu"), "{said}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = format!("cowshed-run-{}", std::process::id());
    assert!(!mounts.contains(&ours));
    shed.ok(&["rm", "web"]);
}

#[test]
fn a_base_is_not_run_for_keeps() {
    let shed = shed();
    let said = shed.fails(1, &["run", "deb"]);
    assert!(said.contains("--ephemeral"), "{said}");
}
