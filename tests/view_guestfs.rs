//! A guest's ext4 in a clone, in use by the kernel while the clone's server is killed. Needs root, for loop devices.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/served.rs"]
mod served;

use common::store::{file_digest, must, qemu_check};
use common::{Shed, is_mounted, noise};
use rng::{Rng, fresh_seed, seed_from_environment};
use served::Server;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Files by name, with the seed and the length of what was made durable.
type Durable = BTreeMap<String, (u64, usize)>;

/// A store whose base has an ext4 in its first partition.
fn shed() -> Shed {
    let shed = Shed::new();
    let image = shed.path("deb.raw");
    let path = image.to_str().unwrap();
    File::create(&image).unwrap().set_len(80 << 20).unwrap();
    must("sgdisk", &["-n1:2048:147455", path]);
    must("mke2fs", &["-q", "-t", "ext4", "-E", "offset=1048576", path, "72704k"]);
    shed.ok(&["import", path, "--name", "deb", "--format", "raw"]);
    shed.ok(&["clone", "deb", "web"]);
    shed
}

/// The partition's filesystem, mounted as a guest's kernel would; taken away when dropped.
struct Guest(PathBuf);

impl Guest {
    fn mount(shed: &Shed, server: &Server) -> Self {
        let dir = shed.path("guest");
        let _ = fs::create_dir(&dir);
        let part = server.clone_file("web.p1");
        must("mount", &["-o", "loop,discard", part.to_str().unwrap(), dir.to_str().unwrap()]);
        Self(dir)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // With its server gone it cannot be unmounted in order.
        if is_mounted(&self.0) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
        }
    }
}

/// A file with its name, both durable when it returns.
fn write_durably(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(dir.join(name))?;
    file.write_all(content)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

/// One thread of a guest: durable files, others, removals and overwriting, until the disk fails.
fn work(dir: &Path, thread: u64, round: u64, mut rng: Rng) -> (Durable, Vec<String>) {
    let (mut durable, mut touched) = (Durable::new(), Vec::new());
    for number in 0.. {
        let (seed, len) = (rng.bits(), rng.between(1, 90_000) as usize);
        let name = format!("durable-{round}-{thread}-{number}");
        let junk = dir.join(format!("junk-{thread}-{}", number % 7));
        if write_durably(dir, &name, &noise(len, seed)).is_err()
            || fs::write(&junk, noise(len, seed)).is_err()
        {
            break;
        }
        durable.insert(name, (seed, len));
        if rng.chance(30) {
            let _ = fs::remove_file(&junk);
        }
        if durable.len() > 12 {
            let (old, _) = durable.pop_first().unwrap();
            touched.push(old.clone());
            if fs::remove_file(dir.join(&old)).is_err() {
                break;
            }
        }
    }
    (durable, touched)
}

fn survives(kills: u64) {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let (mut durable, mut checked) = (Durable::new(), 0_u64);
    let mut server = Server::start(&shed);
    for round in 0..kills {
        let guest = Guest::mount(&shed, &server);
        let wait = Duration::from_millis(rng.between(30, 400));
        let dices: Vec<Rng> = (0..3).map(|_| Rng::new(rng.bits())).collect();
        let dir = &guest.0;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(dices)
                .map(|(thread, rng)| scope.spawn(move || work(dir, thread, round, rng)))
                .collect();
            thread::sleep(wait);
            server.kill();
            for thread in threads {
                let (mut kept, removed) = thread.join().unwrap();
                durable.append(&mut kept);
                durable.retain(|name, _| !removed.contains(name));
            }
        });
        drop(guest);
        drop(server);
        server = Server::start(&shed);
        let part = server.clone_file("web.p1");
        let part = part.to_str().unwrap();
        // The journal is replayed, and then nothing is wrong.
        let mended = Command::new("e2fsck").args(["-p", part]).stdout(Stdio::null()).status().unwrap();
        assert!(matches!(mended.code(), Some(0 | 1)), "round {round}: e2fsck -p: {mended}");
        must("e2fsck", &["-fn", part]);
        let guest = Guest::mount(&shed, &server);
        for (name, (seed, len)) in &durable {
            let found =
                fs::read(guest.0.join(name)).unwrap_or_else(|error| panic!("round {round}: {name}: {error}"));
            assert!(found == noise(*len, *seed), "round {round}: {name} has other content");
            checked += 1;
        }
        // Room for the next round.
        for name in std::mem::take(&mut durable).into_keys().skip(10) {
            fs::remove_file(guest.0.join(name)).unwrap();
        }
        must("umount", &[guest.0.to_str().unwrap()]);
    }
    assert!(server.end(&shed).success());
    assert!(checked > kills * 3, "only {checked} files were looked at");
    println!("{kills} kills, {checked} durable files were looked at");
    shed.ok(&["check", "web", "--repair"]);
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn a_guests_ext4_keeps_what_it_synced_when_the_server_is_killed() {
    survives(6);
}

#[test]
#[ignore = "soak"]
fn soak_a_guests_ext4_keeps_what_it_synced_when_the_server_is_killed() {
    survives(std::env::var("COWSHED_SOAK_KILLS").map_or(1000, |text| text.parse().unwrap()) / 10);
}
