//! A socket that only its owner can connect to, at a path that only one server has.

use crate::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket; its path is removed when it is dropped, if it still is this socket's.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`, in place of what a dead server left there.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let shown = path.display();
        let cannot = |error: io::Error| Error::io(format!("cannot listen at {shown}"), error);
        let address = UnixAddr::new(path).map_err(|error| match error {
            Errno::ENAMETOOLONG => {
                Error::invalid(format!("{shown} is too long for a socket; give a path of at most 107 bytes"))
            }
            error => cannot(error.into()),
        })?;
        // Two servers that find the same stale socket must not remove each other's new one.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = File::open(parent.unwrap_or(Path::new("."))).map_err(cannot)?;
        let _alone =
            Flock::lock(parent, FlockArg::LockExclusive).map_err(|(_, error)| cannot(error.into()))?;
        remove_stale(path)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = || -> nix::Result<_> {
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            // Before it has a path, so that nobody else gets in between.
            fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
            bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &address)?;
            listen(&socket, Backlog::new(8)?)?;
            Ok(socket)
        };
        let listener = UnixListener::from(made().map_err(|error| cannot(error.into()))?);
        let identity = identity(path).map_err(cannot)?;
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Somebody may remove it between; that is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = path.symlink_metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket that nobody listens at.
fn remove_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| Error::io(format!("cannot listen at {shown}"), error))?,
    };
    if !found.file_type().is_socket() {
        return Err(Error::new(
            Kind::Exists,
            format!("{shown} is there already, and is no socket; give another path"),
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Error::io(format!("cannot remove the stale socket {shown}"), error)),
        // Its server is too busy to answer.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(Error::io(format!("cannot see who listens at {shown}"), error))
        }
        _ => Err(Error::new(Kind::Busy, format!("somebody else listens at {shown}; give another path"))),
    }
}
