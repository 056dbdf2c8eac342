//! A plain user mounts and unmounts through `fusermount3`.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use common::{Server, TestView, options};
use fuse_mount::Options;

const USER: u32 = 65534;
const AS_USER: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
const DEVICE: &str = "/dev/fuse";

/// Lets everybody open the FUSE device, as nearly all systems do, until the test ends.
struct OpenDevice(Permissions);

impl OpenDevice {
    fn new() -> Self {
        let before = fs::metadata(DEVICE).unwrap().permissions();
        fs::set_permissions(DEVICE, Permissions::from_mode(0o666)).unwrap();
        OpenDevice(before)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _ = fs::set_permissions(DEVICE, self.0.clone());
    }
}

fn as_user(script: &str, dir: &Path) -> Output {
    let mut command = Command::new(AS_USER[0]);
    command.args(&AS_USER[1..]).args(["sh", "-c", script]).arg(dir).output().unwrap()
}

#[test]
fn a_plain_user_mounts_works_and_unmounts() {
    let _device = OpenDevice::new();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    chown(dir.path(), Some(USER), Some(USER)).unwrap();
    // The user must reach the program, wherever the build put it.
    let copy = tempfile::tempdir().unwrap();
    fs::set_permissions(copy.path(), Permissions::from_mode(0o755)).unwrap();
    let program = copy.path().join("memory");
    fs::copy(common::example(), &program).unwrap();

    let mut server = Server::start_program(&program, dir.path(), &AS_USER, &["1048576"]);
    let script = "set -e; cd \"$0\"; printf hello | dd of=clones/disk.raw bs=5 conv=notrunc,fsync status=none; \
                  head -c 5 clones/disk.raw; test ! -w bases/disk@1.raw; stat -c ' %u %a' clones/disk.raw";
    let output = as_user(script, dir.path());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello 65534 600\n", "{output:?}");
    assert!(fs::metadata(dir.path().join("clones")).is_err(), "root was not let in: no allow_other");

    let busy = as_user("cd \"$0/clones\" && fusermount3 -u \"$0\"", dir.path());
    assert!(!busy.status.success());
    let output = as_user("fusermount3 -u \"$0\"", dir.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.lines.next().unwrap().unwrap(), "done");
    assert!(server.child.wait().unwrap().success());

    // SIGTERM: the server unmounts itself, with the helper. Killed: the next one takes the dead mount away.
    let mut server = Server::start_program(&program, dir.path(), &AS_USER, &["1048576"]);
    server.kill();
    let mut server = Server::start_program(&program, dir.path(), &AS_USER, &["1048576"]);
    let pid = nix::unistd::Pid::from_raw(server.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    assert_eq!(fs::metadata(dir.path()).unwrap().uid(), USER);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is mounted");
}

#[test]
fn other_users_are_let_in_only_when_asked_for_and_then_as_far_as_modes_allow() {
    for allow_other in [false, true] {
        let view = TestView::with(Options { allow_other, ..options() });
        view.memory.add("bases/b@1.raw", 4096).put(0, b"base");
        view.memory.add("clones/a.raw", 4096);
        let base = as_user("head -c 4 \"$0/bases/b@1.raw\"", view.dir());
        assert_eq!((base.status.success(), base.stdout == b"base"), (allow_other, allow_other), "{base:?}");
        for script in ["cat \"$0/clones/a.raw\"", ": >> \"$0/bases/b@1.raw\"", "mkdir \"$0/clones/d\""] {
            let refused = as_user(script, view.dir());
            let message = String::from_utf8(refused.stderr).unwrap();
            assert!(!refused.status.success() && message.contains("Permission denied"), "{message}");
        }
    }
}
