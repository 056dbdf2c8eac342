//! Every command of ours beside every kind of user of a clone, and QEMU's programs beside ours: refused in one sentence, or
//! safe. A command that is not in the table fails the test.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/served.rs"]
mod served;

use common::store::{file_digest, must, qemu_check};
use common::{Shed, one_line, program, until};
use served::Server;
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};

/// What a command may do beside a user of the clone `web`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It works, and harms nobody.
    Safe,
    /// It is refused, and changes nothing.
    Refused,
}
use Verdict::{Refused, Safe};

/// A command line with what it may do beside a writer, and beside a reader.
struct Case {
    arguments: &'static [&'static str],
    writer: Verdict,
    reader: Verdict,
}

const fn case(arguments: &'static [&'static str], writer: Verdict, reader: Verdict) -> Case {
    Case { arguments, writer, reader }
}

/// Words in capitals are replaced: an image, an output, a folder, a view, a program that plays QEMU.
const CASES: &[Case] = &[
    case(&["import", "IMAGE", "--name", "new"], Safe, Safe),
    case(&["export", "web", "OUT", "--format", "raw"], Refused, Safe),
    case(&["export", "deb", "OUT", "--force"], Safe, Safe),
    case(&["clone", "deb", "fresh"], Safe, Safe),
    case(&["rename", "web", "db"], Refused, Refused),
    case(&["rename", "deb", "db"], Refused, Refused),
    case(&["rename", "fresh", "idle"], Safe, Safe),
    case(&["rm", "web"], Refused, Refused),
    case(&["rm", "deb"], Refused, Refused),
    case(&["rm", "web", "--checkpoint", "1"], Refused, Refused),
    case(&["rm", "web", "--checkpoint", "1", "--plan"], Safe, Safe),
    case(&["rm", "web", "--plan"], Safe, Safe),
    case(&["rm", "idle"], Safe, Safe),
    case(&["list"], Safe, Safe),
    case(&["tree"], Safe, Safe),
    case(&["info", "web"], Safe, Safe),
    case(&["map", "web"], Safe, Safe),
    case(&["diff", "web"], Refused, Safe),
    case(&["path", "web"], Safe, Safe),
    case(&["checkpoint", "web"], Refused, Refused),
    case(&["checkpoints", "web"], Safe, Safe),
    case(&["restore", "web", "1"], Refused, Refused),
    case(&["restore", "web", "1", "--discard"], Refused, Refused),
    case(&["restore", "web", "1", "--plan"], Safe, Safe),
    case(&["import", "IMAGE", "--update", "deb"], Safe, Safe),
    case(&["promote", "web", "--update", "deb"], Refused, Safe),
    case(&["rebase", "web", "--onto", "deb@2", "--strategy", "keep"], Refused, Refused),
    case(&["rebase", "web", "--onto", "deb@2", "--strategy", "replace"], Refused, Refused),
    case(&["rebase", "web", "--onto", "deb@2", "--strategy", "keep", "--plan"], Refused, Safe),
    case(&["undo", "web"], Refused, Refused),
    case(&["gc", "--plan"], Safe, Safe),
    case(&["gc"], Safe, Safe),
    case(&["du"], Safe, Safe),
    case(&["shrink", "web", "--plan"], Refused, Safe),
    case(&["shrink", "web"], Refused, Refused),
    case(&["shrink", "web", "--recompress", "--plan"], Refused, Safe),
    case(&["shrink", "web", "--recompress"], Refused, Refused),
    case(&["shrink", "deb", "--plan"], Safe, Safe),
    case(&["shrink", "deb"], Safe, Safe),
    case(&["resize", "web", "+1M", "--image-only", "--plan"], Refused, Safe),
    case(&["resize", "web", "+1M", "--image-only"], Refused, Refused),
    case(&["resize", "web", "+1M", "--image-only", "--no-undo"], Refused, Refused),
    case(&["check", "web"], Refused, Safe),
    case(&["check", "web", "--repair"], Refused, Refused),
    case(&["check", "web", "--reseal"], Refused, Refused),
    case(&["check", "--all"], Safe, Safe),
    case(&["verify", "deb"], Safe, Safe),
    case(&["verify", "deb", "--reseal"], Safe, Safe),
    case(&["mount", "VIEW"], Safe, Safe),
    case(&["umount", "VIEW"], Safe, Safe),
    case(&["run", "web", "--accel", "tcg", "--qemu", "PLAYER", "--serial", "none"], Refused, Refused),
    case(
        &["run", "web", "--ephemeral", "--accel", "tcg", "--qemu", "PLAYER", "--serial", "none"],
        Refused,
        Safe,
    ),
    case(&["run", "web", "--disk", "vhost-user", "--accel", "tcg", "--qemu", "PLAYER"], Refused, Refused),
    case(&["serve", "web", "--vhost-user", "SOCKET"], Refused, Refused),
    case(&["completions", "bash"], Safe, Safe),
    case(&["man", "FOLDER"], Safe, Safe),
];

