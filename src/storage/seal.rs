//! Sealing a file, and recognising that a sealed one was touched.

use super::HostFile;
use crate::units::length;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// `FS_IMMUTABLE_FL` of linux/fs.h.
const IMMUTABLE: libc::c_long = 0x10;

nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);

/// What the host knows about a file that changes when somebody changes the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of the content, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of anything; `None` where the file gets other names after it was sealed.
    pub ctime_ns: Option<i64>,
}

impl Fingerprint {
    /// The fingerprint of an open file.
    ///
    /// # Errors
    /// The host's.
    pub fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Ok(Self {
            inode: meta.ino(),
            size: meta.len(),
            mtime_ns: nanos(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: Some(nanos(meta.ctime(), meta.ctime_nsec())),
        })
    }

    /// The same without the time that new names change. Such a one does not tell a copy with the same times from
    /// the file itself.
    #[must_use]
    pub fn without_ctime(self) -> Self {
        Self { ctime_ns: None, ..self }
    }

    /// What differs between this, the sealed one, and `now`; `None` when nothing does.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<String> {
        let mut words = Vec::new();
        if self.size != now.size {
            words.push(format!("its length was {} bytes and is {} bytes", self.size, now.size));
        }
        if self.ctime_ns.is_some() && self.inode != now.inode {
            words.push("it is another file".to_owned());
        }
        if self.mtime_ns != now.mtime_ns {
            words.push("it was written to".to_owned());
        } else if self.ctime_ns.is_some() && self.ctime_ns != now.ctime_ns {
            words.push("its attributes were changed".to_owned());
        }
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// Makes a file read-only for everybody, and immutable where the filesystem and our rights allow.
///
/// # Errors
/// The host's; that it cannot be made immutable is no error.
pub fn seal(file: &HostFile) -> io::Result<()> {
    const SEALED: u32 = 0o444;
    if file.file().metadata()?.mode() & 0o7777 != SEALED {
        // The mode of an immutable file cannot be changed. Without the right to clear that, the next line fails.
        let _ = file.set_immutable(false);
        file.set_mode(SEALED)?;
    }
    match file.set_immutable(true) {
        Err(error) if cannot(&error) => Ok(()),
        other => other,
    }
}

fn cannot(error: &io::Error) -> bool {
    let known = [Errno::EPERM, Errno::EACCES, Errno::ENOTTY, Errno::EOPNOTSUPP, Errno::EINVAL, Errno::ENOSYS];
    error.raw_os_error().is_some_and(|raw| known.contains(&Errno::from_raw(raw)))
}

/// Sets or clears the immutable attribute of a file.
///
/// # Errors
/// The host's: `EPERM` without the right to, `ENOTTY` or `EOPNOTSUPP` on filesystems without it.
pub fn set_immutable(file: &File, on: bool) -> io::Result<()> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is open, and the kernel writes at most one long to a long that lives on.
    unsafe { get_flags(file.as_raw_fd(), &raw mut flags) }?;
    let wanted = if on { flags | IMMUTABLE } else { flags & !IMMUTABLE };
    if wanted != flags {
        // SAFETY: the descriptor is open, and the kernel reads at most one long from a long that lives on.
        unsafe { set_flags(file.as_raw_fd(), &raw const wanted) }?;
    }
    Ok(())
}

/// Lets the host forget what it holds of a file in memory, so that the next reading comes from the medium. Pages that
/// somebody has mapped stay, and on a filesystem in memory all of them do.
///
/// # Errors
/// The host's.
pub fn forget_cached(file: &File) -> io::Result<()> {
    Ok(posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// Bytes of host blocks behind a number of 512-byte units, as `stat` counts them.
#[must_use]
pub fn block_bytes(blocks: i64) -> u64 {
    u64::try_from(blocks).unwrap_or(0).saturating_mul(length(512))
}
