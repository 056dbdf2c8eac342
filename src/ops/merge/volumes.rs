//! One ext filesystem in its three versions, for reading.

use super::same::is_same;
use super::tree::{Contents, Tree};
use super::{Three, Version, read};
use crate::disk::{Disk, DiskExtent};
use crate::error::{Error, Result};
use crate::guestfs::Window;
use crate::guestfs::ext4::{Ext4, Ino, Replayed};
use crate::guestfs::partitions::Partition;
use crate::ops::Silent;
use crate::units::{GuestOffset, MIB, index};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Longest file that a merge looks into, in bytes.
const LONGEST: u64 = 64 * MIB;

/// Where a filesystem lies: a partition, or the whole disk as partition 0.
pub type Place = Partition;

/// One version of a filesystem.
pub struct Volume<'a> {
    /// The filesystem, its journal replayed in memory.
    pub filesystem: Ext4<Replayed<Window<&'a Disk>>>,
    pub(super) disk: &'a Disk,
    /// Its first byte on the disk.
    pub(super) start: u64,
    end: u64,
    /// Blocks that the journal brings.
    pub(super) replayed: BTreeSet<u64>,
    /// Where the bytes of its place come from; found when it is asked for.
    runs: OnceLock<Vec<Run>>,
}

/// A run of a disk that comes from one layer.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// The first byte of the disk behind it.
    pub(super) end: u64,
    /// Whether a layer stores bytes for it; otherwise it reads as zeros.
    pub(super) data: bool,
    /// The layer.
    pub(super) depth: Option<usize>,
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
        Ok(Self {
            filesystem,
            disk,
            start: place.start.0,
            end: place.end().0,
            replayed: blocks,
            runs: OnceLock::new(),
        })
    }

    /// Its tree.
    ///
    /// # Errors
    /// As [`read::tree`].
    pub fn tree(&self) -> Result<Tree> {
        read::tree(&self.filesystem)
    }

    /// The run that byte `at` of the disk is in, which lies in its place.
    ///
    /// One pass over the disk's tables answers for all files: to ask the disk for each would go through them each time.
    pub(super) fn run_at(&self, at: u64) -> Result<Run> {
        if self.runs.get().is_none() {
            // Of two threads that find them, one is as good as the other.
            let _ = self.runs.set(self.find_runs()?);
        }
        let runs = self.runs.get().map_or(&[][..], Vec::as_slice);
        let found = runs.get(runs.partition_point(|run| run.end <= at)).copied();
        found.ok_or_else(|| Error::invalid("a block lies outside of its filesystem's place"))
    }

    fn find_runs(&self) -> Result<Vec<Run>> {
        let (mut runs, mut at): (Vec<Run>, u64) = (Vec::new(), self.start);
        while at < self.end {
            let DiskExtent { len, data, depth, .. } = self.disk.extent(GuestOffset(at))?;
            at += len.clamp(1, self.end - at);
            match runs.last_mut() {
                Some(last) if (last.data, last.depth) == (data, depth) => last.end = at,
                _ => runs.push(Run { end: at, data, depth }),
            }
        }
        Ok(runs)
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
    /// Layers at the bottom of the disks of two versions that are the same files.
    fn shared(&self, one: Version, other: Version) -> usize {
        let [base, clone] = self.shared;
        match (one, other) {
            (Version::Old, Version::Base) | (Version::Base, Version::Old) => base,
            (Version::Old, Version::Clone) | (Version::Clone, Version::Old) => clone,
            _ => base.min(clone),
        }
    }
}

impl Contents for Volumes<'_> {
    fn same(&self, one: (Version, u32), other: (Version, u32)) -> Result<bool> {
        let volume = |of: (Version, u32)| (self.three.of_version(of.0), of.1);
        is_same(volume(one), volume(other), self.shared(one.0, other.0), &Silent)
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
