//! Folders: lists of names, whether they have an index or not, in blocks or in the inode.

use super::checksum::crc32c;
use super::features::Feature;
use super::inode::{FileKind, Inode, flags};
use super::units::{Block, Ino};
use super::{Ext4, damaged};
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{index, length};
use std::collections::HashSet;

/// Bytes of an entry before its name.
const HEADER: usize = 8;
/// Bytes of the checksum at the end of a block, dressed as an entry.
const TAIL: usize = 12;
/// What stands in place of a file type in it.
const TAIL_KIND: u8 = 0xde;

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name: 1 to 255 bytes without `/` and zero bytes; neither `.` nor `..`.
    pub name: Vec<u8>,
    /// The file.
    pub ino: Ino,
    /// What the entry says that the file is; the inode itself decides. `None` without the feature `filetype`.
    pub kind: Option<FileKind>,
}

/// What a folder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The folder that it is in, as `..` says: itself for the root.
    pub parent: Ino,
    /// The names in it, in no order, each once.
    pub entries: Vec<Entry>,
}

/// A folder that is being read.
struct Reader<'a> {
    inode: &'a Inode,
    block_size: u64,
    inode_count: u32,
    has_kinds: bool,
    parent: Option<Ino>,
    /// Whether `.` is still to come: it is first, and `..` follows.
    first: bool,
    entries: Vec<Entry>,
}

impl<B: Bytes> Ext4<B> {
    /// What the folder `inode` holds.
    ///
    /// # Errors
    /// `Invalid` when it is no folder, `Corrupt` when it breaks the format: a name that cannot be one or is there
    /// twice, a hole, a checksum that does not match.
    pub fn directory(&self, inode: &Inode) -> Result<Directory> {
        if inode.kind != FileKind::Directory {
            return Err(Error::invalid(format!("{} is no folder", inode.ino)));
        }
        let mut reader = Reader {
            inode,
            block_size: self.superblock.block_size,
            inode_count: self.superblock.inode_count,
            has_kinds: self.has(Feature::Filetype),
            parent: None,
            first: true,
            entries: Vec::new(),
        };
        if inode.has(flags::INLINE_DATA) {
            reader.start_inline()?;
            reader.list(&inode.map[4..])?;
            reader.list(&self.inline_rest(inode)?)?;
        } else {
            self.read_folder(&mut reader)?;
        }
        reader.finish()
    }

    fn read_folder(&self, reader: &mut Reader<'_>) -> Result<()> {
        let (inode, size) = (reader.inode, self.superblock.block_size);
        let blocks = inode.size / size;
        let extents = self.extents(inode)?;
        let mapped: u64 =
            extents.iter().filter(|e| !e.unwritten && e.logical < blocks).map(|e| e.blocks).sum();
        if inode.size % size != 0 || blocks == 0 || mapped < blocks {
            return Err(reader.wrong("has holes, or no whole number of blocks"));
        }
        let mut block = vec![0; index(size)];
        for extent in extents {
            for number in 0..extent.blocks {
                let logical = extent.logical + number;
                if logical < blocks {
                    self.read_blocks(Block(extent.physical.0 + number), &mut block)?;
                    reader.block(&block, logical, self.has(Feature::MetadataCsum))?;
                }
            }
        }
        Ok(())
    }
}

