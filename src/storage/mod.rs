//! Host files and their names. Nothing above this module changes a file or a name of the store by any other way.

mod device;
mod folder;
mod host;
mod latch;
mod lock;
mod memory;
mod openers;
mod recorder;
mod seal;
mod session;
mod share;
mod volatile;
mod watch;

use crate::units::HostOffset;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use vm_memory::VolatileSlice;

pub use device::Device;
pub use folder::{FileAccess, Folder, is_file, is_folder};
pub use host::HostFile;
pub use latch::Latch;
pub use lock::{ImageLock, Role};
pub use memory::{Fault, Memory, Operation};
pub use openers::is_open_for_writing;
pub use recorder::{Effect, Event, Recorder};
pub use seal::{Fingerprint, block_bytes, forget_cached, seal, set_immutable};
pub use session::Session;
pub use volatile::zero as zero_volatile;
pub use watch::{Change, Entry, Watch};

/// A run of a file that is data throughout, or a hole throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Whether the host stores bytes for it.
    pub data: bool,
}

/// What is of use to a host, and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// A sync comes soon: what is in memory only may be written now, so that it waits for less.
    Write,
    /// These bytes are not read again; those that the medium has need not stay in memory.
    Unneeded(Range<HostOffset>),
}

/// One file of bytes, shared by many threads.
///
/// An implementation orders nothing by itself: what was written is durable only after a [`Storage::sync`] that began
/// after the write had returned, and that succeeded.
#[expect(clippy::len_without_is_empty, reason = "a file is not a collection")]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Fills `buf` from `at` on. Bytes at or past the end of the file read as zeros.
    ///
    /// # Errors
    /// The host's error; `buf` then holds anything.
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()>;

    /// As [`Storage::read_at`], into memory that others may change at any time, and that is therefore never borrowed.
    ///
    /// # Errors
    /// As [`Storage::read_at`].
    fn read_volatile(&self, to: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
        volatile::copy(self, to, at)
    }

    /// Writes all of `data` at `at`; the file grows when it must.
    ///
    /// # Errors
    /// The host's error; any part of the range may then be written.
    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()>;

    /// As [`Storage::write_at`], from memory that others may change at any time: any of what it holds meanwhile is written.
    ///
    /// # Errors
    /// As [`Storage::write_at`]; `EFAULT` where that memory has lost its file.
    fn write_volatile(&self, from: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
        volatile::copy_to(self, from, at)
    }

    /// Makes `len` bytes read as zeros and gives their blocks back where the host can. Never grows the file.
    ///
    /// # Errors
    /// The host's error.
    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()>;

    /// Tells the host what comes next. It may be ignored; nothing is durable by it, and nothing that goes wrong is lost: the next
    /// [`Storage::sync`] tells.
    fn advise(&self, _advice: Advice) {}

    /// Makes everything that returned before this call durable, the file's length included.
    ///
    /// # Errors
    /// The host's error: nothing may be assumed durable then, by this call or a later one.
    fn sync(&self) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// The host's error.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or grows it by a hole.
    ///
    /// # Errors
    /// The host's error.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The run that starts at `at`; past the end of the file a hole of `u64::MAX - at` bytes.
    ///
    /// # Errors
    /// The host's error.
    fn run_at(&self, at: HostOffset) -> io::Result<Run>;

    /// The file of the host that has the same bytes at the same places, to share blocks with; `None` where there is none.
    fn host_file(&self) -> Option<&File> {
        None
    }
}
