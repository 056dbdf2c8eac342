//! The life of clones by the commands: made, listed, frozen, put back, renamed, exported, removed.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::{file_digest, must, qemu_check};
use common::{DISK, Shed, noise};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;

/// Writes `len` bytes of pattern `byte` at `at` as QEMU would.
fn qemu_writes(shed: &Shed, clone: &str, byte: u8, at: &str, len: &str) {
    let delta = shed.delta(clone);
    let write = format!("write -P {byte} {at} {len}");
    must("qemu-io", &["-f", "qcow2", "-c", &write, delta.to_str().unwrap()]);
}

fn qemu_reads(shed: &Shed, clone: &str, byte: u8, at: &str, len: &str) {
    let delta = shed.delta(clone);
    let read = format!("read -P {byte} {at} {len}");
    let said = must("qemu-io", &["-r", "-f", "qcow2", "-c", &read, delta.to_str().unwrap()]);
    assert!(!said.contains("failed"), "{said}");
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[test]
fn clones_are_made_by_name_and_by_count_all_or_none() {
    let shed = Shed::with_base();
    assert_eq!(shed.ok(&["clone", "deb", "a", "b"]), "2 clones of deb@1: a, b\n");
    assert_eq!(shed.ok(&["clone", "deb@1", "web", "--count", "12"]), "12 clones of deb@1: web-1 to web-12\n");
    let said = shed.fails(1, &["clone", "deb", "c", "a", "d"]);
    assert!(said.contains("clone a") || said.contains("\"a\"") || said.contains(" a "), "{said}");
    let said = shed.fails(2, &["clone", "deb", "x", "y", "--count", "2"]);
    assert!(said.contains("--count"), "{said}");
    shed.fails(1, &["clone", "deb", "deb"]);
    let list = shed.json(&["list"]);
    assert_eq!(list["clones"].as_array().unwrap().len(), 14);
    assert!(!names(&list["clones"]).contains(&"c"));
    for name in ["a", "web-12"] {
        qemu_check(&shed.delta(name));
        let delta = shed.delta(name);
        must("qemu-img", &["compare", delta.to_str().unwrap(), shed.base_disk().to_str().unwrap()]);
    }
}

#[test]
fn compat_clones_have_plain_tables_and_labels_stay() {
    let shed = Shed::with_base();
    let made = shed.json(&["clone", "deb", "old", "--compat", "--label", "owner=me", "--label", "for=a=b"]);
    assert_eq!(made[0]["labels"], serde_json::json!({"owner": "me", "for": "a=b"}));
    let delta = shed.delta("old");
    let info = must("qemu-img", &["info", "--output=json", delta.to_str().unwrap()]);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["format-specific"]["data"]["extended-l2"], false);
    assert!(shed.ok(&["info", "old"]).contains("owner=me"));
}

#[test]
fn what_is_listed_as_json_is_in_bytes_and_what_is_for_people_in_units() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    qemu_writes(&shed, "web", 7, "1M", "1M");
    let list = shed.json(&["list"]);
    let (base, clone) = (&list["bases"][0], &list["clones"][0]);
    assert_eq!(
        (base["name"].as_str(), base["version"].as_u64(), base["size"].as_u64()),
        (Some("deb"), Some(1), Some(DISK as u64))
    );
    assert!(clone["own_bytes"].as_u64().unwrap() >= 1 << 20);
    assert_eq!(clone["versions_behind"], 0);
    assert_eq!(clone["shared_bytes"].as_u64(), Some(blocks(&shed.base_disk())));

    let table = shed.ok(&["list"]);
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("NAME"));
    assert!(lines.next().unwrap().contains("32.0 MiB"), "{table}");
    assert!(lines.next().unwrap().starts_with("web"), "{table}");

    let tree = shed.json(&["tree"]);
    assert_eq!(tree["bases"][0]["versions"][0]["clones"][0]["name"], "web");
    assert!(shed.ok(&["tree"]).contains("└─ web"), "{tree}");
}

