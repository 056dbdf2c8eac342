//! The caller's side of the edits.

use super::line::{Limits, Line, Peer, inside, reply};
use super::wire::{Answer, MOST, Mode, Order};
use super::{Edit, Node, Volume};
use crate::error::{Error, Kind, Result};
use crate::units::{GuestOffset, index, length};
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;

/// Bytes of edits on their way; more wait for the child.
const AHEAD: usize = 8 << 20;
/// What one edit counts at least, so that the number of edits on their way is bounded too.
const SMALLEST: usize = 512;

/// Characters of what a child says that are shown.
const TEXT: usize = 4000;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Inodes made.
    pub made: u32,
    /// Inodes freed, those of them that were just made included.
    pub freed: u32,
    /// Bytes written to the disk.
    pub written: u64,
}

/// Changes one filesystem.
///
/// Edits are sent ahead: an error that `send` returns may be one of an earlier edit, which it names. After an error, or
/// when it is dropped before [`Editor::finish`], the filesystem is in no order: the disk must be thrown away.
pub struct Editor<'a> {
    line: Line,
    desk: Desk<'a>,
}

/// An edit that the child has not done yet.
struct Pending {
    label: String,
    weight: usize,
    content: Vec<u8>,
    /// How much of the content may still be placed: each byte once.
    unplaced: u64,
}

/// The parent's knowledge of what goes on.
struct Desk<'a> {
    volume: &'a dyn Volume,
    pending: VecDeque<Pending>,
    weight: usize,
    done: u64,
    written: u64,
    finished: Option<(u32, u32)>,
}

impl fmt::Debug for Editor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Editor")
            .field("line", &self.line)
            .field("done", &self.desk.done)
            .finish_non_exhaustive()
    }
}

impl<'a> Editor<'a> {
    /// Starts a child for the filesystem in `volume`; `program` is our own one, which knows [`super::COMMAND`].
    ///
    /// # Errors
    /// `Io` when it cannot be started. What is wrong with the filesystem a later call tells.
    pub fn start(program: &Path, volume: &'a dyn Volume) -> Result<Self> {
        Self::limited(program, volume, Limits::default())
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn limited(program: &Path, volume: &'a dyn Volume, limits: Limits) -> Result<Self> {
        let line = Line::start(program, volume.size(), Mode::Edit, limits)?;
        let desk = Desk { volume, pending: VecDeque::new(), weight: 0, done: 0, written: 0, finished: None };
        Ok(Self { line, desk })
    }

    /// Sends a change.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, and what an earlier edit failed with: `Corrupt`, `NoSpace` (of the filesystem,
    /// or of the host), `Unsupported`, `NotFound`, `Exists`, `Io`, and whatever the disk gives.
    pub fn send(&mut self, edit: Edit) -> Result<()> {
        let label = edit.to_string();
        let size = check(&edit).map_err(|error| error.at(&label))?;
        self.queue(&Order::Edit(edit), label, size, Vec::new())
    }

    /// Puts `data` into the content of the file `node` at byte `at`, inside its length; ranges that are never put stay
    /// holes. Whole blocks in rising order are placed best.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn write(&mut self, node: Node, at: u64, data: Vec<u8>) -> Result<()> {
        let len = data.len();
        let label = format!("write {len} bytes at {at} of {node}");
        let len = u32::try_from(len).ok().filter(|len| *len as usize <= AHEAD);
        let len = len.ok_or_else(|| Error::invalid(format!("{label}: at most {AHEAD} bytes at a time")))?;
        if len == 0 {
            return Ok(());
        }
        self.queue(&Order::Write { node, at, len }, label, 0, data)
    }

    fn queue(&mut self, order: &Order, label: String, size: usize, content: Vec<u8>) -> Result<()> {
        let weight = SMALLEST + size + content.len();
        while !self.desk.pending.is_empty() && self.desk.weight + weight > AHEAD {
            self.line.turn(&mut self.desk)?;
        }
        self.desk.weight += weight;
        let unplaced = length(content.len());
        self.desk.pending.push_back(Pending { label, weight, content, unplaced });
        order.encode(self.line.output());
        Ok(())
    }

    /// Waits for the last edit, frees what has no name, and flushes the disk.
    ///
    /// # Errors
    /// As [`Self::send`]; `Invalid` for a folder that has names in it but none itself, or more than one.
    pub fn finish(mut self) -> Result<Report> {
        Order::Finish.encode(self.line.output());
        let (made, freed) = loop {
            if let Some(counts) = self.desk.finished {
                break counts;
            }
            self.line.turn(&mut self.desk)?;
        };
        self.desk.volume.flush()?;
        Ok(Report { made, freed, written: self.desk.written })
    }
}

