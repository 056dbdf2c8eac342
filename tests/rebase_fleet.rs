//! Many clones of a base that are put on another version: together, a few first, or when they are next started.
//!
//! Needs root: filesystems are changed and looked at by the kernel.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cli;
    pub mod ext;
    pub mod rebased;
    pub mod rng;
}

use common::cli::Shed;
use common::cli::store::{file_digest, name, unseal};
use common::rebased::{CONF, Case, changed, copy, write};
use cowshed::Kind;
use cowshed::ops::Progress;
use cowshed::ops::merge::rules::Rules;
use cowshed::ops::rebase::{Ending, MergeSettings, RebaseRequest, Strategy, rebase_all};
use cowshed::store::{Access, BaseRef, CloneOptions, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// A clone with a change of its own.
fn add_clone(case: &Case, clone: &str) {
    let mine = copy(&case.mine);
    changed(&mine, |dir| write(dir, "home/name", clone));
    case.clone(clone, &mine);
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn requests(clones: &[&str], version: u32) -> Vec<RebaseRequest> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_cowshed"));
    let settings = Arc::new(MergeSettings { rules: Rules::preset().unwrap(), program });
    let request = |clone: &&str| RebaseRequest {
        clone: name(clone),
        onto: BaseRef::exact(name("os"), version),
        strategy: Strategy::Merge,
        settings: Arc::clone(&settings),
    };
    clones.iter().map(request).collect()
}

#[test]
fn clones_of_two_versions_end_each_as_if_it_were_alone() {
    let case = Case::new();
    let names = ["a-1", "b-2", "c-1", "d-2", "e-1"];
    let third = copy(&case.new);
    changed(&third, |dir| write(dir, "etc/third", "3\n"));
    case.shed.ok(&["import", &text(&third.path()), "--update", "os", "--format", "raw"]);
    for clone in names {
        add_clone(&case, clone);
        if clone.ends_with('2') {
            case.shed.ok(&["rebase", clone, "--onto", "os@2"]);
        }
    }
    let paths = [
        "etc/conf",
        "etc/added",
        "etc/third",
        "home/mine",
        "home/name",
        "srv/moved/one",
        "etc/gone",
        "srv/tree/one",
    ];
    let read = || names.map(|clone| case.read_of(clone, &paths));
    let mut ended = Vec::new();
    for jobs in ["1", "2", "4"] {
        case.shed.ok(&["rebase", "--all", "--only", "?-?", "--onto", "os@3", "--jobs", jobs]);
        ended.push(read());
        names.iter().for_each(|clone| drop(case.shed.ok(&["undo", clone])));
    }
    names.iter().for_each(|clone| drop(case.shed.ok(&["rebase", clone, "--onto", "os@3"])));
    let alone = read();
    assert!(ended.iter().all(|ended| *ended == alone), "{ended:?}\n{alone:?}");
    let conf = CONF.replace('b', "B").replace('g', "G");
    for (clone, read) in names.iter().zip(&alone) {
        let expected = [
            Some(&*conf),
            Some("by the base\n"),
            Some("3\n"),
            Some("the clone's\n"),
            Some(clone),
            Some("11\n"),
            None,
            None,
        ];
        assert!(read.iter().map(Option::as_deref).eq(expected), "{clone}: {read:?}");
    }
}

/// Meddles with a base at the first moment at which `is_there`.
struct Meddler<'a> {
    case: &'a Case,
    is_there: fn(&Case) -> bool,
    meddle: fn(&Path),
    done: AtomicBool,
}

impl Progress for Meddler<'_> {
    fn total(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        if (self.is_there)(self.case) && !self.done.swap(true, Ordering::Relaxed) {
            (self.meddle)(&self.case.shed.root().join("bases/os"));
        }
        false
    }
}

/// The same bytes, written anew.
fn touch(disk: &Path) {
    unseal(disk);
    let file = File::open(disk).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(SystemTime::now())).unwrap();
}

/// The same bytes in another file.
fn replace(disk: &Path) {
    unseal(disk);
    let bytes = fs::read(disk).unwrap();
    fs::remove_file(disk).unwrap();
    fs::write(disk, bytes).unwrap();
}