fn blocks(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn info_tells_what_a_clone_and_a_base_cost() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    qemu_writes(&shed, "web", 7, "1M", "1M");
    let info = shed.json(&["info", "web"]);
    assert_eq!((info["kind"].as_str(), info["virtual_size"].as_u64()), (Some("clone"), Some(DISK as u64)));
    assert_eq!(info["allocated_bytes"].as_u64(), Some(1 << 20));
    assert_eq!(info["base"]["name"], "deb");
    assert_eq!(info["refused"], Value::Null);
    assert_eq!(info["freed_if_deleted"], info["own_bytes"]);
    let base = shed.json(&["info", "deb"]);
    assert_eq!((base["kind"].as_str(), base["freed_if_deleted"].as_u64()), (Some("base"), Some(0)));
    assert_eq!(base["clones"], serde_json::json!(["web"]));
    let text = shed.ok(&["info", "web"]);
    for line in [
        "virtual size:",
        "own bytes:",
        "shared bytes:",
        "freed if deleted:",
        "3.1 % of the disk",
        "deb@1, its newest",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_changed_base_is_refused_by_name_and_still_reported() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    common::store::unseal(&shed.base_disk());
    must("chmod", &["644", shed.base_disk().to_str().unwrap()]);
    let file = fs::File::options().write(true).open(shed.base_disk()).unwrap();
    file.write_all_at(&[0xff; 100], 3 << 20).unwrap();

    let said = shed.fails(1, &["export", "web", shed.path("out.qcow2").to_str().unwrap()]);
    assert!(said.contains("deb@1"), "{said}");
    let info = shed.json(&["info", "web"]);
    assert!(info["refused"].as_str().unwrap().contains("deb@1"), "{info}");
    assert_eq!(info["virtual_size"].as_u64(), Some(DISK as u64));
    let output = shed.output(&["check", "web", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report[0]["refused"].as_str().unwrap().contains("deb@1"), "{report}");

    let output = shed.output(&["verify", "deb", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report[0]["damaged"], serde_json::json!([{"start": 3 << 20, "length": 65536}]));
    let text = String::from_utf8(shed.output(&["verify", "--all"]).stdout).unwrap();
    assert!(text.contains("DAMAGED") && text.contains("3145728"), "{text}");
    shed.fails(1, &["verify", "deb", "--reseal"]);
}

#[test]
fn a_base_that_was_only_touched_is_accepted_again_on_request() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    common::store::unseal(&shed.base_disk());
    must("touch", &[shed.base_disk().to_str().unwrap()]);
    shed.fails(1, &["export", "web", shed.path("a").to_str().unwrap()]);
    assert_eq!(shed.output(&["verify", "deb"]).status.code(), Some(1));
    assert!(shed.ok(&["verify", "deb", "--reseal"]).contains("intact"));
    shed.ok(&["export", "web", shed.path("b").to_str().unwrap()]);
}

#[test]
fn the_map_says_what_qemu_says() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    qemu_writes(&shed, "web", 7, "5M", "256k");
    let delta = shed.delta("web");
    let qemu = must("qemu-img", &["map", "-f", "qcow2", "--output=json", delta.to_str().unwrap()]);
    let qemu: Vec<Value> = serde_json::from_str(&qemu).unwrap();
    let ours = shed.json(&["map", "web"]);
    let ours = ours.as_array().unwrap();
    for field in ["start", "length", "depth", "present", "zero", "data", "compressed", "offset"] {
        assert!(ours.iter().all(|extent| !extent[field].is_null() || field == "offset"), "{field}");
    }
    // The same answer for each 64 KiB, however the runs are cut.
    let at = |extents: &[Value], byte: u64| -> (bool, bool) {
        let start = |extent: &&Value| extent["start"].as_u64().unwrap();
        let hit = |e: &&Value| start(e) <= byte && byte < start(e) + e["length"].as_u64().unwrap();
        let extent = extents.iter().find(hit).unwrap();
        (extent["data"].as_bool().unwrap(), extent["zero"].as_bool().unwrap())
    };
    for byte in (0..DISK as u64).step_by(65536) {
        assert_eq!(at(ours, byte), at(&qemu, byte), "byte {byte}");
    }
    let text = shed.ok(&["map", "web"]);
    assert!(text.starts_with("           START") && text.contains("layer 0: "), "{text}");
}

#[test]
fn a_checkpoint_is_gone_back_to_and_the_way_back_is_kept() {
    let shed = Shed::with_base();
    let base = file_digest(&shed.base_disk());
    shed.ok(&["clone", "deb", "web"]);
    qemu_writes(&shed, "web", 1, "4M", "64k");
    assert_eq!(shed.ok(&["checkpoint", "web", "--note", "before the update"]), "checkpoint 1 of web\n");
    qemu_writes(&shed, "web", 2, "4M", "64k");

    let plan = shed.ok(&["restore", "web", "1", "--plan"]);
    assert!(plan.contains("kept as a new checkpoint"), "{plan}");
    qemu_reads(&shed, "web", 2, "4M", "64k");
    let done = shed.ok(&["restore", "web", "1"]);
    assert_eq!(done, "web is back at checkpoint 1; undo with: cowshed restore web 2\n");
    qemu_reads(&shed, "web", 1, "4M", "64k");
    shed.ok(&["restore", "web", "2", "--discard"]);
    qemu_reads(&shed, "web", 2, "4M", "64k");

    let list = shed.json(&["checkpoints", "web"]);
    assert_eq!(list["checkpoints"][0]["note"], "before the update");
    assert_eq!(list["current"], 2);
    assert!(shed.ok(&["checkpoints", "web"]).contains("before the update"));
    let said = shed.fails(1, &["restore", "web", "9"]);
    assert!(said.contains("no checkpoint 9"), "{said}");
    shed.fails(1, &["rm", "web", "--checkpoint", "9"]);
    let removed = shed.ok(&["rm", "web", "--checkpoint", "2"]);
    assert!(removed.starts_with("removed checkpoint 2 of web, freed"), "{removed}");
    qemu_reads(&shed, "web", 2, "4M", "64k");
    assert_eq!(shed.json(&["checkpoints", "web"])["current"], 1);
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn a_base_with_clones_stays_and_the_message_says_which() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "a", "b"]);
    let said = shed.fails(1, &["rm", "deb"]);
    assert!(said.contains("needed by a, b"), "{said}");
    let said = shed.fails(1, &["rm", "deb", "a"]);
    assert!(said.contains("needed by b"), "{said}");
    assert_eq!(shed.json(&["list"])["clones"].as_array().unwrap().len(), 2, "nothing is removed then");
    shed.fails(1, &["rename", "deb", "other"]);

    let plan = shed.json(&["rm", "a", "deb", "b", "--dry-run"]);
    let plan: Vec<_> = plan.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect();
    assert_eq!(plan, ["a", "b", "deb@1"]);
    assert!(shed.base_disk().exists());
    assert!(shed.ok(&["rm", "deb", "b", "a", "a"]).starts_with("removed a, b, deb@1, freed"));
    let list = shed.json(&["list"]);
    assert_eq!((list["bases"].as_array().unwrap().len(), list["clones"].as_array().unwrap().len()), (0, 0));
}

