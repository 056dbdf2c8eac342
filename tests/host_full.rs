//! A host filesystem that runs full, ext4 and XFS: guests get the error, nothing acknowledged is lost, and no command
//! leaves anything half-made. Needs root, for loop devices.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/acked.rs"]
mod acked;
#[path = "common/cli.rs"]
mod common;
#[path = "common/host.rs"]
mod host;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/served.rs"]
mod served;

use acked::Model;
use common::store::{file_digest, must, qemu_check, qemu_content};
use common::{DISK, Shed, noise};
use cowshed::store::DiskFormat;
use host::Host;
use nix::fcntl::{FallocateFlags, fallocate};
use rng::{Rng, fresh_seed, seed_from_environment};
use served::Server;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// The kinds of host filesystem, and the least size that each can have.
const KINDS: [(&str, u64); 2] = [("ext4", 200 << 20), ("xfs", 320 << 20)];

fn seed() -> Rng {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    Rng::new(seed)
}

/// A store with a base on a host of its own.
fn shed(kind: &'static str, size: u64) -> (Shed, Host) {
    let shed = Shed::new();
    let host = Host::new(kind, shed.path("host.img"), size, shed.path("host"));
    let image = shed.image("deb.raw");
    fs::create_dir(host.dir.join("store")).unwrap();
    std::os::unix::fs::symlink(host.dir.join("store"), shed.root()).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb"]);
    (shed, host)
}

/// Loads `web` for a while, to its server's end with `kill`; the numbers of the errors, and how many operations went well.
fn load(
    server: &mut Server,
    model: &mut Model,
    rng: &mut Rng,
    long: Duration,
    kill: bool,
) -> (Vec<i32>, usize) {
    let stop = AtomicBool::new(false);
    let done = model.load(&server.clone_file("web"), rng, 3, &stop, || {
        thread::sleep(long);
        if kill {
            server.kill();
        } else {
            stop.store(true, Ordering::Relaxed);
        }
    });
    model.keep(&done);
    let (mut errors, well) = Model::answers(&done);
    errors.retain(|error| !(kill && matches!(*error, libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED)));
    (errors, well)
}

fn read_all(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A disk that fills its host, with `kill`s of its server meanwhile.
fn guests_on(kind: &'static str, size: u64, kill: bool, rng: &mut Rng) {
    let (shed, host) = shed(kind, size);
    let base = file_digest(&shed.base_disk());
    shed.ok(&["clone", "deb", "web", "db"]);
    let mut model = Model::new(fs::read(shed.base_disk()).unwrap());
    let mut server = Server::start(&shed);
    let other = File::options().write(true).open(server.clone_file("db")).unwrap();
    other.write_all_at(&noise(4 << 20, 1), 8 << 20).unwrap();
    drop(other);
    let filler = host.fill(2 << 20);
    let mut refused = 0;
    for round in 0..3 {
        let what = format!("{kind}, kill {kill}, round {round} on a full host");
        let (errors, _) = load(&mut server, &mut model, rng, Duration::from_millis(700), kill);
        assert!(errors.iter().all(|error| matches!(*error, libc::ENOSPC | libc::EIO)), "{what}: {errors:?}");
        refused += errors.len();
        if kill {
            assert!(matches!(shed.output(&["check", "web"]).status.code(), Some(0 | 3)), "{what}");
            drop(server);
            server = Server::start(&shed);
        }
        model.settle(read_all(&server.clone_file("web")), &what);
    }
    assert!(refused > 20, "{kind}: the host was never full: {refused} errors");

    // Room comes from the disk itself, on the full host.
    let what = format!("{kind}, kill {kill}");
    let file = File::options().read(true).write(true).open(server.clone_file("web")).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 0, 4 << 20).unwrap();
    model.overwritten(0, 4 << 20, 0);
    file.sync_all().unwrap();
    assert!(host.free() > 512 << 10, "{what}: the discard gave {} bytes", host.free());
    file.write_all_at(&vec![7; 512 << 10], 0).unwrap();
    model.overwritten(0, 512 << 10, 7);
    drop(file);
    model.settle(read_all(&server.clone_file("web")), &what);

    // And from a clone that goes.
    let full = host.fill(0);
    shed.ok(&["rm", "db"]);
    let (errors, well) = load(&mut server, &mut model, rng, Duration::from_millis(300), false);
    assert!(well > 10, "{what}: {well} operations went well beside {errors:?}");
    drop((full, filler));
    let (errors, well) = load(&mut server, &mut model, rng, Duration::from_millis(300), false);
    assert!(errors.is_empty() && well > 10, "{what}: with room again: {well} went well, {errors:?}");
    model.settle(read_all(&server.clone_file("web")), &what);
    assert!(server.end(&shed).success(), "{what}: {}", served::said(&shed));
    if kill {
        // A kill leaks what was counted ahead of use.
        shed.ok(&["check", "web", "--repair"]);
    }
    qemu_check(&shed.delta("web"));
    shed.ok(&["check", "web"]);
    assert!(qemu_content(&shed.delta("web"), DiskFormat::Qcow2) == model.content(), "{what}, by QEMU");
    assert_eq!(file_digest(&shed.base_disk()), base, "{what}: the base");
    println!("{what}: {refused} operations were refused on the full host");
}

