//! One broken thing in a store keeps nothing else from being listed, checked, verified or removed.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::{Scrap, unseal};
use common::{Shed, one_line};
use serde_json::Value;
use std::fs;

fn json(shed: &Shed, arguments: &[&str]) -> Value {
    let output = shed.output(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_broken_clone_is_named_and_the_rest_is_told() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "a", "b", "c"]);
    fs::write(shed.root().join("clones/a/clone.json"), "{").unwrap();
    fs::remove_file(shed.root().join("clones/c/clone.json")).unwrap();
    for command in ["list", "tree"] {
        let output = shed.output(&[command]);
        let (out, said) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(1));
        assert!(out.contains("deb") && out.contains("b "), "{out}");
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains("cowshed rm a") && said.contains("cowshed rm c"), "{said}");
        let names: Vec<_> = json(&shed, &[command])["broken"].as_array().unwrap().clone();
        assert_eq!((names[0]["name"].as_str(), names[1]["name"].as_str()), (Some("a"), Some("c")));
    }
    let checked = json(&shed, &["check", "--all"]);
    assert_eq!(checked.as_array().unwrap().len(), 3);
    // What may stand on a base is not guessed.
    assert!(shed.fails(1, &["rm", "deb"]).contains("cowshed rm a"));
    shed.ok(&["rm", "a", "--plan"]);
    shed.ok(&["rm", "a", "c"]);
    assert_eq!(shed.json(&["list"])["clones"].as_array().unwrap().len(), 1);
}

#[test]
fn a_broken_base_is_named_and_can_be_removed() {
    let shed = Shed::with_base();
    let image = shed.image("other.raw");
    shed.ok(&["import", image.to_str().unwrap(), "--name", "zeb"]);
    fs::write(shed.root().join("bases/deb/1/base.json"), "{").unwrap();
    let output = shed.output(&["verify", "--all"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "zeb@1: intact\n");
    assert!(one_line(&output, 1, &["verify"]).contains("deb@1: cannot be verified"));
    assert!(shed.fails(1, &["verify", "deb"]).contains("deb@1: cannot be verified"));
    assert_eq!(json(&shed, &["list"])["broken"][0]["name"], "deb@1");
    shed.ok(&["rm", "deb"]);
    assert_eq!(shed.json(&["list"])["bases"].as_array().unwrap().len(), 1);
}

#[test]
fn a_base_that_cannot_be_read_does_not_hide_the_reports_of_others() {
    let shed = Shed::with_base();
    let image = shed.image("other.raw");
    shed.ok(&["import", image.to_str().unwrap(), "--name", "abc"]);
    let disk = shed.root().join("bases/abc/1/disk.raw");
    unseal(&disk);
    fs::remove_file(disk).unwrap();
    let output = shed.output(&["verify", "--all"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deb@1: intact\n");
    assert!(one_line(&output, 1, &["verify"]).contains("abc@1: cannot be verified"));
}

#[test]
fn an_export_never_replaces_a_file_of_the_store() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "a"]);
    let before = fs::read(shed.delta("a")).unwrap();
    let outside = Scrap::new();
    let link = outside.path().join("link");
    std::os::unix::fs::symlink(shed.root().join("clones/a"), &link).unwrap();
    for out in [shed.delta("a"), link.join("disk.qcow2")] {
        let said = shed.fails(1, &["export", "a", out.to_str().unwrap(), "--force"]);
        assert!(said.contains("inside the store"), "{said}");
    }
    assert!(fs::read(shed.delta("a")).unwrap() == before);
}

#[test]
fn a_plan_counts_what_the_removal_frees() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "a"]);
    shed.ok(&["checkpoint", "a"]);
    shed.ok(&["checkpoint", "a"]);
    shed.ok(&["restore", "a", "1", "--discard"]);
    for arguments in [&["rm", "a", "--checkpoint", "2"][..], &["rm", "deb", "a"]] {
        let plan = shed.json(&[arguments, &["--plan"]].concat());
        assert!(plan.as_array().unwrap().iter().all(|one| one["freed_bytes"].as_u64() > Some(0)), "{plan}");
        assert_eq!(plan, shed.json(arguments));
    }
}

#[test]
fn what_was_removed_before_a_busy_one_is_told() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "a", "b"]);
    let file = fs::File::open(shed.delta("b")).unwrap();
    let held = cowshed::storage::ImageLock::take(&file, cowshed::storage::Role::Reader).unwrap();
    let output = shed.output(&["rm", "a", "b"]);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("removed a, freed"));
    assert!(one_line(&output, 1, &["rm"]).contains("clone b is in use"));
    drop(held);
}
