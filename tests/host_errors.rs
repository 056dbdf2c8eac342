//! A host whose medium fails: an ext4 in a loop device over a file that can get no more blocks, so that writes fail late,
//! at writeback, and `fsync` with them. Needs root, for loop devices.
//!
//! The filesystem's own structures have their blocks; only blocks that were free do not.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/host.rs"]
mod host;
#[path = "common/served.rs"]
mod served;

use common::store::{file_digest, must, qemu_check, qemu_content};
use common::{DISK, Shed, noise, until};
use cowshed::store::DiskFormat;
use host::{Filler, Host, Memory};
use nix::fcntl::{FallocateFlags, fallocate};
use served::{Server, said};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

/// Bytes of the host's medium.
const MEDIUM: u64 = 120 << 20;
/// A piece of a guest's writing: less than a cluster.
const PIECE: usize = 40_960;

/// Places, and what was written there.
type Pieces = Vec<(usize, Vec<u8>)>;

/// A store on a medium that can be made to fail.
struct Sick {
    // In this order: the filesystem goes before what it lies in, and both before the folder.
    host: Host,
    medium: Memory,
    shed: Shed,
    model: Vec<u8>,
}

/// The medium fails while this lives.
struct Failing(#[expect(dead_code, reason = "it is held, not used")] Filler);

impl Sick {
    /// A store with the clone `web`, some of it flushed.
    fn new() -> Self {
        let shed = Shed::new();
        let medium = Memory::new(shed.path("medium"), MEDIUM + (2 << 20));
        let image = medium.0.join("host.img");
        let host = Host::new("ext4", image.clone(), MEDIUM, shed.path("host"));
        fs::create_dir(host.dir.join("store")).unwrap();
        std::os::unix::fs::symlink(host.dir.join("store"), shed.root()).unwrap();
        let source = shed.image("deb.raw");
        shed.ok(&["import", source.to_str().unwrap(), "--name", "deb"]);
        shed.ok(&["clone", "deb", "web"]);
        let model = fs::read(shed.base_disk()).unwrap();
        let this = Self { host, medium, shed, model };
        // All blocks of the medium; then those that the filesystem does not use are given back.
        let file = File::options().write(true).open(&image).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, MEDIUM.cast_signed()).unwrap();
        must("sync", &["-f", this.host.dir.to_str().unwrap()]);
        must("fstrim", &[this.host.dir.to_str().unwrap()]);
        this
    }

    fn fail(&self) -> Failing {
        Failing(host::fill(&self.medium.0, 0))
    }

    /// Writes pieces, which are acknowledged, into the page cache of the host.
    fn write(&self, file: &File, number: u64) -> Pieces {
        let pieces = (0..20).map(|piece| (place(number, piece), noise(PIECE, number * 100 + piece as u64)));
        pieces.inspect(|(at, data)| file.write_all_at(data, *at as u64).unwrap()).collect()
    }

    fn open(&self, server: &Server) -> File {
        File::options().read(true).write(true).open(server.clone_file("web")).unwrap()
    }

    fn apply(&mut self, pieces: &[(usize, Vec<u8>)]) {
        pieces.iter().for_each(|(at, data)| self.model[*at..*at + data.len()].copy_from_slice(data));
    }

    /// Asserts that what was flushed is there, and that each sector of `lost` is old or new; takes what there is.
    fn settle(&mut self, got: Vec<u8>, lost: &[(usize, Vec<u8>)], what: &str) {
        assert_eq!(got.len(), self.model.len());
        let mut newest = self.model.clone();
        lost.iter().for_each(|(at, data)| newest[*at..*at + data.len()].copy_from_slice(data));
        for (sector, is) in got.chunks(512).enumerate() {
            let [old, new] = [&self.model, &newest].map(|bytes| &bytes[sector * 512..][..512]);
            assert!(is == old || is == new, "{what}: sector {sector} is neither old nor new");
        }
        self.model = got;
    }

    /// The medium is well again. A filesystem that gave up is mounted anew, as its administrator would.
    fn heal(&self, failing: impl Into<Option<Failing>>) {
        drop(failing.into());
        if !self.host.is_writable() {
            println!("the host's filesystem has to be mounted anew");
            self.host.unmount();
            self.host.check();
            self.host.mount();
        }
    }

    /// The medium is well again: a new server serves all that was flushed, takes writes and makes them durable.
    fn recovers(&mut self, lost: &[(usize, Vec<u8>)], what: &str) {
        let output = self.shed.output(&["check", "web"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{what}: check: {text}");
        let server = Server::start(&self.shed);
        self.settle(fs::read(server.clone_file("web")).unwrap(), lost, what);
        let file = self.open(&server);
        let kept = self.write(&file, 40);
        file.sync_all().unwrap_or_else(|error| panic!("{what}: after the reopening: {error}"));
        self.apply(&kept);
        drop(file);
        assert!(server.end(&self.shed).success());
        // From the medium: what the host had in memory is gone.
        self.host.unmount();
        self.host.check();
        self.host.mount();
        let got = qemu_content(&self.shed.delta("web"), DiskFormat::Qcow2);
        let differing = got.chunks(512).zip(self.model.chunks(512)).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 0, "{what}: sectors that were flushed are not on the medium");
        self.shed.ok(&["check", "web", "--repair"]);
        qemu_check(&self.shed.delta("web"));
        self.shed.ok(&["verify", "deb"]);
    }
}

/// Where piece `piece` of writing `number` lies: each in a cluster of its own.
fn place(number: u64, piece: usize) -> usize {
    (piece * 11 + number as usize * 3) % (DISK >> 17) * (128 << 10) + 8192 * (number as usize % 11)
}

/// A sick store after a failed `fsync`, with its server and the open file.
fn after_a_failed_sync() -> (Sick, Server, File, Pieces, Failing) {
    let mut sick = Sick::new();
    let server = Server::start(&sick.shed);
    let file = sick.open(&server);
    let kept = sick.write(&file, 1);
    file.sync_all().unwrap();
    sick.apply(&kept);
    let failing = sick.fail();
    let lost = sick.write(&file, 2);
    let error = file.sync_all().expect_err("the medium takes nothing");
    assert!(error.raw_os_error() == Some(libc::EIO), "{error}");
    (sick, server, file, lost, failing)
}

#[test]
fn a_failed_sync_is_reported_and_never_becomes_a_success() {
    let (mut sick, server, file, lost, failing) = after_a_failed_sync();
    let base = file_digest(&sick.shed.base_disk());
    let log = said(&sick.shed);
    assert!(log.contains("clone web") || log.contains("web/disk.qcow2"), "no name of the disk: {log}");
    assert!(log.contains("syncing the image; it takes no more writes until it is opened again"), "{log}");
    // The medium is well again, and would say yes. What it dropped is lost all the same.
    drop(failing);
    for again in 0..3 {
        let error = file.sync_all().expect_err("a sync after a failed one");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "sync {again}");
        let error = file.write_all_at(&[1; 4096], 0).expect_err("a write after a failed sync");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "write {again}");
    }
    let descriptor = std::os::fd::OwnedFd::from(file);
    let closed = nix::unistd::close(descriptor);
    assert_eq!(closed, Err(nix::errno::Errno::EIO), "close says that all is well");
    until("the log says that the disk was not closed well", || {
        said(&sick.shed).lines().filter(|line| line.contains("an earlier write or sync")).count() >= 1
    });
    server.end(&sick.shed);
    sick.heal(None);
    sick.recovers(&lost, "after a failed sync");
    assert_eq!(file_digest(&sick.shed.base_disk()), base);
}

