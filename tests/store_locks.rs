//! We and QEMU keep each other out, on QEMU's own locks.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::ops::check::check_clone;
use cowshed::store::{Access, Target};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// A running `qemu-io` that has an image open.
struct QemuIo {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl QemuIo {
    fn open(args: &[&str], path: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(args)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        // It answers once the image is open, with its locks taken.
        stdin.write_all(b"length\n").unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("MiB"), "{line:?}");
        Self { child, stdin: Some(stdin) }
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}

fn busy<T: std::fmt::Debug>(result: cowshed::Result<T>, what: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(error.to_string().contains(what), "{error}");
}

#[test]
fn while_qemu_writes_a_clone_nobody_of_us_opens_or_changes_it() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let disk = temp.store.path(&Target::Clone(name("a"))).unwrap();
    let qemu = QemuIo::open(&["-f", "qcow2"], &disk);
    let store = &temp.store;
    busy(store.open_clone(&name("a"), Access::Write), "clone a is in use");
    busy(store.open_clone(&name("a"), Access::Read), "clone a is being written");
    busy(store.remove_clone(&name("a")), "clone a");
    busy(store.rename(&name("a"), &name("b")), "clone a");
    busy(store.checkpoint(&name("a"), None), "clone a");
    busy(check_clone(store, &name("a"), false), "clone a");
    busy(check_clone(store, &name("a"), true), "clone a");
    busy(store.scratch(&Target::Clone(name("a"))), "clone a");
    store.open_clone(&name("a"), Access::Inspect).unwrap();
    store.open_base(&base_ref("base")).unwrap();
    drop(qemu);
    store.open_clone(&name("a"), Access::Write).unwrap().close().unwrap();
}

#[test]
fn while_we_write_a_clone_qemu_is_kept_out() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let disk = temp.store.path(&Target::Clone(name("a"))).unwrap();
    let path = disk.to_str().unwrap();
    let open = temp.store.open_clone(&name("a"), Access::Write).unwrap();
    let tries: [(&str, &[&str]); 4] = [
        ("qemu-io", &["-f", "qcow2", "-c", "write 0 512", path]),
        ("qemu-io", &["-r", "-f", "qcow2", "-c", "read 0 512", path]),
        ("qemu-img", &["check", "-f", "qcow2", path]),
        ("qemu-img", &["info", path]),
    ];
    for (program, args) in tries {
        let output = run(program, args);
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains("lock"), "{program} {args:?}: {said}");
    }
    must("qemu-img", &["info", "-U", path]);
    open.close().unwrap();
    must("qemu-io", &["-f", "qcow2", "-c", "write 0 512", path]);
}

#[test]
fn readers_share_and_keep_writers_out() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let disk = temp.store.path(&Target::Clone(name("a"))).unwrap();
    let path = disk.to_str().unwrap();
    let ours = temp.store.open_clone(&name("a"), Access::Read).unwrap();
    let qemu = QemuIo::open(&["-r", "-f", "qcow2"], &disk);
    let more = temp.store.open_clone(&name("a"), Access::Read).unwrap();
    busy(temp.store.open_clone(&name("a"), Access::Write), "clone a is in use");
    let output = run("qemu-io", &["-f", "qcow2", "-c", "write 0 512", path]);
    assert!(!output.status.success(), "a writer beside a reader");
    drop((ours, more));
    busy(temp.store.open_clone(&name("a"), Access::Write), "clone a is in use");
    drop(qemu);
    temp.store.open_clone(&name("a"), Access::Write).unwrap().close().unwrap();
}

#[test]
fn a_second_writer_in_the_same_process_is_refused() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a", "b"]);
    let first = temp.store.open_clone(&name("a"), Access::Write).unwrap();
    busy(temp.store.open_clone(&name("a"), Access::Write), "clone a");
    // Another clone of the same base is nobody's business.
    temp.store.open_clone(&name("b"), Access::Write).unwrap().close().unwrap();
    drop(first);
    temp.store.open_clone(&name("a"), Access::Write).unwrap().close().unwrap();
}

#[test]
fn of_many_that_want_to_write_at_once_one_at_a_time_does() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let inside = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut done = 0;
                while done < 3 {
                    match temp.store.open_clone(&name("a"), Access::Write) {
                        Err(error) => assert_eq!(error.kind(), Kind::Busy, "{error}"),
                        Ok(open) => {
                            assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                            open.close().unwrap();
                            done += 1;
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn a_base_that_qemu_reads_is_not_removed() {
    let (temp, _) = TempStore::with_base(1 << 20);
    let qemu = QemuIo::open(&["-r", "-f", "raw"], &temp.base_disk());
    busy(temp.store.remove_base(&base_ref("base")), "base base@1 is in use");
    busy(temp.store.rename(&name("base"), &name("other")), "base base");
    drop(qemu);
    temp.store.remove_base(&base_ref("base")).unwrap();
}

#[test]
fn while_a_clone_is_open_its_base_is_locked_against_qemu_writers() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let base = temp.base_disk();
    let path = base.to_str().unwrap();
    for access in [Access::Read, Access::Write] {
        let open = temp.store.open_clone(&name("a"), access).unwrap();
        unseal(&base);
        let output = run("qemu-io", &["-f", "raw", "-c", "write 0 512", path]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("lock"), "{said}");
        open.close().unwrap();
        cowshed::ops::verify::reseal(&temp.store, &base_ref("base"), &cowshed::ops::Silent).unwrap();
    }
}

#[test]
fn a_source_that_qemu_writes_is_not_imported() {
    let temp = TempStore::new();
    let source = temp.dir.path().join("source.qcow2");
    let path = source.to_str().unwrap();
    must("qemu-img", &["create", "-q", "-f", "qcow2", path, "4M"]);
    let import =
        || cowshed::ops::import::import(&temp.store, &request(&source, "x", None), &cowshed::ops::Silent);
    let qemu = QemuIo::open(&["-f", "qcow2"], &source);
    busy(import(), "source.qcow2 is being written");
    drop(qemu);
    import().unwrap();
}
