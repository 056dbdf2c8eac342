//! `kill -9` of the process that serves a disk, at any moment: no acknowledged write is lost.
//!
//! `COWSHED_SEED=N` plays one seed; which operation meets the kill is up to the host. `COWSHED_SOAK_KILLS` says how many
//! kills the long version does.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/acked.rs"]
mod acked;
#[path = "common/cli.rs"]
mod common;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/served.rs"]
mod served;

use acked::Model;
use common::store::{file_digest, must, qemu_content, run};
use common::{Shed, until};
use cowshed::store::{Access, DiskFormat, Name, Store, Target};
use cowshed::units::GuestOffset;
use rng::{Rng, fresh_seed, seed_from_environment};
use served::Server;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Threads of the load.
const THREADS: usize = 4;

fn seed() -> Rng {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    Rng::new(seed)
}

fn pause(rng: &mut Rng, most: Duration) {
    thread::sleep(Duration::from_micros(rng.below(most.as_micros() as u64 + 1)));
}

/// A clone `web` and what it holds.
fn shed(compat: bool) -> (Shed, Model) {
    let shed = Shed::with_base();
    shed.ok(&[&["clone", "deb", "web"][..], if compat { &["--compat"] } else { &[] }].concat());
    let content = fs::read(shed.base_disk()).unwrap();
    (shed, Model::new(content))
}

/// No error, and leaks at most, in the clone as it lies there.
fn sound(shed: &Shed, name: &str, by_qemu: bool) {
    let output = shed.output(&["check", name]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 3)), "check {name}: {}\n{text}", output.status);
    if by_qemu {
        let delta = shed.delta(name);
        let output = run("qemu-img", &["check", "-f", "qcow2", delta.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 3)), "qemu-img check: {}\n{text}", output.status);
    }
}

/// Loads the disk and kills its server meanwhile; or lets the users go and kills it while it unmounts.
fn load_and_kill(shed: &Shed, server: &mut Server, model: &mut Model, rng: &mut Rng) {
    let stop = AtomicBool::new(false);
    let (path, unmounts) = (server.clone_file("web"), rng.chance(15));
    let mut dice = Rng::new(rng.bits());
    let done = model.load(&path, rng, THREADS, &stop, || {
        let most = if dice.chance(80) { 60 } else { 300 };
        pause(&mut dice, Duration::from_millis(most));
        if unmounts {
            stop.store(true, Ordering::Relaxed);
            let umount = ["umount", server.dir.to_str().unwrap()];
            let mut umount = shed.command(&umount).stderr(Stdio::null()).spawn().unwrap();
            pause(&mut dice, Duration::from_millis(12));
            server.kill();
            umount.wait().unwrap();
        } else {
            server.kill();
        }
    });
    model.keep(&done);
}

/// Starts servers and kills them while they start, and while they open the clone.
fn kill_recoveries(shed: &Shed, rng: &mut Rng) -> u32 {
    let mut kills = 0;
    while rng.chance(35) && kills < 4 {
        let mut server = Server::spawn(shed, &[]);
        kills += 1;
        if rng.chance(40) {
            pause(rng, Duration::from_millis(20));
            server.kill();
            continue;
        }
        server.wait_until_up(shed);
        let path = server.clone_file("web");
        let mut dice = Rng::new(rng.bits());
        thread::scope(|scope| {
            scope.spawn(|| {
                // Opening it for writing is what recovers it; the kill may come first.
                if let Ok(file) = File::options().read(true).write(true).open(&path) {
                    let _ = file.read_at(&mut [0; 512], 0);
                }
            });
            pause(&mut dice, Duration::from_millis(3));
            server.kill();
        });
    }
    kills
}

