//! A disk by NBD under a hostile client: whatever it says, the server's messages are whole, each request that is taken is answered
//! once, reads are what was written, what is told to be zero is, and a disk that is read-only stays what it is.
//!
//! The first byte has the options; then come the client's bytes, as they are or as steps that make them.

#[path = "../../common/nbd.rs"]
mod client;

use super::input::Input;
use client::{Answer, Message, context, info, message, option, request};
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::serve::nbd::request::{Command, Request};
use cowshed::serve::nbd::{Agreed, Facts, Talk, negotiate};
use cowshed::serve::{Export, Idle};
use cowshed::storage::Memory;
use std::io::{Cursor, Read};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

const SIZE: usize = 1 << 20;

const READ_ONLY: u8 = 1;
const AS_THEY_ARE: u8 = 2;
/// The first part of the talk is that of a client which knows what it wants.
const AGREED: u8 = 4;

pub fn nbd(data: &[u8]) {
    let mut input = Input(data);
    let options = input.byte();
    let read_only = options & READ_ONLY != 0;
    let said = if options & AS_THEY_ARE != 0 { input.0.to_vec() } else { steps(options, &mut input) };
    let storage = Arc::new(Memory::from_bytes(&vec![0x5a; SIZE]));
    let raw = RawLayer::new(storage.clone(), !read_only).unwrap();
    let disk: Arc<Disk> = Arc::new(Disk::new(vec![Layer::Raw(raw)]).unwrap());
    static IDLE: OnceLock<Idle> = OnceLock::new();
    let idle = IDLE.get_or_init(|| Idle::start().unwrap());
    let export = Export::new(disk, "fuzz", read_only, idle);
    let facts = Facts { name: "fuzz".to_owned(), size: export.size(), read_only };

    let mut from = Cursor::new(&said[..]);
    let mut greeting = Vec::new();
    let agreed = negotiate(&facts, &mut from, &mut greeting);
    assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT\0\x03"));
    let Ok(Some(agreed)) = agreed else { return };
    let requests = &said[usize::try_from(from.position()).unwrap()..];
    let mut answers = Vec::new();
    let no_stop = AtomicBool::new(false);
    let hang_up = || panic!("nothing failed, and the client is hung up on");
    Talk::new((&export, &facts, agreed), (requests, &mut answers), &no_stop, &hang_up).work();
    let mut model = vec![0x5a; SIZE];
    follow(&facts, agreed, requests, &answers, &mut model);
    assert!(storage.bytes() == model, "the disk is not what was written");
}

/// What the client says.
fn steps(options: u8, input: &mut Input<'_>) -> Vec<u8> {
    let mut said = 3_u32.to_be_bytes().to_vec();
    if options & AGREED != 0 {
        said.extend(option(8, &[]));
        said.extend(option(10, &context("", &["base:allocation"])));
        said.extend(option(7, &info("fuzz", &[3])));
    }
    while !input.is_empty() && said.len() < 1 << 16 {
        match input.byte() % 8 {
            0 => {
                let number = u32::from(input.byte() % 14);
                let len = usize::from(input.byte());
                said.extend(option(number, input.bytes(len)));
            }
            1 => {
                let name = *[&"", &"fuzz", &"none", &"fuz"][usize::from(input.byte() % 4)];
                let query = *[&"base:", &"base:allocation", &"x:y"][usize::from(input.byte() % 3)];
                let data = [info(name, &[1, 3]), context(name, &[query]), context(name, &[]), Vec::new()];
                let number = u32::from(input.byte() % 12);
                said.extend(option(number, &data[usize::from(input.byte() % 4)]));
            }
            2 => {
                let len = usize::from(input.byte() % 64);
                said.extend(input.bytes(len));
            }
            _ => {
                let (number, flags) = (u16::from(input.byte() % 10), u16::from(input.byte()) & 0x1f);
                let at = if input.byte().is_multiple_of(2) {
                    input.below(65536) * 16
                } else {
                    input.striking(SIZE as u64)
                };
                let len = if input.byte().is_multiple_of(4) {
                    input.striking(SIZE as u64) as u32
                } else {
                    input.below(20_000) as u32
                };
                let flags = if input.byte().is_multiple_of(4) { flags } else { 0 };
                said.extend(request(number, flags, said.len() as u64, at, len));
                if number == 1 && len < 40_000 {
                    said.resize(said.len() + len as usize, input.byte());
                }
            }
        }
    }
    said
}

/// Goes through requests and their answers side by side.
fn follow(facts: &Facts, agreed: Agreed, mut requests: &[u8], mut answers: &[u8], model: &mut [u8]) {
    let mut header = [0; 28];
    while requests.read_exact(&mut header).is_ok() {
        let Some(request) = Request::parse(header) else { break };
        let payload = request.payload() as usize;
        if request.number == 2 || payload > 32 << 20 || payload > requests.len() {
            break;
        }
        let (data, rest) = requests.split_at(payload);
        requests = rest;
        let command = request.command(facts, agreed);
        let answer = answer(&request, command.is_ok_and(is_read), agreed, &mut answers);
        assert_eq!(answer.errno, command.map_or_else(|refusal| refusal.errno, |_| 0));
        if let Ok(command) = command {
            apply(&request, command, data, &answer, model);
        }
    }
    assert!(answers.is_empty(), "{} bytes that answer nothing", answers.len());
}

