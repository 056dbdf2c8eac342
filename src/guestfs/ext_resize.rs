//! An ext2, ext3 or ext4 filesystem made smaller or larger by its own programs.

use super::Window;
use super::ext4::{Ext4, Replayed};
use super::served::{PATH, Served, SharedDisk};
use super::swap::sleeper;
use super::tool::{Ended, Tool};
use crate::error::{Error, Kind, Result};
use crate::units::{GuestOffset, SECTOR};
use std::path::Path;

/// What `resize2fs -P` says before the number.
const LEAST: &str = "minimum size of the filesystem:";

/// A filesystem in a part of a disk, checked, with its journal replayed.
pub(crate) struct ExtResize<'a> {
    disk: SharedDisk,
    start: u64,
    len: u64,
    served: Served,
    stop: &'a dyn Fn() -> bool,
}

impl<'a> ExtResize<'a> {
    /// Checks the filesystem in `len` bytes of `disk` from `start` on, and mends what a crash leaves. `folder` is an empty
    /// one to mount the disk at for a moment.
    ///
    /// # Errors
    /// `Unsupported` while a guest hibernates in one of its files; `Corrupt` when it needs a person to be mended; `NotFound` without e2fsprogs or FUSE; `Interrupted`; the disk's.
    pub(crate) fn begin(
        disk: SharedDisk,
        (start, len): (u64, u64),
        folder: &Path,
        stop: &'a dyn Fn() -> bool,
    ) -> Result<Self> {
        refuse_asleep((*disk).as_ref(), start, len)?;
        let served = Served::new(SharedDisk::clone(&disk), (start, len), folder)?;
        let this = Self { disk, start, len, served, stop };
        let Ended { code, words } = this.tool("e2fsck", &["-fp"], None)?;
        match code {
            0 | 1 => Ok(this),
            _ => Err(Error::corrupt(format!(
                "the filesystem needs somebody to mend it: `e2fsck -f` in its guest; e2fsck -p says: {}",
                in_one_line(&words)
            ))),
        }
    }

    /// Runs a program on the part. What the disk failed with is told before what the program says of it.
    fn tool(&self, program: &'static str, arguments: &[&str], size: Option<&str>) -> Result<Ended> {
        let file = &self.served.root;
        let tool = Tool { program, arguments, file, below: Some(PATH), size: self.len, writes: true };
        let ended = tool.run_with(size.as_slice(), self.stop);
        match self.served.take_failure() {
            Some(failure) => Err(failure),
            None => ended,
        }
    }

    /// Bytes that the filesystem has now.
    ///
    /// # Errors
    /// As [`Ext4::open`].
    pub(crate) fn size(&self) -> Result<u64> {
        size_of((*self.disk).as_ref(), self.start, self.len)
    }

    /// Bytes of it that are in use.
    ///
    /// # Errors
    /// As [`Ext4::open`].
    pub(crate) fn used(&self) -> Result<u64> {
        let window = Window::at((*self.disk).as_ref(), GuestOffset(self.start), self.len)?;
        let filesystem = Ext4::open(window)?;
        let mut free = 0;
        filesystem.free(|run| {
            free += run.blocks;
            Ok(())
        })?;
        let superblock = filesystem.superblock();
        Ok(superblock.block_count.saturating_sub(free) * superblock.block_size)
    }

    /// The fewest bytes that it can be made to have, with all that is in it.
    ///
    /// # Errors
    /// When `resize2fs` cannot tell.
    pub(crate) fn least(&self) -> Result<u64> {
        let window = Window::at((*self.disk).as_ref(), GuestOffset(self.start), self.len)?;
        let block = Ext4::open(window)?.superblock().block_size;
        let Ended { code, words } = self.tool("resize2fs", &["-P"], None)?;
        let number = words.lines().find_map(|line| line.split_once(LEAST)?.1.trim().parse::<u64>().ok());
        number
            .filter(|_| code == 0)
            .and_then(|blocks| blocks.checked_mul(block))
            .ok_or_else(|| refused(&words))
    }

    /// Makes it as large as fits into `len` bytes of its part.
    ///
    /// # Errors
    /// `Unsupported` when `resize2fs` refuses; the disk's. What the disk holds then is no filesystem any more.
    pub(crate) fn resize(&self, len: u64) -> Result<()> {
        let sectors = format!("{}s", len / SECTOR);
        let Ended { code, words } = self.tool("resize2fs", &[], Some(&sectors))?;
        if code == 0 { Ok(()) } else { Err(refused(&words)) }
    }

    /// Ends the use of the disk.
    ///
    /// # Errors
    /// When its last moment failed.
    pub(crate) fn end(self) -> Result<()> {
        match self.served.take_failure() {
            Some(failure) => Err(failure),
            None => self.served.end(),
        }
    }
}

/// Refuses a filesystem with the memory of a guest that sleeps in a file: it would wake up with another filesystem. What
/// our own reader cannot replay is left to e2fsck.
fn refuse_asleep(disk: &crate::disk::Disk, start: u64, len: u64) -> Result<()> {
    let window = Window::at(disk, GuestOffset(start), len)?;
    let Ok(replayed) = Replayed::open(&window) else { return Ok(()) };
    // Only who was not shut down can be asleep.
    if replayed.written().len() == 0 {
        return Ok(());
    }
    match Ext4::open(&replayed).and_then(|filesystem| sleeper(&filesystem)) {
        Ok(Some(_)) => Err(Error::unsupported(
            "a swap file in it holds the memory of a guest that hibernates; start it and shut it down first",
        )),
        _ => Ok(()),
    }
}

/// Bytes of the filesystem that starts at `start` of `disk`.
fn size_of(disk: &crate::disk::Disk, start: u64, len: u64) -> Result<u64> {
    let filesystem = Ext4::open(Window::at(disk, GuestOffset(start), len)?)?;
    let superblock = filesystem.superblock();
    Ok(superblock.block_count * superblock.block_size)
}

fn refused(words: &str) -> Error {
    Error::new(Kind::Unsupported, format!("resize2fs cannot do it: {}", in_one_line(words)))
}

fn in_one_line(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}
