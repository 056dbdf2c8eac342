//! One ext filesystem in its three versions, for reading.

use super::later::{self, Owners, Touched};
use super::same::{changed, is_same};
use super::tree::{Contents, Tree};
use super::{Three, Version, read};
use crate::disk::{Disk, DiskExtent};
use crate::error::{Error, Result};
use crate::guestfs::Window;
use crate::guestfs::ext4::{Ext4, Ino, Replayed};
use crate::guestfs::partitions::{Bytes, Partition};
use crate::ops::Silent;
use crate::store::OpenDisk;
use crate::units::{GuestOffset, MIB, index};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

/// Longest file that a merge looks into, in bytes.
const LONGEST: u64 = 64 * MIB;

/// Refuses a file of `size` bytes that is too long to be looked into.
pub(super) fn refuse_long(size: u64) -> Result<()> {
    match size > LONGEST {
        true => Err(Error::unsupported("a file of more than 64 MiB is not looked into")),
        false => Ok(()),
    }
}

/// Where a filesystem lies: a partition, or the whole disk as partition 0.
pub type Place = Partition;

/// The disk that a volume is on.
#[derive(Clone, Debug)]
pub enum On<'a> {
    /// One that the caller has.
    Disk(&'a Disk),
    /// One that stays open as long as somebody uses it.
    Shared(Arc<OpenDisk>),
}

impl Deref for On<'_> {
    type Target = Disk;

    fn deref(&self) -> &Disk {
        match self {
            Self::Disk(disk) => disk,
            Self::Shared(open) => &open.disk,
        }
    }
}

impl Bytes for On<'_> {
    fn size(&self) -> u64 {
        Disk::size(self)
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        Disk::read(self, buf, at)
    }
}

impl<'a> From<&'a Disk> for On<'a> {
    fn from(disk: &'a Disk) -> Self {
        Self::Disk(disk)
    }
}

impl From<Arc<OpenDisk>> for On<'_> {
    fn from(open: Arc<OpenDisk>) -> Self {
        Self::Shared(open)
    }
}

/// One version of a filesystem.
pub struct Volume<'a> {
    /// The filesystem, its journal replayed in memory.
    pub filesystem: Ext4<Replayed<Window<On<'a>>>>,
    pub(super) disk: On<'a>,
    /// Its first byte on the disk.
    pub(super) start: u64,
    pub(super) end: u64,
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
    pub fn open(disk: impl Into<On<'a>>, place: &Place) -> Result<Self> {
        let disk = disk.into();
        let replayed = Replayed::open(Window::new(disk.clone(), place)?)?;
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

    /// Whether it was left without an unmount: its journal brings something.
    #[must_use]
    pub fn was_mounted(&self) -> bool {
        !self.replayed.is_empty()
    }

    /// Its tree.
    ///
    /// # Errors
    /// As [`read::tree`].
    pub fn tree(&self) -> Result<Tree> {
        read::tree(&self.filesystem)
    }

    /// The same; what is as in `other`, the tree of another version, is in memory once.
    ///
    /// # Errors
    /// As [`read::tree`].
    pub fn tree_beside(&self, other: Option<&Tree>) -> Result<Tree> {
        read::tree_beside(&self.filesystem, other)
    }

    /// Its tree, and what later states of it are read by.
    ///
    /// # Errors
    /// As [`read::tree`].
    pub fn tree_with_owners(&self) -> Result<(Tree, Owners)> {
        later::tree_with_owners(self.filesystem.bytes())
    }

    /// The tree of a later state of `earlier`, and what of it may be another than there. What is as in the earlier one is
    /// in memory once, and not read where it comes from one of the `shared` layers at the bottom of both disks.
    ///
    /// # Errors
    /// As [`read::tree`].
    pub fn tree_after(
        &self,
        earlier: &Volume<'_>,
        (old, owners): (&Tree, &Owners),
        shared: usize,
    ) -> Result<(Tree, Touched)> {
        let found = match changed([earlier, self], shared)? {
            Some(changed) => {
                later::tree_after(&self.filesystem, &earlier.filesystem, (old, owners), &changed)
            }
            None => None,
        };
        match found {
            Some(found) => Ok(found),
            None => Ok((self.tree_beside(Some(old))?, Touched::default())),
        }
    }

    /// All bytes of a regular file.
    fn content_of(&self, ino: u32) -> Result<Vec<u8>> {
        refuse_long(self.filesystem.inode(Ino(ino))?.size)?;
        self.start_of(ino, LONGEST)
    }

    /// The first bytes of a regular file, at most `most`.
    ///
    /// # Errors
    /// Whatever reading them gives.
    pub fn start_of(&self, ino: u32, most: u64) -> Result<Vec<u8>> {
        let inode = self.filesystem.inode(Ino(ino))?;
        let mut bytes = vec![0; index(inode.size.min(most))];
        self.filesystem.content(&inode)?.read(0, &mut bytes)?;
        Ok(bytes)
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
        let mut runs: Vec<Run> = Vec::new();
        for run in self.disk.runs(self.start..self.end) {
            let (Range { end, .. }, DiskExtent { data, depth, .. }) = run?;
            match runs.last_mut() {
                Some(last) if (last.data, last.depth) == (data, depth) => last.end = end,
                _ => runs.push(Run { end, data, depth }),
            }
        }
        Ok(runs)
    }
}