/// A QEMU that is well at once.
const PLAYER: &str = r#"#!/bin/bash
for word; do case $word in *id=qmp,fd=*) fd=${word##*fd=} ;; esac; done
echo '{"QMP": {}}' >&$fd
read -r request <&$fd
echo '{"return": {}, "id": 1}' >&$fd
exit 0
"#;

/// A store with a clone `web` over a checkpoint, and what the commands need.
fn shed() -> Shed {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let delta = shed.delta("web");
    must("qemu-io", &["-f", "qcow2", "-c", "write -P 5 1M 300k", delta.to_str().unwrap()]);
    shed.ok(&["checkpoint", "web"]);
    must("qemu-io", &["-f", "qcow2", "-c", "write -P 6 3M 300k", delta.to_str().unwrap()]);
    let player = shed.path("player");
    fs::write(&player, PLAYER).unwrap();
    fs::set_permissions(&player, Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(shed.path("view")).unwrap();
    shed
}

fn arguments(shed: &Shed, case: &Case) -> Vec<String> {
    let place = |name: &str| shed.path(name).into_os_string().into_string().unwrap();
    let word = |word: &&str| match *word {
        "IMAGE" => place("deb.raw"),
        "OUT" => place("out"),
        "FOLDER" => place("man"),
        "VIEW" => place("view"),
        "PLAYER" => place("player"),
        "SOCKET" => place("serve"),
        other => other.to_owned(),
    };
    case.arguments.iter().map(word).collect()
}

/// Somebody who has the clone open.
enum User {
    /// A machine of QEMU's that does not run yet, and its monitor.
    Machine(Child, ChildStdin),
    /// `qemu-io`, with its input.
    Tool(Child, ChildStdin),
    /// A view, with the file that is open.
    View { _file: File, _server: Server },
    /// `cowshed serve`, and the socket where it is ready.
    Serve(Child),
    /// `cowshed run` with a machine that does not run yet.
    Run(Child),
}

impl User {
    fn machine(delta: &Path) -> Self {
        let drive = format!("if=virtio,format=qcow2,file={}", delta.display());
        let mut child = Command::new("qemu-system-x86_64")
            .args([
                "-accel", "tcg", "-m", "64", "-S", "-display", "none", "-monitor", "stdio", "-drive", &drive,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("monitor"), "{line}");
        Self::Machine(child, stdin)
    }

    fn tool(delta: &Path, options: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(options)
            .args(["-f", "qcow2"])
            .arg(delta)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "read 0 512").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("read 512/512"), "{line}");
        Self::Tool(child, stdin)
    }

    fn view(shed: &Shed, write: bool) -> Self {
        let server = Server::start(shed);
        let file = File::options().read(true).write(write).open(server.clone_file("web")).unwrap();
        Self::View { _file: file, _server: server }
    }

    fn run(shed: &Shed) -> Self {
        let runtime = shed.path("runtime");
        fs::create_dir(&runtime).unwrap();
        let serial = shed.path("serial");
        let arguments = [
            "run",
            "web",
            "--accel",
            "tcg",
            "--memory",
            "64M",
            "--serial",
            &format!("file:{}", serial.display()),
        ];
        let child = shed
            .command(&arguments)
            .args(["--", "-S"])
            .env("XDG_RUNTIME_DIR", &runtime)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        until("the machine is there", || serial.exists());
        Self::Run(child)
    }

    fn serve(shed: &Shed, options: &[&str]) -> Self {
        let socket = shed.path("served");
        let arguments = [&["serve", "web", "--vhost-user", socket.to_str().unwrap()], options].concat();
        let child = shed.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
        until("the clone is served", || socket.exists());
        Self::Serve(child)
    }

    fn end(self) {
        drop(self);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        match self {
            Self::Machine(child, stdin) => {
                let _ = writeln!(stdin, "quit");
                let _ = child.wait();
            }
            Self::Tool(child, stdin) => {
                let _ = writeln!(stdin, "quit");
                let _ = child.wait();
            }
            Self::View { .. } => {}
            Self::Serve(child) => {
                let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
                let _ = child.wait();
            }
            Self::Run(child) => {
                // Twice: the first one only presses the power button of a machine that does not run.
                for _ in 0..2 {
                    let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
                let _ = child.wait();
            }
        }
    }
}

/// The clone's files: name, inode, and content.
fn files(shed: &Shed) -> Vec<(String, u64, blake3::Hash)> {
    let entries = fs::read_dir(shed.root().join("clones/web")).unwrap().map(Result::unwrap);
    let entries =
        entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "qcow2" || end == "json"));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().ino(), file_digest(&entry.path()))
        })
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

