//! The child's end of the socket.
//!
//! Everything is said ahead and sent in large pieces; only a question waits for its answer. Orders that arrive
//! meanwhile are kept: the parent bounds how many there are.

use super::super::wire::{Answer, Order, frame, framed};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};

/// Said ahead at most, in bytes.
const AHEAD: usize = 256 << 10;
/// Read at a time.
const PIECE: usize = 256 << 10;

/// A socket to the parent.
pub(super) struct Port {
    socket: File,
    input: Vec<u8>,
    output: Vec<u8>,
    orders: VecDeque<Order>,
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the parent makes no sense")
}

impl Port {
    pub(super) fn new(socket: File) -> Self {
        Self { socket, input: Vec::new(), output: Vec::new(), orders: VecDeque::new() }
    }

    /// Says something, at the latest before the next wait.
    pub(super) fn say(&mut self, answer: &Answer) -> io::Result<()> {
        answer.encode(&mut self.output);
        if self.output.len() >= AHEAD { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// The next order that is no answer to a question.
    pub(super) fn next(&mut self) -> io::Result<Order> {
        loop {
            if let Some(order) = self.orders.pop_front() {
                return Ok(order);
            }
            if self.receive()?.is_some() {
                return Err(nonsense());
            }
        }
    }

    /// Asks for `len` bytes at `at`.
    pub(super) fn read(&mut self, at: u64, len: u32) -> io::Result<Vec<u8>> {
        self.say(&Answer::Read { at, len })?;
        loop {
            if let Some(bytes) = self.receive()? {
                return if bytes.len() == len as usize { Ok(bytes) } else { Err(nonsense()) };
            }
        }
    }

    /// Waits for more and sorts it; gives the bytes that were asked for, when they are there.
    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.flush()?;
        let old = self.input.len();
        self.input.resize(old + PIECE, 0);
        let read = self.socket.read(&mut self.input[old..]);
        self.input.truncate(old + *read.as_ref().unwrap_or(&0));
        if read? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut bytes) = (0, None);
        while let Some(fields) = frame(&self.input[at..]) {
            let fields = fields.map_err(|()| nonsense())?;
            match Order::decode(fields).ok_or_else(nonsense)? {
                Order::Bytes(answer) if bytes.is_none() => bytes = Some(answer),
                Order::Bytes(_) => return Err(nonsense()),
                order => self.orders.push_back(order),
            }
            at += framed(fields);
        }
        self.input.drain(..at);
        Ok(bytes)
    }
}