/// Runs a fleet of two clones, one after the other, with somebody who meddles; what came of them.
fn meddled(is_there: fn(&Case) -> bool, meddle: fn(&Path)) -> (Case, BTreeMap<String, Result<(), Kind>>) {
    let case = Case::new();
    add_clone(&case, "db");
    let before = ["db", "web"].map(|clone| (clone, case.digest(clone)));
    let store = Store::open(&case.shed.root()).unwrap();
    let mut ended = BTreeMap::new();
    let meddler = Meddler { case: &case, is_there, meddle, done: AtomicBool::new(false) };
    rebase_all(&store, &requests(&["db", "web"], 2), 1, false, &meddler, &mut |clone, ending| {
        let result = match ending {
            Ending::Done(_) => Ok(()),
            Ending::Failed(error) => {
                assert!(error.to_string().contains("changed since it was sealed"), "{error}");
                Err(error.kind())
            }
            other => panic!("{clone}: {other:?}"),
        };
        ended.insert(clone.to_string(), result);
    });
    assert!(meddler.done.load(Ordering::Relaxed), "the moment never came");
    // The base's bytes are right, so it can be sealed again.
    case.shed.ok(&["verify", "os@1", "--reseal"]);
    case.shed.ok(&["verify", "os@2", "--reseal"]);
    for (clone, content) in before {
        let is_done = ended[clone].is_ok();
        assert_eq!((case.version(clone), case.checkpoints(clone)), if is_done { (2, 1) } else { (1, 0) });
        assert!(is_done || case.digest(clone) == content, "{clone} has other bytes");
    }
    assert!(case.tmp_is_empty());
    (case, ended)
}

#[test]
fn a_base_that_somebody_meddles_with_stops_the_clones_that_come_after() {
    let first_is_done = |case: &Case| case.shed.root().join("clones/db/checkpoint-1.json").exists();
    let meddlers: [fn(&Path); 3] = [
        |base| touch(&base.join("1/disk.raw")),
        |base| touch(&base.join("2/disk.qcow2")),
        |base| replace(&base.join("2/disk.qcow2")),
    ];
    for meddle in meddlers {
        let (case, ended) = meddled(first_is_done, meddle);
        assert_eq!((ended["db"], ended["web"]), (Ok(()), Err(Kind::Changed)));
        case.shed.ok(&["rebase", "web", "--onto", "os@2"]);
        assert!(case.is_merged());
    }
}

#[test]
fn a_base_that_changes_during_a_merge_is_noticed_before_the_clone_stands_on_it() {
    // A new layer is being made.
    let works = |case: &Case| !case.tmp_is_empty();
    let meddlers: [fn(&Path); 3] = [
        |base| touch(&base.join("1/disk.raw")),
        |base| touch(&base.join("2/disk.qcow2")),
        |base| replace(&base.join("2/disk.qcow2")),
    ];
    for meddle in meddlers {
        let (case, ended) = meddled(works, meddle);
        assert_eq!((ended["db"], ended["web"]), (Err(Kind::Changed), Err(Kind::Changed)));
        case.shed.ok(&["rebase", "db", "web", "--onto", "os@2"]);
        assert!(case.is_merged());
    }
}

/// Clones `web-1` to `web-4` beside `web`, of which the first two conflict with the new base unless a rule decides.
fn fleet() -> Case {
    let case = Case::with(|dir| write(dir, "data/x", "base\n"), |dir| write(dir, "data/x", "clone\n"));
    (1..=4).for_each(|number| add_clone(&case, &format!("web-{number}")));
    fs::write(case.shed.path("rules"), "clone /data/**\n").unwrap();
    case
}

fn versions(case: &Case) -> Vec<u32> {
    ["web", "web-1", "web-2", "web-3", "web-4"].map(|clone| case.version(clone)).into()
}

