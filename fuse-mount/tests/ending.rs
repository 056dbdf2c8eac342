//! Ways a mount ends: from inside, from outside, in use, with its server killed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::memory::{Memory, Op};
use common::{Server, TestView, code, options};
use fuse_mount::{Error, Options};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

fn run(program: &str, arguments: &[&str], dir: &Path) {
    let output = Command::new(program).args(arguments).arg(dir).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn unmount_ends_it_and_the_directory_is_free_again() {
    let mut view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    view.writable("clones/a.raw").write_all_at(b"x", 0).unwrap();
    view.mount.as_ref().unwrap().unmount().unwrap();
    assert!(!is_mounted(view.dir()) && fs::read_dir(view.dir()).unwrap().next().is_none());
    view.mount.as_ref().unwrap().unmount().unwrap();
    let again = fuse_mount::mount(view.memory.clone(), view.dir(), options()).unwrap();
    assert!(view.path("clones/a.raw").exists());
    view.mount = None;
    assert!(view.path("clones/a.raw").exists(), "an old mount leaves the new one alone");
    again.unmount().unwrap();
}

#[test]
fn a_mount_in_use_is_not_unmounted_and_goes_on() {
    let view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    let file = view.writable("clones/a.raw");
    for result in [view.mount.as_ref().unwrap().unmount(), fuse_mount::unmount(view.dir())] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        assert!(error.to_string().contains("in use by an open file"), "{error}");
    }
    file.write_all_at(b"x", 0).unwrap();
    drop(file);
    view.mount.as_ref().unwrap().unmount().unwrap();
}

#[test]
fn unmount_waits_for_those_who_are_just_leaving() {
    for from_inside in [false, true] {
        let view = TestView::new();
        view.memory.add("clones/a.raw", 4096);
        let file = view.writable("clones/a.raw");
        let leaving = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(file);
        });
        match from_inside {
            true => view.mount.as_ref().unwrap().unmount().unwrap(),
            false => fuse_mount::unmount(view.dir()).unwrap(),
        }
        leaving.join().unwrap();
    }
}

#[test]
fn wait_returns_after_umount_from_outside_with_everything_flushed_and_dropped() {
    let ways: [(&str, &[&str]); 3] = [("umount", &[]), ("fusermount3", &["-u"]), ("umount", &["-l"])];
    for (program, arguments) in ways {
        let mut view = TestView::new();
        let disk = view.memory.add("clones/a.raw", 4096);
        let log = disk.log();
        let files = [view.writable("clones/a.raw"), view.writable("clones/a.raw")];
        files[0].write_all_at(b"x", 0).unwrap();
        drop(files);
        run(program, arguments, view.dir());
        view.mount.take().unwrap().wait().unwrap();
        let log = log.lock().unwrap();
        let count = |wanted| log.iter().filter(|op| **op == wanted).count();
        assert!(count(Op::Drop) == 2 && count(Op::Close) >= 2, "{program}: {log:?}");
    }
}

#[test]
fn a_hidden_mount_is_found_by_nobody_and_ends_with_the_last_open_file() {
    let mut view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    let file = view.writable("clones/a.raw");
    view.mount.as_ref().unwrap().hide().unwrap();
    assert!(!is_mounted(view.dir()) && fs::read_dir(view.dir()).unwrap().next().is_none());
    file.write_all_at(b"hidden", 7).unwrap();
    // Another process that was given the file sees it, too.
    let mut child = Command::new("od");
    let output = child.args(["-c", "/proc/self/fd/0"]).stdin(file.try_clone().unwrap()).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("h   i   d   d   e   n"));
    drop((child, file));
    view.mount.take().unwrap().wait().unwrap();
}

#[test]
fn a_lazy_unmount_serves_open_files_until_they_are_closed() {
    let mut view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 4096);
    let file = view.writable("clones/a.raw");
    run("umount", &["-l"], view.dir());
    file.write_all_at(b"late", 0).unwrap();
    drop(file);
    view.mount.take().unwrap().wait().unwrap();
    assert_eq!(disk.get(0, 4), b"late");
}

#[test]
fn a_failed_flush_at_the_end_is_reported_with_the_file() {
    let mut view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 4096);
    let file = view.writable("clones/a.raw");
    disk.probe(|op| match op {
        Op::Close => Err(std::io::Error::from_raw_os_error(libc::EIO)),
        _ => Ok(()),
    });
    // A cut connection leaves the file to the server.
    let control = tempfile::tempdir().unwrap();
    run("mount", &["-t", "fusectl", "none"], control.path());
    let minor =
        fs::metadata(view.dir()).map(|meta| std::os::unix::fs::MetadataExt::dev(&meta) & 0xff).unwrap();
    fs::write(control.path().join(minor.to_string()).join("abort"), "1").unwrap();
    run("umount", &[], control.path());
    let error = view.mount.take().unwrap().wait().unwrap_err();
    assert!(error.to_string().starts_with("clones/a.raw: the flush at unmount failed"), "{error}");
    assert!(!is_mounted(view.dir()), "no dead mount is left");
    assert!(file.sync_all().is_err());
}

