//! A client's requests, over anything that can be read and written.
//!
//! Each thread takes the next request under the lock of what comes in, does it without, and answers under the lock of what goes
//! out. So there is no queue: a request that nobody does yet stays with its client, answers come in the order in which
//! they are ready, and memory is bounded by a buffer for each thread.

use super::handshake::{broken, skip};
use super::reply::Replier;
use super::request::{Command, HEADER, Refusal, Request, number};
use super::{Agreed, Facts, MOST_DATA};
use crate::pages::Pages;
use crate::serve::Export;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::units::{index, length};
use std::fmt::{self, Debug};
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

/// Most bytes of data that a thread holds. Longer reads are sent, and longer writes taken, in pieces.
pub(super) const PIECE: usize = 1 << 20;

/// A client that makes requests. Any number of threads may [`work`](Talk::work) for it.
pub struct Talk<'a, R, W> {
    pub(super) export: &'a Arc<Export>,
    facts: &'a Facts,
    pub(super) agreed: Agreed,
    incoming: Mutex<Incoming<R>>,
    pub(super) outgoing: Mutex<W>,
    /// The server ends.
    stopping: &'a AtomicBool,
    /// Makes who waits for a request, or for a client that takes no answer, give up.
    hang_up: &'a (dyn Fn() + Sync),
}

struct Incoming<R> {
    from: R,
    /// No further request is taken.
    ended: bool,
}

/// What is left to be done for a request.
enum Rest {
    All(Command),
    /// The data of a long write are in place already.
    Answer,
}

impl<R, W> Debug for Talk<'_, R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Talk")
            .field("facts", self.facts)
            .field("agreed", &self.agreed)
            .finish_non_exhaustive()
    }
}

/// The first `len` bytes of a thread's buffer.
pub(super) fn room(buffer: &mut Pages, len: usize) -> &mut [u8] {
    buffer.resize(len);
    buffer
}

/// Writes all of `parts`, in one go as long as they fit.
pub(super) fn write_all(to: &mut impl Write, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match to.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl<'a, R: Read, W: Write> Talk<'a, R, W> {
    /// Requests to `export` come from `from`, answers go to `to`. When an answer cannot be given, `hang_up` is called.
    pub fn new(
        (export, facts, agreed): (&'a Arc<Export>, &'a Facts, Agreed),
        (from, to): (R, W),
        stopping: &'a AtomicBool,
        hang_up: &'a (dyn Fn() + Sync),
    ) -> Self {
        let incoming = Mutex::new(Incoming { from, ended: false });
        Self { export, facts, agreed, incoming, outgoing: Mutex::new(to), stopping, hang_up }
    }

    /// Takes requests and answers them until there are no more.
    pub fn work(&self) {
        let mut buffer = Pages::default();
        while let Some((request, rest)) = self.take(&mut buffer) {
            let answered = match rest {
                Ok(Rest::All(command)) => self.execute(&request, command, &mut buffer),
                Ok(Rest::Answer) => self.finish_write(&request, Ok(())),
                Err(refusal) => self.refuse(&request, refusal),
            };
            if answered.is_err() {
                // It has gone, or must be told by this that an answer ends here.
                (self.hang_up)();
            }
        }
    }

    /// The next request, with the data of a short write in `buffer`.
    fn take(&self, buffer: &mut Pages) -> Option<(Request, Result<Rest, Refusal>)> {
        let mut incoming = self.incoming.lock();
        if incoming.ended {
            return None;
        }
        let taken = self.receive(&mut incoming, buffer);
        if let Err(error) = &taken
            && error.kind() == io::ErrorKind::InvalidData
        {
            self.export.tell(format_args!("a client is hung up on: {error}"));
        }
        let taken = taken.unwrap_or(None);
        incoming.ended |= taken.is_none();
        taken
    }

    fn receive(
        &self,
        incoming: &mut Incoming<R>,
        buffer: &mut Pages,
    ) -> io::Result<Option<(Request, Result<Rest, Refusal>)>> {
        let from = &mut incoming.from;
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let request = Request::parse(header).ok_or_else(|| broken("a request does not begin like one"))?;
        if request.number == number::DISCONNECT {
            return Ok(None);
        }
        if self.stopping.load(Ordering::SeqCst) {
            incoming.ended = true;
            return Ok(Some((request, Err(Refusal::SHUTDOWN))));
        }
        if request.payload() > MOST_DATA {
            return Err(broken("a write has more than 32 MiB"));
        }
        let rest = match request.command(self.facts, self.agreed) {
            Ok(Command::Write) => self.receive_data(&request, from, buffer)?,
            Ok(command) => Ok(Rest::All(command)),
            Err(refusal) => {
                skip(from, request.payload())?;
                Err(refusal)
            }
        };
        Ok(Some((request, rest)))
    }

    /// Takes what a request writes. What is longer than the buffer is written on the way: no other request could be taken
    /// meanwhile.
    fn receive_data(
        &self,
        request: &Request,
        from: &mut R,
        buffer: &mut Pages,
    ) -> io::Result<Result<Rest, Refusal>> {
        let (mut at, mut left) = (request.start(), index(request.len.into()));
        if left <= PIECE {
            from.read_exact(room(buffer, left))?;
            return Ok(Ok(Rest::All(Command::Write)));
        }
        let mut written = Ok(());
        while left > 0 {
            let piece = room(buffer, left.min(PIECE));
            from.read_exact(piece)?;
            if written.is_ok() {
                written = self.export.write(piece, at);
            }
            (at, left) = (at + length(piece.len()), left - piece.len());
        }
        Ok(written.map(|()| Rest::Answer).map_err(|error| (&error).into()))
    }

    /// Sends replies that have no data of the disk.
    pub(super) fn reply(&self, request: &Request, replies: impl FnOnce(&mut Replier<'_>)) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(64);
        replies(&mut Replier { cookie: request.cookie, to: &mut bytes });
        self.outgoing.lock().write_all(&bytes)
    }

    pub(super) fn refuse(&self, request: &Request, refusal: Refusal) -> io::Result<()> {
        self.reply(request, |reply| match self.agreed.structured {
            true => reply.error(refusal),
            false => reply.simple(refusal.errno),
        })
    }
}