#[test]
fn the_rest_follows_a_canary_run_as_that_one_was_told_to() {
    let case = fleet();
    let rules = text(&case.shed.path("rules"));
    let said = case.shed.fails(1, &["rebase", "--continue"]);
    assert!(said.contains("there is no canary run to go on with"), "{said}");
    let head =
        ["rebase", "--all", "--onto", "os@2", "--only", "web-*", "--keep-disk", "web-4", "--rules", &rules];
    case.shed.ok(&[&head[..], &["--canary", "1", "--plan"]].concat());
    let said = case.shed.fails(1, &["rebase", "--continue"]);
    assert!(said.contains("there is no canary run"), "a plan is none: {said}");
    let told = case.shed.ok(&[&head[..], &["--canary", "2"]].concat());
    assert!(told.contains("go on with the rest: cowshed rebase --continue --onto os\n"), "{told}");
    assert_eq!(versions(&case), [1, 2, 2, 1, 1]);
    // Nothing is read from the file again.
    fs::remove_file(&rules).unwrap();
    let kept = case.digest("web-4");
    let planned = case.shed.ok(&["rebase", "--continue", "--plan"]);
    assert!(planned.contains("2 would be done, 2 already there"), "{planned}");
    let told = case.shed.ok(&["rebase", "--continue"]);
    assert!(told.contains("4 clones: 2 done, 2 already there"), "{told}");
    assert_eq!(versions(&case), [1, 2, 2, 2, 2]);
    assert_eq!(
        case.read_of("web-3", &["data/x", "etc/added"]),
        [Some("clone\n".into()), Some("by the base\n".into())]
    );
    assert_eq!(case.digest("web-4"), kept, "it is a data disk");
    case.shed.fails(1, &["rebase", "--continue"]);
    // A base can go with all that was noted of it.
    case.shed.ok(&["undo", "web-1"]);
    case.shed.ok(&[
        "rebase",
        "--all",
        "--onto",
        "os@2",
        "--only",
        "web-1",
        "--strategy",
        "replace",
        "--canary",
        "1",
    ]);
    case.shed.ok(&["rm", "web", "web-1", "web-2", "web-3", "web-4", "os@2", "os@1"]);
    assert!(!case.shed.root().join("bases/os").exists());
}

#[test]
fn a_canary_that_is_not_on_the_new_version_stops_the_rest_by_name_unless_forced() {
    let case = fleet();
    let all = ["rebase", "--all", "--onto", "os@2"];
    let output = case.shed.output(&[&all[..], &["--canary", "2"]].concat());
    assert_eq!(output.status.code(), Some(1), "both are conflicts: {output:?}");
    let said = case.shed.fails(1, &["rebase", "--continue"]);
    assert!(said.contains("of the canary run web, web-1 are not on os@2"), "{said}");
    let rules = text(&case.shed.path("rules"));
    case.shed.ok(&[&all[..], &["--rules", &rules, "--canary", "2"]].concat());
    case.shed.ok(&["undo", "web-1"]);
    let said = case.shed.fails(1, &["rebase", "--continue", "--onto", "os"]);
    assert!(said.contains("of the canary run web-1 is not on os@2") && said.contains("--force"), "{said}");
    assert_eq!(versions(&case), [2, 1, 1, 1, 1]);
    case.shed.ok(&["rebase", "--continue", "--force"]);
    assert_eq!(versions(&case), [2, 2, 2, 2, 2]);
    case.shed.fails(2, &["rebase", "web-1", "--onto", "os@2", "--only", "web-*"]);
    case.shed.fails(2, &["rebase", "--all", "--onto", "os@2", "--force"]);
    case.shed.fails(2, &["rebase", "--continue", "--strategy", "keep"]);
}