fn read_all(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Kills at least `least` servers; what was acknowledged is there each time.
fn survives(compat: bool, least: u32, rng: &mut Rng) {
    let (shed, mut model) = shed(compat);
    let base = file_digest(&shed.base_disk());
    let (start, mut kills, mut round) = (Instant::now(), 0, 0);
    let mut server = Server::start(&shed);
    while kills < least {
        round += 1;
        load_and_kill(&shed, &mut server, &mut model, rng);
        kills += 1;
        if round % 4 == 0 {
            // It recovers the clone, so most rounds leave that to the servers.
            sound(&shed, "web", true);
        } else if round % 4 == 1 {
            let delta = shed.delta("web");
            let output = run("qemu-img", &["check", "-f", "qcow2", delta.to_str().unwrap()]);
            assert!(matches!(output.status.code(), Some(0 | 3)), "round {round}: {output:?}");
        }
        kills += kill_recoveries(&shed, rng);
        drop(server);
        server = Server::start(&shed);
        let what = format!("compat {compat}, round {round}, after {kills} kills");
        if round % 3 == 0 {
            // A writer, that is.
            drop(File::options().write(true).open(server.clone_file("web")).unwrap());
        }
        model.settle(read_all(&server.clone_file("web")), &what);
    }
    assert!(server.end(&shed).success());
    println!("compat {compat}: {kills} kills in {round} rounds, {:?}", start.elapsed());
    sound(&shed, "web", true);
    assert!(
        qemu_content(&shed.delta("web"), DiskFormat::Qcow2) == model.content(),
        "QEMU reads something else"
    );
    assert_eq!(file_digest(&shed.base_disk()), base, "the base changed");
}

#[test]
fn a_killed_server_loses_no_acknowledged_write() {
    let mut rng = seed();
    survives(false, 45, &mut rng);
    survives(true, 20, &mut rng);
}

#[test]
#[ignore = "soak"]
fn soak_a_killed_server_loses_no_acknowledged_write() {
    let kills = std::env::var("COWSHED_SOAK_KILLS").map_or(1000, |text| text.parse().unwrap());
    let mut rng = seed();
    for part in 0..4 {
        survives(part % 2 == 1, kills / 4, &mut rng);
    }
}

/// A clone whose server was killed under load.
fn killed(rng: &mut Rng) -> (Shed, Model) {
    let (shed, mut model) = shed(false);
    let mut server = Server::start(&shed);
    let stop = AtomicBool::new(false);
    let path = server.clone_file("web");
    let wait = Duration::from_millis(rng.between(10, 60));
    let done = model.load(&path, rng, THREADS, &stop, || {
        thread::sleep(wait);
        server.kill();
    });
    model.keep(&done);
    (shed, model)
}

fn exported(shed: &Shed, name: &str) -> Vec<u8> {
    let out = shed.path("out.raw");
    shed.ok(&["export", name, out.to_str().unwrap(), "--format", "raw", "--force"]);
    fs::read(out).unwrap()
}

#[test]
fn the_first_command_after_a_kill_sees_all_that_was_acknowledged() {
    let mut rng = seed();
    let base = |shed: &Shed| file_digest(&shed.base_disk());
    for command in ["export", "checkpoint", "restore", "rename", "repair", "check", "scratch", "read-only"] {
        let what = command.to_owned();
        let (shed, mut model) = killed(&mut rng);
        let before = base(&shed);
        let mut name = "web";
        match command {
            "export" => {
                let out = shed.path("out.qcow2");
                shed.ok(&["export", "web", out.to_str().unwrap()]);
                model.settle(qemu_content(&out, DiskFormat::Qcow2), &what);
            }
            "checkpoint" => {
                shed.ok(&["checkpoint", "web"]);
                model.settle(exported(&shed, "web"), &what);
                shed.ok(&["restore", "web", "1", "--discard"]);
            }
            "restore" => {
                // The state from before is kept as a checkpoint, with all of it.
                drop((shed, model));
                restored(&mut rng, &what);
                continue;
            }
            "rename" => {
                shed.ok(&["rename", "web", "db"]);
                name = "db";
            }
            "repair" => {
                shed.ok(&["check", "web", "--repair"]);
            }
            "check" => {
                // A reader's look that leaves things as they are.
                sound(&shed, "web", true);
                shed.ok(&["info", "web"]);
                shed.ok(&["map", "web"]);
                shed.ok(&["list"]);
            }
            "scratch" => {
                let store = Store::open(&shed.root()).unwrap();
                let scratch = store.scratch(&Target::Clone("web".parse::<Name>().unwrap())).unwrap();
                let mut bytes = vec![0; common::DISK];
                scratch.disk.disk.read(&mut bytes, GuestOffset(0)).unwrap();
                model.settle(bytes, &what);
            }
            _ => {
                let mut server = Server::spawn(&shed, &["--read-only"]);
                server.wait_until_up(&shed);
                model.settle(read_all(&server.clone_file("web")), &what);
            }
        }
        model.settle(exported(&shed, name), &what);
        let store = Store::open(&shed.root()).unwrap();
        store.open_clone(&name.parse().unwrap(), Access::Write).unwrap().close().unwrap();
        sound(&shed, name, true);
        assert!(
            qemu_content(&shed.delta(name), DiskFormat::Qcow2) == model.content(),
            "{what}: QEMU reads something else"
        );
        assert_eq!(base(&shed), before, "{what}");
    }
}

/// A clone with a checkpoint is killed and put back to it: what is kept of it is what was acknowledged.
fn restored(rng: &mut Rng, what: &str) {
    let (shed, mut model) = shed(false);
    shed.ok(&["checkpoint", "web"]);
    let mut server = Server::start(&shed);
    let stop = AtomicBool::new(false);
    let path = server.clone_file("web");
    let done = model.load(&path, rng, THREADS, &stop, || {
        thread::sleep(Duration::from_millis(40));
        server.kill();
    });
    model.keep(&done);
    shed.ok(&["restore", "web", "1"]);
    assert!(
        exported(&shed, "web") == fs::read(shed.base_disk()).unwrap(),
        "{what}: the state of checkpoint 1"
    );
    shed.ok(&["restore", "web", "2", "--discard"]);
    model.settle(exported(&shed, "web"), what);
    sound(&shed, "web", true);
}

#[test]
fn what_qemu_wrote_after_a_kill_counts_and_is_not_mixed_with_what_was_before() {
    let mut rng = seed();
    for round in 0..6 {
        let what = format!("round {round}");
        let (shed, mut model) = shed(round % 2 == 1);
        let mut server = Server::start(&shed);
        let stop = AtomicBool::new(false);
        let path = server.clone_file("web");
        let done = model.load(&path, &mut rng, THREADS, &stop, || {
            thread::sleep(Duration::from_millis(30));
            server.kill();
        });
        drop(server);
        let delta = shed.delta("web");
        if round % 3 == 0 {
            // Whoever asks for the file by our command finds all of it there.
            shed.ok(&["path", "web"]);
            model.keep(&done);
        } else {
            // Who does not gets what is in the image: what was flushed.
            model.keep_flushed(&done);
        }
        let output = run("qemu-img", &["check", "-f", "qcow2", delta.to_str().unwrap()]);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{what}: {output:?}");
        for _ in 0..8 {
            let (at, len) = (rng.below(12 << 11) as usize * 512, rng.between(1, 300) as usize * 512);
            let byte = rng.between(1, 255) as u8;
            let command = format!("write -P {byte} {at} {len}");
            must("qemu-io", &["-f", "qcow2", "-c", &command, "-c", "flush", delta.to_str().unwrap()]);
            model.overwritten(at, len, byte);
        }
        let before = qemu_content(&delta, DiskFormat::Qcow2);
        let server = Server::start(&shed);
        drop(File::options().write(true).open(server.clone_file("web")).unwrap());
        let got = read_all(&server.clone_file("web"));
        assert!(got == before, "{what}: the clone shows something else than QEMU left");
        model.settle(got, &what);
        assert!(server.end(&shed).success());
        sound(&shed, "web", true);
        assert!(qemu_content(&delta, DiskFormat::Qcow2) == model.content(), "{what}");
    }
}

/// A boot sector that writes a numbered sector, says `.` on the serial port when the disk has it, and so on.
fn counting_boot_sector() -> [u8; 512] {
    let code = [
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xbe, 0x40, 0x7c, // mov si, 0x7c40: the address packet
        // next:
        0xff, 0x06, 0x00, 0x7e, // inc word [0x7e00]: the sector's content
        0xff, 0x06, 0x48, 0x7c, // inc word [0x7c48]: its place
        0xb8, 0x00, 0x43, // mov ax, 0x4300: write to the disk in dl
        0xcd, 0x13, // int 0x13
        0x72, 0x0a, // jc stop
        0x52, // push dx
        0xba, 0xf8, 0x03, // mov dx, 0x3f8: the serial port
        0xb0, 0x2e, // mov al, '.'
        0xee, // out dx, al
        0x5a, // pop dx
        0xeb, 0xe7, // jmp next
        // stop:
        0xf4, // hlt
        0xeb, 0xfd, // jmp stop
    ];
    // One sector from 0000:7e00 to the sector after 16.
    let packet = [0x10, 0, 1, 0, 0x00, 0x7e, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[0x40..0x50].copy_from_slice(&packet);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn a_killed_run_loses_nothing_that_its_guest_was_told_is_written() {
    let shed = Shed::new();
    let image = shed.path("boot.raw");
    let mut bytes = vec![0; 8 << 20];
    bytes[..512].copy_from_slice(&counting_boot_sector());
    fs::write(&image, &bytes).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb", "--format", "raw"]);
    let runtime = Runtime(shed.path("runtime"));
    fs::create_dir(&runtime.0).unwrap();
    for round in 0..3_u64 {
        shed.ok(&["clone", "deb", "web"]);
        let serial = shed.path("serial");
        let where_to = format!("file:{}", serial.display());
        let arguments = ["run", "web", "--accel", "tcg", "--memory", "64M", "--serial", &where_to];
        let child = shed
            .command(&arguments)
            .env("XDG_RUNTIME_DIR", &runtime.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut run = Killed(child);
        let told = || fs::metadata(&serial).map_or(0, |file| file.len());
        let deadline = Instant::now() + Duration::from_secs(60);
        while told() < 40 + 60 * round {
            assert!(Instant::now() < deadline, "the guest wrote {} times in a minute", told());
            thread::sleep(Duration::from_millis(5));
        }
        let children = format!("/proc/{0}/task/{0}/children", run.0.id());
        let qemu = fs::read_to_string(children).unwrap();
        run.kill();
        // QEMU goes with it: a machine without its disk would only do harm.
        until("the end of QEMU", || {
            qemu.split_whitespace().all(|pid| !Path::new("/proc").join(pid).join("exe").exists())
        });
        let told = told();
        let out = exported(&shed, "web");
        for number in 1..=told as usize {
            let sector = &out[(16 + number) * 512..][..2];
            assert_eq!(sector, (number as u16).to_le_bytes(), "round {round}: sector {number} of {told}");
        }
        shed.ok(&["check", "web", "--repair"]);
        sound(&shed, "web", true);
        println!("round {round}: {told} writes were answered, all are there");
        shed.ok(&["rm", "web"]);
        fs::remove_file(&serial).unwrap();
    }
}

/// A process that is killed, at the latest when this is dropped.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder of private mounts; those of killed runs are taken away when it is dropped.
struct Runtime(PathBuf);

impl Drop for Runtime {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("-l").arg(entry.path()).stderr(Stdio::null()).status();
        }
    }
}
