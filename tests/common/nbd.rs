//! An NBD client that speaks bytes, and says nothing on its own.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub const GO: u32 = 7;
pub const STRUCTURED: u32 = 8;
pub const SET_CONTEXT: u32 = 10;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const ONE: u16 = 8;
pub const FAST: u16 = 16;

/// An option as it is sent.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Data of INFO and GO.
pub fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let wanted: Vec<_> = wanted.iter().flat_map(|number| number.to_be_bytes()).collect();
    [
        &(name.len() as u32).to_be_bytes()[..],
        name.as_bytes(),
        &(wanted.len() as u16 / 2).to_be_bytes(),
        &wanted,
    ]
    .concat()
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn context(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// A request as it is sent, without data.
pub fn request(number: u16, flags: u16, cookie: u64, at: u64, len: u32) -> Vec<u8> {
    let (magic, flags, number) = (0x2560_9513_u32.to_be_bytes(), flags.to_be_bytes(), number.to_be_bytes());
    [&magic[..], &flags, &number, &cookie.to_be_bytes(), &at.to_be_bytes(), &len.to_be_bytes()].concat()
}

fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn half(from: &mut impl Read) -> io::Result<u16> {
    bytes(from).map(u16::from_be_bytes)
}

fn word(from: &mut impl Read) -> io::Result<u32> {
    bytes(from).map(u32::from_be_bytes)
}

fn long(from: &mut impl Read) -> io::Result<u64> {
    bytes(from).map(u64::from_be_bytes)
}

/// A reply to an option: the option, its kind, its data.
pub fn option_reply(from: &mut impl Read) -> io::Result<(u32, u32, Vec<u8>)> {
    assert_eq!(long(from)?, 0x0003_e889_0455_65a9, "no reply to an option");
    let (option, kind, len) = (word(from)?, word(from)?, word(from)?);
    assert!(len <= 8192, "a reply of {len} bytes");
    let mut data = vec![0; len as usize];
    from.read_exact(&mut data)?;
    Ok((option, kind, data))
}

/// What the server said to a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub errno: u32,
    /// What was read, from `at` on.
    pub data: Vec<u8>,
    /// Extents: length and flags.
    pub extents: Vec<(u32, u32)>,
    /// Chunks with data, with holes.
    pub chunks: (usize, usize),
}

/// One message of the server. `read` gives the range that a request reads, and whether its reply is a simple one.
#[derive(Debug)]
pub enum Message {
    Simple { cookie: u64, errno: u32 },
    Chunk { cookie: u64, done: bool, kind: u16, data: Vec<u8> },
}

/// The next message; the data of a simple reply are still to come.
pub fn message(from: &mut impl Read) -> io::Result<Message> {
    match word(from)? {
        0x6744_6698 => {
            let errno = word(from)?;
            Ok(Message::Simple { errno, cookie: long(from)? })
        }
        0x668e_33ef => {
            let (flags, kind, cookie, len) = (half(from)?, half(from)?, long(from)?, word(from)?);
            assert!(flags <= 1 && len <= (32 << 20) + 8, "flags {flags}, {len} bytes");
            let mut data = vec![0; len as usize];
            from.read_exact(&mut data)?;
            Ok(Message::Chunk { cookie, done: flags == 1, kind, data })
        }
        magic => panic!("no reply begins with {magic:#x}"),
    }
}

impl Answer {
    /// Takes a chunk of the reply to a request for `len` bytes at `at`; whether it was the last one.
    pub fn add(&mut self, (at, len): (u64, u32), done: bool, kind: u16, data: &[u8]) -> bool {
        let mut from = data;
        self.data.resize(if kind == 1 || kind == 2 { len as usize } else { self.data.len() }, 0xee);
        match kind {
            0 => assert!(done && data.is_empty()),
            1 => {
                let place = (long(&mut from).unwrap() - at) as usize;
                assert!(!from.is_empty(), "an empty chunk");
                self.data[place..place + from.len()].copy_from_slice(from);
                self.chunks.0 += 1;
            }
            2 => {
                let place = (long(&mut from).unwrap() - at) as usize;
                let zeros = word(&mut from).unwrap() as usize;
                assert!(zeros > 0 && from.is_empty());
                self.data[place..place + zeros].fill(0);
                self.chunks.1 += 1;
            }
            5 => {
                assert_eq!(word(&mut from).unwrap(), 1, "the context");
                while !from.is_empty() {
                    self.extents.push((word(&mut from).unwrap(), word(&mut from).unwrap()));
                }
            }
            0x8001 => {
                self.errno = word(&mut from).unwrap();
                assert_ne!(self.errno, 0);
                let said = half(&mut from).unwrap();
                assert_eq!(from.len(), usize::from(said));
                assert!(std::str::from_utf8(from).is_ok_and(|text| text.len() > 5));
            }
            kind => panic!("a chunk of kind {kind}"),
        }
        done
    }
}

