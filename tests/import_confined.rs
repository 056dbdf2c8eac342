//! What reads foreign formats for us can do little else, and what the host itself writes to is not read.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/cli.rs"]
mod common;

use common::Shed;
use common::store::must;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Imports a vmdk with a program of ours in the place of `qemu-img`: `info` and `convert` are lines of bash. What the
/// import says.
fn import_by(shed: &Shed, info: &str, convert: &str) -> String {
    let (fake, source) = (shed.path("fake"), shed.path("disk.vmdk"));
    let _ = fs::create_dir(&fake);
    must("qemu-img", &["create", "-q", "-f", "vmdk", source.to_str().unwrap(), "1M"]);
    let program = fake.join("qemu-img");
    let script = format!(
        "#!/bin/bash\nout=\"${{@: -1}}\"\ncase $1 in\ninfo) {info} ;;\nconvert) {convert} ;;\nesac\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", fake.display(), std::env::var("PATH").unwrap());
    let mut command = shed.command(&["import", source.to_str().unwrap(), "--name", "x"]);
    let output = command.env("PATH", path).output().unwrap();
    if output.status.success() {
        shed.ok(&["rm", "x"]);
    }
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const SIZE: &str = "echo '{\"virtual-size\": 1048576}'";
const GOOD: &str = "truncate -s 1M \"$out\"";

#[test]
fn the_program_in_its_place_works() {
    assert_eq!(import_by(&Shed::new(), SIZE, GOOD), "");
}

#[test]
fn a_converter_reaches_no_network() {
    let shed = Shed::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let connect = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{} && echo connected >&2; exit 1",
        listener.local_addr().unwrap().port()
    );
    must("bash", &["-c", &connect.replace("exit 1", "exit 0")]);
    assert!(listener.accept().is_ok(), "without confinement it connects");
    for (info, convert) in [(connect.as_str(), GOOD), (SIZE, connect.as_str())] {
        let said = import_by(&shed, info, convert);
        assert!(said.contains("cannot read it") && !said.contains("connected"), "{said}");
        assert!(listener.accept().is_err(), "the converter connected");
    }
}

#[test]
fn a_converter_has_limits_and_no_new_privileges() {
    let shed = Shed::new();
    let tell = "echo lim:$(ulimit -Hv):$(ulimit -St):$(ulimit -Sc):$(grep -c 'NoNewPrivs:.1' /proc/self/status): >&2; exit 1";
    let said = import_by(&shed, tell, GOOD);
    let limits: Vec<&str> = said.split("lim:").nth(1).unwrap().split(':').collect();
    assert_eq!(limits[..4], ["4194304", "120", "0", "1"], "{said}");
    let environment =
        import_by(&shed, "echo env:$(env | cut -d= -f1 | sort | tr '\\n' ,): >&2; exit 1", GOOD);
    for variable in ["HOME", "COWSHED", "USER", "CARGO"] {
        assert!(!environment.contains(variable), "{environment}");
    }
    let said = import_by(&shed, SIZE, "exec head -c 3000000 /dev/zero >\"$out\"");
    assert!(said.contains("wrote more than the disk's size"), "{said}");
    let said = import_by(&shed, "exec head -c 3000000 /dev/zero >\"$0.big\"", GOOD);
    assert!(said.starts_with("cowshed: "), "{said}");
    assert!(fs::metadata(shed.path("fake/qemu-img.big")).map_or(0, |meta| meta.len()) <= 1 << 20);
}

#[test]
fn each_way_to_be_stopped_is_told_as_what_it_is() {
    let shed = Shed::new();
    for (signal, words) in [("XCPU", "processor time"), ("KILL", "short of memory"), ("XFSZ", "wrote more")] {
        let said = import_by(&shed, &format!("kill -{signal} $$"), GOOD);
        assert!(said.contains(words) && said.lines().count() == 1, "{signal}: {said}");
    }
    assert!(shed.json(&["list"])["bases"].as_array().unwrap().is_empty());
    assert!(fs::read_dir(shed.root().join("tmp")).unwrap().next().is_none(), "nothing is left");
}

/// Whether this kernel has Landlock: it is asked for its version.
fn has_landlock() -> bool {
    // SAFETY: with these arguments the call only returns a number.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, 1_u32) > 0 }
}

#[test]
fn a_converter_writes_nowhere_but_to_the_new_disk() {
    assert!(
        has_landlock(),
        "this kernel has no Landlock; the test needs one that does (5.13 or later, and enabled)"
    );
    let shed = Shed::new();
    let outside = shed.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "mine").unwrap();
    let there = outside.display();
    let meddle = format!(
        "echo x >{there}/new; echo x >>{there}/mine; rm {there}/mine; mkdir {there}/d; ln {there}/mine \"$out.link\"; mv {there}/mine {there}/m2; :"
    );
    for (info, convert) in
        [(format!("{meddle} {SIZE}"), GOOD.to_owned()), (SIZE.to_owned(), format!("{meddle} {GOOD}"))]
    {
        import_by(&shed, &info.replace(": echo", ":; echo"), &convert.replace(": truncate", ":; truncate"));
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["mine"]);
        assert_eq!(fs::read_to_string(outside.join("mine")).unwrap(), "mine");
    }
}

/// A loop device with an ext4 file system, taken away when dropped.
struct Device {
    path: String,
    dir: PathBuf,
}

impl Device {
    fn new(folder: &Path) -> Self {
        let (file, dir) = (folder.join("fs"), folder.join("mnt"));
        fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&dir).unwrap();
        must("mkfs.ext4", &["-q", "-F", file.to_str().unwrap()]);
        let path = must("losetup", &["-f", "--show", file.to_str().unwrap()]).trim().to_owned();
        Self { path, dir }
    }

    fn mount(&self, how: &str) {
        must("mount", &["-o", how, &self.path, self.dir.to_str().unwrap()]);
    }

    fn unmount(&self) {
        must("umount", &[self.dir.to_str().unwrap()]);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-q").arg(&self.dir).status();
        let _ = std::process::Command::new("losetup").args(["-d", &self.path]).status();
    }
}

#[test]
fn a_device_that_the_host_writes_to_is_not_imported() {
    let shed = Shed::new();
    let device = Device::new(shed.dir.path());
    let import = ["import", device.path.as_str(), "--name", "x", "--format", "raw"];
    device.mount("rw");
    let said = shed.fails(1, &import);
    assert!(said.contains("mounted writable at") && said.contains(device.dir.to_str().unwrap()), "{said}");
    device.unmount();
    device.mount("ro");
    shed.ok(&import);
    shed.ok(&["rm", "x"]);
    device.unmount();
    shed.ok(&import);
    assert!(
        common::store::file_digest(&shed.root().join("bases/x/1/disk.raw"))
            == common::store::file_digest(&shed.path("fs"))
    );
}
