//! A merge of a clone with its updated base ends as a whole or not at all, whatever happens meanwhile.
//!
//! Needs root: filesystems are changed and looked at by the kernel.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cli;
    pub mod ext;
    pub mod rebased;
    pub mod rng;
}

use common::cli::store::{self, base_ref};
use common::ext::Image;
use common::rebased::{Case, copy, write};
use common::rng::Rng;
use cowshed::store::Store;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn both_sides_changes_are_there_and_undo_takes_them_back() {
    let case = Case::new();
    let bases = case.bases();
    let plan = case.shed.json(&["rebase", "web", "--onto", "os@2", "--plan"]);
    assert_eq!(plan[0]["state"], "done", "{plan}");
    assert!(case.is_as_before());
    let report = case.shed.path("report.json");
    case.shed.ok(&["rebase", "web", "--onto", "os@2", "--report", report.to_str().unwrap()]);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let kept = report[0]["rebase"]["merge"]["kept"].to_string();
    assert!(kept.contains("/home/mine") && !kept.contains("/etc/added"), "{kept}");
    assert!(case.is_merged());
    case.shed.ok(&["undo", "web"]);
    assert!(case.is_as_before());
    assert_eq!(case.bases(), bases);
}

#[test]
fn a_conflict_that_no_rule_decides_changes_nothing_and_a_rule_decides_it() {
    let case = Case::with(|dir| write(dir, "data/x", "base\n"), |dir| write(dir, "data/x", "clone\n"));
    case.refused("/data/x: both sides added it");
    for (policy, text, beside) in
        [("base", "base\n", None), ("clone", "clone\n", None), ("both", "clone\n", Some("base\n"))]
    {
        let rules = case.shed.path("rules");
        fs::write(&rules, format!("{policy} /data/**\n")).unwrap();
        case.shed.ok(&["rebase", "web", "--onto", "os@2", "--rules", rules.to_str().unwrap()]);
        let read = case.read(&["data/x", "data/x.os@2"]);
        assert_eq!(read, [Some(text.to_owned()), beside.map(str::to_owned)], "{policy}");
        case.shed.ok(&["undo", "web"]);
    }
    fs::write(case.shed.path("rules"), "perhaps /data/**\n").unwrap();
    let rules = case.shed.path("rules");
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@2", "--rules", rules.to_str().unwrap()]);
    assert!(said.contains("line 1"), "{said}");
}

#[test]
fn a_report_or_rules_that_cannot_be_used_are_noticed_before_anything_is_changed() {
    let case = Case::new();
    let nowhere = case.shed.path("nowhere/report.json");
    let arguments = ["rebase", "web", "--onto", "os@2", "--report", nowhere.to_str().unwrap()];
    let said = case.shed.fails(1, &arguments);
    assert!(said.contains("nowhere/report.json"), "{said}");
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@2", "--rules", "/dev/zero"]);
    assert!(said.contains("at most 1 MiB"), "{said}");
    assert!(case.is_as_before());
    assert_eq!(case.shed.json(&["checkpoints", "web"])["checkpoints"].as_array().unwrap().len(), 0);
}

#[test]
fn what_waits_in_the_journal_of_a_clone_is_kept() {
    let case = Case::new();
    let dirty = copy(&case.mine);
    {
        let mount = dirty.mount(true);
        for number in 0..30 {
            let path = mount.path(format!("home/synced-{number}"));
            fs::write(&path, format!("{number}\n")).unwrap();
            fs::File::open(&path).unwrap().sync_all().unwrap();
        }
        fs::copy(dirty.path(), case.shed.path("torn")).unwrap();
    }
    fs::copy(case.shed.path("torn"), dirty.path()).unwrap();
    case.shed.ok(&["rm", "web"]);
    case.clone("web", &dirty);
    case.shed.ok(&["rebase", "web", "--onto", "os@2"]);
    assert!(case.is_merged());
    let names: Vec<String> = (0..30).map(|number| format!("home/synced-{number}")).collect();
    let paths: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected: Vec<Option<String>> = (0..30).map(|number| Some(format!("{number}\n"))).collect();
    assert_eq!(case.read(&paths), expected);
}