#[test]
fn what_somebody_has_open_is_neither_removed_nor_repaired_nor_frozen() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(shed.delta("web"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = qemu.stdin.take().unwrap();
    writeln!(stdin, "read 0 512").unwrap();
    let mut line = String::new();
    BufReader::new(qemu.stdout.take().unwrap()).read_line(&mut line).unwrap();
    for arguments in [
        &["rm", "web"][..],
        &["check", "web", "--repair"],
        &["checkpoint", "web"],
        &["rename", "web", "x"],
        &["export", "web", "/dev/null/x"],
    ] {
        let said = shed.fails(1, arguments);
        assert!(said.contains("web"), "{said}");
    }
    drop(stdin);
    qemu.wait().unwrap();
    shed.ok(&["rename", "web", "x"]);
    shed.ok(&["rm", "x"]);
}

#[test]
fn an_exported_clone_holds_the_same_disk_alone() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    qemu_writes(&shed, "web", 9, "7M", "100k");
    let delta = shed.delta("web");
    for format in ["raw", "qcow2"] {
        let out = shed.path(&format!("out.{format}"));
        let out = out.to_str().unwrap();
        assert_eq!(shed.ok(&["export", "web", out, "--format", format]), "");
        must("qemu-img", &["compare", "-f", format, "-F", "qcow2", out, delta.to_str().unwrap()]);
        let info = must("qemu-img", &["info", "-f", format, out]);
        assert!(!info.contains("backing file"), "{info}");
        let said = shed.fails(1, &["export", "web", out, "--format", format]);
        assert!(said.contains("out."), "{said}");
        shed.ok(&["export", "deb@1", out, "--format", format, "--force"]);
        must("qemu-img", &["compare", "-f", format, "-F", "raw", out, shed.base_disk().to_str().unwrap()]);
    }
}

