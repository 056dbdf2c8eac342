//! A merge on a damaged store, a full host and in a process that is killed: the clone is byte for byte what it was, the
//! store is clean, the bases are untouched, and the same rebase succeeds once the cause is gone.
//!
//! Needs root: filesystems are changed and looked at by the kernel, and a host filesystem lies in a loop device.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cli;
    pub mod ext;
    pub mod host;
    pub mod rebased;
    pub mod rng;
    pub use cli::{is_mounted, store};
}

use common::cli::store::file_digest;
use common::cli::{Shed, one_line};
use common::ext::{Image, tool};
use common::host::Host;
use common::rebased::{Case, copy};
use common::rng::Rng;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const REBASE: [&str; 4] = ["rebase", "web", "--onto", "os@2"];

/// What must not change whatever happens.
struct Before {
    content: blake3::Hash,
    bases: [blake3::Hash; 2],
    checkpoints: usize,
}

impl Before {
    fn of(case: &Case) -> Self {
        Self { content: case.digest("web"), bases: case.bases(), checkpoints: case.checkpoints("web") }
    }

    /// The clone and the store are as they were.
    fn holds(&self, case: &Case, what: &str) {
        assert_eq!(case.version("web"), 1, "{what}");
        assert_eq!(case.digest("web"), self.content, "{what}: the clone has other bytes");
        assert_eq!(case.checkpoints("web"), self.checkpoints, "{what}");
        assert!(case.tmp_is_empty(), "{what}: something is left in tmp");
        assert_eq!(case.bases(), self.bases, "{what}: a base was changed");
        case.shed.ok(&["check", "web"]);
    }

    /// The rebase succeeds now, and can be taken back byte for byte.
    fn is_overcome(&self, case: &Case) {
        case.shed.ok(&REBASE);
        assert!(case.is_merged());
        case.shed.ok(&["undo", "web"]);
        assert_eq!(case.digest("web"), self.content, "an undo brings other bytes back");
        assert_eq!((case.version("web"), case.bases()), (1, self.bases));
    }
}

/// Two versions of the base change places on the disk.
fn swap(case: &Case) {
    let versions = case.shed.root().join("bases/os");
    for (from, to) in [("1", "aside"), ("2", "1"), ("aside", "2")] {
        fs::rename(versions.join(from), versions.join(to)).unwrap();
    }
}

#[test]
fn versions_that_changed_places_are_refused_and_accepted_when_they_are_back() {
    let case = Case::new();
    let before = Before::of(&case);
    swap(&case);
    let said = case.shed.fails(1, &REBASE);
    assert!(said.contains("os@1"), "{said}");
    swap(&case);
    before.holds(&case, "swapped");
    before.is_overcome(&case);
}

#[test]
fn another_base_in_the_place_of_the_clones_own_is_refused() {
    let case = Case::new();
    let before = Before::of(&case);
    let other = Image::new(16, &["-t", "ext4", "-b", "1024"]);
    case.shed.ok(&["import", other.path().to_str().unwrap(), "--name", "other", "--format", "raw"]);
    let (bases, aside) = (case.shed.root().join("bases"), case.shed.path("aside"));
    fs::rename(bases.join("os/1"), &aside).unwrap();
    fs::rename(bases.join("other/1"), bases.join("os/1")).unwrap();
    for strategy in ["merge", "keep", "replace"] {
        let said = case.shed.fails(1, &[&REBASE[..], &["--strategy", strategy]].concat());
        assert!(said.contains("os@1") && said.contains("digest"), "{said}");
    }
    fs::rename(bases.join("os/1"), bases.join("other/1")).unwrap();
    fs::rename(&aside, bases.join("os/1")).unwrap();
    before.holds(&case, "replaced");
    before.is_overcome(&case);
}

/// A copy of a filesystem that is mounted, with files that are only in its journal.
fn torn(of: &Image, shed: &Shed) -> Image {
    let image = copy(of);
    let mount = image.mount(true);
    for number in 0..20 {
        let path = mount.path(format!("srv/synced-{number}"));
        fs::write(&path, format!("{number}\n")).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
    }
    fs::copy(image.path(), shed.path("torn")).unwrap();
    drop(mount);
    fs::copy(shed.path("torn"), image.path()).unwrap();
    image
}

#[test]
fn what_waits_in_the_journal_of_a_new_base_is_in_every_clone() {
    let case = Case::new();
    let before = Before::of(&case);
    let dirty = torn(&case.new, &case.shed);
    case.shed.ok(&["import", dirty.path().to_str().unwrap(), "--update", "os", "--format", "raw"]);
    let third = file_digest(&case.shed.root().join("bases/os/3/disk.qcow2"));
    case.clone("db", &case.mine);
    case.shed.ok(&["rebase", "web", "db", "--onto", "os@3"]);
    let names: Vec<String> = (0..20).map(|number| format!("srv/synced-{number}")).collect();
    let paths: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected: Vec<Option<String>> = (0..20).map(|number| Some(format!("{number}\n"))).collect();
    for clone in ["web", "db"] {
        assert_eq!(case.read_of(clone, &paths), expected, "{clone}");
    }
    assert!(case.is_merged());
    assert_eq!(file_digest(&case.shed.root().join("bases/os/3/disk.qcow2")), third);
    case.shed.ok(&["undo", "web"]);
    assert_eq!((case.digest("web"), case.bases()), (before.content, before.bases));
}

