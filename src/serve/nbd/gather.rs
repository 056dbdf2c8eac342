//! A part of the disk on its way to a client: bytes in a buffer, and zeros that take no part in it.

use crate::error::{Error, Result};
use crate::qcow2::{Piece, Reader};
use crate::units::{index, length};

/// Zeros up to here are sent as bytes: a chunk of its own takes as much, and the client's time.
const SHORTEST_HOLE: u64 = 4096;

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
        let (len, hole) = match piece {
            Piece::Zeros(len) if len >= SHORTEST_HOLE => (len, true),
            Piece::Zeros(len) => {
                self.buffer[part(len)].fill(0);
                (len, false)
            }
            Piece::Stored { file, at, len, doing } => {
                file.read_at(&mut self.buffer[part(len)], at).map_err(|error| Error::io(doing, error))?;
                (len, false)
            }
            Piece::Bytes(bytes) => {
                self.buffer[part(length(bytes.len()))].copy_from_slice(bytes);
                (length(bytes.len()), false)
            }
        };
        if len > 0 {
            self.note(index(len), hole);
        }
        Ok(())
    }
}
