//! Whether a filesystem is in order: what `e2fsck -fn` says of it, without a mount, a loop device or a copy.
//!
//! `e2fsck` wants a file and reads only metadata, so it gets a sparse file that has just that: superblock, descriptors,
//! bitmaps, inode tables, folders, maps of blocks, attributes. A confined child lists where those are. A list that
//! lacks a block can only make `e2fsck` find damage, for zeros are in its place.

use super::edit::{Answer, Limits, Line, Mode, Peer};
use super::partitions::Bytes;
use super::tool::{Ended, Tool};
use crate::error::{Error, Result};
use crate::pages::Pages;
use crate::units::{GuestOffset, MIB, index};
use crate::zero::is_zero;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PIECE: u64 = MIB;
const GRAIN: usize = 4096;

/// What `e2fsck` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Clean,
    /// Damage, in its own words.
    Damaged(String),
}

/// Checks the ext2, ext3 or ext4 filesystem in `volume` with `e2fsck -fn`.
///
/// `program` is our own one, which knows [`super::edit::COMMAND`]; in `folder` a file without a name takes as many bytes
/// as the filesystem has metadata.
///
/// # Errors
/// `NotFound` without `e2fsck`; `Io`, `NoSpace`; whatever reading the disk gives.
pub fn fsck(program: &Path, volume: &dyn Bytes, folder: &Path) -> Result<Verdict> {
    let cannot = |error| Error::io("cannot write the file that e2fsck reads", error);
    let file = tempfile::tempfile_in(folder).map_err(cannot)?;
    file.set_len(volume.size()).map_err(cannot)?;
    let mut scan = Scan { volume, file: &file, copied: 0, piece: Pages::default(), end: None };
    let mut line = Line::start(program, volume.size(), Mode::Scan, Limits::default())?;
    while scan.end.is_none() {
        line.turn(&mut scan)?;
    }
    if let Some(Some(words)) = scan.end {
        return Ok(Verdict::Damaged(words));
    }
    judge(&file, volume.size())
}

/// The parent of a child that lists metadata.
struct Scan<'a> {
    volume: &'a dyn Bytes,
    file: &'a File,
    copied: u64,
    /// What is copied goes through here.
    piece: Pages,
    /// That it is done, and what made it impossible.
    end: Option<Option<String>>,
}

impl Scan<'_> {
    fn copy(&mut self, at: u64, len: u64) -> Result<()> {
        let size = self.volume.size();
        let end = at.checked_add(len).filter(|end| *end <= size);
        self.copied = self.copied.saturating_add(len);
        // Damaged metadata may name a block twice; a hostile list has no end.
        let (Some(end), true) = (end, self.copied <= size.saturating_mul(4)) else {
            return Err(Error::corrupt("the filesystem leads outside of its place"));
        };
        let mut place = at;
        while place < end {
            self.piece.resize(index((end - place).min(PIECE)));
            self.volume.read(&mut self.piece, GuestOffset(place))?;
            for part in self.piece.chunks(GRAIN) {
                if !is_zero(part) {
                    let wrote = self.file.write_all_at(part, place);
                    wrote.map_err(|error| Error::io("cannot write the file that e2fsck reads", error))?;
                }
                place += crate::units::length(part.len());
            }
        }
        Ok(())
    }
}

impl Peer for Scan<'_> {
    fn hear(&mut self, answer: Answer, out: &mut Vec<u8>) -> Result<bool> {
        match answer {
            Answer::Read { at, len } => {
                super::edit::reply(self.volume, at, len, out)?;
                return Ok(false);
            }
            Answer::Meta { at, len } => self.copy(at, len)?,
            Answer::Finished { .. } => self.end = Some(None),
            Answer::Failed { text, .. } => self.end = Some(Some(super::edit::printed(&text))),
            Answer::Write { .. } | Answer::Put { .. } | Answer::Done => {
                return Err(Error::corrupt(
                    "the child that lists metadata gave an answer without a question",
                ));
            }
        }
        Ok(true)
    }
}

/// What `e2fsck` says of `file`, which it reads and does not write.
fn judge(file: &File, size: u64) -> Result<Verdict> {
    let tool = Tool { program: "e2fsck", arguments: &["-fn"], file, below: None, size, writes: false };
    let Ended { code, words } = tool.run(&|| false)?;
    match code {
        0 => Ok(Verdict::Clean),
        // 1 and 2: it would have repaired; 4: it left errors; 8: it could not even begin.
        _ => Ok(Verdict::Damaged(words)),
    }
}
