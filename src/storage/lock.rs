//! QEMU's own locks on image files, so that a running QEMU and we keep each other out.
//!
//! QEMU locks single bytes of an image with open-file-description locks. A *read lock* on byte 100+i says "I hold
//! permission i", one on byte 200+i says "I let nobody else have permission i". After it took its locks a process
//! tests with `F_OFD_GETLK` whether a write lock could be had on the bytes that stand against it: on 200+i for each
//! permission that it holds, on 100+i for each one that it does not share. (QEMU: `block/file-posix.c`,
//! `raw_handle_perm_lock`.)

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

/// Permissions as QEMU numbers them.
const CONSISTENT_READ: u8 = 0;
const WRITE: u8 = 1;
const RESIZE: u8 = 3;

const HELD: i64 = 100;
const UNSHARED: i64 = 200;

/// How often a lock is tried: two that come at the same moment both see the other's and both step back, and tools
/// like `qemu-img info` hold theirs for a moment only.
const TRIES: u32 = 6;

/// What a file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Written to, by nobody else; readers that insist on unchanging content are kept out as well.
    Writer,
    /// Read, as a base below a clone or by itself: many readers, no writer.
    Reader,
    /// Removed or renamed: nobody else has it open at all, not even a reader that lets others write.
    Owner,
}

impl Role {
    fn holds(self) -> &'static [u8] {
        match self {
            Self::Writer | Self::Owner => &[CONSISTENT_READ, WRITE, RESIZE],
            Self::Reader => &[CONSISTENT_READ],
        }
    }

    fn unshared(self) -> &'static [u8] {
        match self {
            Self::Writer | Self::Reader => &[WRITE, RESIZE],
            Self::Owner => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }
}

/// Locks on one open file; given back when dropped.
///
/// They belong to the open file description: two opens of one file in the same process exclude each other too.
#[derive(Debug)]
pub struct ImageLock {
    file: File,
}

impl ImageLock {
    /// Takes the locks of `role` on an open file, which need not be open for writing.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else uses the file in a way that forbids it; the host's.
    pub fn take(file: &File, role: Role) -> io::Result<Self> {
        let file = file.try_clone()?;
        let mut tried = 0;
        loop {
            match try_take(&file, role) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tried + 1 < TRIES => {
                    tried += 1;
                    std::thread::sleep(pause());
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(Self { file }),
            }
        }
    }

    /// Whether nobody else has an open file locked in any way; takes no lock, so that nobody is kept out.
    ///
    /// # Errors
    /// The host's.
    pub fn is_unused(file: &File) -> io::Result<bool> {
        match test_all(file, Role::Owner) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        // The description may live on in a child that is just being started; its locks must not.
        let _ = unlock_all(&self.file);
    }
}

/// 5 to 21 ms, different for each caller.
fn pause() -> Duration {
    let nanos =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    Duration::from_micros(5000 + u64::from(nanos / 64 % 16384))
}

fn try_take(file: &File, role: Role) -> io::Result<()> {
    let result = take_all(file, role).and_then(|()| test_all(file, role));
    if result.is_err() {
        unlock_all(file)?;
    }
    result
}

fn take_all(file: &File, role: Role) -> io::Result<()> {
    let held = role.holds().iter().map(|permission| HELD + i64::from(*permission));
    let unshared = role.unshared().iter().map(|permission| UNSHARED + i64::from(*permission));
    for byte in held.chain(unshared) {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte, 1))) {
            Err(Errno::EACCES | Errno::EAGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
            other => other?,
        };
    }
    Ok(())
}

fn test_all(file: &File, role: Role) -> io::Result<()> {
    let against_held = role.holds().iter().map(|permission| UNSHARED + i64::from(*permission));
    let against_unshared = role.unshared().iter().map(|permission| HELD + i64::from(*permission));
    for byte in against_held.chain(against_unshared) {
        let mut probe = range(libc::F_WRLCK, byte, 1);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
        if i32::from(probe.l_type) != libc::F_UNLCK {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

fn unlock_all(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, HELD, UNSHARED)))?;
    Ok(())
}

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    let small = |value: libc::c_int| libc::c_short::try_from(value).unwrap_or_default();
    // The process id must be 0 for locks of an open file description.
    libc::flock { l_type: small(kind), l_whence: small(libc::SEEK_SET), l_start: start, l_len: len, l_pid: 0 }
}
