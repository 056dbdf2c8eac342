//! Requests, done.

use super::gather::{Gather, Run};
use super::reply::{CHUNK_LEN, Replier};
use super::request::{Command, Refusal, Request};
use super::status;
use super::talk::{PIECE, Talk, room, write_all};
use crate::error::{Error, Result};
use crate::pages::Pages;
use crate::units::{GuestOffset, index, length};
use std::io::{self, IoSlice, Read, Write};

/// A length that is one of a request, or of a part of it.
fn short(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl<R: Read, W: Write> Talk<'_, R, W> {
    /// Does a request, and answers it. Data to be written are in `buffer`.
    ///
    /// # Errors
    /// When the answer cannot be given.
    pub(super) fn execute(&self, request: &Request, command: Command, buffer: &mut Pages) -> io::Result<()> {
        let (at, len) = (request.start(), u64::from(request.len));
        match command {
            Command::Read { whole } if whole || !self.agreed.structured => self.read_whole(request, buffer),
            Command::Read { .. } => self.read_runs(request, buffer),
            Command::Write => {
                let data = room(buffer, index(len));
                self.finish_write(request, self.export.write(data, at))
            }
            Command::Flush => self.finish(request, self.export.flush()),
            Command::Trim => self.finish_write(request, self.export.discard(at, len)),
            Command::WriteZeroes => self.finish_write(request, self.export.write_zeroes(at, len)),
            Command::BlockStatus { one } => match status::extents(self.export, at.0, request.len, one) {
                Ok(extents) => self.reply(request, |reply| reply.status(&extents)),
                Err(error) => self.refuse(request, (&error).into()),
            },
        }
    }

    /// Answers a request that has changed the disk.
    pub(super) fn finish_write(&self, request: &Request, done: Result<()>) -> io::Result<()> {
        let durable = |()| if request.is_durable() { self.export.flush() } else { Ok(()) };
        self.finish(request, done.and_then(durable))
    }

    fn finish(&self, request: &Request, done: Result<()>) -> io::Result<()> {
        match done {
            // Whatever was agreed on: it is the shortest one.
            Ok(()) => self.reply(request, |reply| reply.simple(0)),
            Err(error) => self.refuse(request, (&error).into()),
        }
    }

    /// Sends what is asked for as chunks, in pieces, holes as such. Answers of other requests may come between the pieces.
    fn read_runs(&self, request: &Request, buffer: &mut Pages) -> io::Result<()> {
        let (mut at, end) = (request.at, request.at + u64::from(request.len));
        if at == end {
            return self.reply(request, |reply| reply.none());
        }
        while at < end {
            let piece = room(buffer, PIECE.min(index(end - at)));
            let len = length(piece.len());
            let mut gather = Gather::new(piece);
            if let Err(error) = self.export.read_to(&mut gather, GuestOffset(at), len) {
                return self.refuse(request, (&error).into());
            }
            let runs = gather.runs();
            let next = at + len;
            self.send_runs(request, (at, next == end), &runs, piece)?;
            at = next;
        }
        Ok(())
    }

    /// Sends the runs of the piece of the disk that starts at `at`.
    fn send_runs(
        &self,
        request: &Request,
        (at, last): (u64, bool),
        runs: &[Run],
        piece: &[u8],
    ) -> io::Result<()> {
        let mut heads = Vec::with_capacity(runs.len() * (CHUNK_LEN + 12));
        let mut ends = Vec::with_capacity(runs.len());
        for (number, run) in runs.iter().enumerate() {
            let mut reply = Replier { cookie: request.cookie, to: &mut heads };
            let (at, len) = (at + length(run.start), short(run.len));
            // All bytes are here, so nothing can fail any more.
            let done = last && number + 1 == runs.len();
            if run.hole {
                reply.hole(at, len, done)
            } else {
                reply.data(at, len, done)
            }
            ends.push(heads.len());
        }
        let mut parts = Vec::with_capacity(runs.len() * 2);
        let mut from = 0;
        for (run, end) in runs.iter().zip(ends) {
            parts.push(IoSlice::new(&heads[from..end]));
            if !run.hole {
                parts.push(IoSlice::new(&piece[run.start..run.start + run.len]));
            }
            from = end;
        }
        write_all(&mut *self.outgoing.lock(), &mut parts)
    }

    fn read(&self, piece: &mut [u8], at: u64) -> Result<()> {
        let mut rest = &mut *piece;
        let len = length(rest.len());
        self.export.read_to(&mut rest, GuestOffset(at), len)
    }

    /// Sends what is asked for in one piece. One that is longer than the buffer is read on the way, and nothing else is sent
    /// meanwhile.
    fn read_whole(&self, request: &Request, buffer: &mut Pages) -> io::Result<()> {
        let len = index(request.len.into());
        let first = room(buffer, len.min(PIECE));
        if let Err(error) = self.read(first, request.at) {
            return self.refuse(request, (&error).into());
        }
        let (structured, fits) = (self.agreed.structured, len <= PIECE);
        let mut head = Vec::with_capacity(CHUNK_LEN + 8);
        let mut reply = Replier { cookie: request.cookie, to: &mut head };
        match (structured, len) {
            (true, 0) => reply.none(),
            (true, _) => reply.data(request.at, request.len, fits),
            (false, _) => reply.simple(0),
        }
        let mut to = self.outgoing.lock();
        write_all(&mut *to, &mut [IoSlice::new(&head), IoSlice::new(first)])?;
        if fits {
            return Ok(());
        }
        let failed = self.send_rest(request, &mut *to, buffer)?;
        if structured {
            head.clear();
            let mut reply = Replier { cookie: request.cookie, to: &mut head };
            match failed {
                None => reply.none(),
                Some(refusal) => reply.error(refusal),
            }
            to.write_all(&head)?;
        }
        Ok(())
    }

    /// Sends what comes behind the first piece; what went wrong on the way, which only a reply in chunks can still tell.
    fn send_rest(&self, request: &Request, to: &mut W, buffer: &mut Pages) -> io::Result<Option<Refusal>> {
        let (mut sent, len) = (PIECE, index(request.len.into()));
        let mut failed = None;
        while sent < len {
            let piece = room(buffer, PIECE.min(len - sent));
            if failed.is_none() {
                let done = self.read(piece, request.at + length(sent));
                failed = done.err().as_ref().map(<&Error as Into<Refusal>>::into);
            }
            if failed.is_some() {
                if !self.agreed.structured {
                    return Err(io::Error::other("the disk failed in the middle of an answer"));
                }
                piece.fill(0);
            }
            to.write_all(piece)?;
            sent += piece.len();
        }
        Ok(failed)
    }
}
