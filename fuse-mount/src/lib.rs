//! Disks as files: a FUSE filesystem over a small trait.
//!
//! A [`Source`] names a fixed set of folders, each a flat list of disks, and opens them as [`Device`]s. [`mount`] shows
//! it at a directory; several threads, each with its own kernel descriptor, serve it until it is unmounted. What kind
//! of image lies behind a disk is not known here.
//!
//! ```no_run
//! # fn demo(source: impl fuse_mount::Source) -> fuse_mount::Result<()> {
//! let mount = fuse_mount::mount(source, "/mnt/disks".as_ref(), fuse_mount::Options::default())?;
//! let stopper = mount.stopper(); // for the thread that waits for signals
//! # drop(stopper);
//! mount.wait()
//! # }
//! ```

mod attach;
mod attr;
mod buffer;
mod connect;
mod errno;
mod error;
mod filesystem;
mod handles;
mod helpers;
mod inodes;
mod mount;
mod mount_table;
#[cfg(test)]
mod names_only;
mod pace;
mod process;
mod requests;
mod transfer;
mod transport;
mod unmount;
mod uring;
mod view;

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

pub use error::{Error, Result};
pub use mount::{Mount, Options, Stopper, mount};
pub use transport::Transport;
pub use unmount::unmount;

/// What the view shows: a fixed set of folders at the root, each a flat list of disks.
///
/// Every method may be called by several threads at once. A panic inside one becomes `EIO` for that request.
/// Errors reach the program that uses the view: the OS error code where there is one, else the one nearest to the
/// [`io::ErrorKind`].
pub trait Source: Send + Sync + 'static {
    /// Names of the folders at the root, e.g. `["bases", "clones"]`. Asked once, when mounting.
    fn folders(&self) -> Vec<String>;

    /// File names in `folder`, in any order. Asked whenever a program starts to list the folder. Names that no file
    /// can have (empty, `.`, `..`, with `/` or NUL, over 255 bytes) are left out of the listing.
    ///
    /// # Errors
    /// Passed to the program that lists.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// What `stat` shows for a file that is there. Asked at every lookup, so it should be cheap.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is no such file (now).
    fn stat(&self, folder: &str, name: &str) -> io::Result<Stat>;

    /// Opens a disk. Every `open(2)` calls this; the answers may share one disk behind them.
    ///
    /// # Errors
    /// Passed to the opener: `EBUSY` for a second writer, and so on.
    fn open(&self, folder: &str, name: &str, opener: Opener) -> io::Result<Arc<dyn Device>>;

    /// A number that changes when `name` comes to stand for another disk than before (removed and made anew), e.g. the
    /// host file's inode number. Another number gives the file another inode, so no page cached for the old disk is
    /// ever shown for the new one. Without it, only an absence that the view noticed, or (for an immutable file) another
    /// size or time, tells the two apart.
    ///
    /// # Errors
    /// As for [`Source::stat`].
    fn identity(&self, folder: &str, name: &str) -> io::Result<u64> {
        let _ = (folder, name);
        Ok(0)
    }
}

/// Who opens a file, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Opened for writing (`O_WRONLY` or `O_RDWR`).
    pub write: bool,
    /// Process id (not thread id) of the opener; 0 when it is not visible from here (another pid namespace).
    pub pid: u32,
    /// User id of the opener.
    pub uid: u32,
}

/// What `stat` shows of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Size in bytes.
    pub size: u64,
    /// Units of 512 bytes allocated for it on the host.
    pub blocks: u64,
    /// Time of the last change.
    pub modified: SystemTime,
    /// May be opened for writing.
    pub writable: bool,
    /// The content never changes: cached pages may outlive the open file.
    pub immutable: bool,
}

/// A run of bytes of one kind, from the offset that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, at least 1. The following run may be of the same kind.
    pub len: u64,
    /// True for data, false for a hole (reads as zeros).
    pub data: bool,
}

/// One open file. Dropped at its last release; dropping closes it.
///
/// Every method may be called by several threads at once. Offsets and lengths are bytes and lie within the size, except
/// where said. Buffers for reading are aligned to 4 KiB; data to write has any alignment.
pub trait Device: Send + Sync {
    /// Size, blocks and time as they are now; as true for an open file as [`Source::stat`] is for one that is not.
    ///
    /// # Errors
    /// Passed to the caller of `stat`.
    fn stat(&self) -> io::Result<Stat>;

    /// Fills `buf` from offset `at`; returns fewer bytes only at the end of the disk, 0 past it.
    ///
    /// # Errors
    /// Passed to the reader.
    fn read(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes `data` at offset `at`; a later read of any file over this disk must see it. Returns the bytes written.
    ///
    /// # Errors
    /// Passed to the writer.
    fn write(&self, data: &[u8], at: u64) -> io::Result<usize>;

    /// Gives the range back; it reads as zeros afterwards.
    ///
    /// # Errors
    /// Passed to the caller of `fallocate`.
    fn discard(&self, at: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zeros.
    ///
    /// # Errors
    /// Passed to the caller of `fallocate`.
    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()>;

    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// Passed to the caller of `fsync`.
    fn flush(&self) -> io::Result<()>;

    /// Another length for the file, by `truncate(2)`; from then on [`Device::stat`] tells it. Most disks have one length.
    ///
    /// # Errors
    /// Passed to the caller; `EPERM` unless the device can do it.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    /// The run of data or hole that starts at `at`, which is less than the size.
    ///
    /// # Errors
    /// Passed to the caller of `lseek`.
    fn extent(&self, at: u64) -> io::Result<Extent>;

    /// A `close(2)` of a file open for writing: make it durable and report errors. Descriptors can be duplicated, so
    /// this may come several times, and reads and writes may follow.
    ///
    /// # Errors
    /// Passed to the caller of `close`.
    fn close(&self) -> io::Result<()> {
        self.flush()
    }
}
