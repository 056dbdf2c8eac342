//! What a client and the server agree on before the first request.

use super::option::{self, ALLOCATION, Asked, Malformed, number};
use super::{Agreed, Facts, MOST_DATA};

/// What every reply to an option begins with.
const REPLY: u64 = 0x0003_e889_0455_65a9;
/// The number by which replies name `base:allocation`.
pub const ALLOCATION_ID: u32 = 1;
/// Zeros that old clients want after an export's flags.
const PADDING: usize = 124;
/// Requests are best in multiples of what the engine frees at once.
const PREFERRED: u32 = 4096;

/// Kinds of replies.
pub mod kind {
    /// It is done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// What can be told of blocks.
    pub const META_CONTEXT: u32 = 4;
    /// From here on they are refusals.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const UNSUPPORTED: u32 = ERROR + 1;
    /// The option makes no sense.
    pub const INVALID: u32 = ERROR + 3;
    /// There is no such export.
    pub const UNKNOWN: u32 = ERROR + 6;
    /// The option is too long.
    pub const TOO_BIG: u32 = ERROR + 9;
}

/// What an export can do, as clients are told.
pub mod can {
    /// These flags mean something.
    pub const FLAGS: u16 = 1;
    /// Writing is refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// There is a cache to flush.
    pub const FLUSH: u16 = 1 << 2;
    /// A request may ask to be durable.
    pub const FUA: u16 = 1 << 3;
    /// Trim works.
    pub const TRIM: u16 = 1 << 5;
    /// Writing zeros works.
    pub const WRITE_ZEROES: u16 = 1 << 6;
    /// A reply to a read may be asked for in one piece.
    pub const WHOLE: u16 = 1 << 7;
    /// A flush is one for all connections.
    pub const MULTI_CONN: u16 = 1 << 8;
    /// Zeros may be asked for on the condition that they are quick.
    pub const FAST_ZERO: u16 = 1 << 11;
}

/// What comes after an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next option.
    More,
    /// Requests.
    Go(Agreed),
    /// Nothing.
    End,
}

/// A client that has not made its first request.
#[derive(Debug)]
pub struct Negotiation<'a> {
    facts: &'a Facts,
    no_zeroes: bool,
    agreed: Agreed,
}

impl<'a> Negotiation<'a> {
    /// For one that wants zeros after an export's flags, or none.
    #[must_use]
    pub fn new(facts: &'a Facts, no_zeroes: bool) -> Self {
        Self { facts, no_zeroes, agreed: Agreed::default() }
    }

    /// The flags of the export.
    fn can(&self) -> u16 {
        let write = if self.facts.read_only {
            can::READ_ONLY
        } else {
            can::TRIM | can::WRITE_ZEROES | can::FAST_ZERO
        };
        let whole = if self.agreed.structured { can::WHOLE } else { 0 };
        // The disk is one for all connections: what one has got an answer for is there for all, and flushed by any.
        can::FLAGS | can::FLUSH | can::FUA | can::MULTI_CONN | write | whole
    }

    fn is_served(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.facts.name.as_bytes()
    }

    /// Refuses an option whose data are too long to be read.
    pub fn refuse_long(&mut self, option: u32, to: &mut Vec<u8>) -> Step {
        if option == number::EXPORT_NAME {
            // It has no refusal but this one.
            return Step::End;
        }
        self.forget(option);
        put(to, option, kind::TOO_BIG, &[b"the option has more than 65536 bytes of data"]);
        Step::More
    }

    /// Contexts that are set take the place of those before, also when they cannot be.
    fn forget(&mut self, option: u32) {
        if option == number::SET_META_CONTEXT {
            self.agreed.allocation = false;
        }
    }

    /// Answers an option.
    pub fn answer(&mut self, option: u32, data: &[u8], to: &mut Vec<u8>) -> Step {
        self.forget(option);
        let asked = match option::parse(option, data) {
            Ok(asked) => asked,
            Err(Malformed(why)) => {
                put(to, option, kind::INVALID, &[why.as_bytes()]);
                return Step::More;
            }
        };
        match asked {
            Asked::ExportName(name) => return self.export_name(name, to),
            Asked::Abort => {
                put(to, option, kind::ACK, &[]);
                return Step::End;
            }
            Asked::List => {
                let name = self.facts.name.as_bytes();
                put(to, option, kind::SERVER, &[&word(name.len()), name]);
                put(to, option, kind::ACK, &[]);
            }
            Asked::StartTls => put(to, option, kind::UNSUPPORTED, &[b"there is no TLS here"]),
            Asked::Info { go, name, canonical, sizes } => {
                if self.info(option, name, canonical, sizes, to) && go {
                    return Step::Go(self.agreed);
                }
            }
            Asked::StructuredReply => {
                self.agreed.structured = true;
                put(to, option, kind::ACK, &[]);
            }
            Asked::MetaContext { set, name, allocation } => self.context(option, set, name, allocation, to),
            Asked::Unknown => put(to, option, kind::UNSUPPORTED, &[b"the option is not known here"]),
        }
        Step::More
    }

    fn export_name(&self, name: &[u8], to: &mut Vec<u8>) -> Step {
        if !self.is_served(name) {
            return Step::End;
        }
        to.extend_from_slice(&self.facts.size.to_be_bytes());
        to.extend_from_slice(&self.can().to_be_bytes());
        if !self.no_zeroes {
            to.resize(to.len() + PADDING, 0);
        }
        Step::Go(self.agreed)
    }

    /// Whether there is such an export.
    fn info(&self, option: u32, name: &[u8], canonical: bool, sizes: bool, to: &mut Vec<u8>) -> bool {
        if !self.is_served(name) {
            put(to, option, kind::UNKNOWN, &[b"there is no such export; ask for the list"]);
            return false;
        }
        let (size, can) = (self.facts.size.to_be_bytes(), self.can().to_be_bytes());
        put(to, option, kind::INFO, &[&[0, 0], &size, &can]);
        if canonical {
            put(to, option, kind::INFO, &[&[0, 1], self.facts.name.as_bytes()]);
        }
        if sizes {
            let [least, best, most] = [1, PREFERRED, MOST_DATA].map(u32::to_be_bytes);
            put(to, option, kind::INFO, &[&[0, 3], &least, &best, &most]);
        }
        put(to, option, kind::ACK, &[]);
        true
    }

    fn context(&mut self, option: u32, set: bool, name: &[u8], allocation: bool, to: &mut Vec<u8>) {
        if !self.agreed.structured {
            put(to, option, kind::INVALID, &[b"structured replies come first"]);
            return;
        }
        if !self.is_served(name) {
            put(to, option, kind::UNKNOWN, &[b"there is no such export; ask for the list"]);
            return;
        }
        if allocation {
            let id = if set { ALLOCATION_ID } else { 0 };
            put(to, option, kind::META_CONTEXT, &[&id.to_be_bytes(), ALLOCATION]);
        }
        self.agreed.allocation |= set && allocation;
        put(to, option, kind::ACK, &[]);
    }
}

fn word(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

/// Adds a reply.
fn put(to: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    to.extend_from_slice(&REPLY.to_be_bytes());
    to.extend_from_slice(&option.to_be_bytes());
    to.extend_from_slice(&kind.to_be_bytes());
    to.extend_from_slice(&word(data.iter().map(|part| part.len()).sum()));
    data.iter().for_each(|part| to.extend_from_slice(part));
}
