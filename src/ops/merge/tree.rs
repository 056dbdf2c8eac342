//! The files of one version of a filesystem, as far as a merge looks at them.

use super::Version;
use crate::error::Result;
use crate::guestfs::Time;
use crate::guestfs::ext4::{Device, FileKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// One file, folder or other object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What it is.
    pub kind: FileKind,
    /// The 12 permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The flags that `chattr` sets.
    pub flags: u32,
    /// Project.
    pub project: u32,
    /// Length in bytes.
    pub size: u64,
    /// Where a symbolic link leads.
    pub target: Vec<u8>,
    /// Which device it stands for.
    pub device: Option<Device>,
    /// Extended attributes, as `getxattr` gives them.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// When it was read.
    pub accessed: Time,
    /// When its content was changed.
    pub modified: Time,
    /// When anything about it was changed.
    pub changed: Time,
    /// When it was made, where that is kept.
    pub created: Option<Time>,
    /// Told apart from earlier files of the same number by this.
    pub generation: u32,
    /// Its names: folder and name in it. None for the root.
    pub names: Vec<(u32, Vec<u8>)>,
    /// What it holds, when it is a folder.
    pub children: BTreeMap<Vec<u8>, u32>,
}

/// All files of a filesystem that have a name, by inode number.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The files. Versions of a filesystem share those that are the same in both: most are.
    pub files: HashMap<u32, Arc<File>>,
    /// The root folder.
    pub root: u32,
    /// Where its guest mounts it; empty for `/`, and no slash at its end. All paths begin with it.
    pub above: Vec<u8>,
}

impl File {
    pub(super) fn is_folder(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

impl Tree {
    /// The file of that number.
    ///
    /// # Panics
    /// Never: numbers come from the tree itself.
    #[must_use]
    pub fn file(&self, ino: u32) -> &File {
        &self.files[&ino]
    }

    /// The first of a file's paths in the guest, absolute; where it is mounted for the root.
    #[must_use]
    pub fn path(&self, ino: u32) -> Vec<u8> {
        let (mut parts, mut here) = (Vec::new(), ino);
        // A path is no longer than there are files, even in a folder that is inside itself.
        while here != self.root && parts.len() <= self.files.len() {
            let Some((folder, name)) = self.files.get(&here).and_then(|file| file.names.first()) else {
                break;
            };
            parts.push(name.as_slice());
            here = *folder;
        }
        let mut path = self.above.clone();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() { vec![b'/'] } else { path }
    }

    /// What of a path is below the place where it is mounted; nothing for a path that does not lead there.
    fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        path.strip_prefix(&self.above[..]).filter(|below| below.is_empty() || below.starts_with(b"/"))
    }

    /// Whether a path leads to where it is mounted, or below.
    pub(super) fn has_below(&self, path: &[u8]) -> bool {
        self.below(path).is_some()
    }

    /// The file at an absolute path of the guest; links are not followed.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let below = self.below(path)?;
        let parts = below.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        parts.into_iter().try_fold(self.root, |here, part| self.files.get(&here)?.children.get(part).copied())
    }
}

/// Whether two records with one number are of the very same inode.
///
/// A kernel gives each inode a random generation. Programs that make filesystems give all the same one, and two images
/// built alike have the same times as well: there something of the file itself must be the same, too.
pub(crate) fn is_same_inode(old: &File, new: &File) -> bool {
    if (old.kind, old.generation, old.created) != (new.kind, new.generation, new.created) {
        return false;
    }
    let alike = || match old.kind {
        FileKind::Directory => shares_names(&old.children, &new.children),
        FileKind::Symlink => old.target == new.target,
        FileKind::Regular => (old.size, old.modified) == (new.size, new.modified),
        _ => old.device == new.device && old.modified == new.modified,
    };
    old.generation != 0 || alike()
}

/// Whether two folders have at least half of their names in common.
fn shares_names(old: &BTreeMap<Vec<u8>, u32>, new: &BTreeMap<Vec<u8>, u32>) -> bool {
    let common = old.keys().filter(|name| new.contains_key(*name)).count();
    2 * common >= old.len().max(new.len())
}

/// What the files of the three versions hold.
pub trait Contents {
    /// Whether two regular files hold the same bytes.
    ///
    /// # Errors
    /// Whatever reading them gives.
    fn same(&self, one: (Version, u32), other: (Version, u32)) -> Result<bool>;

    /// All bytes of a regular file.
    ///
    /// # Errors
    /// `Unsupported` for one that is longer than a merge looks into, and whatever reading it gives.
    fn read(&self, of: (Version, u32)) -> Result<Vec<u8>>;
}
