//! A store, and a view of it, are nobody else's.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/cli.rs"]
mod common;

use common::Shed;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn everything(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            everything(&path, into);
        }
        into.push(path);
    }
}

/// Runs a shell line as the user nobody.
fn as_nobody(script: &str, argument: &Path) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script]).arg(argument);
    command.output().unwrap()
}

/// Runs a command under an umask.
fn under(umask: &str, shed: &Shed, arguments: &[&str]) {
    let script = format!("umask {umask}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_cowshed"), "--store"]).arg(shed.root()).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[test]
fn nobody_else_reads_a_store_whatever_the_umask_and_even_when_its_folder_is_opened() {
    for umask in ["0", "022", "077"] {
        let shed = Shed::new();
        let source = shed.path("source");
        fs::write(&source, common::noise(1 << 20, 1)).unwrap();
        let vmdk = shed.path("source.vmdk");
        let (raw, vmdk) = (source.to_str().unwrap(), vmdk.to_str().unwrap());
        common::store::must("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", raw, vmdk]);
        under(umask, &shed, &["import", raw, "--name", "b", "--format", "raw"]);
        under(umask, &shed, &["import", vmdk, "--name", "v"]);
        under(umask, &shed, &["clone", "b", "c"]);
        under(umask, &shed, &["clone", "b", "d", "e"]);
        under(umask, &shed, &["checkpoint", "c"]);
        under(umask, &shed, &["restore", "c", "1"]);
        under(umask, &shed, &["check", "c", "--reseal"]);
        under(umask, &shed, &["verify", "b", "--reseal"]);
        let mut paths = vec![shed.root()];
        everything(&shed.root(), &mut paths);
        assert!(paths.len() > 20);
        for path in &paths {
            let meta = fs::symlink_metadata(path).unwrap();
            let sealed = path.ends_with("disk.raw");
            let wanted = if meta.is_dir() {
                0o700
            } else if sealed {
                0o444
            } else {
                meta.mode() & 0o600
            };
            assert_eq!(meta.mode() & 0o777, wanted, "{} under umask {umask}", path.display());
        }
        for folder in [shed.dir.path().to_owned(), shed.root()] {
            fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        }
        for file in [
            "clones/c/disk.qcow2",
            "clones/c/clone.json",
            "clones/c/checkpoint-1.qcow2",
            "bases/b/1/disk.raw",
            "cowshed.json",
        ] {
            let read = as_nobody("head -c 1 \"$0\"", &shed.root().join(file));
            assert!(!read.status.success() && read.stdout.is_empty(), "{file} under umask {umask}: {read:?}");
        }
        let list = as_nobody("ls \"$0\"/clones || ls \"$0\"/bases", &shed.root());
        assert!(!list.status.success(), "{list:?}");
    }
}

#[test]
fn a_view_lets_other_users_in_only_when_asked_for_and_then_to_bases_only() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    fs::set_permissions(shed.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    for allow in [false, true] {
        let arguments = ["mount", path, "--allow-other"];
        shed.ok(if allow { &arguments } else { &arguments[..2] });
        let base = as_nobody("head -c 4 \"$0\"/bases/deb@1.raw | wc -c", &dir);
        let read = String::from_utf8_lossy(&base.stdout).trim() == "4";
        let list = as_nobody("ls \"$0\"", &dir).status.success();
        let clone = as_nobody("head -c 4 \"$0\"/clones/web.raw", &dir);
        let write = as_nobody("echo x >>\"$0\"/clones/web.raw", &dir);
        shed.ok(&["umount", path]);
        assert_eq!((read, list), (allow, allow), "{base:?}");
        assert!(!clone.status.success() && clone.stdout.is_empty() && !write.status.success());
    }
}

#[test]
fn a_view_hides_nothing_unless_it_is_asked_to() {
    let shed = Shed::with_base();
    let dir = shed.path("full");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("mine"), "mine").unwrap();
    let path = dir.to_str().unwrap();
    for foreground in [false, true] {
        let arguments = ["mount", path, "--foreground"];
        let said = shed.fails(1, if foreground { &arguments } else { &arguments[..2] });
        assert!(said.contains("not empty") && said.contains("--nonempty"), "{said}");
        assert!(!common::is_mounted(&dir));
    }
    shed.ok(&["mount", path, "--nonempty"]);
    assert!(common::is_mounted(&dir) && dir.join("bases").exists() && !dir.join("mine").exists());
    shed.ok(&["umount", path]);
    assert_eq!(fs::read_to_string(dir.join("mine")).unwrap(), "mine");
}
