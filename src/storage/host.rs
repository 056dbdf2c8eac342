//! A file of the host's filesystem.

use super::seal::forget_cached;
use super::watch::{self, Change, Watcher};
use super::{Advice, Run, Storage, seal, share, volatile};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::units::{HostOffset, length};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Whence, lseek64};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use vm_memory::VolatileSlice;

/// A host file, read and written through the page cache at explicit offsets.
///
/// After a failed sync the host may go on showing, from memory, what its medium has not got. Dropping such a file makes
/// the host forget that, so that the next opener sees what there is.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    watcher: Watcher,
    sync_failed: AtomicBool,
}

impl HostFile {
    /// Takes over an open file; whether it can be written depends on how it was opened.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self::watched(file, None)
    }

    pub(super) fn watched(file: File, watcher: Watcher) -> Self {
        Self { file, watcher, sync_failed: AtomicBool::new(false) }
    }

    /// The file itself, to look at and to lock; it is not to be changed through this.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle on the file itself, to keep: for locks.
    ///
    /// # Errors
    /// The host's.
    pub fn to_file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Another handle on the same open file.
    ///
    /// # Errors
    /// The host's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::watched(self.file.try_clone()?, self.watcher.clone()))
    }

    /// Makes times and mode durable too; [`Storage::sync`] leaves those out.
    ///
    /// # Errors
    /// As [`Storage::sync`].
    pub fn sync_all(&self) -> io::Result<()> {
        self.change(Change::SyncFile(&self.file), || self.file.sync_all())
            .inspect_err(|_| self.note_failed_sync())
    }

    /// Sets the mode.
    ///
    /// # Errors
    /// The host's.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        self.change(Change::Protect(&self.file), || Ok(fchmod(&self.file, mode)?))
    }

    /// Sets or clears the immutable attribute.
    ///
    /// # Errors
    /// As [`seal::set_immutable`].
    pub fn set_immutable(&self, on: bool) -> io::Result<()> {
        self.change(Change::Protect(&self.file), || seal::set_immutable(&self.file, on))
    }

    /// Makes the `len` bytes at `at` the same as those of `other` at `from`, by having both files use the same blocks: nothing is
    /// read or written. False, and the bytes are as they were or the same, where the host cannot do that. All must lie at
    /// whole [`HostFile::block_size`]s, but that a range may end with `other`.
    ///
    /// # Errors
    /// The host's; any part of the range may then be changed.
    pub fn share(&self, at: HostOffset, other: &File, from: HostOffset, len: u64) -> io::Result<bool> {
        // Who watches sees the bytes.
        if self.watcher.is_some() {
            return Ok(false);
        }
        Ok(len == 0 || share::share(&self.file, at, other, from, len)?)
    }

    /// Bytes of a block of the file's filesystem.
    ///
    /// # Errors
    /// The host's.
    pub fn block_size(&self) -> io::Result<u64> {
        Ok(fstatvfs(&self.file)?.block_size())
    }

    fn note_failed_sync(&self) {
        self.sync_failed.store(true, Ordering::Release);
    }

    fn change(&self, change: Change<'_>, make: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        watch::change(&self.watcher, change, make)
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        if self.sync_failed.load(Ordering::Acquire) {
            // Only clean pages can be forgotten: those that the failed sync did not come to are tried first.
            let _ = self.file.sync_data();
            let _ = forget_cached(&self.file);
        }
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

impl Storage for HostFile {
    fn read_at(&self, mut buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        let mut at = at.0;
        while !buf.is_empty() {
            match self.file.read_at(buf, at) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(n) => {
                    buf = &mut buf[n..];
                    at += length(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_volatile(&self, to: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
        volatile::read(&self.file, to, at)
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.change(Change::Write(&self.file, at, data), || self.file.write_all_at(data, at.0))
    }

    fn write_volatile(&self, from: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
        match &self.watcher {
            None => volatile::write(&self.file, from, at),
            // Who watches sees the bytes.
            Some(_) => volatile::copy_to(self, from, at),
        }
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        let end = self.len()?.min(at.0.saturating_add(len));
        if end <= at.0 {
            return Ok(());
        }
        let len = end - at.0;
        self.change(Change::Punch(&self.file, at, len), || punch(&self.file, at, len))
    }

    fn advise(&self, advice: Advice) {
        match advice {
            Advice::Write => {
                // SAFETY: the descriptor is open as long as `self`, and no memory is handed over.
                unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
            }
            Advice::Unneeded(range) => {
                if let (Ok(at), Ok(len)) = (signed(range.start.0), signed(range.end - range.start)) {
                    let _ = posix_fadvise(&self.file, at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                }
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Change::SyncData(&self.file), || self.file.sync_data())
            .inspect_err(|_| self.note_failed_sync())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(&self.file, len), || self.file.set_len(len))
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        let end = self.len()?;
        if at.0 >= end {
            return Ok(Run { len: u64::MAX - at.0, data: false });
        }
        let data = match lseek64(&self.file, signed(at.0)?, Whence::SeekData) {
            Ok(data) => data.unsigned_abs(),
            Err(Errno::ENXIO) => return Ok(Run { len: end - at.0, data: false }),
            Err(Errno::EINVAL) => return Ok(Run { len: end - at.0, data: true }),
            Err(error) => return Err(error.into()),
        };
        if data > at.0 {
            return Ok(Run { len: data - at.0, data: false });
        }
        let hole = lseek64(&self.file, signed(at.0)?, Whence::SeekHole)?.unsigned_abs();
        Ok(Run { len: hole.clamp(at.0 + 1, end.max(at.0 + 1)) - at.0, data: true })
    }

    fn host_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// Punches a range within the file.
fn punch(file: &File, at: HostOffset, len: u64) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file, mode, signed(at.0)?, signed(len)?) {
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return write_zeros(file, at, len),
            other => return Ok(other?),
        }
    }
}

fn write_zeros(file: &File, at: HostOffset, len: u64) -> io::Result<()> {
    static ZEROS: [u8; 65536] = [0; 65536];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(length(ZEROS.len()));
        file.write_all_at(&ZEROS[..crate::units::index(step)], at.0 + done)?;
        done += step;
    }
    Ok(())
}
