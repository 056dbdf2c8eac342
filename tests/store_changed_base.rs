//! A base that is not what it was is refused by every command that opens it, with its name and what to do; `verify` names
//! the damage, and a base is accepted again exactly when its content is right.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/host.rs"]
mod host;

use common::store::{must, qemu_check, unseal};
use common::{Shed, noise};
use host::Memory;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

/// Block size of `verify`.
const BLOCK: u64 = 64 << 10;
/// The byte that is changed.
const PLACE: u64 = 5 * (1 << 20) + 77;

/// How a base is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Byte,
    ByteWithTheTimeSetBack,
    Replaced,
    Truncated,
    Appended,
    Touched,
    RestoredFromBackup,
    Unsealed,
    ManifestsSwapped,
    FoldersSwapped,
}

const ALL: [Change; 10] = [
    Change::Byte,
    Change::ByteWithTheTimeSetBack,
    Change::Replaced,
    Change::Truncated,
    Change::Appended,
    Change::Touched,
    Change::RestoredFromBackup,
    Change::Unsealed,
    Change::ManifestsSwapped,
    Change::FoldersSwapped,
];

impl Change {
    /// Whether the disk still holds what was sealed, under the manifest that was made for it.
    fn content_is_right(self) -> bool {
        matches!(self, Self::Replaced | Self::Touched | Self::RestoredFromBackup | Self::Unsealed)
    }

    fn make(self, shed: &Shed) {
        let disk = shed.base_disk();
        let path = disk.to_str().unwrap();
        let spare = shed.path("spare.raw");
        let spare = spare.to_str().unwrap();
        let other = shed.root().join("bases/other");
        unseal(&disk);
        let write = || {
            fs::set_permissions(&disk, Permissions::from_mode(0o644)).unwrap();
            File::options().read(true).write(true).open(&disk).unwrap()
        };
        match self {
            Self::Byte => flip(&write()),
            Self::ByteWithTheTimeSetBack => {
                must("touch", &["-r", path, spare]);
                flip(&write());
                must("touch", &["-r", spare, path]);
            }
            Self::Replaced => {
                let near = format!("{path}.new");
                must("cp", &["--preserve=all", path, &near]);
                fs::rename(near, &disk).unwrap();
            }
            Self::Truncated => write().set_len(fs::metadata(&disk).unwrap().len() - 512).unwrap(),
            Self::Appended => {
                let file = write();
                file.write_all_at(&[7; 512], fs::metadata(&disk).unwrap().len()).unwrap();
            }
            Self::Touched => drop(must("touch", &[path])),
            Self::RestoredFromBackup => {
                must("cp", &["-a", path, spare]);
                fs::remove_file(&disk).unwrap();
                must("cp", &["-a", spare, path]);
            }
            // Taking the attribute off is a change where there is one; where there is none, changing the mode is.
            Self::Unsealed => fs::set_permissions(&disk, Permissions::from_mode(0o644)).unwrap(),
            Self::ManifestsSwapped => swap(&disk.with_file_name("base.json"), &other.join("1/base.json")),
            Self::FoldersSwapped => swap(&shed.root().join("bases/deb"), &other),
        }
    }
}

fn flip(file: &File) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, PLACE).unwrap();
    file.write_all_at(&[!byte[0]], PLACE).unwrap();
}

fn swap(one: &PathBuf, other: &PathBuf) {
    let aside = one.with_extension("aside");
    fs::rename(one, &aside).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(&aside, other).unwrap();
}

/// A store with two bases of one size, and a clone with a checkpoint, at `root`.
fn fill(shed: &Shed) {
    let image = shed.image("deb.raw");
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb"]);
    let other = shed.path("other.raw");
    fs::copy(&image, &other).unwrap();
    File::options().write(true).open(&other).unwrap().write_all_at(&noise(4096, 9), 9 << 20).unwrap();
    shed.ok(&["import", other.to_str().unwrap(), "--name", "other"]);
    shed.ok(&["clone", "deb", "web"]);
    must("qemu-io", &["-f", "qcow2", "-c", "write -P 5 1M 300k", shed.delta("web").to_str().unwrap()]);
    shed.ok(&["checkpoint", "web"]);
}

fn content(shed: &Shed) -> Vec<u8> {
    let out = shed.path("content.raw");
    shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw", "--force"]);
    fs::read(out).unwrap()
}

