//! Files with the same blocks, until one of them is written to: XFS and btrfs have that.

use crate::units::HostOffset;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct file_clone_range` of linux/fs.h.
#[repr(C)]
#[derive(Debug)]
pub(super) struct CloneRange {
    from_fd: i64,
    from: u64,
    len: u64,
    to: u64,
}

// FICLONERANGE of linux/fs.h.
nix::ioctl_write_ptr!(clone_range, 0x94, 13, CloneRange);

/// Gives `to` at `at` the blocks that `from` has for the `len` bytes (at least 1) at `start`; false, where they cannot have the
/// same ones.
pub(super) fn share(to: &File, at: HostOffset, from: &File, start: HostOffset, len: u64) -> io::Result<bool> {
    let range = CloneRange { from_fd: from.as_raw_fd().into(), from: start.0, len, to: at.0 };
    loop {
        // SAFETY: both descriptors are open, and the kernel only reads the struct, which lives on.
        match unsafe { clone_range(to.as_raw_fd(), &raw const range) } {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) if cannot(errno) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Other filesystems, two filesystems, files or places that do not go together, sandboxes.
fn cannot(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EOPNOTSUPP
            | Errno::EXDEV
            | Errno::EINVAL
            | Errno::ENOTTY
            | Errno::ENOSYS
            | Errno::EPERM
            | Errno::ETXTBSY
    )
}
