//! `run`: a guest of one sector that copies itself to sector 8 and powers off.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/rings.rs"]
mod rings;

use common::store::{file_digest, must, qemu_check};
use common::{Shed, one_line, until};
use rings::completions;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A boot sector for a BIOS, which powers off when it has written.
fn boot_sector() -> [u8; 512] {
    boot_sector_with(&[
        0xba, 0x04, 0x06, // mov dx, 0x604: power management of this machine
        0xb8, 0x00, 0x20, // mov ax, 0x2000: off
        0xef, // out dx, ax
    ])
}

/// A boot sector that does `last` when it has written, and then waits.
fn boot_sector_with(last: &[u8]) -> [u8; 512] {
    let write = [
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xbe, 0x40, 0x7c, // mov si, 0x7c40: the address packet
        0xb8, 0x00, 0x43, // mov ax, 0x4300: write to the disk in dl
        0xcd, 0x13, // int 0x13
    ];
    // hlt, and back to it.
    let code = [&write[..], last, &[0xf4, 0xeb, 0xfd]].concat();
    // One sector from 0000:7c00 to sector 8.
    let packet = [0x10, 0, 1, 0, 0x00, 0x7c, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    assert!(code.len() <= 0x40);
    sector[0x40..0x50].copy_from_slice(&packet);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn shed() -> Shed {
    shed_with(&boot_sector())
}

fn shed_with(boot: &[u8; 512]) -> Shed {
    let shed = Shed::new();
    let image = shed.path("boot.raw");
    let mut bytes = vec![0; 4 << 20];
    bytes[..512].copy_from_slice(boot);
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
    for way in ["view", "vhost-user"] {
        let shed = shed();
        let base = file_digest(&shed.base_disk());
        run(&shed, &["web", "--ephemeral", "--disk", way]);
        run(&shed, &["web", "--snapshot", "--disk", way]);
        run(&shed, &["deb", "--ephemeral", "--disk", way]);
        assert_eq!(sector_8(&shed), [0; 512], "throw-away runs change nothing");
        assert_eq!(fs::read_dir(shed.root().join("tmp")).unwrap().count(), 0, "and leave nothing");

        run(&shed, &["web", "--disk", way, "--cpus", "2"]);
        assert_eq!(sector_8(&shed), boot_sector());
        qemu_check(&shed.delta("web"));
        run(&shed, &["deb", "--edit", "--disk", way]);
        assert!(shed.ok(&["list"]).contains("deb@2"), "{way}");
        assert_eq!(file_digest(&shed.base_disk()), base);
    }
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn a_guest_boots_writes_flushes_and_is_stopped_over_rings() {
    let sector = boot_sector_with(&[
        0xba, 0xf8, 0x03, // mov dx, 0x3f8: the serial port
        0xb0, b'!', // mov al, '!'
        0xee, // out dx, al
    ]);
    let shed = shed_with(&sector);
    let (console, runtime) = (shed.path("console"), shed.path("runtime"));
    fs::create_dir(&runtime).unwrap();
    let serial = format!("file:{}", console.display());
    let arguments = ["run", "web", "--accel", "tcg", "--serial", &serial, "--memory", "64M", "--grace", "0"];
    let mut command = shed.command(&arguments);
    command.env("XDG_RUNTIME_DIR", &runtime).stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    until("the guest's word", || fs::read(&console).is_ok_and(|said| said.contains(&b'!')));
    // A BIOS knows no flush, so QEMU makes one after each write: the tables that it commits say where sector 8 is.
    let map = must("qemu-img", &["map", "-U", "--output=json", shed.delta("web").to_str().unwrap()]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let own = map.as_array().unwrap().iter().find(|run| run["depth"] == 0).expect("a place of its own");
    assert_eq!((own["start"].as_u64(), own["data"].as_bool()), (Some(4096), Some(true)), "{map}");
    let counts = completions(child.id());
    assert!(counts.len() >= 2 && counts.iter().sum::<u64>() >= 5, "{counts:?}");
    must("kill", &["-TERM", &child.id().to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0, "a mount is left");
    assert_eq!(sector_8(&shed), sector);
    qemu_check(&shed.delta("web"));
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn a_run_refuses_to_go_on_without_the_rings_that_were_asked_for() {
    let shed = shed();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", "--memlock=0:0"]);
    command.arg(env!("CARGO_BIN_EXE_cowshed")).arg("--store").arg(shed.root());
    command.args(["run", "web", "--accel", "tcg"]).env("COWSHED_TRANSPORT", "uring");
    let said = one_line(&command.output().unwrap(), 1, &["run"]);
    assert!(said.contains("cannot be served over io_uring") && said.contains("ulimit -l"), "{said}");
}

#[test]
fn a_clone_that_waits_is_put_on_its_new_version_before_it_boots() {
    let shed = shed();
    let image = shed.path("boot.raw");
    File::options().write(true).open(&image).unwrap().write_all_at(b"second", 1 << 20).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--update", "deb", "--format", "raw"]);
    let second = |shed: &Shed| {
        let out = shed.path("out.raw");
        shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw", "--force"]);
        let mut bytes = [0; 6];
        File::open(&out).unwrap().read_exact_at(&mut bytes, 1 << 20).unwrap();
        bytes == *b"second"
    };
    for more in [&[][..], &["--view"]] {
        shed.ok(&["rebase", "web", "--onto", "deb@2", "--strategy", "replace", "--at-next-start"]);
        assert!(!second(&shed));
        run(&shed, &["web", "--ephemeral"]);
        assert!(!second(&shed), "a throw-away run is no start");
        let view = shed.mount();
        let dir = view.dir.to_str().unwrap().to_owned();
        let dir = [dir.as_str()];
        run(&shed, &[&["web"][..], more, if more.is_empty() { &[] } else { &dir }].concat());
        view.unmount();
        assert!(second(&shed), "{more:?}");
        assert_eq!(sector_8(&shed), boot_sector(), "{more:?}: the guest ran on the new version");
        shed.ok(&["undo", "web"]);
        assert_eq!(sector_8(&shed), [0; 512]);
    }
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

/// A QEMU that does what a few lines of bash say. `$disk` is its disk, `greet` speaks QMP up to the point where
/// commands are taken.
struct Fake {
    shed: Shed,
    program: PathBuf,
    runtime: PathBuf,
}

const FAKE: &str = r#"#!/bin/bash
for word; do
    case $word in
    *id=qmp,fd=*) fd=${word##*fd=} ;;
    *'"filename":"'*) disk=${word#*'"filename":"'}; disk=${disk%%'"'*} ;;
    esac
done
greet() {
    echo '{"QMP": {}}' >&$fd
    read -r request <&$fd
    echo '{"return": {}, "id": 1}' >&$fd
}
"#;

impl Fake {
    fn new(script: &str) -> Self {
        let shed = shed();
        let (program, runtime) = (shed.path("qemu"), shed.path("runtime"));
        fs::write(&program, format!("{FAKE}{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&runtime).unwrap();
        Self { shed, program, runtime }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_of("web", arguments)
    }

    fn command_of(&self, disk: &str, arguments: &[&str]) -> Command {
        let program = self.program.to_str().unwrap();
        let all = [&["run", disk, "--accel", "tcg", "--qemu", program], arguments].concat();
        let mut command = self.shed.command(&all);
        command.env("XDG_RUNTIME_DIR", &self.runtime).env("OUT", self.shed.path("out")).stdin(Stdio::null());
        command
    }

    fn run(&self) -> Output {
        self.command(&["--serial", "none"]).output().unwrap()
    }

    fn run_as(&self, disk: &str, arguments: &[&str]) -> Output {
        self.command_of(disk, arguments).output().unwrap()
    }

    /// What the script left in `$OUT`.
    fn out(&self) -> String {
        fs::read_to_string(self.shed.path("out")).unwrap()
    }

    /// Asserts the exit code, and that nothing of the run is left.
    fn ended(&self, code: i32, output: &Output) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{}: {said}", output.status);
        assert_eq!(fs::read_dir(&self.runtime).unwrap().count(), 0, "a mount is left: {said}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.runtime.to_str().unwrap()), "{mounts}");
    }
}

/// What the first bytes of sector 8 of a base's versions are.
fn sectors_8(shed: &Shed) -> Vec<String> {
    let tree = shed.json(&["list"]);
    let versions = tree["bases"].as_array().unwrap().iter().map(|base| base["version"].as_u64().unwrap());
    let read = |version| {
        let out = shed.path("version.raw");
        shed.ok(&["export", &format!("deb@{version}"), out.to_str().unwrap(), "--format", "raw", "--force"]);
        let mut bytes = [0; 4];
        File::open(&out).unwrap().read_exact_at(&mut bytes, 8 * 512).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    versions.map(read).collect()
}

const NONE: &str = "\0\0\0\0";
const WRITE: &str = "printf 'kept' | dd of=\"$disk\" bs=512 seek=8 conv=notrunc 2>/dev/null";

#[test]
fn an_edit_that_ends_well_is_the_next_version_and_the_base_stays_what_it_was() {
    let fake = Fake::new(&format!("greet\n{WRITE}\nexit 0"));
    let base = file_digest(&fake.shed.base_disk());
    let output = fake.run_as("deb", &["--edit", "--serial", "none"]);
    fake.ended(0, &output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("deb@2"), "{output:?}");
    assert_eq!(sectors_8(&fake.shed), [NONE, "kept"]);
    assert_eq!(file_digest(&fake.shed.base_disk()), base);
    assert!(fake.shed.ok(&["verify", "deb"]).contains("deb@2: intact"));
    assert_eq!(fs::read_dir(fake.shed.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn an_edit_that_fails_or_is_asked_to_end_leaves_nothing() {
    let ends = [
        ("exit 3", 3, "code 3"),
        ("kill -INT $PPID\nread -r press <&$fd\nexit 0", 130, "asked to end"),
        ("kill -TERM $PPID\nread -r press <&$fd\nexit 4", 4, "asked to end"),
    ];
    for (end, code, why) in ends {
        let fake = Fake::new(&format!("greet\n{WRITE}\n{end}"));
        let output = fake.run_as("deb", &["--edit", "--serial", "none"]);
        fake.ended(code, &output);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("the edit of deb@1 is not kept") && said.contains(why), "{end}: {said}");
        assert_eq!(sectors_8(&fake.shed), [NONE]);
        assert_eq!(fs::read_dir(fake.shed.root().join("tmp")).unwrap().count(), 0);
    }
}

#[test]
fn only_the_newest_version_of_a_base_is_edited_and_beside_nothing_else() {
    let shed = shed();
    let said = shed.fails(1, &["run", "web", "--edit"]);
    assert!(said.contains("web is a clone"), "{said}");
    shed.ok(&["promote", "web", "--update", "deb"]);
    let said = shed.fails(1, &["run", "deb@1", "--edit"]);
    assert!(said.contains("deb@2"), "{said}");
    for other in ["--ephemeral", "--snapshot"] {
        shed.fails(2, &["run", "deb", "--edit", other]);
    }
    let said = shed.fails(1, &["run", "deb", "--edit", "--qemu", "/nonexistent/qemu", "--accel", "tcg"]);
    assert!(said.contains("/nonexistent/qemu") && said.contains("not kept"), "{said}");
}

#[test]
fn a_version_that_comes_during_an_edit_is_told_of_and_stays() {
    let fake = Fake::new(&format!(
        "greet\n{WRITE}\n\"$COWSHED\" --store \"$STORE\" promote web --update deb >$OUT\nexit 0"
    ));
    let mut command = fake.command_of("deb", &["--edit", "--serial", "none"]);
    command.env("COWSHED", env!("CARGO_BIN_EXE_cowshed")).env("STORE", fake.shed.root());
    let output = command.output().unwrap();
    fake.ended(0, &output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("deb@2 came while this ran"), "{said}");
    assert_eq!(sectors_8(&fake.shed), [NONE, NONE, "kept"]);
}

#[test]
fn a_signal_before_qemu_answers_ends_the_run() {
    let fake = Fake::new("kill -TERM $PPID\nexec sleep 50");
    fake.ended(143, &fake.run());
    let fake = Fake::new("kill -HUP $PPID\neval \"exec $fd>&-\"\nexec sleep 50");
    fake.ended(129, &fake.run());
}

#[test]
fn a_power_button_that_is_answered_late_is_not_a_request_to_end() {
    let fake = Fake::new(
        "greet\nkill -INT $PPID\nread -r first <&$fd\nif read -t 2 -r second <&$fd; then first+=$second; fi\n\
         echo \"$first\" >$OUT\nexit 0",
    );
    fake.ended(0, &fake.run());
    let said = fake.out();
    assert!(said.contains("system_powerdown") && !said.contains("quit"), "{said}");
}

#[test]
fn a_second_signal_ends_a_machine_that_answers_nothing() {
    let fake = Fake::new("greet\n(sleep 0.2; kill -INT $PPID; sleep 1; kill -INT $PPID) &\nexec sleep 50");
    fake.ended(130, &fake.run());
}

#[test]
fn somebody_in_the_private_mount_and_a_signal_leave_no_mount() {
    let fake = Fake::new(
        "greet\nprintf 'kept' | dd of=\"$disk\" bs=512 seek=8 conv=notrunc 2>/dev/null\n\
         (cd \"${disk%/*}\"; echo $BASHPID >$OUT; sleep 0.3; kill -TERM $1; exec sleep 50) \
         >/dev/null 2>&1 <&- &\nexit 0"
            .replace("kill -TERM $1", "kill -TERM $PPID")
            .as_str(),
    );
    let output = fake.run();
    let holder = fake.out();
    let _ = Command::new("kill").arg(holder.trim()).status();
    fake.ended(0, &output);
    assert_eq!(&sector_8(&fake.shed)[..4], b"kept");
}

#[test]
fn a_run_whose_output_nobody_reads_can_be_ended() {
    let fake = Fake::new(
        "greet\n(sleep 0.5; kill -INT $PPID; sleep 1; kill -INT $PPID) >/dev/null &\n\
         exec head -c 1000000 /dev/zero",
    );
    let mut child = fake.command(&[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut status = None;
    until("the end of the run", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(130));
}

#[test]
fn what_cannot_work_is_said_in_one_line() {
    let shed = shed();
    let said = shed.fails(2, &["run", "web", "--grace", "18446744073709551615"]);
    assert!(said.contains("31536000"), "{said}");
    let said = shed.fails(1, &["run", "web", "--kernel", "/nonexistent/kernel"]);
    assert!(said.contains("/nonexistent/kernel"), "{said}");
    let said = shed.fails(1, &["run", "web", "--qemu", "nonexistent-qemu"]);
    assert!(said.contains("nonexistent-qemu"), "{said}");

    let view = shed.mount();
    let dir = view.dir.to_str().unwrap();
    let writer = File::options().write(true).open(view.clone_file("web")).unwrap();
    for arguments in [&["run", "web"][..], &["run", "web", "--view", dir]] {
        let said = shed.fails(1, arguments);
        assert!(said.contains("in use") || said.contains("open"), "{said}");
    }
    drop(writer);
    view.unmount();
}
