//! Who may write through the view, and what a killed server leaves.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::{file_digest, must, qemu_check, run};
use common::{Shed, is_mounted, noise, until};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

fn read_write(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Whether another process may open `path` for writing.
fn another_may_write(path: &Path) -> bool {
    let script = format!("exec 3<>'{}'", path.display());
    let output = run("bash", &["-c", &script]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || said.contains("Device or resource busy"), "{said}");
    output.status.success()
}

/// `qemu-io` that has the delta open until its input ends.
fn qemu(delta: &Path, arguments: &[&str]) -> (Child, ChildStdin) {
    let mut child = Command::new("qemu-io")
        .args(arguments)
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
    (child, stdin)
}

#[test]
fn one_process_writes_a_clone_whole_disk_and_partitions_together() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web", "db"]);
    let view = shed.mount();
    let (whole, part) = (view.clone_file("web"), view.clone_file("web.p1"));
    let first = read_write(&whole);
    assert!(!another_may_write(&whole) && !another_may_write(&part));
    assert!(another_may_write(&view.clone_file("db")), "another clone is another matter");
    must("head", &["-c", "4096", whole.to_str().unwrap()]);
    // The process that has it may open it again, also in another thread.
    let again = std::thread::scope(|scope| scope.spawn(|| read_write(&part)).join().unwrap());
    drop(first);
    assert!(!another_may_write(&whole), "one of its files is still open");
    drop(again);
    assert!(another_may_write(&whole), "a writer that closed is gone at once");
}

#[test]
fn readers_see_what_a_later_writer_writes_and_stay_when_it_goes() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let path = view.clone_file("web");
    let reader = {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap()
    };
    let mut memory = vec![0; 12288];
    let skip = memory.as_ptr().align_offset(4096);
    let page = &mut memory[skip..skip + 4096];
    reader.read_exact_at(page, 0).unwrap();
    for seed in 1..4 {
        let writer = read_write(&path);
        writer.write_all_at(&noise(4096, seed), 0).unwrap();
        reader.read_exact_at(page, 0).unwrap();
        assert!(*page == noise(4096, seed)[..]);
        drop(writer);
        reader.read_exact_at(page, 0).unwrap();
        assert!(*page == noise(4096, seed)[..], "also when the writer is gone");
    }
    drop(reader);
    view.unmount();
    qemu_check(&shed.delta("web"));
}

#[test]
fn qemu_and_the_view_keep_each_other_out() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let (path, delta) = (view.clone_file("web"), shed.delta("web"));
    let (mut child, stdin) = qemu(&delta, &[]);
    assert!(!another_may_write(&path));
    assert_eq!(
        File::open(&path).unwrap_err().raw_os_error(),
        Some(libc::EBUSY),
        "a reader would see it torn"
    );
    assert!(view.names("clones").contains(&"web.raw".to_owned()));
    drop(stdin);
    assert!(child.wait().unwrap().success());

    let writer = read_write(&path);
    let output = run("qemu-io", &["-f", "qcow2", "-c", "read 0 512", delta.to_str().unwrap()]);
    assert!(!output.status.success(), "QEMU must not get a disk that is written through the view");
    for arguments in [&["rm", "web"][..], &["checkpoint", "web"], &["check", "web", "--repair"]] {
        shed.fails(1, arguments);
    }
    drop(writer);
    until("the locks are let go", || {
        run("qemu-io", &["-f", "qcow2", "-c", "write 0 512", delta.to_str().unwrap()]).status.success()
    });
    // Readers share it with QEMU's readers.
    let (mut child, stdin) = qemu(&delta, &["-r"]);
    File::open(&path).unwrap();
    drop(stdin);
    child.wait().unwrap();
}