#[test]
fn guests_on_a_full_host_get_the_error_and_lose_nothing() {
    let mut rng = seed();
    for (kind, size) in KINDS {
        guests_on(kind, size, false, &mut rng);
    }
}

#[test]
fn a_server_that_is_killed_on_a_full_host_loses_no_acknowledged_write() {
    let mut rng = seed();
    for (kind, size) in KINDS {
        guests_on(kind, size, true, &mut rng);
    }
}

#[test]
fn a_check_and_its_repair_work_on_a_full_host() {
    for (kind, size) in KINDS {
        let (shed, host) = shed(kind, size);
        shed.ok(&["clone", "deb", "web"]);
        let mut server = Server::start(&shed);
        let file = File::options().write(true).open(server.clone_file("web")).unwrap();
        file.write_all_at(&noise(1 << 20, 3), 5 << 20).unwrap();
        file.sync_all().unwrap();
        server.kill();
        drop((file, server));
        let _full = host.fill(0);
        // Clusters that were counted ahead of use are leaked.
        assert_eq!(shed.output(&["check", "web"]).status.code(), Some(3), "{kind}");
        shed.ok(&["check", "web", "--repair"]);
        shed.ok(&["check", "web"]);
        shed.ok(&["verify", "deb"]);
        shed.ok(&["list"]);
    }
}

/// All names below a folder with kind and inode, but for what is there for people only.
fn names(root: &Path) -> BTreeMap<String, (bool, u64)> {
    fn below(folder: &Path, prefix: &str, into: &mut BTreeMap<String, (bool, u64)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
            let metadata = entry.metadata().unwrap();
            into.insert(name.clone(), (metadata.is_dir(), metadata.ino()));
            if metadata.is_dir() {
                below(&entry.path(), &name, into);
            }
        }
    }
    let mut all = BTreeMap::new();
    below(root, "", &mut all);
    all
}

#[test]
fn a_command_without_room_leaves_nothing_half_made() {
    for (kind, size) in KINDS {
        let (shed, host) = shed(kind, size);
        shed.ok(&["clone", "deb", "web", "other"]);
        let server = Server::start(&shed);
        let file = File::options().write(true).open(server.clone_file("web")).unwrap();
        file.write_all_at(&noise(3 << 20, 5), 2 << 20).unwrap();
        drop(file);
        server.end(&shed);
        shed.ok(&["checkpoint", "web"]);
        let image = shed.path("deb.raw");
        let content = qemu_content(&shed.delta("web"), DiskFormat::Qcow2);
        let out = host.dir.join("out.img");
        let out = out.to_str().unwrap();
        let commands: [&[&str]; 6] = [
            &["import", image.to_str().unwrap(), "--name", "new"],
            &["clone", "deb", "fresh", "--count", "20"],
            &["clone", "deb", "fresh"],
            &["checkpoint", "web"],
            &["restore", "web", "1"],
            &["export", "web", out],
        ];
        let mut failures = 0;
        for command in commands {
            for left in [0, 8 << 10, 40 << 10, 200 << 10, 1 << 20] {
                let what = format!("{kind}, {command:?} with {left} bytes left");
                let before = names(&shed.root());
                let filler = host.fill(left);
                let output = shed.output(command);
                drop(filler);
                if output.status.success() {
                    undo(&shed, command);
                    break;
                }
                failures += 1;
                let said = common::one_line(&output, 1, command);
                assert!(said.contains("No space left"), "{what}: {said}");
                assert_eq!(names(&shed.root()), before, "{what}: the store is not as before");
                assert!(!Path::new(out).exists(), "{what}: half an export");
                shed.ok(&["list"]);
            }
        }
        assert!(failures >= 6, "{kind}: only {failures} commands were refused");
        for command in &commands[..5] {
            shed.ok(command);
            undo(&shed, command);
        }
        shed.ok(commands[5]);
        shed.ok(&["check", "--all"]);
        must("qemu-img", &["check", "-f", "qcow2", out]);
        assert!(qemu_content(Path::new(out), DiskFormat::Qcow2).len() == DISK);
        assert!(
            qemu_content(&shed.delta("web"), DiskFormat::Qcow2) == content,
            "{kind}: web at its checkpoint"
        );
        println!("{kind}: {failures} commands were refused");
    }
}

/// Takes away what a command made.
fn undo(shed: &Shed, command: &[&str]) {
    match command[0] {
        "import" => drop(shed.ok(&["rm", "new"])),
        "clone" => {
            let clones = fs::read_dir(shed.root().join("clones")).unwrap();
            let names = clones.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let fresh: Vec<String> = names.filter(|name| name.starts_with("fresh")).collect();
            shed.ok(&[&["rm"][..], &fresh.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        }
        "export" => fs::remove_file(command[2]).unwrap(),
        _ => {}
    }
}
