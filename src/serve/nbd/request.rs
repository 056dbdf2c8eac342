//! A request: its header, and whether it can be done.

use super::{Agreed, Facts, MOST_DATA};
use crate::error::{Error, Kind};
use crate::units::GuestOffset;

/// Bytes of a request's header.
pub const HEADER: usize = 28;
/// What it begins with.
pub const MAGIC: u32 = 0x2560_9513;

/// The numbers of requests.
pub mod number {
    /// Bytes of the disk.
    pub const READ: u16 = 0;
    /// New bytes for the disk.
    pub const WRITE: u16 = 1;
    /// The end.
    pub const DISCONNECT: u16 = 2;
    /// What was written is to be durable.
    pub const FLUSH: u16 = 3;
    /// A range is not needed.
    pub const TRIM: u16 = 4;
    /// A range is to read as zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Which parts of a range are holes.
    pub const BLOCK_STATUS: u16 = 7;
}

/// What a request may add.
pub mod flag {
    /// It is done when it is durable.
    pub const FUA: u16 = 1;
    /// Zeros that take space; it is given when they are overwritten.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The reply in one piece.
    pub const WHOLE: u16 = 1 << 2;
    /// The first extent alone.
    pub const ONE: u16 = 1 << 3;
    /// Zeros, if they are quicker than a write; they are.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// The numbers by which clients are told what went wrong.
pub mod errno {
    /// The export is read-only.
    pub const PERMISSION: u32 = 1;
    /// The disk failed.
    pub const IO: u32 = 5;
    /// The request makes no sense.
    pub const INVALID: u32 = 22;
    /// The host is full, or the request writes past the end.
    pub const NO_SPACE: u32 = 28;
    /// It is too long.
    pub const OVERFLOW: u32 = 75;
    /// The server ends.
    pub const SHUTDOWN: u32 = 108;
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its number.
    pub errno: u32,
    /// The same for people.
    pub why: &'static str,
}

impl Refusal {
    /// The server ends.
    pub const SHUTDOWN: Self = Self { errno: errno::SHUTDOWN, why: "the server ends" };

    const fn invalid(why: &'static str) -> Self {
        Self { errno: errno::INVALID, why }
    }
}

impl From<&Error> for Refusal {
    /// The sentence stays here: it was said on standard error, and may name files.
    fn from(error: &Error) -> Self {
        match error.kind() {
            Kind::ReadOnly => Self { errno: errno::PERMISSION, why: "the disk is read-only" },
            Kind::NoSpace => Self { errno: errno::NO_SPACE, why: "the host has no space left" },
            Kind::Invalid => Self::invalid("the disk refuses the request"),
            Kind::Latched => Self { errno: errno::IO, why: "the disk has failed before, and takes nothing" },
            _ => Self { errno: errno::IO, why: "the disk failed; the server's messages say why" },
        }
    }
}

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it adds.
    pub flags: u16,
    /// What it asks for.
    pub number: u16,
    /// What the client knows it by.
    pub cookie: u64,
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send bytes of the disk.
    Read {
        /// In one piece.
        whole: bool,
    },
    /// Take bytes for the disk.
    Write,
    /// Make durable what was written.
    Flush,
    /// Discard.
    Trim,
    /// Write zeros.
    WriteZeroes,
    /// Tell holes from data.
    BlockStatus {
        /// The first extent alone.
        one: bool,
    },
}

impl Request {
    /// Reads a header; `None` when it is none.
    #[must_use]
    pub fn parse(bytes: [u8; HEADER]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk()?;
        let (len, _) = rest.split_first_chunk()?;
        (u32::from_be_bytes(*magic) == MAGIC).then_some(Self {
            flags: u16::from_be_bytes(*flags),
            number: u16::from_be_bytes(*number),
            cookie: u64::from_be_bytes(*cookie),
            at: u64::from_be_bytes(*at),
            len: u32::from_be_bytes(*len),
        })
    }

    /// Where it starts.
    #[must_use]
    pub fn start(&self) -> GuestOffset {
        GuestOffset(self.at)
    }

    /// Bytes of data that follow it.
    #[must_use]
    pub fn payload(&self) -> u32 {
        if self.number == number::WRITE { self.len } else { 0 }
    }

    /// Whether it is to be durable.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.flags & flag::FUA != 0
    }

    /// What is to be done for it.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn command(&self, facts: &Facts, agreed: Agreed) -> Result<Command, Refusal> {
        let is = |flag: u16| self.flags & flag != 0;
        // Clients set this one on anything.
        let mut known = flag::FUA;
        let command = match self.number {
            number::READ => {
                known |= if agreed.structured { flag::WHOLE } else { 0 };
                Command::Read { whole: is(flag::WHOLE) }
            }
            number::WRITE => Command::Write,
            number::FLUSH => Command::Flush,
            number::TRIM => Command::Trim,
            number::WRITE_ZEROES => {
                known |= flag::NO_HOLE | flag::FAST_ZERO;
                Command::WriteZeroes
            }
            number::BLOCK_STATUS if agreed.allocation => {
                known |= flag::ONE;
                Command::BlockStatus { one: is(flag::ONE) }
            }
            number::BLOCK_STATUS => return Err(Refusal::invalid("no context was set that could tell")),
            _ => return Err(Refusal::invalid("the request is not known here")),
        };
        if is(!known) {
            return Err(Refusal::invalid("the request has a flag that it cannot have"));
        }
        self.check(command, facts)?;
        Ok(command)
    }

    fn check(&self, command: Command, facts: &Facts) -> Result<(), Refusal> {
        let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if writes && facts.read_only {
            return Err(Refusal { errno: errno::PERMISSION, why: "the export is read-only" });
        }
        let (at, len) = (self.at, u64::from(self.len));
        if command == Command::Flush {
            let whole = at == 0 && len == 0;
            return if whole { Ok(()) } else { Err(Refusal::invalid("a flush has no range")) };
        }
        if at.checked_add(len).is_none_or(|end| end > facts.size) {
            let grows = matches!(command, Command::Write | Command::WriteZeroes);
            let errno = if grows { errno::NO_SPACE } else { errno::INVALID };
            return Err(Refusal { errno, why: "the request reaches past the end of the disk" });
        }
        match command {
            Command::Read { whole } if self.len > MOST_DATA => {
                let errno = if whole { errno::OVERFLOW } else { errno::INVALID };
                Err(Refusal { errno, why: "a read has at most 32 MiB" })
            }
            Command::BlockStatus { .. } if len == 0 => Err(Refusal::invalid("no bytes have no status")),
            _ => Ok(()),
        }
    }
}
