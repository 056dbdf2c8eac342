//! The connection to a client, whatever it runs over.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A connected socket.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Does the same with either.
macro_rules! with {
    ($stream:expr, $inner:ident => $do:expr) => {
        match $stream {
            Stream::Unix($inner) => $do,
            Stream::Tcp($inner) => $do,
        }
    };
}

impl Stream {
    pub(super) fn shutdown(&self, how: Shutdown) {
        // It fails when the client was first.
        let _ = with!(self, stream => stream.shutdown(how));
    }

    /// How long one read or write waits for the client.
    fn set_patience(&self, limit: Option<Duration>) -> io::Result<()> {
        with!(self, stream => stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit)))
    }
}

/// A connection whose reads and writes fail when a time has come.
#[derive(Debug)]
pub(super) struct Timed<'a> {
    stream: &'a Stream,
    until: Option<Instant>,
}

impl<'a> Timed<'a> {
    pub(super) fn new(stream: &'a Stream, limit: Duration) -> Self {
        Self { stream, until: Some(Instant::now() + limit) }
    }

    /// From now on it waits as long as it takes.
    pub(super) fn forever(&mut self) -> io::Result<()> {
        self.until = None;
        self.stream.set_patience(None)
    }

    fn be_in_time(&self) -> io::Result<()> {
        let Some(until) = self.until else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_patience(Some(left))
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.be_in_time()?;
        with!(self.stream, stream => { let mut stream = stream; stream.read(to) })
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.be_in_time()?;
        with!(self.stream, stream => { let mut stream = stream; stream.write(from) })
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.be_in_time()?;
        with!(self.stream, stream => { let mut stream = stream; stream.write_vectored(from) })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
