//! What differs between two trees of files.

use super::pair::{Entry, Pairing, pair};
use crate::error::{Error, Result};
use crate::guestfs::ext4::FileKind;
use crate::ops::merge::tree::{File, Tree};
use rayon::prelude::*;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::collections::{BTreeSet, HashSet};

/// Longest path that is told, in bytes; the kernel takes paths of 4096.
const LONGEST_PATH: usize = 64 << 10;
/// Most bytes of all paths that are told together.
const ALL_PATHS: usize = 1 << 30;

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Only the old disk has it.
    Deleted,
    /// Only the new disk has it.
    Added,
    /// It has another content.
    Modified,
    /// It has another path, and perhaps another content.
    Moved,
    /// Its content is the same, and something else of it is not.
    Metadata,
}

impl Mark {
    /// The letter for it.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Deleted => 'D',
            Self::Added => 'A',
            Self::Modified => 'M',
            Self::Moved => 'R',
            Self::Metadata => 'm',
        }
    }
}

/// What of a file is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// Its bytes, where it leads, or the device that it stands for.
    Content,
    /// Its permissions.
    Mode,
    /// Its user, group or project.
    Owner,
    /// Its extended attributes, access control lists and capabilities among them.
    Xattrs,
    /// What `chattr` sets.
    Flags,
    /// When its content was changed; not told where the content, or what a folder lists, differs.
    Times,
}

impl Aspect {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Xattrs => "xattrs",
            Self::Flags => "flags",
            Self::Times => "times",
        }
    }
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What became of it.
    pub mark: Mark,
    /// The path, absolute: of the old disk when it was deleted, else of the new one.
    pub path: Vec<u8>,
    /// The path on the old disk, when it was moved.
    pub from: Option<Vec<u8>>,
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes, of a regular file.
    pub size: u64,
    /// What of it differs, when both disks have it.
    pub changed: Vec<Aspect>,
}

impl Change {
    /// What changes are sorted by: the path that is told first.
    fn place(&self) -> (&[u8], Mark) {
        (self.from.as_ref().unwrap_or(&self.path), self.mark)
    }
}

/// Paths are text, in which what is no UTF-8 is replaced; then their bytes stand beside in hexadecimal.
impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("mark", &self.mark.letter())?;
        map.serialize_entry("change", &self.mark)?;
        let paths = [("path", "path_hex", Some(&self.path)), ("from", "from_hex", self.from.as_ref())];
        for (text, hex, path) in paths {
            let Some(path) = path else { continue };
            map.serialize_entry(text, &String::from_utf8_lossy(path))?;
            if std::str::from_utf8(path).is_err() {
                let bytes: String = path.iter().map(|byte| format!("{byte:02x}")).collect();
                map.serialize_entry(hex, &bytes)?;
            }
        }
        map.serialize_entry("kind", kind_word(self.kind))?;
        map.serialize_entry("size", &self.size)?;
        if !self.changed.is_empty() {
            map.serialize_entry("changed", &self.changed)?;
        }
        map.end()
    }
}

/// The word for a kind of file.
#[must_use]
pub fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "folder",
        FileKind::Symlink => "link",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
        FileKind::Fifo => "pipe",
        FileKind::Socket => "socket",
    }
}

/// Whether a regular file of the old tree and one of the new tree hold the same bytes.
pub(super) type Same<'a> = &'a (dyn Fn(u32, u32) -> Result<bool> + Sync);

/// What leads from `old` to `new`, sorted by path; `related`: inode numbers mean the same in both.
pub(super) fn changes(old: &Tree, new: &Tree, related: bool, same: Same<'_>) -> Result<Vec<Change>> {
    let pairing = pair(old, new, related);
    let differing = differing(old, new, &pairing, same)?;
    let mut found = Found { changes: Vec::new(), bytes: 0 };
    for (pairs, moved) in [(&pairing.kept, false), (&pairing.moved, true)] {
        for [was, is] in pairs {
            let content = differing.contains(&(was.ino, is.ino));
            let (one, other) = (old.file(was.ino), new.file(is.ino));
            let changed = aspects(one, other, content, pairing.touched.contains(&is.ino));
            let mark = match changed.first() {
                _ if moved => Mark::Moved,
                None => continue,
                Some(Aspect::Content) => Mark::Modified,
                Some(_) => Mark::Metadata,
            };
            let from = moved.then(|| path(old, was)).transpose()?;
            found.add(mark, path(new, is)?, from, other, changed)?;
        }
    }
    for gone in &pairing.gone {
        found.add(Mark::Deleted, path(old, gone)?, None, old.file(gone.ino), Vec::new())?;
    }
    for added in &pairing.added {
        found.add(Mark::Added, path(new, added)?, None, new.file(added.ino), Vec::new())?;
    }
    found.changes.sort_by(|a, b| a.place().cmp(&b.place()));
    Ok(found.changes)
}

