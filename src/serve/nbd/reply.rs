//! Replies: what goes before their data.

use super::negotiation::ALLOCATION_ID;
use super::request::Refusal;

/// What a reply in one piece begins with.
pub const SIMPLE: u32 = 0x6744_6698;
/// What a chunk of a reply begins with.
pub const STRUCTURED: u32 = 0x668e_33ef;
/// Bytes of a reply in one piece, without its data.
pub const SIMPLE_LEN: usize = 16;
/// Bytes of a chunk, without what is in it.
pub const CHUNK_LEN: usize = 20;
/// Whether a chunk is the last one of its reply.
pub const DONE: u16 = 1;

/// Kinds of chunks.
pub mod kind {
    /// Nothing more.
    pub const NONE: u16 = 0;
    /// Bytes from a place on.
    pub const DATA: u16 = 1;
    /// So many zeros from a place on.
    pub const HOLE: u16 = 2;
    /// Which parts of a range are holes.
    pub const BLOCK_STATUS: u16 = 5;
    /// It failed.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// A part of the disk, as a client is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u32,
    /// Whether nothing is stored for it; it reads as zeros then.
    pub hole: bool,
}

/// Replies of one request, into a buffer.
#[derive(Debug)]
pub struct Replier<'a> {
    /// What the client knows the request by.
    pub cookie: u64,
    /// Where they go.
    pub to: &'a mut Vec<u8>,
}

impl Replier<'_> {
    /// A reply in one piece, before its data if there are any.
    pub fn simple(&mut self, errno: u32) {
        self.to.extend_from_slice(&SIMPLE.to_be_bytes());
        self.to.extend_from_slice(&errno.to_be_bytes());
        self.to.extend_from_slice(&self.cookie.to_be_bytes());
    }

    fn chunk(&mut self, kind: u16, done: bool, len: u32) {
        self.to.extend_from_slice(&STRUCTURED.to_be_bytes());
        self.to.extend_from_slice(&(if done { DONE } else { 0 }).to_be_bytes());
        self.to.extend_from_slice(&kind.to_be_bytes());
        self.to.extend_from_slice(&self.cookie.to_be_bytes());
        self.to.extend_from_slice(&len.to_be_bytes());
    }

    /// The end of a reply that went well.
    pub fn none(&mut self) {
        self.chunk(kind::NONE, true, 0);
    }

    /// `len` bytes from `at` on, which follow.
    pub fn data(&mut self, at: u64, len: u32, done: bool) {
        self.chunk(kind::DATA, done, len.saturating_add(8));
        self.to.extend_from_slice(&at.to_be_bytes());
    }

    /// `len` zeros from `at` on.
    pub fn hole(&mut self, at: u64, len: u32, done: bool) {
        self.chunk(kind::HOLE, done, 12);
        self.to.extend_from_slice(&at.to_be_bytes());
        self.to.extend_from_slice(&len.to_be_bytes());
    }

    /// The end of a reply that did not go well.
    pub fn error(&mut self, refusal: Refusal) {
        let why = refusal.why.as_bytes();
        let len = u16::try_from(why.len()).unwrap_or(0);
        let why = &why[..usize::from(len)];
        self.chunk(kind::ERROR, true, 6 + u32::from(len));
        self.to.extend_from_slice(&refusal.errno.to_be_bytes());
        self.to.extend_from_slice(&len.to_be_bytes());
        self.to.extend_from_slice(why);
    }

    /// Which parts of a range are holes.
    pub fn status(&mut self, extents: &[Extent]) {
        let len = u32::try_from(extents.len() * 8).unwrap_or(0).saturating_add(4);
        self.chunk(kind::BLOCK_STATUS, true, len);
        self.to.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        for extent in extents {
            self.to.extend_from_slice(&extent.len.to_be_bytes());
            // A hole that reads as zeros, or neither.
            self.to.extend_from_slice(&(if extent.hole { 3_u32 } else { 0 }).to_be_bytes());
        }
    }
}
