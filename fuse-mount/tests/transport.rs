//! The two ways by which requests come: which one is used, that both mean the same, and how each of them ends.
//!
//! Tests that need a kernel with FUSE over `io_uring` switched on are ignored by default: `tests/tools/uring.sh` runs them.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../tests/common/rings.rs"]
mod rings;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::memory::Memory;
use common::{Server, TestView, eventually, example, options};
use fuse_mount::{Options, Transport};
use rings::completions;

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Completions that the kernel has counted in the rings of a process, and how many rings it has.
fn rings(pid: u32) -> (u64, usize) {
    let counts = completions(pid);
    (counts.iter().sum(), counts.len())
}

fn server(transport: &str, dir: &Path, prefix: &[&str]) -> Server {
    let with = format!("COWSHED_TRANSPORT={transport}");
    Server::start(dir, &[&["env", with.as_str()], prefix].concat(), &["16777216"])
}

/// Reads the disk of a server that many times past all caches.
fn read_directly(dir: &Path, times: usize) {
    let mut direct = OpenOptions::new();
    let file = direct.read(true).custom_flags(libc::O_DIRECT).open(dir.join("clones/disk.raw")).unwrap();
    let mut buffer = vec![1u8; 8192];
    let skip = buffer.as_ptr().align_offset(4096);
    for at in 0..times as u64 {
        file.read_exact_at(&mut buffer[skip..skip + 4096], at % 4096 * 4096).unwrap();
    }
}

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

#[test]
fn io_uring_is_used_or_refused_with_what_to_do_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Options { transport: Transport::Uring, ..options() };
    let mounted = fuse_mount::mount(Memory::default(), dir.path(), asked);
    let said = mounted.as_ref().err().map(ToString::to_string);
    match fs::read_to_string(SWITCH) {
        Ok(value) if value.trim() == "Y" => {
            assert!(dir.path().join("clones").is_dir());
            mounted.unwrap().unmount().unwrap();
        }
        Ok(_) => assert!(said.unwrap().contains(&format!("(echo Y > {SWITCH})"))),
        Err(_) => assert!(said.unwrap().contains("Linux 6.14 or later")),
    }
    assert!(!is_mounted(dir.path()));
    let mount = fuse_mount::mount(Memory::default(), dir.path(), Options::default()).unwrap();
    assert!(dir.path().join("clones").is_dir(), "by default it is there in any case");
    mount.unmount().unwrap();
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn requests_come_over_rings_when_they_are_said_to_and_only_then() {
    for (transport, over_rings) in [("uring", true), ("auto", true), ("dev", false)] {
        let dir = tempfile::tempdir().unwrap();
        let server = server(transport, dir.path(), &[]);
        let (before, count) = rings(server.child.id());
        assert_eq!(count > 0, over_rings, "{transport}");
        read_directly(dir.path(), 300);
        let (after, _) = rings(server.child.id());
        assert_eq!(after - before >= 300, over_rings, "{transport}: {before} to {after}");
        fuse_mount::unmount(dir.path()).unwrap();
    }
}

/// Files with numbers below `limit` that programs inherit from this one, beside the standard three.
fn inherited(limit: usize) -> usize {
    let closes = |fd: &str| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("");
        i32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & libc::O_CLOEXEC != 0)
    };
    let names = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|fd| fd.parse::<usize>().is_ok_and(|fd| fd > 2 && fd < limit) && !closes(fd)).count()
}

/// Room for what serving over `/dev/fuse` opens, and for no ring more than that.
fn few_files() -> String {
    let threads = thread::available_parallelism().unwrap().get().clamp(4, 16);
    let files = threads + 5;
    format!("--nofile={0}:{0}", files + inherited(files))
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn where_rings_cannot_be_made_the_device_serves_unless_rings_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let few = few_files();
    let served = server("auto", dir.path(), &["prlimit", &few]);
    assert_eq!(rings(served.child.id()).1, 0);
    read_directly(dir.path(), 10);
    fuse_mount::unmount(dir.path()).unwrap();
    drop(served);
    let mut command = Command::new("prlimit");
    command.arg(&few).arg(example()).arg(dir.path()).env("COWSHED_TRANSPORT", "uring");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot be served over io_uring"), "{said}");
    assert!(said.contains("ulimit -n"), "{said}");
    assert!(!is_mounted(dir.path()));
}