/// Runs all commands beside `user`; afterwards the clone is what it was.
fn all_beside(who: &str, shed: &Shed, user: User, writes: bool) {
    let before = files(shed);
    let base = file_digest(&shed.base_disk());
    for case in CASES {
        let arguments = arguments(shed, case);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = shed.output(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match if writes { case.writer } else { case.reader } {
            Safe => assert!(output.status.success(), "{who}: {words:?}: {}: {said}", output.status),
            Refused => {
                let said = one_line(&output, 1, &words);
                let why = ["in use", "being written", "is needed by", "stands on it", "stand on"];
                assert!(why.iter().any(|why| said.contains(why)), "{who}: {words:?}: {said}");
            }
        }
        // The base's manifest may be sealed anew; the clone is somebody else's now.
        assert_eq!(files(shed), before, "{who}: {words:?} changed the clone");
    }
    user.end();
    assert_eq!(file_digest(&shed.base_disk()), base, "{who}");
    // Nobody is kept out for good.
    until("the clone is free", || shed.output(&["check", "web", "--repair"]).status.success());
    shed.ok(&["checkpoint", "web"]);
    qemu_check(&shed.delta("web"));
}

#[test]
fn every_command_is_in_the_table() {
    let shed = Shed::new();
    let pages = shed.path("man");
    assert!(program().arg("man").arg(&pages).status().unwrap().success());
    let pages = fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let known: BTreeSet<String> = pages
        .filter_map(|page| Some(page.strip_prefix("cowshed-")?.strip_suffix(".1")?.to_owned()))
        .collect();
    let classified: BTreeSet<String> = CASES.iter().map(|case| case.arguments[0].to_owned()).collect();
    assert!(known.len() >= 20, "{known:?}");
    assert_eq!(classified, known, "say in CASES what a new command may do beside a user of a clone");
}

#[test]
fn beside_a_machine_of_qemus_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::machine(&shed.delta("web"));
    all_beside("a machine", &shed, user, true);
}

#[test]
fn beside_a_tool_of_qemus_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::tool(&shed.delta("web"), &[]);
    all_beside("a writing tool", &shed, user, true);
}

#[test]
fn beside_a_reader_of_qemus_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::tool(&shed.delta("web"), &["-r"]);
    all_beside("a reading tool", &shed, user, false);
}

#[test]
fn beside_a_writer_on_a_view_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::view(&shed, true);
    all_beside("a writer on a view", &shed, user, true);
}

#[test]
fn beside_a_reader_on_a_view_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::view(&shed, false);
    all_beside("a reader on a view", &shed, user, false);
}

#[test]
fn beside_a_run_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::run(&shed);
    all_beside("a run", &shed, user, true);
}

#[test]
fn beside_a_server_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::serve(&shed, &[]);
    all_beside("a server", &shed, user, true);
}

#[test]
fn beside_a_server_that_only_reads_each_command_is_refused_or_safe() {
    let shed = shed();
    let user = User::serve(&shed, &["--read-only"]);
    all_beside("a reading server", &shed, user, false);
}

