//! `vhost-user-blk`, by which a virtual machine reads and writes a disk without a system call of its own.
//!
//! - [`block`] says what a virtio block device is, [`request`] does its requests.
//! - [`ring`] and [`chain`] follow a queue in a guest's [`memory`], [`inflight`] remembers what is being done.
//! - [`Server`] takes front ends at a socket, [`Connection`] is one of them.
//!
//! Everything up to `ring` is free of threads and sockets, so that tests drive it as they like.

pub mod block;
pub mod chain;
mod connection;
pub mod inflight;
pub mod memory;
mod messages;
mod queue;
pub mod request;
pub mod ring;
mod server;
mod session;
mod watch;

pub use connection::{Connection, Options};
pub use server::Server;