struct Found {
    changes: Vec<Change>,
    bytes: usize,
}

impl Found {
    fn add(
        &mut self,
        mark: Mark,
        path: Vec<u8>,
        from: Option<Vec<u8>>,
        file: &File,
        changed: Vec<Aspect>,
    ) -> Result<()> {
        self.bytes += path.len() + from.as_ref().map_or(0, Vec::len);
        if self.bytes > ALL_PATHS {
            return Err(Error::unsupported("the paths that differ take more than 1 GiB together"));
        }
        let size = if file.kind == FileKind::Regular { file.size } else { 0 };
        self.changes.push(Change { mark, path, from, kind: file.kind, size, changed });
        Ok(())
    }
}

/// Pairs of regular files, in one of the two trees each, that hold other bytes.
fn differing(old: &Tree, new: &Tree, pairing: &Pairing<'_>, same: Same<'_>) -> Result<HashSet<(u32, u32)>> {
    let both = pairing.kept.iter().chain(&pairing.moved).map(|[was, is]| (was.ino, is.ino));
    // A file with many names is read once.
    let pairs: BTreeSet<(u32, u32)> =
        both.filter(|(was, _)| old.file(*was).kind == FileKind::Regular).collect();
    let differs = |(was, is): (u32, u32)| -> Option<Result<(u32, u32)>> {
        if old.file(was).size != new.file(is).size {
            return Some(Ok((was, is)));
        }
        match same(was, is) {
            Ok(true) => None,
            Ok(false) => Some(Ok((was, is))),
            Err(error) => Some(Err(error)),
        }
    };
    pairs.into_par_iter().filter_map(differs).collect()
}

/// What differs, the content first.
fn aspects(old: &File, new: &File, content: bool, touched: bool) -> Vec<Aspect> {
    let content = content || old.target != new.target || old.device != new.device;
    let all = [
        (Aspect::Content, content),
        (Aspect::Mode, old.mode != new.mode),
        (Aspect::Owner, (old.uid, old.gid, old.project) != (new.uid, new.gid, new.project)),
        (Aspect::Xattrs, old.xattrs != new.xattrs),
        (Aspect::Flags, old.flags != new.flags),
        (Aspect::Times, old.modified != new.modified && !content && !touched),
    ];
    all.into_iter().filter_map(|(aspect, differs)| differs.then_some(aspect)).collect()
}

/// The path of a name, absolute.
pub(super) fn path(tree: &Tree, entry: &Entry<'_>) -> Result<Vec<u8>> {
    let (mut parts, mut here, mut len) = (vec![entry.name], entry.folder, entry.name.len() + 1);
    while here != tree.root {
        // A folder has one name, and leads to the root: so the tree was read.
        let Some((folder, name)) = tree.file(here).names.first() else { break };
        parts.push(name);
        here = *folder;
        len += name.len() + 1;
        if len > LONGEST_PATH {
            return Err(Error::unsupported("a path that differs is longer than 64 KiB"));
        }
    }
    let mut path = Vec::with_capacity(len);
    for part in parts.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    Ok(path)
}

/// The path of a file and its inode's number.
pub(super) type Located = (Vec<u8>, u32);

/// Where the file at `path` of one tree is in the other: found by its path, or by a move.
pub(super) fn counterparts(
    old: &Tree,
    new: &Tree,
    related: bool,
    wanted: &[u8],
) -> Result<[Option<Located>; 2]> {
    let found = [old.find(wanted), new.find(wanted)];
    if let [Some(was), Some(is)] = found {
        return Ok([Some((wanted.to_vec(), was)), Some((wanted.to_vec(), is))]);
    }
    let pairing = pair(old, new, related);
    for (side, tree) in [old, new].into_iter().enumerate() {
        let Some(key) = named(tree, wanted) else { continue };
        let is_it = |pair: &&[Entry<'_>; 2]| (pair[side].folder, pair[side].name) == key;
        if let Some([was, is]) = pairing.kept.iter().chain(&pairing.moved).find(is_it) {
            return Ok([Some((path(old, was)?, was.ino)), Some((path(new, is)?, is.ino))]);
        }
    }
    Ok(found.map(|ino| ino.map(|ino| (wanted.to_vec(), ino))))
}

/// The folder and the name that a path ends in, when the tree has it.
fn named<'a>(tree: &Tree, wanted: &'a [u8]) -> Option<(u32, &'a [u8])> {
    tree.find(wanted)?;
    let end = wanted.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let cut = wanted[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    Some((tree.find(&wanted[..cut])?, &wanted[cut..end]))
}
