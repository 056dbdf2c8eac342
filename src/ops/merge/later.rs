//! The tree of a later state of a filesystem, of which only what differs from the earlier one is read.
//!
//! What the earlier tree says of a file follows from the blocks that were read for it. When none of them differs, the later
//! tree says the same, and the file holds the same bytes.

use super::read::{self, Reading, file};
use super::tree::Tree;
use crate::error::Result;
use crate::guestfs::ext4::{Ext4, FileKind, Ino, Inode, Used, touches};
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, length};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Which inodes the blocks of a filesystem say something of, or hold bytes of.
#[derive(Debug)]
pub struct Owners {
    runs: Vec<Owned>,
    /// Inodes of which not all blocks are known.
    unknown: HashSet<u32>,
    used: Used,
}

#[derive(Clone, Copy, Debug)]
struct Owned {
    start: u64,
    blocks: u32,
    ino: u32,
}

/// Inodes of a later state that may say something else, or hold other bytes, than in the earlier one. All, when it is not known
/// which.
#[derive(Debug, Default)]
pub struct Touched(Option<HashSet<u32>>);

impl Touched {
    /// Whether an inode may be another one than in the earlier state.
    #[must_use]
    pub fn has(&self, ino: u32) -> bool {
        self.0.as_ref().is_none_or(|touched| touched.contains(&ino))
    }
}

/// Bytes of which is noted for whom they were read.
struct Noted<B> {
    bytes: B,
    block_size: u64,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    reader: Option<u32>,
    runs: Vec<Owned>,
}

impl<B: Bytes> Bytes for Noted<B> {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let end = (at.0 + length(buf.len())).div_ceil(self.block_size);
        self.note(at.0 / self.block_size..end);
        self.bytes.read(buf, at)
    }
}

impl<B> Noted<B> {
    fn note(&self, mut blocks: Range<u64>) {
        let Notes { reader, runs } = &mut *self.notes.lock();
        let Some(ino) = *reader else { return };
        while !blocks.is_empty() {
            let len = u32::try_from(blocks.end - blocks.start).unwrap_or(u32::MAX);
            match runs.last_mut() {
                Some(last) if last.ino == ino && last.start + u64::from(last.blocks) == blocks.start => {
                    let both = last.blocks.checked_add(len);
                    match both {
                        Some(both) => last.blocks = both,
                        None => runs.push(Owned { start: blocks.start, blocks: len, ino }),
                    }
                }
                _ => runs.push(Owned { start: blocks.start, blocks: len, ino }),
            }
            blocks.start += u64::from(len);
        }
    }
}

/// Who reads of a filesystem for the tree, and notes for whom.
struct Noting<'a, B> {
    filesystem: &'a Ext4<Noted<B>>,
    unknown: HashSet<u32>,
}

impl<B: Bytes> Reading for Noting<'_, B> {
    fn begin(&mut self, ino: u32) {
        self.filesystem.bytes().notes.lock().reader = Some(ino);
    }

    fn found(&mut self, inode: &Inode) {
        if inode.kind == FileKind::Regular {
            // Its bytes are its own as well.
            match self.filesystem.extents(inode) {
                Ok(extents) => extents
                    .iter()
                    .for_each(|e| self.filesystem.bytes().note(e.physical.0..e.physical.0 + e.blocks)),
                // Who asks for its content is told why there is none.
                Err(_) => drop(self.unknown.insert(inode.ino.0)),
            }
        }
        self.filesystem.bytes().notes.lock().reader = None;
    }
}

/// The tree of the filesystem in `bytes`, and which blocks it follows from.
///
/// # Errors
/// As [`read::tree`].
pub fn tree_with_owners<B: Bytes>(bytes: &B) -> Result<(Tree, Owners)> {
    let noted = Noted { bytes, block_size: 1, notes: Mutex::default() };
    let block_size = Ext4::open(&noted.bytes)?.superblock().block_size;
    let filesystem = Ext4::open(Noted { block_size, ..noted })?;
    let used = filesystem.used()?;
    let mut noting = Noting { filesystem: &filesystem, unknown: HashSet::new() };
    let tree = read::tree_told(&filesystem, None, &mut noting)?;
    let unknown = noting.unknown;
    let mut runs = std::mem::take(&mut filesystem.bytes().notes.lock().runs);
    runs.shrink_to_fit();
    Ok((tree, Owners { runs, unknown, used }))
}

