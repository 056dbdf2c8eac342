//! Changes to an ext2, ext3 or ext4 filesystem inside a disk.
//!
//! libext2fs does the work, in a child process of our own program that reaches nothing but one socket: it asks for
//! blocks and hands blocks back, and the parent checks each range against the filesystem's own bytes. The contents of
//! files never cross the socket: the child says where they go, the parent puts them there.
//!
//! Limits: a filesystem whose journal must be replayed, that was not unmounted cleanly or that counts quotas is
//! refused, and so is any edit of an encrypted file or a folder with case-insensitive names. Inodes without names are
//! freed at the end, so an edit that fills the filesystem fails even when later ones would free space.

mod child;
mod editor;
mod line;
mod volume;
mod wire;

use super::Time;

pub use child::serve;
pub use editor::{Editor, Report};
pub use line::Limits;
pub use volume::Volume;

pub(super) use editor::printed;
pub(super) use line::{Line, Peer, reply};
pub(super) use wire::{Answer, Mode};

/// The hidden command of our program that is the child.
pub const COMMAND: &str = "__edit";

/// A file, folder or other object of the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// One that was there before, by its inode number.
    Old(u32),
    /// One that [`Edit::Make`] made, by the caller's own number.
    New(u32),
}

/// What a new object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, empty at first.
    File,
    /// A folder, empty at first.
    Folder,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What an inode says of its object, but for its content and its extended attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The 12 permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// When it was made; dropped where the filesystem has no place for it.
    pub crtime: Time,
    /// `FS_*_FL` as `chattr` sets them; others, and those that its kind cannot have, are left as they are.
    pub flags: u32,
    /// Project, where the filesystem keeps projects.
    pub project: Option<u32>,
}

/// One change. Names are bytes, without `/` and NUL, 1 to 255 of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A new object without a name. One that has none at the end is freed again.
    Make {
        /// The caller's number, which no other one has.
        id: u32,
        /// What it is.
        kind: Kind,
        /// What its inode says.
        attributes: Attributes,
    },
    /// A name more. A folder has one name at the end, and its `..` follows.
    Link {
        /// Where.
        folder: Node,
        /// The name, which is free there.
        name: Vec<u8>,
        /// What is named.
        to: Node,
    },
    /// A name less. What has no name at the end is freed; a folder must be empty then.
    Unlink {
        /// Where.
        folder: Node,
        /// The name.
        name: Vec<u8>,
    },
    /// The content of a file becomes `size` bytes, all of them a hole; [`Editor::write`] fills them.
    Content {
        /// The file.
        node: Node,
        /// Its new length in bytes.
        size: u64,
    },
    /// Another target of a symbolic link.
    Target {
        /// The link.
        node: Node,
        /// Its new target, shorter than a block.
        target: Vec<u8>,
    },
    /// Other attributes.
    Attributes {
        /// The object.
        node: Node,
        /// All of them.
        attributes: Attributes,
    },
    /// An extended attribute, new or changed.
    SetXattr {
        /// The object.
        node: Node,
        /// Its full name, like `user.note`.
        name: Vec<u8>,
        /// Its value as `getxattr` gives it: the lists of `system.posix_acl_*` too.
        value: Vec<u8>,
    },
    /// An extended attribute that goes.
    RemoveXattr {
        /// The object.
        node: Node,
        /// Its full name.
        name: Vec<u8>,
    },
}
