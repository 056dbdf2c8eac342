//! What `stat` shows.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};

use crate::Stat;

/// Preferred I/O size shown to programs, in bytes.
const IO_SIZE: u32 = 4096;

/// What is the same for every file of a mount.
pub(crate) struct Look {
    /// Owner of everything: the user who mounted.
    pub(crate) uid: u32,
    /// Group of everything.
    pub(crate) gid: u32,
    /// The whole mount refuses writing.
    pub(crate) read_only: bool,
    /// Time shown for folders.
    pub(crate) mounted: SystemTime,
}

impl Look {
    /// Attributes of a disk. Writable disks are their owner's alone; anybody whom the mount lets in may read the others.
    pub(crate) fn file(&self, ino: u64, stat: &Stat) -> FileAttr {
        let perm = match (stat.writable, self.read_only) {
            (false, _) => 0o444,
            (true, true) => 0o400,
            (true, false) => 0o600,
        };
        self.attr(ino, FileType::RegularFile, perm, stat)
    }

    /// Attributes of the root or a folder.
    pub(crate) fn folder(&self, ino: u64) -> FileAttr {
        let stat = Stat { size: 0, blocks: 0, modified: self.mounted, writable: false, immutable: false };
        self.attr(ino, FileType::Directory, 0o755, &stat)
    }

    fn attr(&self, ino: u64, kind: FileType, perm: u16, stat: &Stat) -> FileAttr {
        FileAttr {
            ino: INodeNo(ino),
            size: stat.size,
            blocks: stat.blocks,
            atime: stat.modified,
            mtime: stat.modified,
            ctime: stat.modified,
            crtime: stat.modified,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: IO_SIZE,
            flags: 0,
        }
    }
}