impl Owners {
    /// The inodes that blocks of `changed` say something of, or hold bytes of.
    fn of(&self, changed: &[Range<u64>]) -> HashSet<u32> {
        let mut found = self.unknown.clone();
        let is_changed = |run: &&Owned| touches(changed, run.start, run.start + u64::from(run.blocks));
        found.extend(self.runs.iter().filter(is_changed).map(|run| run.ino));
        found
    }
}

/// The tree of `filesystem`, a later state of the one of `old`, of which at most the blocks of `changed` differ: ascending
/// ranges, apart from each other. Nothing when it has to be read as a whole.
pub fn tree_after<A: Bytes, B: Bytes>(
    filesystem: &Ext4<B>,
    earlier: &Ext4<A>,
    (old, owners): (&Tree, &Owners),
    changed: &[Range<u64>],
) -> Option<(Tree, Touched)> {
    if !filesystem.reads_as(earlier) {
        return None;
    }
    // An error is told by who reads all of it, as it would be without an earlier state.
    let later = Later::of((filesystem, earlier), (old, owners), changed).and_then(|mut later| {
        later.read_records()?;
        let changes = later.read_folders()?;
        later.relink(changes)?;
        Ok(later)
    });
    later.ok()?.finish()
}

/// A tree that becomes the later one.
struct Later<'a, B> {
    filesystem: &'a Ext4<B>,
    old: &'a Tree,
    tree: Tree,
    used: Used,
    /// Records that were read.
    inodes: HashMap<u32, Inode>,
    touched: HashSet<u32>,
    /// Folders that have a name that they did not have.
    moved: Vec<u32>,
    /// Something is there that only a whole reading judges.
    odd: bool,
}

/// Folder, name, and the file.
type Link = (u32, Vec<u8>, u32);

/// Names that went and came.
#[derive(Default)]
struct Changes {
    /// Of each file.
    lost: HashMap<u32, HashSet<(u32, Vec<u8>)>>,
    gained: Vec<Link>,
}

