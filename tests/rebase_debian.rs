//! A real system moves to the updated version of its base: Debian packages, accounts, settings and files of every
//! kind, merged and then judged file by file by the kernel's own eyes, and booted.
//!
//! The disks are built by `tests/tools/merge-case.sh`; `COWSHED_MERGE_CASE` names their folder if it is not in the
//! default cache. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::Shed;
use common::store::{file_digest, must, name, qemu_check};
use cowshed::store::{Access, Store};
use cowshed::units::GuestOffset;
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{Whence, lseek};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where partition 1 begins, and how long it is, in MiB: as in `merge-case.sh`.
const ROOT_MIB: [u64; 2] = [17, 2047 - 17];
/// Disks are compared in pieces of this many bytes.
const PIECE: usize = 1 << 20;
/// The rule that the case needs beside the preset: both sides wrote into a file of nobody's.
const RULES: &str = "clone /data/**\n";

/// Where the three disks are.
fn folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
    let folder = std::env::var_os("COWSHED_MERGE_CASE")
        .map_or_else(|| cache.join("cowshed/merge-case"), PathBuf::from);
    let missing = format!("there are no disks in {}: run tests/tools/merge-case.sh", folder.display());
    assert!(folder.join("clone.raw").exists(), "{missing}");
    folder
}

fn disk(folder: &Path, name: &str) -> String {
    folder.join(name).with_extension("raw").to_str().unwrap().to_owned()
}

struct Case {
    shed: Shed,
    folder: PathBuf,
}

impl Case {
    /// Both versions of the base, and the clone `web` of the first with the changes of a guest.
    fn new() -> Self {
        let case = Self { shed: Shed::new(), folder: folder() };
        case.shed.ok(&["import", &case.disk("old"), "--name", "deb", "--format", "raw"]);
        case.shed.ok(&["import", &case.disk("new"), "--format", "raw", "--update", "deb"]);
        case.shed.ok(&["clone", "deb@1", "web"]);
        case.write_clone();
        fs::write(case.shed.path("rules"), RULES).unwrap();
        case
    }

    fn disk(&self, name: &str) -> String {
        disk(&self.folder, name)
    }

    /// Writes into the clone what differs, block by block, as its guest did.
    fn write_clone(&self) {
        let store = Store::open_or_create(&self.shed.root()).unwrap();
        let open = store.open_clone(&name("web"), Access::Write).unwrap();
        let (old, new) = (File::open(self.disk("old")).unwrap(), File::open(self.disk("clone")).unwrap());
        let (mut before, mut after) = (vec![0; PIECE], vec![0; PIECE]);
        let size = new.metadata().unwrap().len();
        for at in (0..size).step_by(before.len()) {
            if !has_data(&old, at) && !has_data(&new, at) {
                continue;
            }
            old.read_exact_at(&mut before, at).unwrap();
            new.read_exact_at(&mut after, at).unwrap();
            if before == after {
                continue;
            }
            for (at, (old, new)) in (at..).step_by(4096).zip(before.chunks(4096).zip(after.chunks(4096))) {
                if old != new {
                    open.disk.write(new, GuestOffset(at)).unwrap();
                }
            }
        }
        open.close().unwrap();
    }