/// QEMU's programs on the clone's file; whether each one would change it.
fn programs<'a>(delta: &'a str, out: &'a str) -> Vec<(&'static str, Vec<&'a str>, bool)> {
    vec![
        ("qemu-img", vec!["info", delta], false),
        ("qemu-img", vec!["check", "-f", "qcow2", delta], false),
        ("qemu-img", vec!["check", "-f", "qcow2", "-r", "all", delta], true),
        ("qemu-img", vec!["convert", "-f", "qcow2", "-O", "raw", delta, out], false),
        ("qemu-img", vec!["map", "-f", "qcow2", delta], false),
        ("qemu-img", vec!["compare", "-f", "qcow2", "-F", "qcow2", delta, delta], false),
        ("qemu-img", vec!["resize", "-f", "qcow2", delta, "+1M"], true),
        ("qemu-img", vec!["snapshot", "-c", "one", delta], true),
        ("qemu-img", vec!["amend", "-f", "qcow2", "-o", "lazy_refcounts=on", delta], true),
        ("qemu-img", vec!["rebase", "-f", "qcow2", "-u", "-b", "", delta], true),
        ("qemu-img", vec!["commit", "-f", "qcow2", delta], true),
        ("qemu-img", vec!["bitmap", "-f", "qcow2", "--add", delta, "bits"], true),
        ("qemu-io", vec!["-f", "qcow2", "-c", "write 0 512", delta], true),
        ("qemu-io", vec!["-r", "-f", "qcow2", "-c", "read 0 512", delta], false),
        ("timeout", vec!["20", "qemu-nbd", "-f", "qcow2", "-k", out, delta], true),
        ("timeout", vec!["20", "qemu-nbd", "-r", "-f", "qcow2", "-k", out, delta], false),
    ]
}

fn is_kept_out(output: &Output) -> bool {
    let said = [&output.stdout[..], &output.stderr].concat();
    !output.status.success() && String::from_utf8_lossy(&said).contains("lock")
}

/// QEMU's programs beside a user of ours: those that write are kept out, and by a writer all of them.
fn all_of_qemus_beside(who: &str, shed: &Shed, user: User, writes: bool) {
    let before = files(shed);
    let (delta, out) = (shed.delta("web"), shed.path("socket"));
    let (path, out) = (delta.to_str().unwrap(), out.to_str().unwrap());
    for (name, arguments, changes) in programs(path, out) {
        if !writes && !changes {
            continue;
        }
        let output = Command::new(name).args(&arguments).output().unwrap();
        assert!(is_kept_out(&output), "{who}: {name} {arguments:?}: {output:?}");
        assert_eq!(files(shed), before, "{who}: {name} {arguments:?} changed the clone");
    }
    let drive = format!("if=virtio,format=qcow2,file={path}");
    let machine =
        ["-accel", "tcg", "-m", "64", "-S", "-display", "none", "-monitor", "none", "-drive", &drive];
    let output = Command::new("timeout").args(["20", "qemu-system-x86_64"]).args(machine).output().unwrap();
    assert!(is_kept_out(&output), "{who}: qemu-system-x86_64: {output:?}");
    let blockdev = format!("driver=qcow2,node-name=a,file.driver=file,file.filename={path}");
    let daemon = ["20", "qemu-storage-daemon", "--blockdev", &blockdev];
    let output = Command::new("timeout").args(daemon).output().unwrap();
    assert!(is_kept_out(&output), "{who}: qemu-storage-daemon: {output:?}");
    // Who does not insist on a lock may look.
    must("qemu-img", &["info", "-U", path]);
    user.end();
    until("the clone is free", || {
        Command::new("qemu-img").args(["check", "-r", "leaks", path]).output().unwrap().status.success()
    });
    qemu_check(&delta);
}

#[test]
fn beside_a_writer_on_a_view_qemus_programs_are_kept_out() {
    let shed = shed();
    let user = User::view(&shed, true);
    all_of_qemus_beside("a writer on a view", &shed, user, true);
}

#[test]
fn beside_a_run_qemus_programs_are_kept_out() {
    let shed = shed();
    let user = User::run(&shed);
    all_of_qemus_beside("a run", &shed, user, true);
}

#[test]
fn beside_a_server_qemus_programs_are_kept_out() {
    let shed = shed();
    let user = User::serve(&shed, &[]);
    all_of_qemus_beside("a server", &shed, user, true);
}

#[test]
fn beside_a_reader_on_a_view_qemus_writers_are_kept_out() {
    let shed = shed();
    let user = User::view(&shed, false);
    all_of_qemus_beside("a reader on a view", &shed, user, false);
}