impl<'a, B: Bytes> Later<'a, B> {
    fn of(
        (filesystem, earlier): (&'a Ext4<B>, &Ext4<impl Bytes>),
        (old, owners): (&'a Tree, &Owners),
        changed: &[Range<u64>],
    ) -> Result<Self> {
        let used = filesystem.used()?;
        let found = filesystem.inodes_since((earlier, &owners.used), changed)?;
        let mut touched = owners.of(changed);
        touched.extend(found.iter().map(|inode| inode.ino.0));
        touched.extend(owners.used.without(&used).map(|ino| ino.0));
        let inodes = found.into_iter().map(|inode| (inode.ino.0, inode)).collect();
        let tree = Tree { files: old.files.clone(), root: old.root, above: Vec::new() };
        Ok(Self { filesystem, old, tree, used, inodes, touched, moved: Vec::new(), odd: false })
    }

    fn inode(&mut self, ino: u32) -> Result<Inode> {
        match self.inodes.remove(&ino) {
            Some(inode) => Ok(inode),
            None => self.filesystem.inode(Ino(ino)),
        }
    }

    /// Puts what the records say now into the tree; names and what is in folders stay as they were.
    fn read_records(&mut self) -> Result<()> {
        let known = |ino: &&u32| self.old.files.contains_key(ino) && self.used.has(Ino(**ino));
        let mut all: Vec<u32> = self.touched.iter().filter(known).copied().collect();
        all.sort_unstable();
        for ino in all {
            let inode = self.inode(ino)?;
            let mut is = file(self.filesystem, &inode)?;
            let was = self.old.file(ino);
            (is.names, is.children) = (was.names.clone(), was.children.clone());
            self.tree.files.insert(ino, Arc::new(is));
            self.inodes.insert(ino, inode);
        }
        Ok(())
    }

    /// What went and came in the folders that may have changed.
    fn read_folders(&mut self) -> Result<Changes> {
        let mut changes = Changes::default();
        let mut all: Vec<u32> = self.touched.iter().copied().collect();
        all.sort_unstable();
        for ino in all {
            let Some(was) = self.old.files.get(&ino) else { continue };
            let is_used = self.used.has(Ino(ino));
            let is_folder = is_used && self.tree.file(ino).is_folder();
            if !was.is_folder() && !is_folder {
                continue;
            }
            let children = if is_folder { self.children(ino)? } else { BTreeMap::new() };
            for (name, child) in was.children.iter().filter(|(name, ino)| children.get(*name) != Some(*ino)) {
                changes.lost.entry(*child).or_default().insert((ino, name.clone()));
            }
            for (name, child) in children.iter().filter(|(name, ino)| was.children.get(*name) != Some(*ino)) {
                changes.gained.push((ino, name.clone(), *child));
            }
            self.set_children(ino, children);
        }
        Ok(changes)
    }

    fn children(&mut self, folder: u32) -> Result<BTreeMap<Vec<u8>, u32>> {
        let inode = self.inode(folder)?;
        let entries = self.filesystem.directory(&inode)?.entries;
        Ok(entries.into_iter().map(|entry| (entry.name, entry.ino.0)).collect())
    }

    fn set_children(&mut self, folder: u32, children: BTreeMap<Vec<u8>, u32>) {
        if let Some(file) = self.tree.files.get_mut(&folder) {
            Arc::make_mut(file).children = children;
        }
    }

    fn relink(&mut self, Changes { lost, mut gained }: Changes) -> Result<()> {
        for (ino, names) in &lost {
            self.touched.insert(*ino);
            if let Some(file) = self.tree.files.get_mut(ino) {
                Arc::make_mut(file).names.retain(|name| !names.contains(name));
            }
        }
        while let Some((folder, name, ino)) = gained.pop() {
            if ino == self.tree.root || !self.used.has(Ino(ino)) {
                self.odd = true;
                return Ok(());
            }
            if !self.tree.files.contains_key(&ino) {
                self.touched.insert(ino);
                let inode = self.inode(ino)?;
                self.tree.files.insert(ino, Arc::new(file(self.filesystem, &inode)?));
                self.inodes.insert(ino, inode);
                if self.tree.file(ino).is_folder() {
                    let children = self.children(ino)?;
                    gained.extend(children.iter().map(|(name, child)| (ino, name.clone(), *child)));
                    self.set_children(ino, children);
                }
            }
            self.link((folder, name, ino));
        }
        for ino in lost.keys() {
            if self.tree.files.get(ino).is_some_and(|file| file.names.is_empty()) {
                // A folder that goes is empty before.
                self.odd |= self.tree.files.remove(ino).is_some_and(|file| !file.children.is_empty());
            }
        }
        Ok(())
    }

    fn link(&mut self, (folder, name, ino): Link) {
        let Some(file) = self.tree.files.get_mut(&ino) else { return };
        let file = Arc::make_mut(file);
        file.names.push((folder, name));
        if file.is_folder() {
            self.moved.push(ino);
        }
        self.touched.insert(ino);
    }

    /// The tree, unless it is none: a folder with two names, or inside itself; a name of what is not in use.
    fn finish(mut self) -> Option<(Tree, Touched)> {
        let sound = !self.odd
            && self.touched.iter().all(|ino| !self.tree.files.contains_key(ino) || self.used.has(Ino(*ino)))
            && self.moved.iter().all(|ino| self.tree.files.get(ino).is_none_or(|file| file.names.len() == 1))
            && self.reaches_root();
        if !sound {
            return None;
        }
        for ino in &self.touched {
            let (Some(file), was) = (self.tree.files.get_mut(ino), self.old.files.get(ino)) else { continue };
            read::sort_names(file);
            if let Some(same) = was.filter(|was| **was == *file) {
                *file = Arc::clone(same);
            }
        }
        Some((self.tree, Touched(Some(self.touched))))
    }

    /// Whether all folders that were moved are below the root: a circle has at least one of them.
    fn reaches_root(&self) -> bool {
        let mut known = HashSet::from([self.tree.root]);
        for folder in self.moved.iter().filter(|ino| self.tree.files.contains_key(ino)) {
            let (mut way, mut here) = (HashSet::new(), *folder);
            while !known.contains(&here) {
                let above = self.tree.files.get(&here).and_then(|file| file.names.first());
                let (Some((above, _)), true) = (above, way.insert(here)) else { return false };
                here = *above;
            }
            known.extend(way);
        }
        true
    }
}
