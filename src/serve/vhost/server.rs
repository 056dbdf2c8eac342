//! A server of one disk: one front end after the other.

use super::connection::{Connection, Options};
use crate::error::{Error, Result};
use crate::serve::socket::Socket;
use crate::serve::stop::who_came;
use crate::serve::{Export, Stopper};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a new front end waits for the end of the last one.
const PATIENCE: Duration = Duration::from_secs(1);

/// A socket at which a disk is served.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    export: Arc<Export>,
    options: Options,
    stopper: Stopper,
}

impl Server {
    /// Listens at `path`. [`Server::run`] serves.
    ///
    /// # Errors
    /// `Busy` when somebody else listens there, `Exists` when something else is there, `Invalid` when the path is too
    /// long; the host's.
    pub fn bind(path: &Path, export: Arc<Export>, options: Options, stopper: &Stopper) -> Result<Self> {
        Ok(Self { socket: Socket::bind(path)?, export, options, stopper: stopper.clone() })
    }

    /// Serves until it is stopped; all that was written is durable then.
    ///
    /// # Errors
    /// The disk's, when it cannot be flushed; the host's.
    pub fn run(self) -> Result<()> {
        let mut served: Option<Connection> = None;
        while self.stopper.wait(self.socket.listener().as_fd())? {
            let Some(stream) = self.accept()? else { continue };
            if served.as_ref().is_some_and(|former| !former.ends_within(PATIENCE)) {
                if !is_gone(&stream) {
                    let path = self.socket.path().display();
                    self.export.tell(format_args!("{path} has a front end: another one is turned away"));
                }
                continue;
            }
            let started = Connection::start(stream, self.export.clone(), self.options);
            served = Some(started.map_err(|error| Error::io("cannot serve a front end", error))?);
        }
        // Nobody comes any more, then the last one goes.
        drop(self.socket);
        drop(served);
        self.export.flush()
    }

    fn accept(&self) -> Result<Option<UnixStream>> {
        let accepted = self.socket.listener().accept();
        let prepared = accepted.and_then(|(stream, _)| stream.set_nonblocking(false).map(|()| stream));
        who_came(prepared).map_err(|error| Error::io("cannot accept a front end", error))
    }
}

/// Whether the other side has hung up: it only wanted to know whether somebody is here.
fn is_gone(stream: &UnixStream) -> bool {
    let mut one = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut one, PollTimeout::ZERO).is_ok()
        && one[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}