#[test]
fn a_run_that_was_onto_a_version_that_is_gone_is_not_gone_on_with() {
    let case = fleet();
    case.shed.ok(&["rebase", "--all", "--onto", "os@2", "--strategy", "replace", "--canary", "1"]);
    let said = case.shed.fails(1, &["rebase", "--continue", "--onto", "os@1"]);
    assert!(said.contains("onto os@2"), "{said}");
    case.shed.ok(&["undo", "web"]);
    let checkpoints = case.shed.json(&["checkpoints", "web"]);
    let last = checkpoints["checkpoints"].as_array().unwrap().last().unwrap()["number"].to_string();
    case.shed.ok(&["rm", "web", "--checkpoint", &last]);
    case.shed.ok(&["rm", "os@2"]);
    let said = case.shed.fails(1, &["rebase", "--continue", "--force"]);
    assert!(said.contains("os@2, which the canary run was onto, is gone"), "{said}");
    // A second base with a run of its own has to be named.
    case.shed.ok(&["import", &text(&case.new.path()), "--update", "os", "--format", "raw"]);
    case.shed.ok(&["import", &text(&case.old.path()), "--name", "second", "--format", "raw"]);
    case.shed.ok(&["clone", "second", "s", "t"]);
    case.shed.ok(&["import", &text(&case.new.path()), "--update", "second", "--format", "raw"]);
    case.shed.ok(&["rebase", "--all", "--onto", "second@2", "--canary", "1"]);
    let said = case.shed.fails(1, &["rebase", "--continue"]);
    assert!(said.contains("os") && said.contains("second") && said.contains("--onto BASE"), "{said}");
    case.shed.ok(&["rebase", "--continue", "--onto", "second"]);
    assert_eq!((case.version("s"), case.version("t")), (2, 2));
}

fn waiting(case: &Case, clone: &str) -> serde_json::Value {
    case.shed.json(&["info", clone])["waiting"].clone()
}

#[test]
fn what_waits_for_a_start_is_shown_renamed_taken_back_and_removed_with_the_clone() {
    let case = Case::new();
    let before = case.digest("web");
    let told = case.shed.ok(&["rebase", "web", "--onto", "os@2", "--at-next-start"]);
    assert_eq!(told, "web: deferred, its next start puts it on os@2\n");
    assert_eq!((case.version("web"), case.digest("web"), case.checkpoints("web")), (1, before, 0));
    let found = waiting(&case, "web");
    assert_eq!((&found["onto"]["version"], &found["strategy"]), (&2.into(), &"merge".into()), "{found}");
    assert!(case.shed.ok(&["list"]).contains("on os@2 at its next start"));
    assert!(case.shed.ok(&["info", "web"]).contains("put on os@2 (merge)"));
    let listed = case.shed.json(&["list"]);
    assert_eq!(listed["clones"][0]["waiting"], found);
    // It is the clone's own, and keeps the version that it names.
    let said = case.shed.fails(1, &["rm", "os@2"]);
    assert!(said.contains("needed by web"), "{said}");
    case.shed.ok(&["rename", "web", "db"]);
    assert_eq!(waiting(&case, "db"), found);
    case.shed.ok(&["clone", "os@1", "web"]);
    assert_eq!(waiting(&case, "web"), serde_json::Value::Null);
    // The later word counts.
    case.shed.ok(&["rebase", "db", "--onto", "os@2", "--at-next-start", "--strategy", "keep"]);
    assert_eq!(waiting(&case, "db")["strategy"], "keep");
    let told = case.shed.ok(&["rebase", "db", "web", "--at-next-start", "--cancel"]);
    assert_eq!(told, "db: its next start leaves it as it is\nweb: nothing waited for its next start\n");
    assert_eq!(waiting(&case, "db"), serde_json::Value::Null);
    // To be where it is, nothing has to wait.
    case.shed.ok(&["rebase", "--all", "--onto", "os@2", "--at-next-start"]);
    let told = case.shed.ok(&["rebase", "db", "--onto", "os@1", "--at-next-start"]);
    assert_eq!(told, "db: stands on os@1 already\n");
    assert_eq!(waiting(&case, "db"), serde_json::Value::Null);
    assert_eq!(waiting(&case, "web")["onto"]["version"], 2);
    let told = case.shed.ok(&["rebase", "--all", "--at-next-start", "--cancel"]);
    assert_eq!(told, "web: its next start leaves it as it is\n");
    case.shed.ok(&["rebase", "db", "--onto", "os@2", "--at-next-start"]);
    case.shed.ok(&["rm", "db", "web"]);
    case.shed.ok(&["rm", "os@2"]);
    assert!(case.tmp_is_empty());
}

