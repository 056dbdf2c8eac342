//! Numbers of things in an ext4 filesystem.

use std::fmt;

/// The number of an inode, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u32);

impl Ino {
    /// The root folder.
    pub const ROOT: Self = Self(2);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {}", self.0)
    }
}

/// A block of the filesystem, counted from its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub u64);

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// A run of blocks of the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// Its first block.
    pub start: Block,
    /// How many blocks it has, at least one.
    pub blocks: u64,
}

impl Run {
    /// The first block behind it.
    #[must_use]
    pub fn end(&self) -> Block {
        Block(self.start.0 + self.blocks)
    }
}