fn is_read(command: Command) -> bool {
    matches!(command, Command::Read { .. })
}

fn answer(request: &Request, read: bool, agreed: Agreed, answers: &mut &[u8]) -> Answer {
    let mut answer = Answer::default();
    loop {
        match message(answers).expect("an answer to each request") {
            Message::Simple { cookie, errno } => {
                assert_eq!(cookie, request.cookie);
                answer.errno = errno;
                if read && errno == 0 {
                    assert!(!agreed.structured);
                    answer.data = vec![0; request.len as usize];
                    answers.read_exact(&mut answer.data).unwrap();
                }
                return answer;
            }
            Message::Chunk { cookie, done, kind, data } => {
                assert!(agreed.structured && cookie == request.cookie);
                if answer.add((request.at, request.len), done, kind, &data) {
                    return answer;
                }
            }
        }
    }
}

fn apply(request: &Request, command: Command, data: &[u8], answer: &Answer, model: &mut [u8]) {
    let (mut at, len) = (request.at as usize, request.len as usize);
    match command {
        Command::Read { whole } => {
            assert!(answer.data == model[at..at + len], "{len} bytes at {at} are not what was written");
            assert!(!whole || answer.chunks.0 + answer.chunks.1 <= 1);
        }
        Command::Write => model[at..at + len].copy_from_slice(data),
        Command::Trim | Command::WriteZeroes => model[at..at + len].fill(0),
        Command::BlockStatus { one } => {
            assert!(!answer.extents.is_empty() && (!one || answer.extents.len() == 1));
            for &(extent, flags) in &answer.extents {
                let end = at + extent as usize;
                assert!(end <= request.at as usize + len && (flags == 0 || flags == 3));
                assert!(flags == 0 || model[at..end].iter().all(|&byte| byte == 0));
                at = end;
            }
        }
        Command::Flush => {}
    }
}

/// Talks of each kind, by name.
pub fn nbd_corpus() -> Vec<(&'static str, Vec<u8>)> {
    let start = |structured: bool| {
        let mut said = vec![AS_THEY_ARE, 0, 0, 0, 3];
        if structured {
            said.extend(option(8, &[]));
            said.extend(option(9, &context("", &["base:"])));
            said.extend(option(10, &context("fuzz", &["base:allocation"])));
        }
        [said, option(6, &info("", &[1, 3])), option(7, &info("fuzz", &[]))].concat()
    };
    let ask = |number: u16, flags: u16, at: u64, len: u32| request(number, flags, 0x0102_0304, at, len);
    let old = |name: &[u8]| [vec![AS_THEY_ARE, 0, 0, 0, 0], option(1, name)].concat();
    let write = |at: u64| [ask(1, 1, at, 700), vec![9; 700]].concat();
    vec![
        ("old", [old(b"fuzz"), ask(0, 0, 512, 512), ask(2, 0, 0, 0)].concat()),
        ("old-unknown", old(b"none")),
        ("options", [vec![AS_THEY_ARE, 0, 0, 0, 3], (0..14).flat_map(|n| option(n, b"")).collect()].concat()),
        ("list", [vec![AS_THEY_ARE, 0, 0, 0, 3], option(3, b""), option(5, b""), option(2, b"")].concat()),
        ("read", [start(true), ask(0, 0, 0, 9000), ask(0, 4, 77, 5)].concat()),
        ("read-simple", [start(false), ask(0, 0, 0, 9000), ask(0, 0, 1 << 20, 1)].concat()),
        ("write", [start(true), write(900), ask(0, 0, 0, 2000), write(1 << 20)].concat()),
        ("zeroes", [start(true), ask(6, 2, 4096, 65536), ask(6, 16, 1, 3), ask(7, 0, 0, 1 << 20)].concat()),
        ("trim", [start(true), ask(4, 0, 8192, 65536), ask(7, 8, 0, 1 << 20), ask(3, 0, 0, 0)].concat()),
        (
            "past-the-end",
            [start(true), ask(0, 0, u64::MAX, 1), ask(6, 0, 0, u32::MAX), ask(9, 0, 0, 0)].concat(),
        ),
        ("read-only", {
            let mut said =
                [start(true), write(0), ask(6, 0, 0, 512), ask(4, 0, 0, 512), ask(3, 0, 0, 0)].concat();
            said[0] |= READ_ONLY;
            said
        }),
        ("steps", [vec![AGREED], (0..=255).cycle().take(600).collect()].concat()),
        ("steps-alone", [vec![0], (0..=255).rev().cycle().take(600).collect()].concat()),
    ]
}
