//! A part of the disk on its way to a client: bytes in a buffer, and zeros that take no part in it.

use crate::error::{Error, Result};
use crate::qcow2::{Piece, Reader};
use crate::units::{index, length};
use crate::zero::is_zero;

/// Zeros up to here are sent as bytes: a chunk of its own takes as much, and the client's time.
const SHORTEST_HOLE: u64 = 4096;
/// Bytes that are looked at together for zeros that a file holds, as a raw base holds its holes: data show it in the first of
/// them, and zeros cost less to see than to send.
const LOOK: usize = 64 << 10;

/// A run of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) hole: bool,
}

/// Takes the pieces of a range into a buffer that is as long.
#[derive(Debug)]
pub(super) struct Gather<'a> {
    buffer: &'a mut [u8],
    at: usize,
    runs: Vec<Run>,
}

impl<'a> Gather<'a> {
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, at: 0, runs: Vec::new() }
    }

    /// What was taken.
    pub(super) fn runs(self) -> Vec<Run> {
        self.runs
    }

    /// Notes bytes that are in the buffer, and which of them are zeros.
    fn note_read(&mut self, len: usize) {
        let end = self.at + len;
        while self.at < end {
            let part = LOOK.min(end - self.at);
            let hole = length(part) >= SHORTEST_HOLE && is_zero(&self.buffer[self.at..self.at + part]);
            self.note(part, hole);
        }
    }

    fn note(&mut self, len: usize, hole: bool) {
        match self.runs.last_mut() {
            Some(last) if last.hole == hole => last.len += len,
            _ => self.runs.push(Run { start: self.at, len, hole }),
        }
        self.at += len;
    }
}

impl Reader for Gather<'_> {
    fn take(&mut self, piece: Piece<'_>) -> Result<()> {
        let part = |len: u64| self.at..self.at + index(len);
        match piece {
            Piece::Zeros(0) => {}
            Piece::Zeros(len) if len >= SHORTEST_HOLE => self.note(index(len), true),
            Piece::Zeros(len) => {
                self.buffer[part(len)].fill(0);
                self.note(index(len), false);
            }
            Piece::Stored { file, at, len, doing } => {
                file.read_at(&mut self.buffer[part(len)], at).map_err(|error| Error::io(doing, error))?;
                self.note_read(index(len));
            }
            Piece::Bytes(bytes) => {
                self.buffer[part(length(bytes.len()))].copy_from_slice(bytes);
                self.note_read(bytes.len());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn zeros_are_holes_wherever_they_come_from() {
        let mut data = vec![7; 3 * LOOK];
        data[LOOK..2 * LOOK].fill(0);
        let mut buffer = vec![1; data.len() + 3 * 4096 + 512];
        let mut gather = Gather::new(&mut buffer);
        for piece in [
            Piece::Bytes(&data),
            Piece::Zeros(0),
            Piece::Zeros(8192),
            Piece::Zeros(512),
            Piece::Bytes(&[0; 4096]),
        ] {
            gather.take(piece).unwrap();
        }
        let runs: Vec<_> = gather.runs().iter().map(|run| (run.start, run.len, run.hole)).collect();
        let end = data.len();
        let expected = [
            (0, LOOK, false),
            (LOOK, LOOK, true),
            (2 * LOOK, LOOK, false),
            (end, 8192, true),
            (end + 8192, 512, false),
            (end + 8704, 4096, true),
        ];
        assert_eq!(runs, expected);
        assert!(buffer[end + 8192..end + 8704].iter().all(|byte| *byte == 0), "short zeros are bytes");
    }
}