#[test]
fn a_killed_server_loses_nothing_that_was_flushed() {
    let shed = Shed::with_base();
    let base = file_digest(&shed.base_disk());
    shed.ok(&["clone", "deb", "web"]);
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    for round in 0..3_u64 {
        let mut server = shed.command(&["mount", "--foreground", dir.to_str().unwrap()]).spawn().unwrap();
        until("the view is up", || is_mounted(&dir) && dir.join("clones/web.raw").exists());
        let file = read_write(&dir.join("clones/web.raw"));
        let at = |piece: u64| (piece * 37 + round) % 240 * 131_072;
        for piece in 0..60 {
            file.write_all_at(&noise(70_000, round * 100 + piece), at(piece)).unwrap();
        }
        file.sync_all().unwrap();
        for piece in 60..90 {
            file.write_all_at(&noise(512, piece), at(piece) + 100_000).unwrap();
        }
        must("kill", &["-9", &server.id().to_string()]);
        server.wait().unwrap();
        let gone = file.sync_all().unwrap_err().raw_os_error().unwrap();
        assert!(matches!(gone, libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED), "{gone}");
        drop(file);
        shed.ok(&["umount", dir.to_str().unwrap()]);
        // Leaks at most, and those are given back.
        assert!(matches!(shed.output(&["check", "web"]).status.code(), Some(0 | 3)));
        shed.ok(&["check", "web", "--repair"]);
        qemu_check(&shed.delta("web"));
        let view = shed.mount();
        let file = File::open(view.clone_file("web")).unwrap();
        let mut seen = vec![0; 70_000];
        for piece in 0..60 {
            file.read_exact_at(&mut seen, at(piece)).unwrap();
            assert!(seen == noise(70_000, round * 100 + piece), "round {round} piece {piece}");
        }
        drop(file);
        view.unmount();
    }
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn idle_data_become_durable_without_anybody_asking() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let dir = shed.path("view");
    fs::create_dir(&dir).unwrap();
    let mut server = shed.command(&["mount", "--foreground", dir.to_str().unwrap()]).spawn().unwrap();
    until("the view is up", || is_mounted(&dir) && dir.join("clones/web.raw").exists());
    let file = read_write(&dir.join("clones/web.raw"));
    file.write_all_at(&noise(65536, 11), 4 << 20).unwrap();
    // What another reader of the delta sees is what a flush has published.
    let delta = shed.delta("web");
    until("the write is in the image", || {
        let map = must("qemu-img", &["map", "-U", "-f", "qcow2", "--output=json", delta.to_str().unwrap()]);
        map.contains("\"depth\": 0") && map.contains("\"length\": 65536")
    });
    must("kill", &["-9", &server.id().to_string()]);
    server.wait().unwrap();
    drop(file);
    shed.ok(&["umount", dir.to_str().unwrap()]);
    let view = shed.mount();
    let mut seen = vec![0; 65536];
    File::open(view.clone_file("web")).unwrap().read_exact_at(&mut seen, 4 << 20).unwrap();
    assert!(seen == noise(65536, 11));
}

/// Several threads of one process write at once, and read back what they wrote.
#[test]
fn fio_verifies_what_its_threads_wrote() {
    let shed = Shed::with_base();
    let base = file_digest(&shed.base_disk());
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let filename = format!("--filename={}", view.clone_file("web").display());
    for (name, options) in [
        ("buffered", &["--direct=0", "--ioengine=psync", "--bs=4k"][..]),
        ("direct", &["--direct=1", "--ioengine=libaio", "--iodepth=16", "--bssplit=4k/40:16k/30:64k/30"]),
        ("mixed", &["--direct=1", "--ioengine=libaio", "--iodepth=8", "--bs=8k", "--rwmixread=30"]),
    ] {
        let mut arguments =
            vec!["--name=verify", "--thread", "--numjobs=4", "--size=8M", "--offset_increment=8M"];
        arguments.extend([&filename, "--rw=randrw", "--rwmixread=30", "--verify=crc32c", "--do_verify=1"]);
        arguments.extend([
            "--verify_fatal=1",
            "--fallocate=none",
            "--randrepeat=1",
            "--fsync=64",
            "--verify_state_save=0",
        ]);
        arguments.extend(options);
        let said = must("fio", &arguments);
        assert!(!said.contains("verify: bad"), "{name}: {said}");
    }
    view.unmount();
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
}
