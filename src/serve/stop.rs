//! What a server waits for: somebody who connects, or its end, asked for from elsewhere.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long nobody is accepted when the host has no room for another one.
const PAUSE: Duration = Duration::from_millis(100);

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

/// Who has come, if somebody is there. When the host has no descriptors or memory for one more, nobody is, after a pause.
///
/// # Errors
/// Any other one of `accepted`.
pub(super) fn who_came<T>(accepted: io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    let crowded = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM].map(|errno| errno as i32);
    match accepted {
        Ok(stream) => Ok(Some(stream)),
        // It has gone again, or there was none.
        Err(error) if matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock) => Ok(None),
        Err(error) if error.raw_os_error().is_some_and(|errno| crowded.contains(&errno)) => {
            thread::sleep(PAUSE);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_crowded_host_and_who_has_gone_end_no_server() {
        let failed = |errno: Errno| who_came::<()>(Err(errno.into()));
        for errno in
            [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EAGAIN, Errno::ECONNABORTED, Errno::EINTR]
        {
            assert_eq!(failed(errno).unwrap(), None, "{errno}");
        }
        assert_eq!(who_came(Ok(7)).unwrap(), Some(7));
        assert!(failed(Errno::EBADF).is_err());
    }
}