#[test]
fn a_stopper_ends_it_from_another_thread() {
    let mut view = TestView::new();
    let stopper = view.mount.as_ref().unwrap().stopper();
    let thread = std::thread::spawn(move || stopper.stop());
    view.mount.take().unwrap().wait().unwrap();
    thread.join().unwrap().unwrap();
    assert!(!is_mounted(view.dir()));
}

#[test]
fn the_serving_threads_end_with_the_mount() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[], &[]);
    fuse_mount::unmount(dir.path()).unwrap();
    assert_eq!(server.lines.next().unwrap().unwrap(), "done");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_signal_handler_can_unmount() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[], &[]);
    let pid = nix::unistd::Pid::from_raw(server.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    assert!(!is_mounted(dir.path()));
}

#[test]
fn unmounting_another_process_waits_until_it_has_closed_its_disks() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[], &["1048576", "300"]);
    drop(File::options().write(true).open(dir.path().join("clones/disk.raw")).unwrap());
    fuse_mount::unmount(dir.path()).unwrap();
    let output = server.lines.get_ref().as_fd();
    let mut polled = [PollFd::new(output, PollFlags::POLLIN)];
    assert_eq!(
        poll(&mut polled, PollTimeout::ZERO),
        Ok(1),
        "its word that the disk is closed is there already"
    );
    let lines: Vec<String> = server.lines.by_ref().map(Result::unwrap).collect();
    assert_eq!(lines, ["dropped", "done"]);
}

#[test]
fn a_killed_server_leaves_a_mount_that_unmount_and_mount_take_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[], &[]);
    let file = File::open(dir.path().join("clones/disk.raw")).unwrap();
    server.kill();
    // Rings go a moment after their process; until then the kernel says other things.
    let gone = code(file.read_at(&mut [0], 0));
    assert!(matches!(gone, libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED), "{gone}");
    assert!(fs::read_dir(dir.path()).is_err());
    fuse_mount::unmount(dir.path()).unwrap();
    assert!(!is_mounted(dir.path()));
    let mut server = Server::start(dir.path(), &[], &[]);
    let file_of_second = File::open(dir.path().join("clones/disk.raw")).unwrap();
    server.kill();
    let mount = fuse_mount::mount(Memory::default(), dir.path(), options()).unwrap();
    assert!(dir.path().join("clones").is_dir());
    drop((file, file_of_second));
    mount.unmount().unwrap();
    assert!(!is_mounted(dir.path()));
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [dir.path(), &missing, &file] {
        let error = fuse_mount::unmount(path).unwrap_err();
        assert!(matches!(error, Error::NotMounted { .. }), "{error}");
    }
    for path in [&missing, &file] {
        let error = fuse_mount::mount(Memory::default(), path, options()).err().unwrap();
        assert!(matches!(error, Error::Directory { .. }), "{error}");
    }
    run("mount", &["-t", "tmpfs", "none"], dir.path());
    assert!(matches!(fuse_mount::unmount(dir.path()), Err(Error::NotMounted { .. })));
    assert!(is_mounted(dir.path()));
    run("umount", &[], dir.path());
}

#[test]
fn a_view_is_not_mounted_twice_at_one_place() {
    let view = TestView::new();
    let error = fuse_mount::mount(Memory::default(), view.dir(), options()).err().unwrap();
    assert!(matches!(error, Error::AlreadyMounted { .. }), "{error}");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bad =
        [Options { fs_name: "a,allow_other".to_owned(), ..options() }, Options { threads: 0, ..options() }];
    for options in bad {
        let error = fuse_mount::mount(Memory::default(), dir.path(), options).err().unwrap();
        assert!(matches!(error, Error::Option { .. }), "{error}");
    }
}

#[test]
fn a_path_with_spaces_and_links_works() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("a b\\c\n");
    fs::create_dir(&place).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&place, &link).unwrap();
    let mount = fuse_mount::mount(Memory::default(), &link, options()).unwrap();
    assert_eq!(mount.dir(), place.canonicalize().unwrap());
    assert!(place.join("bases").is_dir());
    fuse_mount::unmount(&link).unwrap();
    mount.wait().unwrap();
}
