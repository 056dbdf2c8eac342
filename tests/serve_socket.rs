//! `serve`: its socket, its locks, its end, and servers that are killed under a load.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/front.rs"]
mod front;
#[path = "common/play.rs"]
mod play;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/serving.rs"]
mod serving;

use common::store::{file_digest, qemu_check};
use common::{DISK, Shed, one_line};
use front::{FLUSH, Front, Request, Wish};
use play::play;
use rng::{Rng, seed_from_environment};
use serving::{Server, content, only_a_stale_socket_is_replaced, shed};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn start(shed: &Shed, arguments: &[&str]) -> Server {
    Server::start(shed, "--vhost-user", arguments)
}

#[test]
fn what_is_written_is_in_the_clone_and_the_socket_is_gone() {
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    for (signal, byte) in [("-TERM", 1_u8), ("-INT", 2)] {
        let server = start(&shed, &["web", "--queues", "2"]);
        let metadata = server.socket.symlink_metadata().unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        // One front end after the other.
        for sector in [8, 16] {
            let (_front, mut drivers) = Front::new(server.connect(), Wish::queues(2));
            assert_eq!(drivers[1].ask(&Request::write(sector, &[byte; 512])).status, 0);
        }
        let said = server.end(signal);
        assert_eq!(said.lines().count(), 1, "{said}");
        let content = content(&shed, "web");
        assert_eq!(content[8 * 512..9 * 512], [byte; 512]);
        assert_eq!(content[16 * 512..17 * 512], [byte; 512]);
        qemu_check(&shed.delta("web"));
    }
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn a_clone_that_is_served_is_in_use_and_one_in_use_is_not_served() {
    let shed = shed();
    let server = start(&shed, &["web"]);
    let other = shed.path("other");
    let other = other.to_str().unwrap();
    let said = shed.fails(1, &["serve", "web", "--vhost-user", other]);
    assert!(said.contains("in use"), "{said}");
    assert!(shed.fails(1, &["check", "web", "--repair"]).contains("in use"));
    assert!(shed.fails(1, &["run", "web", "--accel", "tcg"]).contains("in use"));
    server.end("-TERM");
    // Readers stand beside each other, and keep a writer out.
    let server = start(&shed, &["web", "--read-only"]);
    shed.ok(&["check", "web"]);
    assert!(shed.fails(1, &["serve", "web", "--vhost-user", other]).contains("in use"));
    server.end("-TERM");
}

#[test]
fn a_base_is_served_read_only_under_its_version() {
    let shed = shed();
    for name in ["deb", "deb@1"] {
        let server = start(&shed, &[name]);
        let (_front, mut drivers) = Front::new(server.connect(), Wish::queues(1));
        assert_eq!(drivers[0].ask(&Request::write(0, &[1; 512])).status, 1);
        let mut image = vec![0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(
            &File::open(shed.path("deb.raw")).unwrap(),
            &mut image,
            2 << 20,
        )
        .unwrap();
        assert_eq!(drivers[0].ask(&Request::read(4096, 4096)).data, image);
        let said = server.end("-TERM");
        assert!(said.contains("deb@1 is served at "), "{said}");
    }
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    only_a_stale_socket_is_replaced("--vhost-user", |server| {
        let (_front, mut drivers) = Front::new(server.connect(), Wish::queues(1));
        assert_eq!(drivers[0].ask(&Request::new(FLUSH, 0)).status, 0, "and the one that was there goes on");
    });
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let shed = shed();
    for arguments in [
        &["serve", "web"][..],
        &["serve", "web", "--queues", "2"],
        &["serve", "web", "--vhost-user", "s", "--queues", "0"],
        &["serve", "web", "--vhost-user", "s", "--queues", "65"],
        &["run", "web", "--disk", "vhost-user", "--view", "/v"],
        &["run", "web", "--disk", "floppy"],
    ] {
        one_line(&shed.output(arguments), 2, arguments);
    }
    let said = shed.fails(1, &["serve", "nobody", "--vhost-user", "s"]);
    assert!(said.contains("no clone or base nobody"), "{said}");
}

#[test]
fn a_second_front_end_is_turned_away_and_the_first_one_goes_on() {
    let shed = shed();
    let server = start(&shed, &["web"]);
    let (front, mut drivers) = Front::new(server.connect(), Wish::queues(1));
    let mut second = server.connect();
    second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0, "it is hung up on");
    assert_eq!(drivers[0].ask(&Request::write(0, &[5; 512])).status, 0);
    drop((front, drivers));
    let (_front, mut drivers) = Front::new(server.connect(), Wish::queues(1));
    assert_eq!(drivers[0].ask(&Request::read(0, 512)).data, [5; 512]);
    assert!(server.end("-TERM").contains("turned away"));
}

#[test]
fn nonsense_on_the_socket_ends_that_front_end_alone() {
    use std::io::Write;
    let first = seed_from_environment().unwrap_or(1);
    println!("seed {first}");
    let shed = shed();
    let server = start(&shed, &["web"]);
    for seed in first..first + 40 {
        let mut rng = Rng::new(seed);
        let mut stream = server.connect();
        // A header with a request that exists, a right version, and any body.
        let len = rng.below(80) as u32;
        let header =
            [rng.below(45) as u32, 1 | (rng.below(2) as u32) << 3, len].map(u32::to_le_bytes).concat();
        let _ = stream.write_all(&[header, rng.bytes(len as usize)].concat());
        let _ = stream.write_all(&rng.bytes(40));
    }
    let (_front, mut drivers) = Front::new(server.connect(), Wish::queues(1));
    assert_eq!(drivers[0].ask(&Request::write(0, &[6; 512])).status, 0);
    assert!(!server.said().contains("panic"), "{}", server.said());
    server.end("-TERM");
}

/// Servers of one clone are killed one after the other while drivers work; no request is lost, none is answered twice,
/// and each answer is right.
fn kills_lose_nothing(wish: Wish, kills: usize, rounds: usize) {
    let seed = seed_from_environment().unwrap_or(1);
    println!("seed {seed}");
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let mut model = content(&shed, "web");
    let mut rng = Rng::new(seed);
    let mut server = Some(start(&shed, &["web"]));
    let (mut front, mut drivers) = Front::new(server.as_ref().unwrap().connect(), wish);
    let each = DISK / 512 / usize::from(wish.queues);
    let running = AtomicUsize::new(drivers.len());
    let mut killed = 0;
    std::thread::scope(|scope| {
        let parts = model.chunks_mut(each * 512).enumerate();
        for (driver, (number, model)) in drivers.iter_mut().zip(parts) {
            let running = &running;
            scope.spawn(move || {
                let _end = Countdown(running);
                play(driver, model, (number * each, each), seed + number as u64, rounds);
            });
        }
        while running.load(Ordering::SeqCst) > 0 && killed < kills {
            std::thread::sleep(Duration::from_millis(rng.between(2, 60)));
            server.take().unwrap().kill();
            killed += 1;
            let new = server.insert(start(&shed, &["web"]));
            front.reconnect(new.connect());
        }
    });
    assert!(killed >= kills / 2, "the load ended after {killed} kills");
    drop((front, drivers));
    server.unwrap().end("-TERM");
    // What killed servers had set aside is leaked, and that is all.
    assert!(shed.output(&["check", "web", "--repair"]).status.success());
    qemu_check(&shed.delta("web"));
    assert!(content(&shed, "web") == model, "seed {seed}: after {killed} kills");
    assert_eq!(file_digest(&shed.base_disk()), base);
}

struct Countdown<'a>(&'a AtomicUsize);

impl Drop for Countdown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn killed_servers_lose_no_request_with_tracking() {
    kills_lose_nothing(Wish::queues(3), 16, 700);
}

#[test]
fn killed_servers_lose_no_request_of_a_front_end_that_tracks_none() {
    kills_lose_nothing(Wish { inflight: false, ..Wish::queues(2) }, 12, 700);
}
