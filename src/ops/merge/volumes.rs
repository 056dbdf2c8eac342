//! One ext filesystem in its three versions, for reading.

use super::tree::{Contents, Tree};
use super::{Three, Version, read};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::Window;
use crate::guestfs::ext4::{Ext4, Extent, Ino, Replayed};
use crate::guestfs::partitions::Partition;
use crate::ops::scan::Against;
use crate::units::{GuestOffset, MIB, index, length};
use std::collections::HashSet;

/// Longest file that a merge looks into, in bytes.
const LONGEST: u64 = 64 * MIB;
/// Two files are compared in pieces of this many bytes.
const PIECE: usize = 256 << 10;

/// Where a filesystem lies: a partition, or the whole disk as partition 0.
pub type Place = Partition;

/// One version of a filesystem.
pub struct Volume<'a> {
    /// The filesystem, its journal replayed in memory.
    pub filesystem: Ext4<Replayed<Window<&'a Disk>>>,
    disk: &'a Disk,
    start: u64,
    /// Blocks that the journal brings.
    replayed: HashSet<u64>,
}

impl<'a> Volume<'a> {
    /// The filesystem in `place` of `disk`.
    ///
    /// # Errors
    /// `Invalid` when there is no ext filesystem, as [`Ext4::open`] else.
    pub fn open(disk: &'a Disk, place: &Place) -> Result<Self> {
        let replayed = Replayed::open(Window::new(disk, place)?)?;
        let blocks = replayed.written().map(|(block, _)| block.0).collect();
        let filesystem = Ext4::open(replayed)?;
        if filesystem.state().errors {
            return Err(Error::corrupt(
                "its kernel noted errors of the filesystem; run e2fsck in the guest first",
            ));
        }
        Ok(Self { filesystem, disk, start: place.start.0, replayed: blocks })
    }

    /// Its tree.
    ///
    /// # Errors
    /// As [`read::tree`].
    pub fn tree(&self) -> Result<Tree> {
        read::tree(&self.filesystem)
    }

    fn extents(&self, ino: u32) -> Result<Vec<Extent>> {
        let mut extents = self.filesystem.extents(&self.filesystem.inode(Ino(ino))?)?;
        extents.retain(|extent| !extent.unwritten);
        Ok(extents)
    }
}

/// The three versions of one filesystem.
pub struct Volumes<'a> {
    /// They.
    pub three: Three<Volume<'a>>,
    /// Layers at the bottom of the chains that are the same files: of old base and new base, of old base and clone.
    pub shared: [usize; 2],
}

impl Volumes<'_> {
    /// Whether the blocks of two files are the same ones of the same layers.
    fn is_same_place(&self, one: (Version, u32), other: (Version, u32)) -> Result<bool> {
        let [base, clone] = self.shared;
        let shared = match (one.0, other.0) {
            (Version::Old, Version::Base) | (Version::Base, Version::Old) => base,
            (Version::Old, Version::Clone) | (Version::Clone, Version::Old) => clone,
            _ => base.min(clone),
        };
        let (first, second) = (self.three.of_version(one.0), self.three.of_version(other.0));
        let extents = first.extents(one.1)?;
        if shared == 0 || extents.is_empty() || extents != second.extents(other.1)? {
            return Ok(false);
        }
        let block = first.filesystem.superblock().block_size;
        for extent in extents {
            let blocks = extent.physical.0..extent.physical.0 + extent.blocks;
            let moved = |volume: &Volume<'_>| {
                !volume.replayed.is_empty() && blocks.clone().any(|block| volume.replayed.contains(&block))
            };
            if moved(first) || moved(second) {
                return Ok(false);
            }
            let (at, len) = (first.start + blocks.start * block, extent.blocks * block);
            if !is_shared(first.disk, Against { disk: second.disk, shared }, at, len)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether a range of two disks comes from the same layers.
fn is_shared(disk: &Disk, against: Against<'_>, at: u64, len: u64) -> Result<bool> {
    let (mut here, end) = (at, at + len);
    while here < end {
        let (one, other) = (disk.extent(GuestOffset(here))?, against.disk.extent(GuestOffset(here))?);
        let both_zero = !one.data && !other.data;
        if !both_zero && !against.is_shared(disk, one.depth, other.depth) {
            return Ok(false);
        }
        here += one.len.min(other.len).max(1);
    }
    Ok(true)
}

impl Contents for Volumes<'_> {
    fn same(&self, one: (Version, u32), other: (Version, u32)) -> Result<bool> {
        let inode = |of: (Version, u32)| self.three.of_version(of.0).filesystem.inode(Ino(of.1));
        let (first, second) = (inode(one)?, inode(other)?);
        if first.size != second.size {
            return Ok(false);
        }
        if first.size == 0 || self.is_same_place(one, other)? {
            return Ok(true);
        }
        let content = |of: Version, inode| self.three.of_version(of).filesystem.content(inode);
        let (first, second) = (content(one.0, &first)?, content(other.0, &second)?);
        let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
        let mut at = 0;
        // What is a hole in both is skipped.
        for range in union(first.data(), second.data()) {
            at = range.start.max(at);
            while at < range.end {
                let len = index((range.end - at).min(length(PIECE)));
                first.read(at, &mut a[..len])?;
                second.read(at, &mut b[..len])?;
                if a[..len] != b[..len] {
                    return Ok(false);
                }
                at += length(len);
            }
        }
        Ok(true)
    }

    fn read(&self, of: (Version, u32)) -> Result<Vec<u8>> {
        let filesystem = &self.three.of_version(of.0).filesystem;
        let inode = filesystem.inode(Ino(of.1))?;
        if inode.size > LONGEST {
            return Err(Error::unsupported("a file of more than 64 MiB is not looked into"));
        }
        let mut bytes = vec![0; index(inode.size)];
        filesystem.content(&inode)?.read(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// Ranges of either list, by their starts.
fn union(mut one: Vec<std::ops::Range<u64>>, other: Vec<std::ops::Range<u64>>) -> Vec<std::ops::Range<u64>> {
    one.extend(other);
    one.sort_unstable_by_key(|range| range.start);
    one
}