#[test]
fn a_server_that_is_killed_after_a_failed_sync_brings_no_lost_data_back() {
    let (mut sick, mut server, file, lost, failing) = after_a_failed_sync();
    server.kill();
    drop((file, server));
    sick.heal(failing);
    sick.recovers(&lost, "killed after a failed sync");
}

#[test]
fn a_disk_that_is_closed_on_a_failing_medium_says_so() {
    let mut sick = Sick::new();
    let server = Server::start(&sick.shed);
    let file = sick.open(&server);
    let failing = sick.fail();
    let lost = sick.write(&file, 3);
    let closed = nix::unistd::close(std::os::fd::OwnedFd::from(file));
    assert!(closed.is_err(), "a close that lost data");
    until("the log tells", || said(&sick.shed).contains("syncing the image"));
    server.end(&sick.shed);
    sick.heal(failing);
    sick.recovers(&lost, "closed on a failing medium");
}

#[test]
fn a_server_that_ends_on_a_failing_medium_fails() {
    let mut sick = Sick::new();
    let server = Server::start(&sick.shed);
    let file = sick.open(&server);
    let failing = sick.fail();
    let lost = sick.write(&file, 4);
    // In use, so it is cut off rather than asked.
    must("umount", &["-f", "-l", server.dir.to_str().unwrap()]);
    drop(file);
    let status = server.wait();
    let log = said(&sick.shed);
    assert!(log.contains("web") && log.contains("syncing the image"), "{log}");
    assert_eq!(status.code(), Some(1), "{log}");
    sick.heal(failing);
    sick.recovers(&lost, "ended on a failing medium");
}

#[test]
fn a_failed_flush_that_nobody_asked_for_is_reported_at_the_next_sync() {
    let mut sick = Sick::new();
    let server = Server::start(&sick.shed);
    let file = sick.open(&server);
    let failing = sick.fail();
    let lost = sick.write(&file, 5);
    until("the idle disk is flushed", || said(&sick.shed).contains("syncing the image"));
    drop(failing);
    thread::sleep(Duration::from_millis(100));
    let error = file.sync_all().expect_err("the sync of lost data");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    server.end(&sick.shed);
    sick.heal(None);
    sick.recovers(&lost, "after an idle flush failed");
}

#[test]
fn a_command_on_a_failing_medium_says_so_and_leaves_the_clone_as_it_was() {
    let sick = Sick::new();
    let content = qemu_content(&sick.shed.delta("web"), DiskFormat::Qcow2);
    let source = sick.shed.path("deb.raw");
    let out = sick.host.dir.join("out.raw");
    for (number, command) in [
        &["export", "deb", out.to_str().unwrap(), "--format", "raw"][..],
        &["import", source.to_str().unwrap(), "--name", "new"],
        &["clone", "deb", "fresh", "--count", "12"],
    ]
    .into_iter()
    .enumerate()
    {
        let failing = sick.fail();
        let said = sick.shed.fails(1, command);
        assert!(said.contains("os error"), "{said}");
        sick.heal(failing);
        assert!(!out.exists(), "{command:?}");
        // What a filesystem that gave up did not let it remove, the next command does.
        sick.shed.ok(&["clone", "deb", &format!("good-{number}")]);
        let list = sick.shed.json(&["list"]);
        assert_eq!(list["bases"].as_array().unwrap().len(), 1, "{command:?}");
        assert_eq!(list["clones"].as_array().unwrap().len(), 2 + number, "{command:?}");
        assert_eq!(fs::read_dir(sick.shed.root().join("tmp")).unwrap().count(), 0, "{command:?}");
    }
    assert!(qemu_content(&sick.shed.delta("web"), DiskFormat::Qcow2) == content);
    sick.shed.ok(&["check", "--all"]);
}