/// From here on this thread, and those that it starts, can make no rings: a filter of system calls refuses it.
fn forbid_rings() {
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let step = |code: u32, otherwise: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: otherwise,
        k,
    };
    let mut steps = [
        // The number of the call is the first word of what is looked at.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, setup),
        step(libc::BPF_RET | libc::BPF_K, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    // SAFETY: the program and its steps outlive the call, which copies them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn where_rings_are_forbidden_the_device_serves_unless_rings_were_asked_for() {
    let thread = thread::spawn(|| {
        forbid_rings();
        let dir = tempfile::tempdir().unwrap();
        let asked = |transport| Options { transport, ..Options::default() };
        let refused =
            fuse_mount::mount(Memory::default(), dir.path(), asked(Transport::Uring)).err().unwrap();
        let said = refused.to_string();
        assert!(said.contains("io_uring is forbidden here") && said.contains("--transport dev"), "{said}");
        assert!(!is_mounted(dir.path()));
        let memory = Memory::default();
        memory.add("clones/disk.raw", 1 << 20);
        let mount = fuse_mount::mount(memory, dir.path(), asked(Transport::Auto)).unwrap();
        read_directly(dir.path(), 10);
        mount.unmount().unwrap();
    });
    thread.join().unwrap();
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn a_user_who_may_lock_no_memory_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", "--memlock=0:0"]);
    command.arg(example()).arg(dir.path()).env("COWSHED_TRANSPORT", "uring");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("ulimit -l"), "{said}");
    assert!(!is_mounted(dir.path()));
}

/// Users of a disk that go on until it fails; how many requests were answered, by user, and which errors ended them.
fn use_until_it_fails(dir: &Path, answered: &AtomicU64) -> Vec<i32> {
    let path = dir.join("clones/disk.raw");
    thread::scope(|scope| {
        let users: Vec<_> = (0..8u64)
            .map(|user| {
                let file = OpenOptions::new().read(true).write(user == 0).open(&path).unwrap();
                scope.spawn(move || {
                    let mut buffer = vec![1u8; 65536];
                    for at in 0.. {
                        let at = (at * 7 + user) % 128 * 65536;
                        let done = match user {
                            0 => file.write_at(&buffer, at).and_then(|_| file.sync_data()),
                            1..4 => fs::metadata(dir.join("clones")).and_then(|_| {
                                fs::read_dir(dir.join("clones"))?.try_for_each(|entry| entry.map(drop))
                            }),
                            _ => file.read_at(&mut buffer, at).map(drop),
                        };
                        match done {
                            Ok(()) => answered.fetch_add(1, Ordering::Relaxed),
                            Err(error) => return error.raw_os_error().unwrap(),
                        };
                    }
                    unreachable!()
                })
            })
            .collect();
        users.into_iter().map(|user| user.join().unwrap()).collect()
    })
}

/// Users 1 to 3 go by names, and may find the empty folder that was under the mount already.
fn say_gone(errors: &[i32]) {
    let gone = |(user, code): (usize, &i32)| match *code {
        libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED => true,
        libc::ENOENT => (1..4).contains(&user),
        _ => false,
    };
    assert!(errors.iter().enumerate().all(gone), "{errors:?}");
}

#[test]
fn a_server_that_is_killed_under_load_leaves_nobody_waiting() {
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start(dir.path(), &[], &["16777216"]);
        let answered = AtomicU64::new(0);
        let errors = thread::scope(|scope| {
            let users = scope.spawn(|| use_until_it_fails(dir.path(), &answered));
            eventually("load", || answered.load(Ordering::Relaxed) > 200);
            server.kill();
            users.join().unwrap()
        });
        say_gone(&errors);
        fuse_mount::unmount(dir.path()).unwrap();
        assert!(!is_mounted(dir.path()));
    }
}

#[test]
fn a_connection_that_is_cut_under_load_leaves_nobody_waiting_and_ends_the_server() {
    let control = tempfile::tempdir().unwrap();
    let done = Command::new("mount").args(["-t", "fusectl", "none"]).arg(control.path()).status().unwrap();
    assert!(done.success());
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start(dir.path(), &[], &["16777216"]);
        let minor = fs::metadata(dir.path()).unwrap().dev() & 0xff;
        let answered = AtomicU64::new(0);
        let errors = thread::scope(|scope| {
            let users = scope.spawn(|| use_until_it_fails(dir.path(), &answered));
            eventually("load", || answered.load(Ordering::Relaxed) > 200);
            fs::write(control.path().join(minor.to_string()).join("abort"), "1").unwrap();
            users.join().unwrap()
        });
        say_gone(&errors);
        assert_eq!(server.lines.next().unwrap().unwrap(), "done");
        assert!(server.child.wait().unwrap().success());
        assert!(!is_mounted(dir.path()));
    }
    assert!(Command::new("umount").arg(control.path()).status().unwrap().success());
}