#[test]
fn a_clone_whose_journal_cannot_be_replayed_is_left_as_it_is() {
    let case = Case::new();
    let dirty = torn(&case.mine, &case.shed);
    let place = dirty.debugfs("bmap <8> 0");
    let block: u64 = place.split_whitespace().last().unwrap().parse().unwrap();
    let file = File::options().write(true).open(dirty.path()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 1024], block * 1024).unwrap();
    drop(file);
    case.shed.ok(&["rm", "web"]);
    case.clone("web", &dirty);
    let before = Before::of(&case);
    let said = case.shed.fails(1, &REBASE);
    assert!(said.contains("journal"), "{said}");
    before.holds(&case, "a damaged journal");
    case.shed.ok(&["rm", "web"]);
    case.clone("web", &case.mine);
    Before::of(&case).is_overcome(&case);
}

/// A case whose store is on a small host filesystem of its own.
struct Full {
    // Unmounted before the folder that it is in goes.
    host: Host,
    case: Case,
}

impl Full {
    fn new() -> Self {
        let shed = Shed::new();
        let host = Host::new("ext4", shed.path("host.img"), 200 << 20, shed.path("host"));
        fs::create_dir(host.dir.join("store")).unwrap();
        std::os::unix::fs::symlink(host.dir.join("store"), shed.root()).unwrap();
        let fill = |dir: &Path| fs::write(dir.join("home/big"), Rng::new(7).bytes(3 << 20)).unwrap();
        let case = Case::in_shed(shed, |_| {}, fill);
        Self { host, case }
    }
}

#[test]
fn a_host_that_runs_full_at_any_moment_of_a_merge_leaves_the_clone_as_it_was() {
    let Full { host, case } = &Full::new();
    let before = Before::of(case);
    let (mut refused, mut reasons) = (0, BTreeSet::new());
    for left in (0..).map(|step| step * (128 << 10)) {
        let filler = host.fill(left);
        let output = case.shed.output(&REBASE);
        drop(filler);
        if output.status.success() {
            break;
        }
        let said = one_line(&output, 1, &REBASE);
        assert!(said.contains("No space left"), "{left} bytes left: {said}");
        before.holds(case, &format!("{left} bytes left: {said}"));
        refused += 1;
        reasons.insert(said);
    }
    println!("{refused} times refused: {reasons:#?}");
    assert!(refused >= 10 && reasons.len() >= 2, "{refused} times refused: {reasons:?}");
    assert!(case.is_merged());
    case.shed.ok(&["undo", "web"]);
    assert_eq!(case.digest("web"), before.content);
    before.is_overcome(case);
}

/// A moment of a rebase, seen from outside.
type Phase = (&'static str, fn(&Case, &Child) -> bool);

const PHASES: [Phase; 5] = [
    ("nothing is done yet", |_, _| true),
    ("the new layer is there", |case, _| staged(case, |_| true)),
    ("the new layer is written", |case, _| staged(case, |disk| disk.blocks() * 512 > WRITTEN)),
    ("the merged filesystem is checked", |_, child| child_that_runs(child.id(), "e2fsck").is_some()),
    ("the state from before is a checkpoint", |case, _| {
        let folder = fs::read_dir(case.shed.root().join("clones/web")).unwrap();
        folder
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .any(|name| name.ends_with("-1.qcow2"))
    }),
];
/// More than an empty layer takes.
const WRITTEN: u64 = 1 << 20;

/// Whether there is a new layer that `is` so.
fn staged(case: &Case, is: impl Fn(&fs::Metadata) -> bool) -> bool {
    let folders = fs::read_dir(case.shed.root().join("tmp")).unwrap();
    let disks = folders.filter_map(|entry| entry.ok()?.path().join("disk.qcow2").metadata().ok());
    disks.into_iter().any(|disk| is(&disk))
}

/// A child of the process, or one of its, that runs a program.
fn child_that_runs(process: u32, program: &str) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>())
        .collect();
    let runs = |child: &u32| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == program)
    };
    let own = children.iter().copied().find(runs);
    own.or_else(|| children.into_iter().find_map(|child| child_that_runs(child, program)))
}

/// Kills a rebase when a phase is seen; false when it ended before that.
fn killed_in(case: &Case, is_there: fn(&Case, &Child) -> bool) -> bool {
    let mut command = case.shed.command(&REBASE);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if is_there(case, &child) {
            child.kill().unwrap();
            return child.wait().unwrap().code().is_none();
        }
    }
    false
}

