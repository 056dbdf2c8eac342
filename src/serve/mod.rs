//! Disks for other consumers than a mount.
//!
//! - [`Export`] is a disk as all protocols see it; a [`Stopper`] ends a server of any of them.
//! - [`vhost`] serves one virtual machine through the memory that it shares, [`nbd`] any number of clients by messages.

mod export;
pub mod nbd;
mod socket;
mod stop;
pub mod vhost;

pub use export::{Export, Idle};
pub use stop::Stopper;