#[test]
fn the_path_is_the_file_that_qemu_opens() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    assert_eq!(shed.ok(&["path", "web"]), format!("{}\n", shed.delta("web").display()));
    assert_eq!(shed.ok(&["path", "deb"]), format!("{}\n", shed.base_disk().display()));
}

#[test]
fn damage_in_a_delta_is_found_and_leaks_are_given_back() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web", "ok"]);
    qemu_writes(&shed, "web", 3, "1M", "1M");
    assert!(shed.ok(&["check", "--all"]).contains("ok: no errors"));
    // A cluster behind the end that is counted as used and belongs to nothing.
    let delta = fs::File::options().read(true).write(true).open(shed.delta("web")).unwrap();
    let field = |at| {
        let mut bytes = [0; 8];
        delta.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let cluster = 1 << 17;
    let block = field(field(48));
    let end = delta.metadata().unwrap().len().div_ceil(cluster);
    delta.write_all_at(&noise(1, 1), end * cluster + cluster - 1).unwrap();
    delta.write_all_at(&1_u16.to_be_bytes(), block + end * 2).unwrap();
    let output = shed.output(&["check", "web", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report[0]["errors"].as_u64(), report[0]["leaks"].as_u64()), (Some(0), Some(1)));
    shed.ok(&["check", "web", "--repair"]);
    assert_eq!(shed.output(&["check", "--all"]).status.code(), Some(0));
    qemu_reads(&shed, "web", 3, "1M", "1M");

    // The header's L1 entry now points outside of the file.
    let l1 = field(40);
    delta.write_all_at(&(1_u64 << 63 | 1 << 40).to_be_bytes(), l1).unwrap();
    let output = shed.output(&["check", "--all"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("ok: no errors") && text.contains("web: "), "{text}");
}

#[test]
fn a_thousand_clones_are_made_and_listed() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web", "--count", "1000"]);
    let list = shed.json(&["list"]);
    assert_eq!(list["clones"].as_array().unwrap().len(), 1000);
    assert!(
        list["clones"]
            .as_array()
            .unwrap()
            .iter()
            .all(|clone| clone["own_bytes"].as_u64().unwrap() <= 200 << 10)
    );
    assert_eq!(shed.ok(&["tree"]).lines().count(), 1002);
}

#[test]
fn a_base_taken_for_a_clone_and_the_other_way_round_is_told_which_command_is_meant() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    for command in ["checkpoint", "checkpoints", "check"] {
        let said = shed.fails(1, &[command, "deb"]);
        assert!(said.contains("deb is a base, not a clone; `cowshed clone deb NAME`"), "{said}");
    }
    for arguments in [&["verify", "web"][..], &["clone", "web", "x"]] {
        let said = shed.fails(1, arguments);
        assert!(said.contains("web is a clone, not a base; `cowshed check web`"), "{said}");
    }
}

#[test]
fn an_export_into_a_folder_that_is_missing_names_that_folder_and_nothing_else() {
    let shed = Shed::with_base();
    let out = shed.path("nodir/x");
    let said = shed.fails(1, &["export", "deb", out.to_str().unwrap()]);
    let folder = shed.path("nodir");
    let expected = format!(
        "cowshed: cannot make a file in {}: No such file or directory (os error 2)",
        folder.display()
    );
    assert_eq!(said, expected);
}
