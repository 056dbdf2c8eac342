//! What can go wrong when mounting, serving and unmounting.

use std::io;
use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a mount could not be made, served or undone. Each sentence holds its cause, so none has a source beside it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mount point is missing, is no directory, or cannot be read.
    #[error("cannot mount at {}: {cause}; give an existing directory that you own", dir.display())]
    Directory {
        /// The mount point.
        dir: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Something is in the mount point that a mount would hide.
    #[error("{} is not empty; give an empty directory, or --nonempty to hide what is in it", dir.display())]
    NotEmpty {
        /// The mount point.
        dir: PathBuf,
    },
    /// A view is being served there.
    #[error("{} is a mounted view already; unmount it first", dir.display())]
    AlreadyMounted {
        /// The mount point.
        dir: PathBuf,
    },
    /// A server that was unmounted is not done with its last writes.
    #[error("{} is unmounted, but its server still writes its disks back after {seconds} s; wait for that process to end", dir.display())]
    StillServing {
        /// The mount point.
        dir: PathBuf,
        /// How long we waited.
        seconds: u64,
    },
    /// An option that cannot be passed to the kernel.
    #[error("mount option {option}: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The FUSE device cannot be opened.
    #[error(
        "cannot open /dev/fuse: {cause}; load the fuse module (modprobe fuse) or let this user open it (its usual mode is 0666)"
    )]
    FuseDevice {
        /// What the system said.
        cause: io::Error,
    },
    /// The kernel does not serve FUSE over `io_uring`, which was asked for.
    #[error("{reason}")]
    NoUring {
        /// Why not, and what to do.
        reason: String,
    },
    /// The kernel refused the mount.
    #[error("cannot mount at {}: {cause}", dir.display())]
    Attach {
        /// The mount point.
        dir: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The helper that mounts and unmounts for plain users failed.
    #[error("fusermount3 failed at {}: {message}", dir.display())]
    Helper {
        /// The mount point.
        dir: PathBuf,
        /// What the helper said.
        message: String,
    },
    /// The helper is not installed.
    #[error("cannot run fusermount3: {cause}; install the package fuse3, or mount as root")]
    NoHelper {
        /// What the system said.
        cause: io::Error,
    },
    /// Somebody still uses the mount.
    #[error("{} is in use by an open file, a working directory or a mount on top of it; end that (fuser -vm {} lists who it is), then unmount again", dir.display(), dir.display())]
    Busy {
        /// The mount point.
        dir: PathBuf,
    },
    /// Nothing of ours is mounted there.
    #[error("{} is not a mounted view", dir.display())]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused to unmount.
    #[error("cannot unmount {}: {cause}", dir.display())]
    Detach {
        /// The mount point.
        dir: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The table of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {cause}; is /proc mounted?")]
    MountTable {
        /// What the system said.
        cause: io::Error,
    },
    /// The conversation with the kernel failed.
    #[error("the view at {} stopped: {cause}", dir.display())]
    Session {
        /// The mount point.
        dir: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A disk could not be made durable when the view ended; its last writes may be lost.
    #[error(
        "{file}: the flush at unmount failed: {cause}; writes since its last successful flush may be lost"
    )]
    Flush {
        /// `folder/name` of the first such file.
        file: String,
        /// What the device said.
        cause: io::Error,
    },
}
