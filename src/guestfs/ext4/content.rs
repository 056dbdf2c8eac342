//! The content of a file: bytes, holes, and the targets of links.

use super::extents::{Extent, at_or_behind};
use super::inode::{FileKind, Inode, flags};
use super::units::Block;
use super::{Ext4, damaged};
use crate::error::{Error, Result};
use crate::guestfs::partitions::Bytes;
use crate::units::{index, length};
use std::ops::Range;

/// The content of one file, its map in memory; made by [`Ext4::content`].
#[derive(Debug)]
pub struct Content<'a, B> {
    filesystem: &'a Ext4<B>,
    size: u64,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Inline(Vec<u8>),
    Mapped(Vec<Extent>),
}

impl<B: Bytes> Ext4<B> {
    /// The content of a regular file, a folder or a symbolic link.
    ///
    /// # Errors
    /// `Invalid` when the file is of a kind that has no content, `Corrupt` when its map breaks the format.
    pub fn content(&self, inode: &Inode) -> Result<Content<'_, B>> {
        if !matches!(inode.kind, FileKind::Regular | FileKind::Directory | FileKind::Symlink) {
            return Err(Error::invalid(format!("{} is a special file: it has no content", inode.ino)));
        }
        let held = if inode.has(flags::INLINE_DATA) {
            Held::Inline(self.inline(inode)?)
        } else if is_fast_link(inode) {
            Held::Inline(inode.map[..index(inode.size)].to_vec())
        } else {
            Held::Mapped(self.extents(inode)?)
        };
        Ok(Content { filesystem: self, size: inode.size, held })
    }

    /// Fills `buf` with the content of a file from byte `at` on; the number of bytes that there were before its end.
    /// [`Ext4::content`] reads the map once for many such calls.
    ///
    /// # Errors
    /// As for [`Ext4::content`].
    pub fn read(&self, inode: &Inode, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.content(inode)?.read(at, buf)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` for another kind of file, `Corrupt` when it is empty, longer than a block or has a zero byte.
    pub fn link(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind != FileKind::Symlink {
            return Err(Error::invalid(format!("{} is no symbolic link", inode.ino)));
        }
        if inode.size == 0 || inode.size > self.superblock.block_size {
            return Err(damaged(format_args!("the link of {} has {} bytes", inode.ino, inode.size)));
        }
        let mut target = vec![0; index(inode.size)];
        self.content(inode)?.read(0, &mut target)?;
        if target.contains(&0) {
            return Err(damaged(format_args!("the link of {} has a zero byte", inode.ino)));
        }
        Ok(target)
    }

    /// What stands in the inode, and goes on in one of its attributes.
    fn inline(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut bytes = inode.map.to_vec();
        bytes.extend(self.inline_rest(inode)?);
        if length(bytes.len()) < inode.size {
            return Err(damaged(format_args!(
                "{} holds less than its length of {} bytes",
                inode.ino, inode.size
            )));
        }
        bytes.truncate(index(inode.size));
        Ok(bytes)
    }
}

/// Whether a symbolic link has its target in place of the map.
pub(super) fn is_fast_link(inode: &Inode) -> bool {
    let elsewhere = inode.has(flags::INLINE_DATA) || inode.has(flags::EXTENTS);
    inode.kind == FileKind::Symlink && !elsewhere && inode.size < length(inode.map.len())
}

impl<B: Bytes> Content<'_, B> {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its map, as [`Ext4::extents`] gives it.
    pub(crate) fn extents(&self) -> &[Extent] {
        match &self.held {
            Held::Inline(_) => &[],
            Held::Mapped(extents) => extents,
        }
    }

    /// Fills `buf` from byte `at` on, holes as zeros; the number of bytes that there were before the end.
    ///
    /// # Errors
    /// Whatever reading the disk gives.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<usize> {
        let len = self.size.saturating_sub(at).min(length(buf.len()));
        let Some(buf) = buf.get_mut(..index(len)) else { return Ok(0) };
        match &self.held {
            Held::Inline(bytes) => {
                let start = index(at.min(length(bytes.len())));
                let found = bytes.get(start..start + buf.len()).unwrap_or_default();
                buf[..found.len()].copy_from_slice(found);
            }
            Held::Mapped(extents) => self.read_mapped(extents, at, buf)?,
        }
        Ok(buf.len())
    }

    fn read_mapped(&self, extents: &[Extent], mut at: u64, mut buf: &mut [u8]) -> Result<()> {
        let size = self.filesystem.superblock.block_size;
        while !buf.is_empty() {
            let found = at_or_behind(extents, at / size);
            let holes_end = found.map_or(u64::MAX, |extent| extent.logical * size);
            if at < holes_end {
                let (hole, rest) = buf.split_at_mut(index((holes_end - at).min(length(buf.len()))));
                hole.fill(0);
                at += length(hole.len());
                buf = rest;
                continue;
            }
            let Some(extent) = found else { return Ok(()) };
            let left = extent.logical_end() * size - at;
            let (data, rest) = buf.split_at_mut(index(left.min(length(buf.len()))));
            if extent.unwritten {
                data.fill(0);
            } else {
                let inside = at - extent.logical * size;
                let block = Block(extent.physical.0 + inside / size);
                self.filesystem.read_inside(block, inside % size, data)?;
            }
            at += length(data.len());
            buf = rest;
        }
        Ok(())
    }

    /// The ranges of bytes that hold data, in order: all others are zeros. None reaches past the end.
    pub fn data(&self) -> Vec<Range<u64>> {
        let size = self.filesystem.superblock.block_size;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let extents = match &self.held {
            Held::Inline(bytes) => {
                ranges.extend((!bytes.is_empty()).then_some(0..length(bytes.len())));
                return ranges;
            }
            Held::Mapped(extents) => extents,
        };
        for extent in extents.iter().filter(|extent| !extent.unwritten) {
            let (start, end) = (extent.logical * size, (extent.logical_end() * size).min(self.size));
            match ranges.last_mut() {
                _ if start >= end => (),
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    /// Calls `each` with every piece of data and the byte that it starts at, in order, a `buf` full at most at a time.
    /// What is left out is zeros.
    ///
    /// # Errors
    /// Whatever reading the disk or `each` gives; `Invalid` when `buf` is empty.
    pub fn stream(&self, buf: &mut [u8], mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        if buf.is_empty() {
            return Err(Error::invalid("there is no room to read into"));
        }
        for range in self.data() {
            let mut at = range.start;
            while at < range.end {
                let len = index((range.end - at).min(length(buf.len())));
                let read = self.read(at, &mut buf[..len])?;
                each(at, &buf[..read])?;
                at += length(read);
            }
        }
        Ok(())
    }
}
