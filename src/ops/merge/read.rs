//! The tree of an ext filesystem.

use super::tree::{File, Tree};
use crate::error::{Error, Result};
use crate::guestfs::ext4::{Ext4, FileKind, Ino, Inode, flags};
use crate::guestfs::partitions::Bytes;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

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

/// Reads all files that have a name, without their contents.
///
/// # Errors
/// `Corrupt` when the filesystem breaks its format, or a folder has two names; whatever reading the disk gives.
pub fn tree<B: Bytes>(filesystem: &Ext4<B>) -> Result<Tree> {
    let mut inodes = HashMap::new();
    for inode in filesystem.inodes() {
        let inode = inode?;
        inodes.insert(inode.ino.0, inode);
    }
    let mut tree = Tree { root: ROOT, ..Tree::default() };
    let root = inodes.get(&ROOT).ok_or_else(|| Error::corrupt("the filesystem has no root folder"))?;
    tree.files.insert(ROOT, file(filesystem, root)?);
    let mut folders = vec![ROOT];
    while let Some(folder) = folders.pop() {
        let inode = filesystem.inode(Ino(folder))?;
        for entry in filesystem.directory(&inode)?.entries {
            let ino = entry.ino.0;
            match tree.files.entry(ino) {
                Entry::Vacant(vacant) => {
                    let inode = inodes.get(&ino).ok_or_else(|| unused(ino))?;
                    vacant.insert(file(filesystem, inode)?);
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
            link(&mut tree, folder, ino, entry.name);
        }
    }
    Ok(tree)
}

fn link(tree: &mut Tree, folder: u32, ino: u32, name: Vec<u8>) {
    if let Some(file) = tree.files.get_mut(&ino) {
        file.names.push((folder, name.clone()));
    }
    if let Some(folder) = tree.files.get_mut(&folder) {
        folder.children.insert(name, ino);
    }
}

fn unused(ino: u32) -> Error {
    Error::corrupt(format!(
        "a name leads to inode {ino}, which is not in use; mend the filesystem with e2fsck in its guest"
    ))
}

fn file<B: Bytes>(filesystem: &Ext4<B>, inode: &Inode) -> Result<File> {
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