#[test]
fn a_filesystem_without_room_for_both_is_left_as_it_is() {
    let fill = |name: &'static str| {
        move |dir: &Path| {
            let mut rng = Rng::new(1);
            fs::write(dir.join(name), rng.bytes(8 << 20)).unwrap();
        }
    };
    let case = Case::with(fill("of-the-base"), fill("of-the-clone"));
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@2"]);
    assert!(
        said.contains("No free space") || said.contains("no room") || said.contains("allocate"),
        "{said}"
    );
    assert!(case.is_as_before());
    case.shed.ok(&["rebase", "web", "--onto", "os@2", "--strategy", "replace"]);
}

#[test]
fn another_filesystem_another_layout_and_none_at_all_are_refused_by_name() {
    let case = Case::new();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let other = Image::new(16, &["-t", "ext4", "-b", "1024"]);
    case.shed.ok(&["import", &text(&other.path()), "--update", "os", "--format", "raw"]);
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@3"]);
    assert!(said.contains("another UUID"), "{said}");
    let table = case.shed.image("table.raw");
    case.shed.ok(&["import", &text(&table), "--update", "os", "--format", "raw"]);
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@4"]);
    assert!(said.contains("partitions"), "{said}");
    case.shed.ok(&["import", &text(&table), "--name", "plain", "--format", "raw"]);
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "plain"]);
    assert!(said.contains("another base"), "{said}");
    assert!(case.is_as_before());
}

#[test]
fn a_base_that_was_replaced_is_refused_with_its_name() {
    let case = Case::new();
    let disk = case.shed.root().join("bases/os/2/disk.qcow2");
    store::unseal(&disk);
    let bytes = fs::read(&disk).unwrap();
    fs::remove_file(&disk).unwrap();
    fs::write(&disk, bytes).unwrap();
    case.refused("base os@2 was changed since it was sealed");
    let store = Store::open(&case.shed.root()).unwrap();
    assert!(store.open_base(&base_ref("os")).is_err());
}

#[test]
fn a_killed_rebase_leaves_the_clone_as_before_or_as_after() {
    let case = Case::new();
    let bases = case.bases();
    let seed = common::rng::seed_from_environment().unwrap_or_else(common::rng::fresh_seed);
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let (mut before, mut after) = (0, 0);
    for _ in 0..30 {
        let mut child = case.shed.command(&["rebase", "web", "--onto", "os@2"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(120_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        if case.is_as_before() {
            before += 1;
        } else {
            assert!(case.is_merged(), "neither as before nor as after");
            after += 1;
            case.shed.ok(&["undo", "web"]);
        }
        case.shed.ok(&["check", "web"]);
    }
    println!("{before} as before, {after} as after");
    case.shed.ok(&["rebase", "web", "--onto", "os@2"]);
    assert!(case.is_merged());
    assert_eq!(fs::read_dir(case.shed.root().join("tmp")).unwrap().count(), 0);
    assert_eq!(case.bases(), bases);
}

#[test]
fn of_two_rebases_at_once_one_does_it() {
    let case = Case::new();
    for _ in 0..5 {
        let mut children: Vec<_> = (0..2)
            .map(|_| {
                let mut command = case.shed.command(&["rebase", "web", "--onto", "os@2"]);
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let ended: Vec<_> = children.drain(..).map(|child| child.wait_with_output().unwrap()).collect();
        let said: Vec<String> = ended
            .iter()
            .map(|output| {
                let both = [&output.stdout[..], &output.stderr[..]].concat();
                String::from_utf8(both).unwrap()
            })
            .collect();
        assert_eq!(said.iter().filter(|said| said.contains("undo with")).count(), 1, "{said:?}");
        // While it works, after it, or between the look at where the clone stands and its lock.
        let late = ["in use", "already", "was put on another base meanwhile; run it again"];
        assert!(said.iter().any(|said| late.iter().any(|late| said.contains(late))), "{said:?}");
        assert!(case.is_merged());
        assert_eq!(case.shed.json(&["checkpoints", "web"])["checkpoints"].as_array().unwrap().len() % 2, 1);
        case.shed.ok(&["undo", "web"]);
        assert!(case.is_as_before());
    }
}