#[test]
fn what_was_said_of_another_base_does_not_wait_any_more() {
    let case = Case::new();
    let file = case.shed.root().join("clones/web/rebase.json");
    case.shed.ok(&["rebase", "web", "--onto", "os@2", "--at-next-start", "--strategy", "replace"]);
    let said = fs::read(&file).unwrap();
    case.shed.ok(&["rebase", "web", "--onto", "os@2"]);
    assert!(case.is_merged() && !file.exists(), "the user did it at once, in another way");
    // As a cut right after the rename leaves it.
    fs::write(&file, &said).unwrap();
    assert_eq!(waiting(&case, "web"), serde_json::Value::Null);
    case.shed.ok(&["checkpoint", "web"]);
    assert!(!file.exists(), "the next change takes it away");
    // A broken one is told of, and can be taken back.
    fs::write(&file, "{").unwrap();
    let output = case.shed.output(&["list"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("clone web is left out") && told.contains("--at-next-start --cancel"), "{told}");
    case.shed.ok(&["rebase", "web", "--at-next-start", "--cancel"]);
    case.shed.ok(&["list"]);
    fs::write(&file, "{").unwrap();
    case.shed.ok(&["rebase", "--all", "--at-next-start", "--cancel"]);
    assert!(!file.exists());
    case.shed.ok(&["list"]);
}

#[test]
fn of_a_fleet_those_in_use_wait_and_the_others_are_done() {
    let case = fleet();
    let store = Store::open(&case.shed.root()).unwrap();
    let open = store.open_clone(&name("web-2"), Access::Write).unwrap();
    let rules = text(&case.shed.path("rules"));
    let all = ["rebase", "--all", "--onto", "os@2", "--rules", &rules, "--at-next-start=in-use"];
    let told = case.shed.ok(&all);
    assert!(told.contains("web-2: deferred") && told.contains("5 clones: 4 done, 1 deferred"), "{told}");
    open.close().unwrap();
    assert_eq!(versions(&case), [2, 2, 1, 2, 2]);
    let again = case.shed.json(&["rebase", "web-2", "--onto", "os@2", "--at-next-start"]);
    assert_eq!(
        (&again[0]["state"], &again[0]["waiting"]["onto"]["version"]),
        (&"deferred".into(), &2.into())
    );
    for wrong in [&["--canary", "1"][..], &["--plan"], &["--at-next-start=never"]] {
        case.shed.fails(2, &[&all[..6], wrong, &["--at-next-start"]].concat()[..]);
    }
    case.shed.fails(2, &["rebase", "web-2", "--cancel"]);
    case.shed.ok(&["import", &text(&case.old.path()), "--name", "other", "--format", "raw"]);
    let said = case.shed.fails(1, &["rebase", "web-2", "--onto", "other", "--at-next-start"]);
    assert!(said.contains("another base"), "{said}");
}

/// Starts a clone under a QEMU that cannot start; what is said before that.
fn start(shed: &Shed, clone: &str) -> Vec<String> {
    let output = shed.output(&["run", clone, "--accel", "tcg", "--qemu", "/nonexistent/qemu"]);
    let said = String::from_utf8(output.stderr).unwrap();
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    let last = lines.pop().unwrap();
    assert!(last.contains("/nonexistent/qemu"), "{said}");
    lines
}

#[test]
fn a_start_does_what_waited_or_warns_in_one_sentence_and_leaves_the_clone_as_it_is() {
    let case = fleet();
    let (before, bases) = (case.digest("web"), case.bases());
    case.shed.ok(&["rebase", "web", "--onto", "os@2", "--at-next-start"]);
    for _ in 0..2 {
        let said = start(&case.shed, "web");
        assert_eq!(said.len(), 1, "{said:?}");
        for words in
            ["web starts as it is", "/data/x: both sides added it", "--plan --report FILE", "--cancel"]
        {
            assert!(said[0].contains(words), "{said:?}");
        }
        assert_eq!((case.version("web"), case.digest("web"), case.checkpoints("web")), (1, before, 0));
        assert_eq!(waiting(&case, "web")["onto"]["version"], 2, "it goes on waiting");
    }
    let rules = case.shed.path("rules");
    case.shed.ok(&["rebase", "web", "--onto", "os@2", "--rules", &text(&rules), "--at-next-start"]);
    fs::remove_file(&rules).unwrap();
    let said = start(&case.shed, "web");
    assert!(said.len() == 1 && said[0].contains("web: os@1 -> os@2"), "{said:?}");
    assert!(case.is_merged());
    assert_eq!(case.read(&["data/x"]), [Some("clone\n".to_owned())]);
    assert_eq!(waiting(&case, "web"), serde_json::Value::Null);
    assert!(start(&case.shed, "web").is_empty());
    case.shed.ok(&["undo", "web"]);
    assert_eq!((case.digest("web"), case.bases()), (before, bases));
    // A throw-away run is no start.
    case.shed.ok(&["rebase", "web-1", "--onto", "os@2", "--strategy", "keep", "--at-next-start"]);
    let output =
        case.shed.output(&["run", "web-1", "--ephemeral", "--accel", "tcg", "--qemu", "/nonexistent/qemu"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(case.version("web-1"), 1);
    // Nor is a view.
    let view = case.shed.mount();
    drop(File::open(view.clone_file("web-1")).unwrap());
    view.unmount();
    assert_eq!(case.version("web-1"), 1);
}

#[test]
fn a_start_on_a_base_that_was_meddled_with_says_so_and_goes_on_waiting() {
    let case = Case::new();
    case.shed.ok(&["rebase", "web", "--onto", "os@2", "--at-next-start"]);
    let disk = case.shed.root().join("bases/os/2/disk.qcow2");
    touch(&disk);
    let said = start(&case.shed, "web");
    assert!(said.len() == 1 && said[0].contains("os@2 was changed since it was sealed"), "{said:?}");
    assert!(case.is_as_before() && waiting(&case, "web")["onto"]["version"] == 2);
    let digest = file_digest(&disk);
    case.shed.ok(&["verify", "os@2", "--reseal"]);
    assert_eq!(start(&case.shed, "web").len(), 1);
    assert!(case.is_merged());
    assert_eq!(file_digest(&disk), digest);
    // What is not the clone's is not made by making clones.
    let store = Store::open(&case.shed.root()).unwrap();
    store.create_clones(&BaseRef::exact(name("os"), 1), &[name("new")], &CloneOptions::default()).unwrap();
    assert_eq!(store.waiting(&name("new")).unwrap(), None);
}

/// Starts `web`, and stops the start as soon as its rebase has begun: the exit code, and what was said.
fn start_and_stop(case: &Case) -> (Option<i32>, String) {
    let tmp = case.shed.root().join("tmp");
    let mut command = case.shed.command(&["run", "web", "--accel", "tcg", "--qemu", "/nonexistent/qemu"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if fs::read_dir(&tmp).unwrap().next().is_some() {
            kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_start_that_is_stopped_in_its_rebase_boots_nothing_and_the_clone_is_as_it_was_and_waits() {
    let case = Case::new();
    // On a busy host a rebase may be done before the signal comes: then once more.
    let said = (0..50).find_map(|_| {
        case.shed.ok(&["rebase", "web", "--onto", "os@2", "--at-next-start"]);
        let (code, said) = start_and_stop(&case);
        if !said.contains("undo with: cowshed undo web") {
            assert_eq!(code, Some(130), "{said}");
            return Some(said);
        }
        case.shed.ok(&["undo", "web"]);
        None
    });
    let said = said.expect("a rebase is stopped in one of fifty starts");
    assert!(said.contains("stopped; web is as it was") && !said.contains("/nonexistent/qemu"), "{said}");
    assert!(case.is_as_before() && case.tmp_is_empty());
    assert_eq!(waiting(&case, "web")["onto"]["version"], 2);
    assert_eq!(start(&case.shed, "web").len(), 1, "the next start does it");
    assert!(case.is_merged());
}