/// Every command that opens the base says so in one line; those that do not, work.
fn refused_by_all(shed: &Shed, change: Change, what: &str) {
    let out = shed.path("out.raw");
    let out = out.to_str().unwrap();
    let run = ["run", "web", "--accel", "tcg", "--serial", "none"];
    // Swapped as a whole, the other base is intact under the new name: only the clone knows that it is not its own.
    let base: &[&[&str]] = &[
        &["clone", "deb", "fresh"],
        &["export", "deb", out],
        &["run", "deb", "--ephemeral", "--accel", "tcg", "--serial", "none"],
    ];
    let clone: &[&[&str]] = &[
        &["export", "web", out],
        &["map", "web"],
        &["checkpoint", "web"],
        &["restore", "web", "1"],
        &run,
        &[&run[..], &["--ephemeral"]].concat(),
    ];
    let on_base = base.iter().filter(|_| change != Change::FoldersSwapped);
    for command in clone.iter().chain(on_base) {
        let said = shed.fails(1, command);
        assert!(said.contains("deb@1"), "{what}: {command:?}: no name: {said}");
        let hint = said.contains("cowshed verify deb@1") || said.contains("restore that base");
        assert!(hint, "{what}: {command:?}: nothing to do: {said}");
        assert!(fs::metadata(out).is_err(), "{what}: {command:?} left an export");
    }
    assert!(!shed.root().join("clones/fresh").exists(), "{what}");
    let output = shed.output(&["check", "web"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("deb@1"), "{what}: check: {text}");
    let info = shed.json(&["info", "web"]);
    assert!(info["refused"].as_str().is_some_and(|reason| reason.contains("deb@1")), "{what}: {info}");
    shed.ok(&["list"]);
    shed.ok(&["tree"]);

    let view = shed.mount();
    for (file, write) in [(view.clone_file("web"), true), (view.clone_file("web"), false)] {
        let error = File::options().read(true).write(write).open(file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{what}: a clone through the view: {error}");
    }
    view.unmount();
}

/// What `verify` says, and whether `verify --reseal` accepts it.
fn verified(shed: &Shed, change: Change, what: &str) {
    if change == Change::FoldersSwapped {
        // Each base is what its own manifest says.
        return;
    }
    let output = shed.output(&["verify", "deb"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{what}: verify: {text}");
    let output = shed.output(&["verify", "deb", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let damaged = &report[0]["damaged"];
    if matches!(change, Change::Byte | Change::ByteWithTheTimeSetBack) {
        let (start, length) = (PLACE / BLOCK * BLOCK, BLOCK);
        assert!(text.contains(&format!("64.0 KiB at byte {start} ")), "{what}: {text}");
        assert_eq!(*damaged, serde_json::json!([{"start": start, "length": length}]), "{what}");
    } else if change.content_is_right() {
        assert_eq!(*damaged, serde_json::json!([]), "{what}");
        assert!(text.contains("--reseal accepts it"), "{what}: {text}");
    }
    if !change.content_is_right() {
        let said = shed.output(&["verify", "deb", "--reseal"]);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(1), "{what}: a damaged base was accepted");
        assert!(text.contains("deb@1") && text.contains("backup"), "{what}: {text}");
    }
}

fn every_change_is_refused(shed: &Shed, change: Change, on: &str) {
    let what = format!("{change:?} {on}");
    let before = content(shed);
    change.make(shed);
    refused_by_all(shed, change, &what);
    verified(shed, change, &what);
    if !change.content_is_right() {
        // Whatever was tried meanwhile: it is refused still. Then it is put right.
        shed.fails(1, &["export", "web", shed.path("out.raw").to_str().unwrap()]);
        match change {
            Change::Byte | Change::ByteWithTheTimeSetBack => {
                let disk = shed.base_disk();
                flip(&File::options().read(true).write(true).open(disk).unwrap());
            }
            Change::ManifestsSwapped | Change::FoldersSwapped => change.make(shed),
            _ => {
                let (disk, image) = (shed.base_disk(), shed.path("deb.raw"));
                unseal(&disk);
                fs::copy(image, disk).unwrap();
            }
        }
    }
    shed.ok(&["verify", "deb", "--reseal"]);
    shed.ok(&["verify", "deb"]);
    assert!(content(shed) == before, "{what}: the clone shows something else");
    shed.ok(&["checkpoint", "web"]);
    qemu_check(&shed.delta("web"));
}

#[test]
fn a_changed_base_is_refused_by_all_and_accepted_when_it_is_right_again() {
    let shed = Shed::new();
    fill(&shed);
    for change in ALL {
        every_change_is_refused(&shed, change, "where files can be made immutable");
    }
}

#[test]
fn a_changed_base_is_refused_too_where_files_cannot_be_made_immutable() {
    let shed = Shed::new();
    let _memory = Memory::new(shed.root(), 256 << 20);
    fill(&shed);
    for change in ALL {
        every_change_is_refused(&shed, change, "on a filesystem without the attribute");
    }
}