    /// Runs a rebase with a report; its exit code, the report, and the seconds of wall and CPU time that it took.
    fn rebase(&self, more: &[&str]) -> (i32, Value, [Duration; 2]) {
        let report = self.shed.path("report.json");
        let head =
            ["rebase", "web", "--onto", "deb@2", "--strategy", "merge", "--report", report.to_str().unwrap()];
        let (started, used) = (Instant::now(), cpu_of_children());
        let output = self.shed.output(&[&head[..], more].concat());
        let took = [started.elapsed(), cpu_of_children() - used];
        let code = output.status.code().unwrap();
        assert!(code < 2, "{output:?}");
        let report = fs::read(&report).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(code == 0, report[0]["state"] == "done", "{output:?}");
        println!("{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
        (code, report[0]["rebase"]["merge"].clone(), took)
    }

    /// The merge, with the rules that it needs.
    fn merge(&self) -> (Value, [Duration; 2]) {
        let rules = self.shed.path("rules");
        let (code, merge, took) = self.rebase(&["--rules", rules.to_str().unwrap()]);
        assert_eq!(code, 0, "{merge:#}");
        (merge, took)
    }

    fn export(&self, name: &str) -> PathBuf {
        let out = self.shed.path(name);
        self.shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw"]);
        out
    }

    fn bases_are_whole(&self) {
        self.shed.ok(&["verify", "deb@1"]);
        self.shed.ok(&["verify", "deb@2"]);
    }

    /// What the oracle says of the merged disk.
    fn judge(&self, result: &Path) -> Value {
        judge(
            ["old", "new", "clone"].map(|name| self.disk(name)),
            result,
            &tools().join("merge-case/expected"),
        )
    }
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools")
}

/// What the oracle says of `result`; its mounts are gone with it.
fn judge(disks: [String; 3], result: &Path, expected: &Path) -> Value {
    let scratch = tempfile::tempdir().unwrap();
    let mut oracle = Command::new("unshare");
    oracle.args(["--mount", "--propagation", "private", "python3"]).arg(tools().join("merge-oracle.py"));
    let output = oracle.args(disks).arg(result).arg(expected).arg(scratch.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the oracle found wrong.
fn problems(verdict: &Value) -> Vec<&str> {
    verdict["problems"].as_array().unwrap().iter().map(|problem| problem.as_str().unwrap()).collect()
}

/// Whether a file has no hole in the piece at `at`.
fn has_data(file: &File, at: u64) -> bool {
    let at = i64::try_from(at).unwrap();
    lseek(file, at, Whence::SeekData).is_ok_and(|data| data < at + i64::try_from(PIECE).unwrap())
}

/// The root filesystem of a disk must be clean.
fn assert_clean(disk: &Path) {
    let root = format!("{}?offset={}", disk.display(), ROOT_MIB[0] << 20);
    let said = must("e2fsck", &["-fn", &root]);
    assert!(!said.contains("journal"), "{said}");
}

fn cpu_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let micros =
        |time: nix::sys::time::TimeVal| u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap();
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Clash and path of each conflict, those of logs among them.
fn conflicts(merge: &Value) -> BTreeSet<[String; 2]> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let [all, volatile] = ["conflicts", "volatile"].map(|list| merge[list].as_array().unwrap());
    all.iter().chain(volatile).map(|conflict| [text(&conflict["clash"]), text(&conflict["path"])]).collect()
}

fn open(merge: &Value) -> Vec<&str> {
    let conflicts = merge["conflicts"].as_array().unwrap().iter();
    conflicts.filter(|conflict| conflict["taken"].is_null()).map(|it| it["path"].as_str().unwrap()).collect()
}

#[test]
fn a_conflict_that_no_rule_decides_changes_nothing() {
    let case = Case::new();
    let before = file_digest(&case.shed.delta("web"));
    let (code, plan, _) = case.rebase(&["--plan"]);
    assert_eq!((code, open(&plan)), (1, vec!["/data/notes"]));
    let (code, merge, _) = case.rebase(&[]);
    assert_eq!((code, open(&merge)), (1, vec!["/data/notes"]));
    assert_eq!(file_digest(&case.shed.delta("web")), before);
    assert_eq!(case.shed.json(&["checkpoints", "web"])["checkpoints"].as_array().unwrap().len(), 0);
    case.bases_are_whole();
}

#[test]
fn a_debian_system_keeps_all_that_is_its_own_on_the_updated_base() {
    let case = Case::new();
    let delta = |case: &Case| fs::metadata(case.shed.delta("web")).unwrap().blocks() * 512;
    let before = delta(&case);
    let rules = case.shed.path("rules");
    let (code, plan, planning) = case.rebase(&["--plan", "--rules", rules.to_str().unwrap()]);
    assert_eq!(code, 0, "{plan:#}");
    let (merge, merging) = case.merge();
    let own = delta(&case);
    assert_eq!(conflicts(&plan), conflicts(&merge), "the plan is what is done");

    must("cmp", &[case.shed.base_disk().to_str().unwrap(), &case.disk("old")]);
    qemu_check(&case.shed.delta("web"));
    let result = case.export("result.raw");
    assert_clean(&result);
    let verdict = case.judge(&result);
    let problems = problems(&verdict);
    problems.iter().for_each(|problem| println!("problem: {problem}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let expected: BTreeSet<[String; 2]> = verdict["conflicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| [text(&pair[0]), text(&pair[1])])
        .collect();
    println!("files {}", verdict["counts"]);
    let files = verdict["own_bytes"].as_u64().unwrap();
    println!("clone's own files {files} bytes; delta before {before}, after {own} bytes");
    println!("wall and CPU time: plan {planning:.2?}, merge {merging:.2?}");
    let reported = conflicts(&merge);
    let unexpected: Vec<_> = reported.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&reported).collect();
    assert!(problems.is_empty(), "{} problems, see above", problems.len());
    assert!(
        unexpected.is_empty() && missing.is_empty(),
        "reported too much {unexpected:?}, missing {missing:?}"
    );
    assert_eq!(merge["broken"].as_array().map_or(0, Vec::len), 0, "{}", merge["broken"]);
    assert!(own * 10 <= files * 12, "the delta has {own} bytes for files of {files}");
    case.bases_are_whole();
}

/// What the merged guest shows of itself: each line must come out as it stands here.
const JOB: &str = "\
systemctl start ssh nginx cron rsyslog
echo services $(systemctl is-active ssh nginx cron rsyslog)
systemctl --failed --no-legend --plain
echo name $(cat /etc/hostname)
echo user $(id -Gn alice)
echo base $(id -Gn deploy)
echo own $(su alice -c 'tmux -V | cut -d\\  -f1')
echo port $(sshd -T 2>/dev/null | grep -i -e '^port ' -e '^permitrootlogin ' | tr '\\n' ' ')
echo web $(nginx -t 2>&1 | grep -c successful)
echo audit $(dpkg --audit | wc -l)
echo libraries $(test -s /etc/ld.so.cache && echo there)
echo unit $(ls /etc/systemd/system | grep -c cowshed-rebuild)
";
const SHOWN: [&str; 10] = [
    "services active active active active",
    "name web",
    "user alice adm ops",
    "base deploy adm",
    "own tmux",
    "port port 2222 permitrootlogin no",
    "web 1",
    "audit 0",
    "libraries there",
    "unit 0",
];

#[test]
fn the_merged_system_boots_with_no_failed_unit_and_makes_its_caches_again() {
    let case = Case::new();
    case.merge();
    let job = case.shed.path("job");
    fs::write(&job, JOB).unwrap();
    let job = must("base64", &["-w0", job.to_str().unwrap()]);
    let cmdline = fs::read_to_string(case.folder.join("cmdline")).unwrap();
    let append = format!("{} cowshed.run={job}", cmdline.trim());
    let [kernel, initrd] = ["vmlinux", "initrd.img"].map(|name| case.folder.join(name));
    let mut guest = case.shed.command(&["run", "web", "--memory", "512", "--append", &append]);
    guest.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    let output = guest.stdin(Stdio::null()).output().unwrap();
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(output.status.success(), "{console}\n{}", String::from_utf8_lossy(&output.stderr));
    let shown: Vec<&str> = console
        .lines()
        .skip_while(|line| !line.contains("cowshed-job: begin"))
        .skip(1)
        .take_while(|line| !line.contains("cowshed-job: exit"))
        .map(str::trim_end)
        .collect();
    assert_eq!(shown, SHOWN, "{console}");
    assert_clean(&case.export("result.raw"));
    case.bases_are_whole();
}

/// What may go wrong in a merge, done to a right result, and what the oracle must say about it.
const DAMAGE: [(&str, &str); 18] = [
    (
        "printf x | dd of=srv/www/video.bin bs=1 seek=9000000 conv=notrunc",
        "/srv/www/video.bin: has another content",
    ),
    ("chmod 600 home/alice/documents/file-0001", "/home/alice/documents/file-0001: mode is"),
    ("chown 0 home/alice/documents/file-0003", "/home/alice/documents/file-0003: uid is"),
    ("chgrp 0 home/alice/mail", "/home/alice/mail: gid is"),
    ("rm home/alice/documents/file-0005", "/home/alice/documents/file-0005: is missing"),
    ("touch home/alice/documents/more", "/home/alice/documents/more: is there and should not be"),
    ("touch -d 2001-01-01 home/alice/documents/file-0007", "/home/alice/documents/file-0007: its time is"),
    ("drop_xattr srv/special/xattr user.long", "/srv/special/xattr: xattr user.long is None"),
    (
        "drop_xattr srv/special/acl system.posix_acl_default",
        "/srv/special/acl: xattr system.posix_acl_default is None",
    ),
    (
        "drop_xattr usr/local/bin/capable security.capability",
        "/usr/local/bin/capable: xattr security.capability is None",
    ),
    ("chattr -i srv/special/locked", "/srv/special/locked: flags is 0 instead of 16"),
    (
        "cp --sparse=never srv/special/sparse full; cat full >srv/special/sparse; rm full",
        "/srv/special/sparse: takes",
    ),
    (
        "rm srv/special/link-2; cp -p srv/special/link-1 srv/special/link-2",
        "/srv/special/link-1, /srv/special/link-2, /srv/www/link-3: should be names",
    ),
    ("rm srv/special/fifo; touch srv/special/fifo", "/srv/special/fifo: is of another kind"),
    ("rm srv/special/null; mknod srv/special/null c 1 5", "/srv/special/null: device is"),
    ("ln -sfn /elsewhere srv/special/symlink", "/srv/special/symlink: has another content"),
    ("sed -i /^alice/d etc/passwd", "/etc/passwd: alice is None"),
    (
        "sed -i '/^Package: tmux$/,/^$/s/^Version: .*/Version: 0/' var/lib/dpkg/status",
        "/var/lib/dpkg/status: tmux amd64 is",
    ),
];
/// Runs the commands of the damage in the root filesystem of a disk.
const DO_DAMAGE: &str = "\
set -e
drop_xattr() { python3 -c 'import os, sys; os.removexattr(sys.argv[1], sys.argv[2])' \"$1\" \"$2\"; }
mount -o loop,offset=$2,sizelimit=$3 \"$1\" \"$4\"
cd \"$4\"
eval \"$5\"
cd /
umount \"$4\"
";

#[test]
fn the_oracle_sees_each_kind_of_damage() {
    let work = tempfile::tempdir().unwrap();
    let (result, nothing) = (work.path().join("result.raw"), work.path().join("expected"));
    fs::write(&nothing, "").unwrap();
    // A base that did not change: the merge is the clone itself.
    let [old, clone] = ["old", "clone"].map(|name| disk(&folder(), name));
    must("cp", &["--sparse=always", &clone, result.to_str().unwrap()]);
    let [offset, size] = ROOT_MIB.map(|mib| (mib << 20).to_string());
    let root = work.path().join("root");
    fs::create_dir(&root).unwrap();
    let commands = DAMAGE.map(|(command, _)| command).join("\n");
    let arguments = [result.to_str().unwrap(), &offset, &size, root.to_str().unwrap(), &commands];
    must(
        "unshare",
        &[&["--mount", "--propagation", "private", "bash", "-c", DO_DAMAGE, "damage"], &arguments[..]]
            .concat(),
    );
    let verdict = judge([old.clone(), old, clone], &result, &nothing);
    let problems = problems(&verdict);
    for (command, words) in DAMAGE {
        assert!(problems.iter().any(|problem| problem.starts_with(words)), "{command}: {problems:#?}");
    }
}
