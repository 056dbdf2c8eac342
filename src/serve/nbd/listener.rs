//! Where clients connect.

use super::address::{Address, resolve, uri};
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::serve::socket::Socket;
use crate::serve::stop::who_came;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path;

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(Socket),
    Tcp(TcpListener),
}

impl Listener {
    pub(super) fn bind(address: &Address, anywhere: bool) -> Result<Self> {
        match address {
            Address::Unix(path) => Ok(Self::Unix(Socket::bind(path)?)),
            Address::Tcp(text) => {
                let cannot = |error| Error::io(format!("cannot listen at {text}"), error);
                let listener = TcpListener::bind(&resolve(text, anywhere)?[..]).map_err(cannot)?;
                listener.set_nonblocking(true).map_err(cannot)?;
                Ok(Self::Tcp(listener))
            }
        }
    }

    /// How clients write its address.
    pub(super) fn uri(&self) -> Result<String> {
        match self {
            Self::Unix(socket) => {
                let shown = socket.path().display();
                let whole = path::absolute(socket.path());
                Ok(uri(&whole.map_err(|error| Error::io(format!("cannot tell where {shown} is"), error))?))
            }
            Self::Tcp(listener) => {
                let address = listener.local_addr();
                let address = address.map_err(|error| Error::io("cannot tell which port it is", error))?;
                Ok(format!("nbd://{address}/"))
            }
        }
    }

    /// The next client, if it is still there.
    pub(super) fn accept(&self) -> Result<Option<Stream>> {
        let accepted = match self {
            Self::Unix(socket) => socket.listener().accept().map(|(stream, _)| Stream::Unix(stream)),
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        };
        who_came(accepted.and_then(|stream| prepare(&stream).map(|()| stream)))
            .map_err(|error| Error::io("cannot accept a client", error))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.listener().as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

fn prepare(stream: &Stream) -> io::Result<()> {
    match stream {
        Stream::Unix(stream) => stream.set_nonblocking(false),
        Stream::Tcp(stream) => prepare_tcp(stream),
    }
}

/// Answers leave at once, and a client whose host is gone is found out.
fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(setsockopt(stream, sockopt::KeepAlive, &true)?)
}
