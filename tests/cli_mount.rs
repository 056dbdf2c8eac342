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
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
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

#[test]
fn a_view_never_covers_its_own_store_nor_lies_in_it() {
    let shed = Shed::with_base();
    for dir in [shed.root(), shed.root().join("tmp"), shed.dir.path().to_owned()] {
        for foreground in [&[][..], &["--foreground"]] {
            let said = shed.fails(1, &[&["mount", dir.to_str().unwrap()], foreground].concat());
            assert!(said.contains("inside each other"), "{said}");
            assert!(!is_mounted(&dir));
        }
    }
}

#[test]
fn a_view_needs_no_place_for_its_log_and_holds_nothing_of_its_caller() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    fs::write(shed.root().join("run"), "no folder").unwrap();
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    let lock = shed.path("lock");
    let script = format!(
        "exec 9>{lock}; flock 9; {program} --store {store} mount {dir}",
        lock = lock.display(),
        program = env!("CARGO_BIN_EXE_cowshed"),
        store = shed.root().display(),
        dir = dir.display()
    );
    must("bash", &["-c", &script]);
    assert!(is_mounted(&dir));
    // The caller's lock went with the caller.
    must("flock", &["--nonblock", lock.to_str().unwrap(), "true"]);
    shed.ok(&["umount", dir.to_str().unwrap()]);
}

#[test]
fn a_check_of_all_passes_over_a_clone_in_use() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "idle", "used"]);
    let view = shed.mount();
    let file = fs::File::options().write(true).open(view.clone_file("used")).unwrap();
    let said = shed.ok(&["check", "--all"]);
    assert!(said.contains("used: in use, not checked") && said.contains("idle: no errors"), "{said}");
    shed.fails(1, &["check", "used"]);
    drop(file);
    view.unmount();
}

#[test]
fn a_transport_that_the_kernel_lacks_is_refused_with_what_to_do() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    let mount = ["mount", dir.to_str().unwrap(), "--transport"];
    let switch = fs::read_to_string("/sys/module/fuse/parameters/enable_uring");
    if switch.is_ok_and(|value| value.trim() == "Y") {
        shed.ok(&[&mount[..], &["uring"]].concat());
        assert!(dir.join("clones/web.raw").exists());
        shed.ok(&["umount", dir.to_str().unwrap()]);
    } else {
        for foreground in [&[][..], &["--foreground"]] {
            let said = shed.fails(1, &[&mount[..], &["uring"], foreground].concat());
            assert!(said.contains("io_uring") && said.contains("--transport dev"), "{said}");
            assert!(!is_mounted(&dir));
        }
    }
    for transport in ["dev", "auto"] {
        shed.ok(&[&mount[..], &[transport]].concat());
        assert!(dir.join("clones/web.raw").exists());
        shed.ok(&["umount", dir.to_str().unwrap()]);
    }
    let said = shed.fails(2, &[&mount[..], &["pigeon"]].concat());
    assert!(said.contains("pigeon"), "{said}");
}
