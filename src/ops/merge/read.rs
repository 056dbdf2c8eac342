//! The tree of an ext filesystem.

use super::tree::{File, Tree};
use crate::error::{Error, Result};
use crate::guestfs::ext4::{Ext4, FileKind, Ino, Inode, flags};
use crate::guestfs::partitions::Bytes;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The inode of the root folder.
const ROOT: u32 = 2;
/// Flags that are about the file and not about how it is stored.
const FLAGS: u32 = flags::SECURE_DELETION
    | flags::SYNC
    | flags::IMMUTABLE
    | flags::APPEND
    | flags::NO_DUMP
    | flags::NO_ATIME
    | flags::PROJECT_INHERIT;

/// Who is told what a tree is read from.
pub(super) trait Reading {
    /// What is read from now on is of this inode.
    fn begin(&mut self, ino: u32);
    /// That is all.
    fn found(&mut self, inode: &Inode);
}

/// Nobody.
impl Reading for () {
    fn begin(&mut self, _: u32) {}
    fn found(&mut self, _: &Inode) {}
}

/// Reads all files that have a name, without their contents.
///
/// # Errors
/// `Corrupt` when the filesystem breaks its format, or a folder has two names; whatever reading the disk gives.
pub fn tree<B: Bytes>(filesystem: &Ext4<B>) -> Result<Tree> {
    tree_beside(filesystem, None)
}

/// The same; what is as in `other`, another version of the filesystem, is in memory once.
///
/// # Errors
/// As [`tree`].
pub fn tree_beside<B: Bytes>(filesystem: &Ext4<B>, other: Option<&Tree>) -> Result<Tree> {
    tree_told(filesystem, other, &mut ())
}

/// The same; `reading` is told for whom it is.
pub(super) fn tree_told<B: Bytes>(
    filesystem: &Ext4<B>,
    other: Option<&Tree>,
    reading: &mut impl Reading,
) -> Result<Tree> {
    // Each goes when its file comes.
    let mut inodes = HashMap::new();
    for inode in filesystem.inodes() {
        let inode = inode?;
        inodes.insert(inode.ino.0, Box::new(inode));
    }
    let mut tree = Tree { root: ROOT, ..Tree::default() };
    let root = inodes.remove(&ROOT).ok_or_else(|| Error::corrupt("the filesystem has no root folder"))?;
    tree.files.insert(ROOT, told(filesystem, &root, reading)?);
    let mut folders = vec![ROOT];
    while let Some(folder) = folders.pop() {
        reading.begin(folder);
        let inode = filesystem.inode(Ino(folder))?;
        let entries = filesystem.directory(&inode)?.entries;
        reading.found(&inode);
        for entry in entries {
            let ino = entry.ino.0;
            match tree.files.entry(ino) {
                Entry::Vacant(vacant) => {
                    let inode = inodes.remove(&ino).ok_or_else(|| unused(ino))?;
                    vacant.insert(told(filesystem, &inode, reading)?);
                    if inode.kind == FileKind::Directory {
                        folders.push(ino);
                    }
                }
                Entry::Occupied(known) if known.get().is_folder() => {
                    return Err(Error::corrupt(format!(
                        "the folder with inode {ino} has two names; mend the filesystem with e2fsck in its guest"
                    )));
                }
                Entry::Occupied(_) => {}
            }
            link(&mut tree, (folder, ino), entry.name, other);
        }
    }
    for (ino, file) in tree.files.iter_mut().filter(|(_, file)| file.is_folder() || file.names.len() > 1) {
        sort_names(file);
        share(*ino, file, other);
    }
    Ok(tree)
}

fn told<B: Bytes>(filesystem: &Ext4<B>, inode: &Inode, reading: &mut impl Reading) -> Result<Arc<File>> {
    reading.begin(inode.ino.0);
    let read = file(filesystem, inode)?;
    reading.found(inode);
    Ok(Arc::new(read))
}

/// Names have an order of their own, whatever the one is in which folders are read.
pub(super) fn sort_names(file: &mut Arc<File>) {
    if !file.names.is_sorted() {
        Arc::make_mut(file).names.sort_unstable();
    }
}

fn link(tree: &mut Tree, (folder, ino): (u32, u32), mut name: Vec<u8>, other: Option<&Tree>) {
    name.shrink_to_fit();
    if let Some(place) = tree.files.get_mut(&ino) {
        let file = Arc::make_mut(place);
        // Most have one.
        file.names.reserve_exact(usize::from(file.names.is_empty()));
        file.names.push((folder, name.clone()));
        if !file.is_folder() {
            share(ino, place, other);
        }
    }
    if let Some(folder) = tree.files.get_mut(&folder) {
        Arc::make_mut(folder).children.insert(name, ino);
    }
}

/// Takes the other version's record when it says the same.
fn share(ino: u32, file: &mut Arc<File>, other: Option<&Tree>) {
    if let Some(same) = other.and_then(|other| other.files.get(&ino)).filter(|same| *same == file) {
        *file = Arc::clone(same);
    }
}

fn unused(ino: u32) -> Error {
    Error::corrupt(format!(
        "a name leads to inode {ino}, which is not in use; mend the filesystem with e2fsck in its guest"
    ))
}

/// What the tree says of an inode, without names.
pub(super) fn file<B: Bytes>(filesystem: &Ext4<B>, inode: &Inode) -> Result<File> {
    let target = if inode.kind == FileKind::Symlink { filesystem.link(inode)? } else { Vec::new() };
    Ok(File {
        kind: inode.kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        flags: inode.flags & FLAGS,
        project: inode.project,
        size: inode.size,
        target,
        device: inode.device,
        xattrs: filesystem.xattrs(inode)?,
        accessed: inode.accessed,
        modified: inode.modified,
        changed: inode.changed,
        created: inode.created,
        generation: inode.generation,
        names: Vec::new(),
        children: BTreeMap::new(),
    })
}
