//! What lies in a partition, as far as it must be known to say whether it may be cut, and what it is called.

use crate::error::Result;
use crate::guestfs::Window;
use crate::guestfs::free::{EXT, SWAP_SPACE, kinds};
use crate::guestfs::partitions::{Bytes, Partition, u32_at};
use crate::guestfs::swap::Swap;
use crate::units::GuestOffset;
use std::fmt;

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A filesystem that can be made smaller and larger, with its name.
    Ext(&'static str),
    /// Swap space with the memory of a guest that hibernates.
    Hibernated,
    /// Something else that is known by its mark.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

impl Content {
    /// Swap space in which nobody sleeps.
    pub(crate) const SWAP: Self = Self::Other(SWAP_SPACE);

    /// What `partition` of `disk` holds.
    ///
    /// # Errors
    /// What reading the disk gives.
    pub(crate) fn of(disk: &dyn Bytes, partition: &Partition) -> Result<Self> {
        let window = Window::new(disk, partition)?;
        if Swap::find(&window)?.is_some_and(|swap| swap.hibernated) {
            return Ok(Self::Hibernated);
        }
        // One half of a mirror looks like what is on it, but for its own mark: nothing beside a filesystem's may be there.
        let kinds = kinds(&window)?;
        match kinds.iter().find(|kind| **kind != EXT) {
            Some(kind) => Ok(Self::Other(word(kind))),
            None if kinds.is_empty() => Ok(Self::Unknown),
            None => Ok(Self::Ext(ext_name(&window)?)),
        }
    }
}

/// A kind as people call it.
fn word(kind: &'static str) -> &'static str {
    match kind {
        "XFS" => "xfs",
        "LVM2" => "LVM",
        "Linux RAID" => "a RAID",
        kind => kind,
    }
}

/// Which of the three a filesystem is, by its features.
fn ext_name(bytes: &dyn Bytes) -> Result<&'static str> {
    let mut features = [0; 8];
    bytes.read(&mut features, GuestOffset(1024 + 0x5c))?;
    let journal = u32_at(&features, 0) & 4 != 0;
    // Extents, 64bit or flex_bg: no ext3 has one of them.
    let new = u32_at(&features, 4) & 0x2c0 != 0;
    Ok(if new {
        "ext4"
    } else if journal {
        "ext3"
    } else {
        "ext2"
    })
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ext(name) | Self::Other(name) => name,
            Self::Hibernated => "the memory of a guest that hibernates",
            Self::Unknown => "unknown content",
        })
    }
}
