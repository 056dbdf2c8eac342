//! `mount` and `umount` as commands: background, foreground, signals, failures.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::must;
use common::{Shed, is_mounted, until};
use std::fs;
use std::process::Stdio;

#[test]
fn a_view_in_the_background_is_up_when_the_command_returns() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    assert!(is_mounted(&view.dir));
    assert!(view.clone_file("web").exists());
    let said = shed.fails(1, &["mount", view.dir.to_str().unwrap()]);
    assert!(said.contains("mounted view already"), "{said}");
    let run: Vec<_> = fs::read_dir(shed.root().join("run")).unwrap().collect();
    assert!(!run.is_empty(), "the server's process id can be found");
    let dir = view.dir.clone();
    view.unmount();
    assert!(!is_mounted(&dir));
    until("an ended server leaves no empty log", || {
        fs::read_dir(shed.root().join("run")).unwrap().count() == 0
    });
    shed.fails(1, &["umount", dir.to_str().unwrap()]);
}

#[test]
fn a_view_that_is_in_use_is_not_unmounted() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let file = fs::File::open(view.clone_file("web")).unwrap();
    let said = shed.fails(1, &["umount", view.dir.to_str().unwrap()]);
    assert!(said.contains("in use"), "{said}");
    assert!(view.clone_file("web").exists(), "the view goes on");
    drop(file);
    view.unmount();
}

#[test]
fn a_foreground_view_ends_at_a_signal_and_loses_nothing() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    for signal in ["-INT", "-TERM", "-HUP"] {
        let mut server = shed
            .command(&["mount", "--foreground", dir.to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until("the view is up", || is_mounted(&dir));
        let file = dir.join("clones/web.raw");
        must("dd", &["if=/dev/zero", &format!("of={}", file.display()), "bs=1M", "count=1", "conv=notrunc"]);
        must("kill", &[signal, &server.id().to_string()]);
        assert!(server.wait().unwrap().success(), "{signal}");
        assert!(!is_mounted(&dir));
        shed.ok(&["check", "web"]);
    }
    assert_eq!(shed.json(&["map", "web"])[0]["zero"], true);
}

#[test]
fn a_failed_start_says_why_and_leaves_nothing() {
    let shed = Shed::with_base();
    let file = shed.path("file");
    fs::write(&file, "x").unwrap();
    let said = shed.fails(1, &["mount", file.to_str().unwrap()]);
    assert!(said.contains("cannot mount at"), "{said}");
    let said = shed.fails(1, &["mount", shed.path("absent").to_str().unwrap()]);
    assert!(said.contains("cannot mount at"), "{said}");
    assert_eq!(fs::read_dir(shed.root().join("run")).unwrap().count(), 0);
}

#[test]
fn a_read_only_view_takes_no_writes() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    shed.ok(&["mount", "--read-only", "--threads", "2", dir.to_str().unwrap()]);
    let error = fs::File::options().write(true).open(dir.join("clones/web.raw")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    fs::File::open(dir.join("clones/web.raw")).unwrap();
    shed.ok(&["umount", dir.to_str().unwrap()]);
}