#[test]
fn a_rebase_that_is_killed_in_any_phase_leaves_the_clone_as_before_or_as_after() {
    let big = |dir: &Path| fs::write(dir.join("home/big"), Rng::new(7).bytes(3 << 20)).unwrap();
    let case = Case::with(|_| {}, big);
    let before = Before::of(&case);
    for (phase, is_there) in PHASES {
        let (mut hits, mut after) = (0, 0);
        for _ in 0..40 {
            hits += u32::from(killed_in(&case, is_there));
            case.shed.ok(&["check", "web"]);
            if case.version("web") == 2 {
                after += 1;
                case.shed.ok(&["undo", "web"]);
                // So that the next one is checkpoint 1 again.
                case.shed.ok(&["rm", "web"]);
                case.clone("web", &case.mine);
            }
            assert_eq!(case.digest("web"), before.content, "{phase}");
            // The next command takes away what the dead one left; it is not to be taken for the next one's work.
            let said = case.shed.fails(1, &["undo", "web"]);
            assert!(said.contains("nothing to undo"), "{said}");
            assert!(case.tmp_is_empty() && case.checkpoints("web") == 0, "{phase}: something is left");
            if hits == 4 {
                break;
            }
        }
        println!("{phase}: {hits} killed, {after} ended or were killed after the rename");
        assert!(hits >= 2, "{phase}: only {hits} were killed in it");
    }
    before.is_overcome(&case);
    assert!(case.tmp_is_empty());
}

#[test]
fn a_helper_of_a_merge_that_is_killed_fails_it_in_one_sentence_and_nothing_is_changed() {
    let big = |dir: &Path| fs::write(dir.join("home/big"), Rng::new(7).bytes(3 << 20)).unwrap();
    let case = Case::with(|_| {}, big);
    let before = Before::of(&case);
    // What edits the filesystem is our own program, in a process of its own.
    for helper in ["cowshed", "e2fsck"] {
        let (mut failed, mut reasons) = (0, BTreeSet::new());
        for _ in 0..40 {
            let mut command = case.shed.command(&REBASE);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                if let Some(helper) = child_that_runs(child.id(), helper) {
                    let _ = Command::new("kill").args(["-9", &helper.to_string()]).output().unwrap();
                    break;
                }
            }
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                // It had done its work already.
                case.shed.ok(&["undo", "web"]);
                case.shed.ok(&["rm", "web"]);
                case.clone("web", &case.mine);
                continue;
            }
            let said = one_line(&output, 1, &REBASE);
            before.holds(&case, &said);
            failed += 1;
            reasons.insert(said);
            if failed == 3 {
                break;
            }
        }
        println!("{helper}: {failed} failed: {reasons:#?}");
        assert!(failed >= 1, "{helper} was never killed before its end");
    }
    before.is_overcome(&case);
    assert!(case.tmp_is_empty());
}

#[test]
fn of_two_rebases_at_once_one_does_it_and_its_undo_brings_every_byte_back() {
    let case = Case::new();
    let before = Before::of(&case);
    for round in 0..3 {
        let start = || {
            let mut command = case.shed.command(&REBASE);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children = [start(), start()];
        std::thread::sleep(Duration::from_millis(1));
        let outputs = children.map(|child| child.wait_with_output().unwrap());
        let did =
            |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).contains("undo with");
        assert_eq!(outputs.iter().filter(|output| did(output)).count(), 1, "round {round}: {outputs:?}");
        assert!(case.is_merged() && case.tmp_is_empty());
        case.shed.ok(&["undo", "web"]);
        assert_eq!(case.digest("web"), before.content, "round {round}");
        assert_eq!(case.bases(), before.bases);
    }
}

#[test]
fn a_merge_with_a_damaged_filesystem_of_any_side_changes_nothing() {
    let break_root = |image: &Image| {
        let said = tool("debugfs").args(["-w", "-R", "clri <2>"]).arg(image.path()).output().unwrap();
        assert!(said.status.success(), "{said:?}");
    };
    let case = Case::new();
    let before = Before::of(&case);
    let broken = copy(&case.new);
    break_root(&broken);
    case.shed.ok(&["import", broken.path().to_str().unwrap(), "--update", "os", "--format", "raw"]);
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@3"]);
    assert!(said.contains("the new base"), "{said}");
    before.holds(&case, "a damaged new base");
    let mine = copy(&case.mine);
    break_root(&mine);
    case.clone("db", &mine);
    let content = case.digest("db");
    let said = case.shed.fails(1, &["rebase", "db", "--onto", "os@2"]);
    assert!(said.contains("the clone"), "{said}");
    assert_eq!((case.digest("db"), case.version("db"), case.checkpoints("db")), (content, 1, 0));
    before.is_overcome(&case);
}
