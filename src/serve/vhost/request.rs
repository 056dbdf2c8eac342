//! One request of a virtio block device: understood, done, and answered.
//!
//! The guest is not trusted: a request that makes no sense is answered with an error and harms no other one.

use super::block::{self, HEADER, Header, Kind, MAY_UNMAP, PIECE, RANGE, RANGE_MAX, RANGES, Range, Status};
use super::chain::{Chain, Malformed};
use super::memory::{Cursor, Memory, Outside, Segment, is_there, total};
use crate::qcow2::{Piece, Reader};
use crate::serve::Export;
use crate::storage::{Storage, zero_volatile};
use crate::units::{GuestOffset, SECTOR, index, length};
use std::io;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// What one thread needs to do requests.
#[derive(Debug)]
pub struct Worker<'a> {
    export: &'a Arc<Export>,
    chain: Chain,
    /// Data on their way from guest to a place of the disk that has no bytes of its own yet: the engine looks at them, and the
    /// guest may change its own copy at any time.
    bounce: Box<[u8]>,
}

/// A guest's buffers, to be filled from a disk.
struct Guest<'a> {
    memory: &'a Memory,
    to: Cursor<'a>,
}

impl Reader for Guest<'_> {
    fn take(&mut self, piece: Piece<'_>) -> crate::Result<()> {
        let outside = |_| crate::Error::invalid("the guest has no such memory");
        let failed = |doing: &'static str| move |error| crate::Error::io(doing, error);
        match piece {
            Piece::Bytes(bytes) => self.to.write(self.memory, bytes).map_err(outside),
            Piece::Zeros(len) => {
                let runs = self.to.runs(self.memory, len).map_err(outside)?;
                zero_volatile(&runs).map_err(failed("filling the guest's memory"))
            }
            Piece::Stored { file, at, len, doing } => {
                let runs = self.to.runs(self.memory, len).map_err(outside)?;
                file.read_volatile(&runs, at).map_err(failed(doing))
            }
        }
    }
}

/// A request ends with a status, and with the number of bytes of data that the driver got.
struct Answer {
    status: Status,
    filled: u64,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self { status, filled: 0 }
    }
}

impl From<Outside> for Answer {
    fn from(_: Outside) -> Self {
        Status::Failed.into()
    }
}

impl From<Malformed> for Answer {
    fn from(_: Malformed) -> Self {
        Status::Failed.into()
    }
}

impl From<crate::Error> for Answer {
    /// What went wrong was said by the export.
    fn from(_: crate::Error) -> Self {
        Status::Failed.into()
    }
}

impl<'a> Worker<'a> {
    /// For requests to `export`.
    #[must_use]
    pub fn new(export: &'a Arc<Export>) -> Self {
        Self { export, chain: Chain::default(), bounce: vec![0; PIECE].into() }
    }

    /// Does the request whose chain starts with descriptor `head` of `table`, which has `size` descriptors, and writes
    /// its status. How many bytes of its buffers were written.
    pub fn handle(&mut self, memory: &Memory, table: GuestAddress, size: u16, head: u16) -> u32 {
        let walked = self.chain.walk(memory, table, size, head);
        let chain = std::mem::take(&mut self.chain);
        let room = total(&chain.writable);
        let answer = match (walked, room.checked_sub(1)) {
            // Without a byte for the status nobody could tell how it ended: nothing is done.
            (_, None) => None,
            (Err(malformed), Some(_)) => Some(malformed.into()),
            (Ok(()), Some(data)) => Some(self.execute(memory, &chain, data).unwrap_or_else(|answer| answer)),
        };
        let written = answer.map_or(0, |answer| {
            let mut status = Cursor::new(&chain.writable);
            let put = status.skip(room - 1).and_then(|()| status.write(memory, &[answer.status.byte()]));
            put.map_or(0, |()| answer.filled + 1)
        });
        self.chain = chain;
        u32::try_from(written).unwrap_or(u32::MAX)
    }

