//! The end of a server, asked for from elsewhere.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Ends a server from elsewhere.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<EventFd>);

impl Stopper {
    /// One that can be given out before there is a server.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)))
    }

    /// Asks the server to end.
    pub fn stop(&self) {
        // It fails only when it was asked very often.
        let _ = self.0.write(1);
    }

    /// Waits for somebody at `listener`; false when the server is to end.
    pub(super) fn wait(&self, listener: BorrowedFd<'_>) -> Result<bool> {
        let listener = PollFd::new(listener, PollFlags::POLLIN);
        let stop = PollFd::new(self.0.as_fd(), PollFlags::POLLIN);
        let mut both = [listener, stop];
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(!both[1].any().unwrap_or(false)),
            Err(error) => Err(Error::io("cannot wait for who connects", error.into())),
        }
    }
}

/// Whether nobody has come after all: it has gone again, or there was none.
pub(super) fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}