impl Reader<'_> {
    /// One block of a folder. Blocks of its index look like blocks without names, or, the first, with the first two.
    fn block(&mut self, block: &[u8], logical: u64, has_sums: bool) -> Result<()> {
        if !has_sums {
            return self.list(block);
        }
        if self.inode.has(flags::INDEX)
            && let Some(start) = self.index_start(block, logical)
        {
            if !index_matches(block, start, self.inode.seed) {
                return Err(self.wrong("has an index that does not match its checksum"));
            }
            return self.list(block);
        }
        let (names, tail) = block.split_at(block.len() - TAIL);
        let dressed = u32_at(tail, 0) == 0 && u16_at(tail, 4) == 12 && tail[6] == 0 && tail[7] == TAIL_KIND;
        if !dressed || crc32c(self.inode.seed, names) != u32_at(tail, HEADER) {
            return Err(self.wrong("has a block that does not match its checksum"));
        }
        self.list(names)
    }

    /// Where the index in `block` starts, if there is one.
    fn index_start(&self, block: &[u8], logical: u64) -> Option<usize> {
        let size = self.block_size;
        if logical == 0 {
            let is_root =
                self.record(block, 0) == 12 && self.record(block, 12) == size - 12 && block[29] == 8;
            return is_root.then_some(32);
        }
        (u32_at(block, 0) == 0 && self.record(block, 0) == size).then_some(8)
    }

    /// The length of the entry at `at`, with the two forms that lengths of 64 KiB and near it have.
    fn record(&self, list: &[u8], at: usize) -> u64 {
        let len = u64::from(u16_at(list, at + 4));
        match len {
            _ if self.block_size < 1 << 16 => len,
            0 | 0xffff => self.block_size,
            _ => len & 0xfffc | (len & 3) << 16,
        }
    }

    /// Takes the entries of `list`, which they fill without a gap.
    fn list(&mut self, list: &[u8]) -> Result<()> {
        let mut at = 0;
        while at < list.len() {
            let len = index(self.record(list, at));
            let entry = list.get(at..at + len).unwrap_or_default();
            // A list that begins with the parent's number is not aligned to 8 bytes, but its entries are to 4.
            if entry.len() < HEADER || !len.is_multiple_of(4) {
                return Err(self.wrong("has an entry of a wrong length"));
            }
            if u32_at(entry, 0) != 0 {
                self.entry(entry)?;
            }
            at += len;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &[u8]) -> Result<()> {
        let ino = Ino(u32_at(entry, 0));
        // Without types the byte behind the length is its high half, and zero.
        if !self.has_kinds && entry[7] != 0 {
            return Err(self.wrong("has a name that is too long"));
        }
        let Some(name) = entry.get(HEADER..HEADER + usize::from(entry[6])) else {
            return Err(self.wrong("has an entry that is shorter than its name"));
        };
        if ino.0 > self.inode_count {
            return Err(self.wrong(format_args!("names {ino}, which does not exist")));
        }
        if self.parent.is_none() {
            return self.dots(name, ino);
        }
        if name.is_empty()
            || name == b"."
            || name == b".."
            || name.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err(self.wrong("has a name that no file can have"));
        }
        let kind = if self.has_kinds { FileKind::of_entry(entry[7]) } else { None };
        self.entries.push(Entry { name: name.to_vec(), ino, kind });
        Ok(())
    }

    /// The first two entries.
    fn dots(&mut self, name: &[u8], ino: Ino) -> Result<()> {
        match name {
            b"." if self.first && ino == self.inode.ino => self.first = false,
            b".." if !self.first => self.parent = Some(ino),
            _ => return Err(self.wrong("does not start with itself and its parent")),
        }
        Ok(())
    }

    /// In the inode there is neither `.` nor `..`: the list begins with the number of the parent.
    fn start_inline(&mut self) -> Result<()> {
        let parent = Ino(u32_at(&self.inode.map, 0));
        if parent.0 == 0 || parent.0 > self.inode_count {
            return Err(self.wrong("has a parent that does not exist"));
        }
        (self.parent, self.first) = (Some(parent), false);
        Ok(())
    }

    fn finish(self) -> Result<Directory> {
        let Some(parent) = self.parent else {
            return Err(self.wrong("does not start with itself and its parent"));
        };
        let mut names = HashSet::with_capacity(self.entries.len());
        if !self.entries.iter().all(|entry| names.insert(&entry.name)) {
            return Err(self.wrong("has a name twice"));
        }
        Ok(Directory { parent, entries: self.entries })
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        damaged(format_args!("the folder of {} {what}", self.inode.ino))
    }
}

/// Whether the index whose entries start at `start` matches the checksum behind its last possible entry.
fn index_matches(block: &[u8], start: usize, seed: u32) -> bool {
    let (limit, count) = (usize::from(u16_at(block, start)), usize::from(u16_at(block, start + 2)));
    let tail = start + limit * 8;
    let (Some(used), Some(reserved)) = (block.get(..start + count * 8), block.get(tail..tail + 4)) else {
        return false;
    };
    let sum = crc32c(crc32c(crc32c(seed, used), reserved), &[0; 4]);
    count <= limit && length(tail + 8) <= length(block.len()) && sum == u32_at(block, tail + 4)
}
