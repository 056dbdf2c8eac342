//! What parent and child say to each other: a length of 4 bytes, a tag, and fields, little endian.
//!
//! Both sides check what they read: a message that is too long, unknown, too short or longer than its fields is an
//! error, and nothing is believed of the rest.

use super::{Attributes, Edit, Kind, Node};
use crate::guestfs::Time;
use crate::units::length;

/// Most bytes that one message moves.
pub(crate) const MOST: u32 = 1 << 20;
/// Longest message, its tag and fields included.
const FRAME: usize = MOST as usize + 256;

/// What the child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It changes the filesystem.
    Edit,
    /// It names the blocks that `e2fsck` reads.
    Scan,
}

/// What the parent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The first message: bytes of the filesystem's place, and the task.
    Hello { size: u64, mode: Mode },
    /// One change.
    Edit(Edit),
    /// `len` bytes of a file's content at `at`, which the parent keeps until they are placed.
    Write { node: Node, at: u64, len: u32 },
    /// No edit follows.
    Finish,
    /// The bytes that were asked for.
    Bytes(Vec<u8>),
}

/// What the child says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It needs these bytes.
    Read { at: u64, len: u32 },
    /// These bytes change.
    Write { at: u64, data: Vec<u8> },
    /// Bytes `skip` to `skip + len` of the content of edit `edit` belong at `at`.
    Put { edit: u64, skip: u32, len: u32, at: u64 },
    /// One more edit is done.
    Done,
    /// The next edit could not be done; or, when it is not `of_edit`, the task as a whole.
    Failed { of_edit: bool, class: u8, text: String },
    /// Everything is done and written.
    Finished { made: u32, freed: u32 },
    /// `e2fsck` reads these bytes.
    Meta { at: u64, len: u64 },
}

/// Takes the first whole message off `input`: its fields, or `None` when it is not all there.
pub(crate) fn frame(input: &[u8]) -> Option<Result<&[u8], ()>> {
    let (head, rest) = input.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
    if len == 0 || len > FRAME {
        return Some(Err(()));
    }
    rest.get(..len).map(Ok)
}

/// Bytes that a message of `fields` has in all.
pub(crate) fn framed(fields: &[u8]) -> usize {
    fields.len() + 4
}

/// A message in the making, at the end of the bytes to send.
struct Out<'a>(&'a mut Vec<u8>, usize);

impl<'a> Out<'a> {
    fn new(out: &'a mut Vec<u8>, tag: u8) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(tag);
        Self(out, start)
    }
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u64(length(bytes.len()));
        self.0.extend_from_slice(bytes);
        self
    }
    fn node(&mut self, node: Node) -> &mut Self {
        match node {
            Node::Old(number) => self.u8(0).u32(number),
            Node::New(number) => self.u8(1).u32(number),
        }
    }
    fn time(&mut self, time: Time) -> &mut Self {
        self.u64(time.seconds.cast_unsigned()).u32(time.nanoseconds)
    }
    fn attributes(&mut self, of: &Attributes) -> &mut Self {
        self.u32(u32::from(of.mode)).u32(of.uid).u32(of.gid);
        self.time(of.atime).time(of.ctime).time(of.mtime).time(of.crtime);
        self.u32(of.flags).u8(u8::from(of.project.is_some())).u32(of.project.unwrap_or(0))
    }
    fn kind(&mut self, kind: &Kind) -> &mut Self {
        match kind {
            Kind::File => self.u8(0),
            Kind::Folder => self.u8(1),
            Kind::Symlink(target) => self.u8(2).bytes(target),
            Kind::Char { major, minor } => self.u8(3).u32(*major).u32(*minor),
            Kind::Block { major, minor } => self.u8(4).u32(*major).u32(*minor),
            Kind::Fifo => self.u8(5),
            Kind::Socket => self.u8(6),
        }
    }
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        let len = u32::try_from(self.0.len() - self.1 - 4).unwrap_or(u32::MAX);
        self.0[self.1..self.1 + 4].copy_from_slice(&len.to_le_bytes());
    }
}

/// Fields of a message that are still unread.
struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u64()?).ok()?;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
    fn owned(&mut self) -> Option<Vec<u8>> {
        self.bytes().map(<[u8]>::to_vec)
    }
    fn node(&mut self) -> Option<Node> {
        match self.u8()? {
            0 => self.u32().map(Node::Old),
            1 => self.u32().map(Node::New),
            _ => None,
        }
    }
    fn time(&mut self) -> Option<Time> {
        Some(Time { seconds: self.u64()?.cast_signed(), nanoseconds: self.u32()? })
    }
    fn attributes(&mut self) -> Option<Attributes> {
        Some(Attributes {
            mode: u16::try_from(self.u32()?).ok()?,
            uid: self.u32()?,
            gid: self.u32()?,
            atime: self.time()?,
            ctime: self.time()?,
            mtime: self.time()?,
            crtime: self.time()?,
            flags: self.u32()?,
            project: match (self.u8()?, self.u32()?) {
                (0, _) => None,
                (_, project) => Some(project),
            },
        })
    }
    fn kind(&mut self) -> Option<Kind> {
        Some(match self.u8()? {
            0 => Kind::File,
            1 => Kind::Folder,
            2 => Kind::Symlink(self.owned()?),
            3 => Kind::Char { major: self.u32()?, minor: self.u32()? },
            4 => Kind::Block { major: self.u32()?, minor: self.u32()? },
            5 => Kind::Fifo,
            6 => Kind::Socket,
            _ => return None,
        })
    }
}

