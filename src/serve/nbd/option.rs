//! What a client asks for before its first request: options, each with data of its own.

use super::MOST_NAME;

/// What the server says first: its two magic numbers, and that it knows fixed newstyle negotiation and may leave out zeros.
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\x00\x03";
/// What every option begins with.
pub const MAGIC: u64 = 0x4948_4156_454f_5054;
/// Bytes before an option's data.
pub const HEADER: usize = 16;
/// Most bytes of an option's data: more is skipped, and refused.
pub const MOST_DATA: usize = 64 << 10;

/// What the client says to the greeting: whether it wants no zeros after an export's flags. `None` when it sets a flag that
/// nobody offered.
#[must_use]
pub fn client_flags(bytes: [u8; 4]) -> Option<bool> {
    let flags = u32::from_be_bytes(bytes);
    (flags & !3 == 0).then_some(flags & 2 != 0)
}

/// The start of every option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its number.
    pub option: u32,
    /// Bytes of its data.
    pub len: u32,
}

impl Header {
    /// Reads a header; `None` when it is none.
    #[must_use]
    pub fn parse(bytes: [u8; HEADER]) -> Option<Self> {
        let mut rest = Rest(&bytes);
        let magic = u64::from(rest.word().ok()?) << 32 | u64::from(rest.word().ok()?);
        let (option, len) = (rest.word().ok()?, rest.word().ok()?);
        (magic == MAGIC).then_some(Self { option, len })
    }
}

/// The numbers of options.
pub mod number {
    /// A name, at once.
    pub const EXPORT_NAME: u32 = 1;
    /// The end.
    pub const ABORT: u32 = 2;
    /// All names.
    pub const LIST: u32 = 3;
    /// Encryption.
    pub const STARTTLS: u32 = 5;
    /// What there is to know of an export.
    pub const INFO: u32 = 6;
    /// The same, and then requests.
    pub const GO: u32 = 7;
    /// Replies in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Kinds of what can be told of blocks.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// The kinds that are wanted.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// An option, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// The export of this name, without a word if there is none.
    ExportName(&'a [u8]),
    /// The end.
    Abort,
    /// The names of all exports.
    List,
    /// Encryption.
    StartTls,
    /// What there is to know of an export.
    Info {
        /// Requests come next.
        go: bool,
        /// The export.
        name: &'a [u8],
        /// Its canonical name is wanted.
        canonical: bool,
        /// The sizes of requests are wanted.
        sizes: bool,
    },
    /// Replies in chunks.
    StructuredReply,
    /// What can be told of blocks.
    MetaContext {
        /// It is wanted from now on, and not only listed.
        set: bool,
        /// The export.
        name: &'a [u8],
        /// Whether the queries, or their absence, mean `base:allocation`.
        allocation: bool,
    },
    /// Nothing that is known here.
    Unknown,
}

/// Why an option makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The name of the one thing that can be told of blocks.
pub const ALLOCATION: &[u8] = b"base:allocation";

/// Data of an option that is left.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let short = Malformed("the option ends too early");
        let (now, later) = self.0.split_at_checked(len).ok_or(short)?;
        self.0 = later;
        Ok(now)
    }

    fn half(&mut self) -> Result<u16, Malformed> {
        Ok(self.take(2)?.iter().fold(0, |value, &byte| value << 8 | u16::from(byte)))
    }

    fn word(&mut self) -> Result<u32, Malformed> {
        Ok(self.take(4)?.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
    }

    /// Text after its length.
    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.word()?).unwrap_or(usize::MAX);
        if len > MOST_NAME {
            return Err(Malformed("a name is longer than 4096 bytes"));
        }
        self.take(len)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("the option has data that nobody asked for")) }
    }
}

/// Understands an option.
///
/// # Errors
/// When its data are not what such an option has.
pub fn parse(option: u32, data: &[u8]) -> Result<Asked<'_>, Malformed> {
    let mut rest = Rest(data);
    let asked = match option {
        number::EXPORT_NAME => return Ok(Asked::ExportName(data)),
        // What comes with it does not matter.
        number::ABORT => return Ok(Asked::Abort),
        number::LIST => Asked::List,
        number::STARTTLS => Asked::StartTls,
        number::STRUCTURED_REPLY => Asked::StructuredReply,
        number::INFO | number::GO => info(option == number::GO, &mut rest)?,
        number::LIST_META_CONTEXT => context(false, &mut rest)?,
        number::SET_META_CONTEXT => context(true, &mut rest)?,
        _ => return Ok(Asked::Unknown),
    };
    rest.end()?;
    Ok(asked)
}

fn info<'a>(go: bool, rest: &mut Rest<'a>) -> Result<Asked<'a>, Malformed> {
    let name = rest.text()?;
    let (mut canonical, mut sizes) = (false, false);
    for _ in 0..rest.half()? {
        match rest.half()? {
            1 => canonical = true,
            3 => sizes = true,
            _ => {}
        }
    }
    Ok(Asked::Info { go, name, canonical, sizes })
}

fn context<'a>(set: bool, rest: &mut Rest<'a>) -> Result<Asked<'a>, Malformed> {
    let name = rest.text()?;
    let count = rest.word()?;
    // Who lists without a query wants to see all there is, who sets without one wants nothing.
    let mut allocation = count == 0 && !set;
    for _ in 0..count {
        let query = rest.text()?;
        allocation |= query == ALLOCATION || (query == b"base:" && !set);
    }
    Ok(Asked::MetaContext { set, name, allocation })
}
