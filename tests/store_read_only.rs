//! A store that cannot be written, or that belongs to somebody else, can still be looked at. Needs root, to make such stores.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::must;
use common::{DISK, Shed, one_line, program};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder seen read-only somewhere else; taken away when dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn of(from: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        must("mount", &["--bind", "-o", "ro", from.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A clone with data, and a checkpoint.
fn shed() -> Shed {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    must("qemu-io", &["-f", "qcow2", "-c", "write -P 5 1M 300k", shed.delta("web").to_str().unwrap()]);
    shed.ok(&["checkpoint", "web"]);
    shed
}

const LOOKING: [&[&str]; 12] = [
    &["list"],
    &["list", "--json"],
    &["tree"],
    &["info", "web"],
    &["info", "deb"],
    &["map", "web"],
    &["path", "web"],
    &["checkpoints", "web"],
    &["check", "web"],
    &["check", "--all"],
    &["verify", "deb"],
    &["rm", "web", "--plan"],
];
const CHANGING: [&[&str]; 6] = [
    &["clone", "deb", "fresh"],
    &["rename", "web", "db"],
    &["rm", "web"],
    &["checkpoint", "web"],
    &["restore", "web", "1"],
    &["check", "web", "--repair"],
];

#[test]
fn a_store_on_a_read_only_filesystem_can_be_looked_at_and_says_why_it_does_not_change() {
    let shed = shed();
    let there = ReadOnly::of(&shed.root(), shed.path("there"));
    let command = |arguments: &[&str]| -> Output {
        program().arg("--store").arg(&there.0).args(arguments).output().unwrap()
    };
    for arguments in LOOKING {
        let output = command(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    let out = shed.path("out.raw");
    let export = command(&["export", "web", out.to_str().unwrap(), "--format", "raw"]);
    assert!(export.status.success(), "{export:?}");
    assert_eq!(fs::metadata(&out).unwrap().len(), DISK as u64);
    for arguments in CHANGING {
        let said = one_line(&command(arguments), 1, arguments);
        assert!(said.contains("Read-only file system"), "{arguments:?}: {said}");
    }
    // A view of it can be read, and tells a writer why not.
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    let mounted = command(&["mount", dir.to_str().unwrap()]);
    assert!(mounted.status.success(), "{mounted:?}");
    let view = common::View { shed: &shed, dir };
    assert!(fs::read(view.clone_file("web")).unwrap() == fs::read(&out).unwrap());
    let error = File::options().write(true).open(view.clone_file("web")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    view.unmount();
}

#[test]
fn a_store_of_somebody_else_can_be_looked_at_by_who_may_read_it() {
    let shed = shed();
    let command = |arguments: &[&str]| -> Output {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(env!("CARGO_BIN_EXE_cowshed")).arg("--store").arg(shed.root()).args(arguments);
        command.env_remove("COWSHED_STORE").env_remove("XDG_RUNTIME_DIR").output().unwrap()
    };
    let refused = || {
        let said = one_line(&command(&["list"]), 1, &["list"]);
        assert!(said.contains("Permission denied"), "{said}");
    };
    refused();
    for folder in [shed.dir.path().to_owned(), shed.root()] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    // What is in the store is closed by itself.
    refused();
    // The sealed files are open to all who reach them, and cannot be changed; that is no failure here.
    let _ = Command::new("chmod").args(["-R", "a+rX"]).arg(shed.root()).output().unwrap();
    for arguments in LOOKING {
        let output = command(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    for arguments in CHANGING {
        let said = one_line(&command(arguments), 1, arguments);
        assert!(said.contains("ermi"), "{arguments:?}: {said}");
    }
    let list = shed.json(&["list"]);
    assert_eq!(list["clones"].as_array().unwrap().len(), 1);
}