impl Order {
    /// Puts the message behind what is to be sent.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { size, mode } => {
                Out::new(out, 0).u64(*size).u8(u8::from(*mode == Mode::Scan));
            }
            Self::Write { node, at, len } => {
                Out::new(out, 1).node(*node).u64(*at).u32(*len);
            }
            Self::Finish => drop(Out::new(out, 2)),
            Self::Bytes(bytes) => {
                Out::new(out, 3).bytes(bytes);
            }
            Self::Edit(edit) => encode(edit, out),
        }
    }

    /// The message with these fields, if there is such a one.
    pub(crate) fn decode(fields: &[u8]) -> Option<Self> {
        let mut from = In(fields);
        let order = match from.u8()? {
            0 => {
                let size = from.u64()?;
                let mode = if from.u8()? == 0 { Mode::Edit } else { Mode::Scan };
                Self::Hello { size, mode }
            }
            1 => Self::Write { node: from.node()?, at: from.u64()?, len: from.u32()? },
            2 => Self::Finish,
            3 => Self::Bytes(from.owned()?),
            tag => Self::Edit(decode(tag, &mut from)?),
        };
        from.0.is_empty().then_some(order)
    }
}

fn encode(edit: &Edit, out: &mut Vec<u8>) {
    match edit {
        Edit::Make { id, kind, attributes } => {
            Out::new(out, 16).u32(*id).kind(kind).attributes(attributes);
        }
        Edit::Link { folder, name, to } => {
            Out::new(out, 17).node(*folder).bytes(name).node(*to);
        }
        Edit::Unlink { folder, name } => {
            Out::new(out, 18).node(*folder).bytes(name);
        }
        Edit::Content { node, size } => {
            Out::new(out, 19).node(*node).u64(*size);
        }
        Edit::Target { node, target } => {
            Out::new(out, 20).node(*node).bytes(target);
        }
        Edit::Attributes { node, attributes } => {
            Out::new(out, 21).node(*node).attributes(attributes);
        }
        Edit::SetXattr { node, name, value } => {
            Out::new(out, 22).node(*node).bytes(name).bytes(value);
        }
        Edit::RemoveXattr { node, name } => {
            Out::new(out, 23).node(*node).bytes(name);
        }
    }
}

fn decode(tag: u8, from: &mut In<'_>) -> Option<Edit> {
    Some(match tag {
        16 => Edit::Make { id: from.u32()?, kind: from.kind()?, attributes: from.attributes()? },
        17 => Edit::Link { folder: from.node()?, name: from.owned()?, to: from.node()? },
        18 => Edit::Unlink { folder: from.node()?, name: from.owned()? },
        19 => Edit::Content { node: from.node()?, size: from.u64()? },
        20 => Edit::Target { node: from.node()?, target: from.owned()? },
        21 => Edit::Attributes { node: from.node()?, attributes: from.attributes()? },
        22 => Edit::SetXattr { node: from.node()?, name: from.owned()?, value: from.owned()? },
        23 => Edit::RemoveXattr { node: from.node()?, name: from.owned()? },
        _ => return None,
    })
}

impl Answer {
    /// Puts the message behind what is to be sent.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Read { at, len } => {
                Out::new(out, 0).u64(*at).u32(*len);
            }
            Self::Write { at, data } => {
                Out::new(out, 1).u64(*at).bytes(data);
            }
            Self::Put { edit, skip, len, at } => {
                Out::new(out, 2).u64(*edit).u32(*skip).u32(*len).u64(*at);
            }
            Self::Done => drop(Out::new(out, 3)),
            Self::Failed { of_edit, class, text } => {
                Out::new(out, 4).u8(u8::from(*of_edit)).u8(*class).bytes(text.as_bytes());
            }
            Self::Finished { made, freed } => {
                Out::new(out, 5).u32(*made).u32(*freed);
            }
            Self::Meta { at, len } => {
                Out::new(out, 6).u64(*at).u64(*len);
            }
        }
    }

    /// The message with these fields, if there is such a one.
    pub(crate) fn decode(fields: &[u8]) -> Option<Self> {
        let mut from = In(fields);
        let answer = match from.u8()? {
            0 => Self::Read { at: from.u64()?, len: from.u32()? },
            1 => Self::Write { at: from.u64()?, data: from.owned()? },
            2 => Self::Put { edit: from.u64()?, skip: from.u32()?, len: from.u32()?, at: from.u64()? },
            3 => Self::Done,
            4 => Self::Failed {
                of_edit: from.u8()? != 0,
                class: from.u8()?,
                text: String::from_utf8_lossy(from.bytes()?).into_owned(),
            },
            5 => Self::Finished { made: from.u32()?, freed: from.u32()? },
            6 => Self::Meta { at: from.u64()?, len: from.u64()? },
            _ => return None,
        };
        from.0.is_empty().then_some(answer)
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
