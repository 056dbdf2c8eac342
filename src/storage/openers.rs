//! Whether anybody has a file open for writing, with locks or without.

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// `F_SETSIG` of linux/fcntl.h.
const F_SETSIG: libc::c_int = 10;

/// Whether any process has the file open for writing, by whatever name; `None` where the host does not tell. `file` itself
/// must be open for reading only.
///
/// The kernel grants a read lease exactly when there is no writer. It is given back at once.
#[must_use]
pub fn is_open_for_writing(file: &File) -> Option<bool> {
    let descriptor = file.as_raw_fd();
    // A writer that comes in the moment of the lease sends a signal, by default one that ends the process; this one
    // is ignored.
    // SAFETY: the descriptor is open, and the argument is a number.
    let quiet = unsafe { libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) };
    if quiet < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and the argument is a number.
    let granted = unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK) };
    if granted < 0 {
        return (Errno::last() == Errno::EAGAIN).then_some(true);
    }
    // SAFETY: as above. A lease that cannot be given back goes with the descriptor.
    let _ = unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) };
    Some(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_seen_and_readers_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.into_temp_path();
        let ours = File::open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(is_open_for_writing(&ours), Some(false));
        let writer = File::options().write(true).open(&path).unwrap();
        assert_eq!(is_open_for_writing(&ours), Some(true));
        drop((writer, reader));
        assert_eq!(is_open_for_writing(&ours), Some(false));
    }
}