/// Checks what the child could not be sent, and tells how many bytes the edit has.
fn check(edit: &Edit) -> Result<usize> {
    let size = match edit {
        Edit::Make { kind: super::Kind::Symlink(bytes), .. } | Edit::Target { target: bytes, .. } => {
            bytes.len()
        }
        Edit::Link { name, .. } | Edit::Unlink { name, .. } | Edit::RemoveXattr { name, .. } => name.len(),
        Edit::SetXattr { name, value, .. } => name.len().saturating_add(value.len()),
        Edit::Make { .. } | Edit::Content { .. } | Edit::Attributes { .. } => 0,
    };
    if size > MOST as usize {
        return Err(Error::invalid(format!("it has {size} bytes, more than any filesystem takes")));
    }
    Ok(size)
}

impl Desk<'_> {
    fn put(&mut self, edit: u64, skip: u32, len: u32, at: u64) -> Result<()> {
        let unknown =
            || Error::corrupt("the child that changes the filesystem places content that it was not given");
        let pending = edit.checked_sub(self.done).and_then(|ahead| self.pending.get_mut(index(ahead)));
        let pending = pending.ok_or_else(unknown)?;
        let range = skip as usize..(skip as usize).saturating_add(len as usize);
        let content = pending.content.get(range).filter(|part| !part.is_empty()).ok_or_else(unknown)?;
        pending.unplaced = pending.unplaced.checked_sub(u64::from(len)).ok_or_else(unknown)?;
        let end = at.checked_add(u64::from(len));
        if end.is_none_or(|end| end > self.volume.size()) {
            return Err(Error::corrupt("the filesystem leads outside of its place: content would go there"));
        }
        self.written += u64::from(len);
        self.volume.write(content, GuestOffset(at))
    }

    fn next_done(&mut self) -> Result<()> {
        let done = self.pending.pop_front();
        let done = done.ok_or_else(|| Error::corrupt("the child did edits that it was not given"))?;
        self.weight -= done.weight;
        self.done += 1;
        Ok(())
    }

    fn failed(&self, of_edit: bool, class: u8, text: &str) -> Error {
        let kind = match class {
            1 => Kind::NoSpace,
            2 => Kind::Unsupported,
            3 => Kind::NotFound,
            4 => Kind::Exists,
            5 => Kind::Invalid,
            _ => Kind::Corrupt,
        };
        let error = Error::new(kind, printed(text));
        match self.pending.front().filter(|_| of_edit) {
            Some(edit) => error.at(format_args!("edit {}, {}", self.done + 1, edit.label)),
            None => error,
        }
    }
}

/// What a child said, as it may be shown.
pub(crate) fn printed(text: &str) -> String {
    let mut shown = String::new();
    for char in text.trim().chars().take(TEXT) {
        match char {
            '\n' => shown.push(char),
            _ if char.is_control() => shown.extend(char.escape_default()),
            _ => shown.push(char),
        }
    }
    shown
}

impl Peer for Desk<'_> {
    fn hear(&mut self, answer: Answer, out: &mut Vec<u8>) -> Result<bool> {
        let size = self.volume.size();
        match answer {
            Answer::Read { at, len } => {
                reply(self.volume, at, len, out)?;
            }
            Answer::Write { at, data } => {
                let at = inside(size, at, data.len())?;
                self.written += length(data.len());
                self.volume.write(&data, GuestOffset(at))?;
            }
            Answer::Put { edit, skip, len, at } => {
                self.put(edit, skip, len, at)?;
                return Ok(true);
            }
            Answer::Done => {
                self.next_done()?;
                return Ok(true);
            }
            Answer::Failed { of_edit, class, text } => return Err(self.failed(of_edit, class, &text)),
            Answer::Finished { made, freed } if self.pending.is_empty() => {
                self.finished = Some((made, freed));
                return Ok(true);
            }
            Answer::Finished { .. } | Answer::Meta { .. } => {
                return Err(Error::corrupt(
                    "the child that changes the filesystem gave an answer without a question",
                ));
            }
        }
        Ok(false)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Old(inode) => write!(f, "inode {inode}"),
            Self::New(number) => write!(f, "new object {number}"),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make { id, .. } => write!(f, "make {}", Node::New(*id)),
            Self::Link { folder, name, to } => {
                write!(f, "name {to} \"{}\" in {folder}", name.escape_ascii())
            }
            Self::Unlink { folder, name } => write!(f, "take \"{}\" out of {folder}", name.escape_ascii()),
            Self::Content { node, size } => write!(f, "make {node} {size} bytes long"),
            Self::Target { node, .. } => write!(f, "set the target of {node}"),
            Self::Attributes { node, .. } => write!(f, "set the attributes of {node}"),
            Self::SetXattr { node, name, .. } => write!(f, "set {} of {node}", name.escape_ascii()),
            Self::RemoveXattr { node, name } => write!(f, "remove {} of {node}", name.escape_ascii()),
        }
    }
}
