//! `serve --nbd` under clients that mean no good, or know no better: handshakes, options, and nonsense.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/nbd.rs"]
mod nbd;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/serving.rs"]
mod serving;

use common::{DISK, Shed};
use nbd::{Nbd, READ, WRITE, context, info, is_over, option, option_reply, request};
use rng::{Rng, seed_from_environment};
use serving::{Server, shed};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn start(arguments: &[&str]) -> (Shed, Server) {
    let shed = shed();
    let server = Server::start(&shed, "--nbd", arguments);
    (shed, server)
}

fn client(server: &Server, structured: bool) -> Nbd<UnixStream> {
    Nbd::on(server.connect(), structured)
}

#[test]
fn what_makes_no_sense_at_all_ends_that_client_alone() {
    let (_shed, server) = start(&["web"]);
    let mut good = client(&server, true);
    // No request; a write that is too long; an old magic number.
    let old = 0x1256_0953_u32.to_be_bytes();
    for bad in [vec![7; 28], request(WRITE, 0, 1, 0, (32 << 20) + 1), [&old[..], &[0; 24]].concat()] {
        let mut client = client(&server, true);
        client.stream.write_all(&bad).unwrap();
        assert!(is_over(&mut client.stream));
    }
    // Flags that nobody offered; an option that is none; data behind nothing.
    for bad in [4_u32.to_be_bytes().to_vec(), [&3_u32.to_be_bytes()[..], &[9; 16]].concat()] {
        let mut stream = server.connect();
        stream.write_all(&bad).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert!(is_over(&mut stream));
    }
    good.write(0, &[3; 512]);
    // Half a write, and its client is gone: nothing of it is done.
    let mut half = client(&server, true);
    half.stream.write_all(&[&request(WRITE, 0, 1, 0, 4096)[..], &[9; 1000]].concat()).unwrap();
    drop(half);
    assert_eq!(good.read(0, 512), [3; 512]);
    let said = server.end("-TERM");
    assert_eq!(said.matches("a client is hung up on").count(), 5, "{said}");
}

/// Every answer to an option: the option, the kinds of its replies, and the data of the first one.
fn haggle(server: &Server, options: &[(u32, &[u8])]) -> Vec<(Vec<u32>, Vec<u8>)> {
    const ACK: u32 = 1;
    let mut stream = server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    Nbd::hello(&mut stream, 3).unwrap();
    let mut answers = Vec::new();
    for (number, data) in options {
        stream.write_all(&option(*number, data)).unwrap();
        let (mut kinds, mut first) = (Vec::new(), None);
        while kinds.last().is_none_or(|&kind| kind != ACK && kind < 1 << 31) {
            let (option, kind, data) = option_reply(&mut stream).unwrap();
            assert_eq!(option, *number);
            kinds.push(kind);
            first.get_or_insert(data);
        }
        answers.push((kinds, first.unwrap()));
    }
    answers
}