/// The result of a call, or its error code.
fn outcome<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("error {:?}", error.raw_os_error()),
    }
}

fn call(result: impl Into<i64>) -> String {
    let result = result.into();
    outcome(if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) })
}

fn at(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// What one request after the other gives at `dir`, of every kind that the kernel makes.
fn answers(dir: &Path) -> Vec<(&'static str, String)> {
    let (disk, base) = (dir.join("clones/a.raw"), dir.join("bases/b@1.raw"));
    let open =
        |path: &Path, flags: i32| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let shown = |path: &Path| {
        outcome(fs::metadata(path).map(|m| (m.mode(), m.size(), m.blocks(), m.nlink(), m.uid(), m.blksize())))
    };
    let mut names: Vec<String> = ["", "clones", "bases"]
        .iter()
        .flat_map(|folder| fs::read_dir(dir.join(folder)).unwrap())
        .map(|entry| format!("{:?}", entry.unwrap().file_name()))
        .collect();
    names.sort();
    let file = open(&disk, 0).unwrap();
    let number = file.as_raw_fd();
    let mut buffer = vec![0; 3 << 20];
    let folder = File::open(dir.join("clones")).unwrap();
    let (path, name) = (at(&disk), c"user.x");
    let mut found = vec![
        ("names", names.join(" ")),
        ("root", shown(dir)),
        ("folder", shown(&dir.join("clones"))),
        ("clone", shown(&disk)),
        ("base", shown(&base)),
        ("absent", shown(&dir.join("clones/none"))),
        ("long name", shown(&dir.join("clones").join("x".repeat(256)))),
        ("below a file", shown(&disk.join("x"))),
        ("truncating", outcome(File::create(&disk).map(drop))),
        ("writing a base", outcome(open(&base, 0).map(drop))),
        ("opened again", outcome(open(&disk, libc::O_DIRECT).map(drop))),
        ("write", outcome(file.write_at(&[7; 70_000], 12345))),
        ("large write", outcome(file.write_at(&vec![9; 3 << 20], 1 << 20))),
        ("write over the end", outcome(file.write_at(&[7; 8192], (8 << 20) - 4096))),
        ("write past the end", outcome(file.write_at(&[7; 10], 9 << 20))),
        (
            "read",
            outcome(
                file.read_at(&mut buffer, 10_000)
                    .map(|n| (n, buffer.iter().map(|&b| u64::from(b)).sum::<u64>())),
            ),
        ),
        ("read over the end", outcome(file.read_at(&mut buffer, (8 << 20) - 100))),
        ("read past the end", outcome(file.read_at(&mut buffer, 9 << 20))),
        ("fsync", outcome(file.sync_all())),
        ("fdatasync", outcome(file.sync_data())),
        ("fsync of a folder", outcome(folder.sync_all())),
        ("set_len", outcome(file.set_len(4096))),
        ("set_len to the same", outcome(file.set_len(8 << 20))),
        ("truncate of a folder", outcome(folder.set_len(1))),
        ("times", outcome(file.set_modified(std::time::SystemTime::UNIX_EPOCH))),
    ];
    // SAFETY: plain calls on open descriptors and on strings that end with NUL and outlive them.
    unsafe {
        for (mode, from, len) in [
            (0, 0, 4096),
            (0, 0, 9 << 20),
            (1, 0, 4096),
            (3, 4096, 65536),
            (3, 8 << 20, 4096),
            (16, 0, 4096),
            (17, 7 << 20, 2 << 20),
            (16, 7 << 20, 2 << 20),
            (8, 0, 4096),
            (2, 0, 4096),
        ] {
            found.push(("fallocate", call(libc::fallocate(number, mode, from, len))));
        }
        for (from, whence) in [
            (0, libc::SEEK_DATA),
            (0, libc::SEEK_HOLE),
            (5 << 20, libc::SEEK_DATA),
            (8 << 20, libc::SEEK_HOLE),
            (9 << 20, libc::SEEK_DATA),
        ] {
            found.push(("lseek", call(libc::lseek(number, from, whence))));
        }
        let p = path.as_ptr();
        let other = at(&dir.join("clones/other"));
        found.push(("chmod", call(libc::chmod(p, 0o777))));
        found.push(("chown", call(libc::chown(p, 1, 1))));
        found.push(("mkdir", call(libc::mkdir(other.as_ptr(), 0o755))));
        found.push(("mknod", call(libc::mknod(other.as_ptr(), libc::S_IFREG | 0o644, 0))));
        found.push(("fifo", call(libc::mkfifo(other.as_ptr(), 0o644))));
        found.push(("create", call(libc::open(other.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o644))));
        found.push((
            "tmpfile",
            call(libc::open(at(&dir.join("clones")).as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o644)),
        ));
        found.push(("unlink", call(libc::unlink(p))));
        found.push(("rmdir", call(libc::rmdir(at(&dir.join("clones")).as_ptr()))));
        found.push(("rename", call(libc::rename(p, other.as_ptr()))));
        found.push((
            "exchange",
            call(libc::renameat2(
                libc::AT_FDCWD,
                p,
                libc::AT_FDCWD,
                at(&base).as_ptr(),
                libc::RENAME_EXCHANGE,
            )),
        ));
        found.push(("link", call(libc::link(p, other.as_ptr()))));
        found.push(("symlink", call(libc::symlink(c"x".as_ptr(), other.as_ptr()))));
        found.push((
            "readlink",
            call(i64::try_from(libc::readlink(p, buffer.as_mut_ptr().cast(), 10)).unwrap()),
        ));
        found.push(("access", call(libc::access(p, libc::R_OK | libc::X_OK))));
        found.push((
            "getxattr",
            call(i64::try_from(libc::getxattr(p, name.as_ptr(), std::ptr::null_mut(), 0)).unwrap()),
        ));
        found.push(("listxattr", call(i64::try_from(libc::listxattr(p, std::ptr::null_mut(), 0)).unwrap())));
        found.push(("setxattr", call(libc::setxattr(p, name.as_ptr(), c"1".as_ptr().cast(), 1, 0))));
        found.push(("removexattr", call(libc::removexattr(p, name.as_ptr()))));
        found.push(("ioctl", call(libc::ioctl(number, 0x8004_6601, buffer.as_mut_ptr()))));
        found.push(("unknown ioctl", call(libc::ioctl(number, 0xdead, 0))));
        found.push((
            "copy",
            call(
                i64::try_from(libc::copy_file_range(number, &mut 0, number, &mut (4 << 20), 4096, 0))
                    .unwrap(),
            ),
        ));
        found.push(("syncfs", call(libc::syncfs(number))));
        found.push(("flock", call(libc::flock(number, libc::LOCK_EX | libc::LOCK_NB))));
        let mut fs: libc::statfs = std::mem::zeroed();
        found.push(("statfs", call(libc::fstatfs(number, &mut fs))));
        found.push((
            "its numbers",
            format!("{} {} {} {}", fs.f_blocks, fs.f_bsize, fs.f_namelen, fs.f_frsize),
        ));
        let mut polled = libc::pollfd { fd: number, events: libc::POLLIN, revents: 0 };
        found.push(("poll", call(libc::poll(&mut polled, 1, 0))));
    }
    drop(file);
    found.push((
        "content",
        format!(
            "{:?}",
            fs::read(&disk).unwrap().iter().fold(0u64, |sum, &b| sum.wrapping_mul(31) + u64::from(b))
        ),
    ));
    found
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn every_kind_of_request_is_answered_alike_over_both() {
    let over = |transport| {
        let view = TestView::with(Options { transport, ..Options::default() });
        view.memory.add("clones/a.raw", 8 << 20).put(1000, &common::pattern(100_000, 3));
        view.memory.add("bases/b@1.raw", 1 << 20);
        answers(view.dir())
    };
    let (device, rings) = (over(Transport::Dev), over(Transport::Uring));
    assert!(device.len() > 60);
    for (one, other) in device.into_iter().zip(rings) {
        assert_eq!(one, other);
    }
}

#[test]
#[ignore = "tests/tools/uring.sh"]
fn memory_that_large_requests_took_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = server("uring", dir.path(), &[]);
    let resident = || {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", server.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let file = OpenOptions::new().write(true).open(dir.path().join("clones/disk.raw")).unwrap();
    let before = resident();
    // Zeros, which the disk in memory keeps too: 1 MiB of them, again and again, from every processor.
    let block = vec![0u8; 1 << 20];
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|_| file.write_all_at(&block, 0).unwrap()));
        }
    });
    thread::sleep(Duration::from_millis(50));
    eventually("giving back", || resident() < before + 2048);
    let block = common::pattern(1 << 20, 5);
    file.write_all_at(&block, 3 << 20).unwrap();
    drop(file);
    let all = fs::read(dir.path().join("clones/disk.raw")).unwrap();
    assert!(all[3 << 20..4 << 20] == block, "what comes after it arrives whole");
}
