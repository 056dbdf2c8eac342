//! `serve --nbd`: its requests, its locks and its end, and servers that are killed under a load.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/nbd.rs"]
mod nbd;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/serving.rs"]
mod serving;

use common::store::{file_digest, qemu_check};
use common::{DISK, Shed, one_line};
use nbd::{
    BLOCK_STATUS, DF, DISCONNECT, FAST, FLUSH, FUA, NO_HOLE, Nbd, ONE, READ, TRIM, WRITE, WRITE_ZEROES,
    is_over,
};
use rng::{Rng, seed_from_environment};
use serving::{Server, content, only_a_stale_socket_is_replaced, shed};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn start(shed: &Shed, arguments: &[&str]) -> Server {
    Server::start(shed, "--nbd", arguments)
}

fn client(server: &Server, structured: bool) -> Nbd<UnixStream> {
    Nbd::on(server.connect(), structured)
}

/// Random requests by two clients, one of which has no structured replies, do what they do to a vector.
#[test]
fn requests_do_what_a_vector_does() {
    let seed = seed_from_environment().unwrap_or(1);
    println!("seed {seed}");
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let mut model = content(&shed, "web");
    let server = start(&shed, &["web"]);
    let mut clients = [client(&server, true), client(&server, false)];
    assert_eq!(clients[0].size, DISK as u64);
    // All that a disk can, and that one without structured replies has none in one piece.
    assert_eq!(clients.each_ref().map(|client| client.flags), [0b1001_1110_1101, 0b1001_0110_1101]);
    let mut rng = Rng::new(seed);
    for _ in 0..1500 {
        let number = rng.below(2) as usize;
        let client = &mut clients[number];
        let most = *rng.pick(&[512, 9000, 300_000, 3 << 20]);
        let mut at = rng.below(DISK as u64);
        let mut len = rng.below(most).min(DISK as u64 - at);
        if rng.chance(60) {
            (at, len) = (at & !4095, len & !4095);
        }
        let range = at as usize..(at + len) as usize;
        let fua = if rng.chance(5) { FUA } else { 0 };
        match rng.below(8) {
            0..=2 => {
                let whole = if number == 0 && rng.chance(30) { DF } else { 0 };
                let answer = client.ask(READ, whole, at, len as u32, &[]).unwrap();
                assert!(answer.errno == 0 && answer.data == model[range], "{len} at {at}: {}", answer.errno);
                assert!(whole == 0 || answer.chunks.1 == 0 && answer.chunks.0 <= 1);
            }
            3 | 4 => {
                let data = rng.bytes(len as usize);
                assert_eq!(client.ask(WRITE, fua, at, len as u32, &data).unwrap().errno, 0);
                model[range].copy_from_slice(&data);
            }
            5 => {
                let flags = fua | *rng.pick(&[0, NO_HOLE, FAST]);
                assert_eq!(client.errno(WRITE_ZEROES, flags, at, len as u32), 0);
                model[range].fill(0);
            }
            6 => {
                // Of a trimmed range nothing is promised; here it reads as zeros.
                assert_eq!(client.errno(TRIM, fua, at, len as u32), 0);
                model[range].fill(0);
            }
            _ => {
                assert_eq!(client.errno(FLUSH, 0, 0, 0), 0);
                let len = (len as u32).max(1).min((DISK as u64 - at) as u32);
                let answer =
                    clients[0].ask(BLOCK_STATUS, if len.is_multiple_of(2) { ONE } else { 0 }, at, len, &[]);
                let mut at = at as usize;
                for (len, flags) in answer.unwrap().extents {
                    assert!(flags == 0 || flags == 3, "flags {flags}");
                    let zeros = model[at..at + len as usize].iter().all(|&byte| byte == 0);
                    assert!(flags == 0 || zeros, "what is told to be zero is not, at {at}");
                    at += len as usize;
                }
            }
        }
    }
    drop(clients);
    server.end("-TERM");
    assert!(content(&shed, "web") == model, "seed {seed}");
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn block_status_is_what_map_says() {
    let shed = shed();
    let server = start(&shed, &["web"]);
    let mut client = client(&server, true);
    for place in (0..DISK as u64).step_by(1 << 20) {
        client.write(place + 8192, &[1; 5000]);
        assert_eq!(client.errno(WRITE_ZEROES, 0, place + 65536, 16384), 0);
        assert_eq!(client.errno(TRIM, 0, place + 262_144, 20_480), 0);
    }
    let mut told = Vec::new();
    while told.len() < DISK {
        let at = told.len() as u64;
        let one = if at.is_multiple_of(3) { ONE } else { 0 };
        let left = DISK as u32 - at as u32;
        let extents = client.ask(BLOCK_STATUS, one, at, left, &[]).unwrap().extents;
        assert!(!extents.is_empty() && (one == 0 || extents.len() == 1));
        extents.iter().for_each(|&(len, flags)| told.resize(told.len() + len as usize, flags == 3));
    }
    drop(client);
    server.end("-TERM");
    let mut mapped = vec![true; DISK];
    for extent in shed.json(&["map", "web"]).as_array().unwrap() {
        let number = |key: &str| extent[key].as_u64().unwrap() as usize;
        let zero = extent["zero"].as_bool().unwrap();
        mapped[number("start")..number("start") + number("length")].fill(zero);
    }
    assert!(told == mapped);
}

#[test]
fn what_cannot_be_done_is_refused_by_its_number_and_the_next_request_is_answered() {
    let shed = shed();
    let size = DISK as u64;
    for (arguments, read_only) in [(&["web"][..], false), (&["web", "--read-only"], true), (&["deb"], true)] {
        let server = start(&shed, arguments);
        for structured in [true, false] {
            let mut client = client(&server, structured);
            assert_eq!(client.flags & 2 != 0, read_only);
            let writing = |errno: u32| if read_only { 1 } else { errno };
            for (number, flags, at, len, errno) in [
                (READ, 0, size, 1, 22),
                (READ, 0, u64::MAX, 512, 22),
                (READ, 0, 0, (32 << 20) + 1, 22),
                (READ, 0, size, 0, 0),
                (WRITE, 0, size - 1, 2, writing(28)),
                (WRITE, 0, u64::MAX - 1, 70_000, writing(28)),
                (WRITE, FAST, 0, 512, 22),
                (WRITE, 0, 0, 0, writing(0)),
                (WRITE_ZEROES, 0, 1, u32::MAX, writing(28)),
                (WRITE_ZEROES, DF, 0, 512, 22),
                (TRIM, 0, size, 512, writing(22)),
                (TRIM, 0, 4096, 4096, writing(0)),
                (FLUSH, 0, 0, 0, 0),
                (FLUSH, 0, 0, 512, 22),
                (FLUSH, FUA, 0, 0, 0),
                (BLOCK_STATUS, 0, 0, 0, 22),
                (BLOCK_STATUS, 0, size, 1, 22),
                (BLOCK_STATUS, 0, 0, 4096, if structured { 0 } else { 22 }),
                (READ, DF, 0, 4096, if structured { 0 } else { 22 }),
                (5, 0, 0, 4096, 22),
                (8, 0, 0, 4096, 22),
                (u16::MAX, u16::MAX, 0, 4096, 22),
                (READ, FUA, 0, 512, 0),
            ] {
                assert_eq!(client.errno(number, flags, at, len), errno, "{number} {flags} {at} {len}");
            }
            // Which leaves nothing behind, and nothing out.
            assert_eq!(client.read(1 << 20, 512).len(), 512);
            client.send(DISCONNECT, 0, 0, 0, &[]).unwrap();
            assert!(is_over(&mut client.stream));
        }
        server.end("-TERM");
    }
}

#[test]
fn a_flush_by_one_client_is_one_for_all_and_what_they_write_is_seen_at_once() {
    let shed = shed();
    let server = start(&shed, &["web"]);
    let (mut one, mut other) = (client(&server, true), client(&server, false));
    for n in 0..50_u64 {
        one.write(n * 70_000, &[n as u8; 6000]);
        assert_eq!(other.read(n * 70_000, 6000), vec![n as u8; 6000]);
        assert_eq!(other.errno(FLUSH, 0, 0, 0), 0);
    }
    // QEMU sees what was flushed, whatever becomes of the server.
    server.kill();
    let mut tool = Command::new("qemu-io");
    tool.args(["-U", "-r", "-f", "qcow2", "-c", "read -P 49 3430000 6000"]).arg(shed.delta("web"));
    let output = tool.output().unwrap();
    assert!(
        output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed"),
        "{output:?}"
    );
}

#[test]
fn a_clone_that_is_served_is_in_use_and_its_end_is_clean() {
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let server = start(&shed, &["web"]);
    assert_eq!(server.socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let other = shed.path("other");
    let other = other.to_str().unwrap();
    assert!(shed.fails(1, &["serve", "web", "--nbd", other]).contains("in use"));
    assert!(shed.fails(1, &["check", "web", "--repair"]).contains("in use"));
    let mut client = client(&server, true);
    client.write(4096, &[9; 4096]);
    // A client that is there does not hold the end up, nor does one that has not chosen yet.
    let _silent = server.connect();
    let said = server.end("-INT");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(client.ask(READ, 0, 0, 512, &[]).is_err());
    assert_eq!(content(&shed, "web")[4096..8192], [9; 4096]);
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
    // Readers stand beside each other.
    let server = start(&shed, &["web", "--read-only"]);
    shed.ok(&["check", "web"]);
    server.end("-HUP");
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    only_a_stale_socket_is_replaced("--nbd", |server| drop(client(server, true).read(0, 512)));
}

#[test]
fn a_port_is_for_this_host_and_its_number_is_told() {
    let shed = shed();
    let server = Server::start_at(&shed, &["web", "--nbd", "127.0.0.1:0"]);
    let address = server.address();
    let port = address.strip_prefix("nbd://").unwrap().trim_end_matches('/').to_owned();
    let mut client = Nbd::new(TcpStream::connect(&port).unwrap(), "web", true).unwrap();
    client.write(8192, &[4; 100_000]);
    assert_eq!(client.read(8192, 100_000), vec![4; 100_000]);
    let said = shed.fails(1, &["serve", "deb", "--nbd", &port]);
    assert!(said.contains("cannot listen at"), "{said}");
    server.end("-TERM");
    let said = shed.fails(1, &["serve", "web", "--nbd", "0.0.0.0:0"]);
    assert!(said.contains("--listen-anywhere"), "{said}");
    let server = Server::start_at(&shed, &["web", "--nbd", "0.0.0.0:0", "--listen-anywhere"]);
    server.end("-TERM");
}

#[test]
fn programs_are_told_where_a_disk_is_in_json() {
    let shed = shed();
    let socket = shed.path("so cket");
    let vhost = ["serve", "deb", "--json", "--vhost-user", socket.to_str().unwrap()];
    let nbd = ["serve", "deb", "--json", "--nbd", socket.to_str().unwrap()];
    for (arguments, protocol) in [(vhost, "vhost-user"), (nbd, "nbd")] {
        let mut child =
            shed.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut text = String::new();
        while !text.ends_with('}') {
            text += &lines.next().unwrap().unwrap();
        }
        let said: serde_json::Value = serde_json::from_str(&text).unwrap();
        let path = socket.to_str().unwrap().replace(' ', if protocol == "nbd" { "%20" } else { " " });
        assert!(said["address"].as_str().unwrap().ends_with(&path), "{said}");
        assert_eq!((&said["protocol"], &said["disk"]), (&protocol.into(), &"deb@1".into()));
        assert_eq!((&said["size"], &said["read_only"]), (&DISK.into(), &true.into()));
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let shed = shed();
    let long = "x".repeat(4097);
    for arguments in [
        &["serve", "web", "--nbd", "socket"][..],
        &["serve", "web", "--nbd", "unix:"],
        &["serve", "web", "--nbd", "localhost:99999"],
        &["serve", "web", "--nbd", "./s", "--vhost-user", "s"],
        &["serve", "web", "--nbd", "./s", "--queues", "2"],
        &["serve", "web", "--nbd", "./s", "--name", &long],
        &["serve", "web", "--vhost-user", "s", "--name", "x"],
        &["serve", "web", "--vhost-user", "s", "--listen-anywhere"],
    ] {
        one_line(&shed.output(arguments), 2, arguments);
    }
}

/// A write that was under way when its server was killed.
type Doubt = Option<(usize, Vec<u8>)>;

/// Clients write what is theirs alone, and note what was acknowledged; servers are killed one after the other.
#[test]
fn killed_servers_lose_no_acknowledged_write() {
    const CLIENTS: usize = 3;
    const KILLS: u64 = 10;
    let seed = seed_from_environment().unwrap_or(1);
    println!("seed {seed}");
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let mut model = content(&shed, "web");
    let each = DISK / CLIENTS / 4096 * 4096;
    let mut doubts: [Doubt; CLIENTS] = Default::default();
    let writes = AtomicUsize::new(0);
    for kill in 0..KILLS {
        let server = start(&shed, &["web"]);
        let clients = [(); CLIENTS].map(|()| client(&server, true));
        std::thread::scope(|scope| {
            let parts = model.chunks_mut(each).zip(&mut doubts).zip(clients).enumerate();
            for (number, ((model, doubt), client)) in parts {
                let (writes, rng) = (&writes, Rng::new(seed + kill * 100 + number as u64));
                scope.spawn(move || hammer(client, (number * each, model), doubt, rng, writes));
            }
            std::thread::sleep(Duration::from_millis(30 + kill * 37 % 60));
            server.kill();
        });
    }
    let writes = writes.into_inner();
    println!("{writes} writes");
    assert!(writes > 100, "{writes} writes only");
    assert!(shed.output(&["check", "web", "--repair"]).status.success());
    let found = content(&shed, "web");
    for ((model, found), doubt) in model.chunks_mut(each).zip(found.chunks(each)).zip(&mut doubts) {
        settle(model, doubt, |at, len| found[at..at + len].to_vec());
    }
    assert!(found == model, "seed {seed}");
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
}

/// Of what was not acknowledged each sector is old or new.
fn settle(model: &mut [u8], doubt: &mut Doubt, read: impl FnOnce(usize, usize) -> Vec<u8>) {
    let Some((at, new)) = doubt.take() else { return };
    let found = read(at, new.len());
    for ((found, new), old) in found.chunks(512).zip(new.chunks(512)).zip(model[at..].chunks_mut(512)) {
        assert!(found == old || found == new, "a sector of the write at {at} is something else");
        old.copy_from_slice(found);
    }
}

/// Checks a place, then changes it, until the server is gone.
fn hammer(
    mut client: Nbd<UnixStream>,
    (start, model): (usize, &mut [u8]),
    doubt: &mut Doubt,
    mut rng: Rng,
    writes: &AtomicUsize,
) {
    settle(model, doubt, |at, len| client.read((start + at) as u64, len as u32));
    loop {
        let len = rng.between(1, 40) as usize * 512;
        let at = rng.below((model.len() - len) as u64 / 512) as usize * 512;
        let place = (start + at) as u64;
        let Ok(found) = client.ask(READ, 0, place, len as u32, &[]) else { return };
        assert!(found.data == model[at..at + len], "{len} bytes at {place} are not what was acknowledged");
        let data = rng.bytes(len);
        match client.ask(WRITE, 0, place, len as u32, &data) {
            Ok(answer) => assert_eq!(answer.errno, 0),
            Err(_) => {
                *doubt = Some((at, data));
                return;
            }
        }
        model[at..at + len].copy_from_slice(&data);
        writes.fetch_add(1, Ordering::Relaxed);
    }
}