/// What was found out about the files of an old and a new base: the same for all clones.
#[derive(Debug, Default)]
pub struct Compared {
    /// Whether a file of the old base and one of the new base hold the same bytes.
    same: Mutex<HashMap<(u32, u32), bool>>,
    /// What files of both hold.
    read: Mutex<Kept>,
}

/// Contents of files.
#[derive(Debug, Default)]
struct Kept {
    files: HashMap<(Version, u32), Arc<Vec<u8>>>,
    bytes: usize,
}

impl Compared {
    /// Bytes of files that are kept: databases of packages, and texts that clones change, too.
    const MOST: usize = 16 << 20;
    /// What a file costs beside its bytes.
    const EACH: usize = 128;

    fn known(&self, of: (Version, u32)) -> Option<Arc<Vec<u8>>> {
        self.read.lock().files.get(&of).map(Arc::clone)
    }

    fn keep(&self, of: (Version, u32), bytes: &[u8]) {
        let mut read = self.read.lock();
        let with_it = read.bytes + bytes.len() + Self::EACH;
        if with_it <= Self::MOST {
            read.bytes = with_it;
            read.files.insert(of, Arc::new(bytes.to_vec()));
        }
    }
}

/// The three versions of one filesystem.
pub struct Volumes<'a> {
    /// They.
    pub three: Three<&'a Volume<'a>>,
    /// Layers at the bottom of the chains that are the same files: of old base and new base, of old base and clone.
    pub shared: [usize; 2],
    /// What of the new base, and of the clone, may be another than in the old base.
    pub touched: [&'a Touched; 2],
    /// What is known of the bases already, and what comes to be known of them.
    pub compared: &'a Compared,
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

    /// Whether a file is known to be as it is in the old base, under its number.
    fn is_old(&self, (version, ino): (Version, u32)) -> bool {
        let [base, clone] = self.touched;
        match version {
            Version::Old => true,
            Version::Base => !base.has(ino),
            Version::Clone => !clone.has(ino),
        }
    }
}

impl Contents for Volumes<'_> {
    fn same(&self, one: (Version, u32), other: (Version, u32)) -> Result<bool> {
        if one.1 == other.1 && self.is_old(one) && self.is_old(other) {
            return Ok(true);
        }
        let compare = || {
            let volume = |of: (Version, u32)| (*self.three.of_version(of.0), of.1);
            is_same(volume(one), volume(other), self.shared(one.0, other.0), &Silent)
        };
        let ((Version::Old, old), (Version::Base, base)) = (one, other) else { return compare() };
        if let Some(known) = self.compared.same.lock().get(&(old, base)) {
            return Ok(*known);
        }
        // Of two clones that compare them at once, one is as good as the other.
        let same = compare()?;
        self.compared.same.lock().insert((old, base), same);
        Ok(same)
    }

    fn read(&self, of: (Version, u32)) -> Result<Vec<u8>> {
        if let Some(known) = self.compared.known(of) {
            return Ok(known.to_vec());
        }
        let bytes = self.three.of_version(of.0).content_of(of.1)?;
        if of.0 != Version::Clone {
            self.compared.keep(of, &bytes);
        }
        Ok(bytes)
    }
}
