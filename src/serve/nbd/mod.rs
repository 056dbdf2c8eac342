//! The Network Block Device protocol: a disk for any number of clients, at a Unix socket or over TCP.
//!
//! The protocol is that of `doc/proto.md` of the NBD project: fixed newstyle negotiation, structured replies, and
//! `base:allocation`; what is missing is refused in its words.
//!
//! - [`option`], [`negotiation`], [`request`] and [`reply`] are the messages: bytes in, bytes out.
//! - [`Talk`] is a client's session over anything that can be read and written, by as many threads as call it.
//! - [`Server`] takes clients at an [`Address`].
//!
//! Everything up to `Talk` is free of threads and sockets, so that tests drive it as they like.

mod address;
mod client;
mod gather;
mod handshake;
mod listener;
pub mod negotiation;
pub mod option;
pub mod reply;
pub mod request;
mod server;
mod status;
mod stream;
mod talk;
mod work;

pub use address::Address;
pub use handshake::negotiate;
pub use server::{Options, Server};
pub use talk::Talk;

/// Most bytes of data of one request, which all clients keep to; more is refused.
pub const MOST_DATA: u32 = 32 << 20;
/// Most bytes of a name.
pub const MOST_NAME: usize = 4096;

/// What clients are told of a disk.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The name that they may ask for; the empty one is good as well.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// What a client has agreed on for its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Replies come in chunks.
    pub structured: bool,
    /// It may ask which parts of the disk are holes.
    pub allocation: bool,
}
