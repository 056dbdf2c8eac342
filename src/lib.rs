//! Copy-on-write linked clones of disk images.
//!
//! A base image is stored once; each clone is a small qcow2 delta over it that QEMU itself can open. The modules
//! depend on each other downward only: `cli` on `vm`, `serve` and `view`, those on `ops`, then `store`, `disk`, `qcow2`,
//! `storage`, and `units`, `error`, `sync`, `idle` (flushes of idle disks) and `confined` (programs of the host) at the
//! bottom.

pub mod cli;
mod confined;
pub mod disk;
pub mod error;
pub mod guestfs;
mod idle;
pub mod ops;
mod pages;
pub mod qcow2;
pub mod serve;
pub mod storage;
pub mod store;
mod sync;
pub mod units;
pub mod view;
pub mod vm;
pub mod zero;

pub use error::{Error, Kind, Result};
