//! Runs a disk as a virtual machine under QEMU.
//!
//! - [`accel`] decides between KVM and TCG.
//! - [`command`] turns a [`VmConfig`] into QEMU's command line, without side effects.
//! - [`qmp`] speaks QEMU's machine protocol.
//! - [`machine`] is one running QEMU process: started, talked to, never left behind.
//! - [`mod@run`] is a whole run: start, console, Ctrl-C as a clean power-off, exit code.
//!
//! The module knows nothing of images or of the store: a disk is a raw file, or a socket where one is served.

pub mod accel;
pub mod command;
mod console;
mod error;
pub mod machine;
pub mod qmp;
pub mod run;
mod signals;

pub use accel::{Accel, AccelChoice};
pub use command::{Serial, VmConfig};
pub use error::VmError;
pub use machine::{Drive, Machine, Started};
pub use run::{VmExit, run};
pub use signals::SignalWatch;