    /// `data` is the number of bytes that the driver wants, or at least has room for.
    fn execute(&mut self, memory: &Memory, chain: &Chain, data: u64) -> Result<Answer, Answer> {
        let mut readable = Cursor::new(&chain.readable);
        let mut header = [0; HEADER];
        readable.read(memory, &mut header)?;
        let header = Header::parse(header);
        let sent = total(&chain.readable) - length(HEADER);
        match header.kind {
            Kind::Read => self.read(memory, header.sector, &chain.writable, data),
            // Nothing is written of what is not there as a whole.
            Kind::Write if !is_there(memory, &chain.readable) => Err(Outside.into()),
            Kind::Write => self.write(memory, header.sector, readable, sent),
            Kind::Flush => {
                self.export.flush()?;
                Ok(Status::Ok.into())
            }
            Kind::Id => {
                let id = &block::id(self.export.name())[..block::ID.min(index(data))];
                Cursor::new(&chain.writable).write(memory, id)?;
                Ok(Answer { status: Status::Ok, filled: length(id.len()) })
            }
            Kind::Discard | Kind::WriteZeroes => self.zero(memory, header.kind, readable, sent),
            Kind::Unknown => Ok(Status::Unsupported.into()),
        }
    }

    /// Where `len` bytes from `sector` on are, if they are whole sectors inside the disk, and not too many.
    fn place(&self, sector: u64, len: u64) -> Result<GuestOffset, Answer> {
        let at = sector.checked_mul(SECTOR).filter(|_| len.is_multiple_of(SECTOR) && len <= RANGE_MAX);
        let at = at.filter(|at| at.checked_add(len).is_some_and(|end| end <= self.export.size()));
        at.map(GuestOffset).ok_or_else(|| Status::Failed.into())
    }

    /// From the disk straight into the guest's memory.
    fn read(&self, memory: &Memory, sector: u64, writable: &[Segment], len: u64) -> Result<Answer, Answer> {
        let at = self.place(sector, len)?;
        if !is_there(memory, writable) {
            return Err(Outside.into());
        }
        self.export.read_to(&mut Guest { memory, to: Cursor::new(writable) }, at, len)?;
        Ok(Answer { status: Status::Ok, filled: len })
    }

    /// From the guest's memory straight to the file where the disk has bytes of its own already; else through a copy.
    fn write(
        &mut self,
        memory: &Memory,
        sector: u64,
        mut from: Cursor<'_>,
        len: u64,
    ) -> Result<Answer, Answer> {
        let mut at = self.place(sector, len)?;
        let end = at + len;
        while at < end {
            let mut straight = |file: &dyn Storage, len, host| {
                let runs = from.runs(memory, len).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
                file.write_volatile(&runs, host)
            };
            let written = self.export.write_owned(at, end - at, &mut straight)?;
            if written > 0 {
                at = at + written;
                continue;
            }
            let piece = &mut self.bounce[..index((end - at).min(length(PIECE)))];
            from.read(memory, piece)?;
            self.export.write(piece, at)?;
            at = at + length(piece.len());
        }
        Ok(Status::Ok.into())
    }

    /// Discards, or writes zeros to, the ranges that the request lists.
    fn zero(
        &mut self,
        memory: &Memory,
        kind: Kind,
        mut from: Cursor<'_>,
        len: u64,
    ) -> Result<Answer, Answer> {
        let count = len / length(RANGE);
        if !len.is_multiple_of(length(RANGE)) || count == 0 || count > u64::from(RANGES) {
            return Err(Status::Failed.into());
        }
        let known = if kind == Kind::Discard { 0 } else { MAY_UNMAP };
        for _ in 0..count {
            let mut bytes = [0; RANGE];
            from.read(memory, &mut bytes)?;
            let range = Range::parse(bytes);
            if range.flags & !known != 0 {
                return Err(Status::Unsupported.into());
            }
            let at = self.place(range.sector, range.len)?;
            match kind {
                Kind::Discard => self.export.discard(at, range.len)?,
                _ => self.export.write_zeroes(at, range.len)?,
            }
        }
        Ok(Status::Ok.into())
    }
}