#[test]
fn options_are_answered_as_the_protocol_wants() {
    const UNSUPPORTED: u32 = (1 << 31) + 1;
    const INVALID: u32 = (1 << 31) + 3;
    const UNKNOWN: u32 = (1 << 31) + 6;
    const TOO_BIG: u32 = (1 << 31) + 9;
    let (_shed, server) = start(&["web", "--name", "a disk"]);
    let long = "x".repeat(4097);
    let (cut, wild) =
        (info("a disk", &[3, 3]), [&[0_u8, 0, 0, 1, b'x', 0xff, 0xff, 0xff, 0xff][..]].concat());
    let answers = haggle(
        &server,
        &[
            (3, b""),
            (3, b"x"),
            (5, b""),
            (4, b""),
            (11, b"anything"),
            (u32::MAX, &[7; 70_000]),
            (6, &info("a disk", &[1, 3, 7, 1, 900])),
            (6, &info("", &[])),
            (6, &info("another", &[1])),
            (6, &info(&long, &[])),
            (6, &cut[..cut.len() - 1]),
            (6, &wild),
            (7, &info("web", &[])),
            // Structured replies come first.
            (9, &context("a disk", &[])),
            (10, &context("a disk", &["base:allocation"])),
            (8, b"x"),
            (8, b""),
            (9, &context("a disk", &[])),
            (9, &context("", &["base:"])),
            (9, &context("", &["qemu:dirty-bitmap:x"])),
            (10, &context("", &["base:"])),
            (10, &context("", &["qemu:", "base:allocation", "base:allocation"])),
            (10, &context("another", &["base:allocation"])),
            (10, &context("", &[&long])),
            (10, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            (2, b"anything"),
        ],
    );
    let kinds: Vec<_> = answers.iter().map(|(kinds, _)| &kinds[..]).collect();
    let expected: [&[u32]; 26] = [
        &[2, 1],
        &[INVALID],
        &[UNSUPPORTED],
        &[UNSUPPORTED],
        &[UNSUPPORTED],
        &[TOO_BIG],
        &[3, 3, 3, 1],
        &[3, 1],
        &[UNKNOWN],
        &[INVALID],
        &[INVALID],
        &[INVALID],
        &[UNKNOWN],
        &[INVALID],
        &[INVALID],
        &[INVALID],
        &[1],
        &[4, 1],
        &[4, 1],
        &[1],
        &[1],
        &[4, 1],
        &[UNKNOWN],
        &[INVALID],
        &[INVALID],
        &[1],
    ];
    assert_eq!(kinds, expected);
    assert_eq!(answers[0].1, b"\0\0\0\x06a disk");
    server.end("-TERM");
}

#[test]
fn old_clients_get_an_export_by_name_with_zeros_behind_it() {
    let (shed, server) = start(&["web"]);
    for (flags, zeros) in [(0, 124), (1, 124), (3, 0)] {
        let mut stream = server.connect();
        Nbd::hello(&mut stream, flags).unwrap();
        stream.write_all(&[option(1, b"web"), request(READ, 0, 9, 2 << 20, 512)].concat()).unwrap();
        let mut all = vec![0; 10 + zeros + 16 + 512];
        stream.read_exact(&mut all).unwrap();
        assert_eq!(all[..8], (DISK as u64).to_be_bytes());
        assert!(all[10..10 + zeros].iter().all(|&byte| byte == 0));
        assert_eq!(all[10 + zeros..14 + zeros], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(all[26 + zeros..], fs::read(shed.path("deb.raw")).unwrap()[2 << 20..(2 << 20) + 512]);
    }
    for name in [&b"deb"[..], &[b'x'; 5000], &[b'x'; 70_000]] {
        let mut stream = server.connect();
        Nbd::hello(&mut stream, 3).unwrap();
        stream.write_all(&option(1, name)).unwrap();
        assert!(is_over(&mut stream));
    }
    server.end("-TERM");
}

/// Hundreds of clients that say anything: random bytes, and messages with something wrong in them.
#[test]
fn nonsense_from_hundreds_of_clients_is_survived_in_bounded_memory() {
    let first = seed_from_environment().unwrap_or(1);
    println!("seed {first}");
    let (_shed, server) = start(&["web", "--read-only"]);
    for seed in first..first + 400 {
        let mut rng = Rng::new(seed);
        let mut stream = server.connect();
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut say = |bytes: &[u8]| drop(stream.write_all(bytes));
        if rng.chance(80) {
            say(&3_u32.to_be_bytes());
        }
        for _ in 0..rng.below(4) {
            let data = match rng.below(4) {
                0 => info("web", &[3]),
                1 => context("web", &["base:allocation"]),
                2 => {
                    let len = rng.below(200) as usize;
                    rng.bytes(len)
                }
                _ => vec![],
            };
            let mut option = option(rng.below(13) as u32, &data);
            if rng.chance(20) {
                let at = rng.below(option.len() as u64) as usize;
                option[at] ^= 1 << rng.below(8);
            }
            say(&option);
        }
        say(&option(7, &info("web", &[])));
        for cookie in 0..rng.below(30) {
            let at = *rng.pick(&[0, 1 << 20, DISK as u64, u64::MAX - 5]);
            let len = *rng.pick(&[0, 512, 8 << 20, 32 << 20, u32::MAX]);
            let mut request = request(rng.below(9) as u16, rng.below(40) as u16, cookie, at, len);
            if rng.chance(5) {
                let at = rng.below(28) as usize;
                request[at] ^= 1 << rng.below(8);
            }
            say(&request);
        }
        let junk = rng.below(300) as usize;
        say(&rng.bytes(junk));
    }
    let mut client = client(&server, true);
    assert_eq!(client.read(2 << 20, 4096).len(), 4096);
    let peak = server.status("VmHWM");
    println!("{} MiB at the most", peak >> 10);
    assert!(peak < 400 << 10, "{peak} KiB");
    let said = server.end("-TERM");
    assert!(!said.contains("panic") && said.lines().count() <= 21, "{said}");
}