/// A client in its second part, one request at a time.
#[derive(Debug)]
pub struct Nbd<S> {
    pub stream: S,
    pub size: u64,
    pub flags: u16,
    structured: bool,
    cookie: u64,
}

impl<S: Read + Write> Nbd<S> {
    /// Says hello with `flags`.
    pub fn hello(stream: &mut S, flags: u32) -> io::Result<()> {
        assert_eq!(&bytes::<16>(stream)?, b"NBDMAGICIHAVEOPT");
        assert_eq!(half(stream)?, 3);
        stream.write_all(&flags.to_be_bytes())
    }

    /// Asks for the export `name`, with structured replies and block status or without.
    pub fn new(mut stream: S, name: &str, structured: bool) -> io::Result<Self> {
        Self::hello(&mut stream, 3)?;
        if structured {
            stream.write_all(&option(STRUCTURED, &[]))?;
            assert_eq!(option_reply(&mut stream)?, (STRUCTURED, 1, vec![]));
            stream.write_all(&option(SET_CONTEXT, &context(name, &["base:allocation"])))?;
            let (_, kind, data) = option_reply(&mut stream)?;
            assert_eq!((kind, &data[..]), (4, &b"\0\0\0\x01base:allocation"[..]));
            assert_eq!(option_reply(&mut stream)?.1, 1);
        }
        stream.write_all(&option(GO, &info(name, &[])))?;
        let (_, kind, data) = option_reply(&mut stream)?;
        assert_eq!((kind, data.len(), &data[..2]), (3, 12, &[0, 0][..]));
        assert_eq!(option_reply(&mut stream)?, (GO, 1, vec![]));
        let size = u64::from_be_bytes(data[2..10].try_into().unwrap());
        let flags = u16::from_be_bytes(data[10..].try_into().unwrap());
        Ok(Self { stream, size, flags, structured, cookie: 0 })
    }

    pub fn send(&mut self, number: u16, flags: u16, at: u64, len: u32, data: &[u8]) -> io::Result<u64> {
        self.cookie += 1;
        let request = request(number, flags, self.cookie, at, len);
        self.stream.write_all(&[&request, data].concat())?;
        Ok(self.cookie)
    }

    /// The next answer, which must be to a request for `len` bytes at `at`, and whose messages are not mixed with others.
    pub fn answer(&mut self, read: bool, at: u64, len: u32) -> io::Result<Answer> {
        let mut answer = Answer::default();
        loop {
            match message(&mut self.stream)? {
                Message::Simple { cookie, errno } => {
                    (answer.cookie, answer.errno) = (cookie, errno);
                    if read && errno == 0 {
                        assert!(!self.structured, "a simple reply with data");
                        answer.data = vec![0; len as usize];
                        self.stream.read_exact(&mut answer.data)?;
                    }
                    return Ok(answer);
                }
                Message::Chunk { cookie, done, kind, data } => {
                    assert!(self.structured && (answer.cookie == 0 || answer.cookie == cookie));
                    answer.cookie = cookie;
                    if answer.add((at, len), done, kind, &data) {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    pub fn ask(&mut self, number: u16, flags: u16, at: u64, len: u32, data: &[u8]) -> io::Result<Answer> {
        let cookie = self.send(number, flags, at, len, data)?;
        let answer = self.answer(number == READ, at, len)?;
        assert_eq!(answer.cookie, cookie);
        Ok(answer)
    }

    /// What is at a place; panics when it cannot be read.
    pub fn read(&mut self, at: u64, len: u32) -> Vec<u8> {
        let answer = self.ask(READ, 0, at, len, &[]).unwrap();
        assert_eq!(answer.errno, 0);
        answer.data
    }

    /// Writes; panics when it fails.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        assert_eq!(self.ask(WRITE, 0, at, data.len() as u32, data).unwrap().errno, 0);
    }

    pub fn errno(&mut self, number: u16, flags: u16, at: u64, len: u32) -> u32 {
        let data = if number == WRITE { vec![1; len as usize] } else { vec![] };
        self.ask(number, flags, at, len, &data).unwrap().errno
    }
}

impl Nbd<UnixStream> {
    /// Asks for the default export; an answer that never comes is an error.
    pub fn on(stream: UnixStream, structured: bool) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self::new(stream, "", structured).unwrap()
    }
}

/// Whether the server has hung up.
pub fn is_over(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}
