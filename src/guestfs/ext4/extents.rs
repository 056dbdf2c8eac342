//! Where the content of a file lies: extent trees.

use super::checksum::crc32c;
use super::features::Feature;
use super::inode::{FileKind, Inode, flags};
use super::units::Block;
use super::{Ext4, damaged};
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::index;
use std::ops::Range;

const MAGIC: u16 = 0xf30a;
/// Bytes of a node's header, of an extent and of an index entry alike.
const ENTRY: usize = 12;
const DEEPEST: u16 = 5;
/// Extents up to this length hold data; longer ones are shorter by it, and not written yet.
const LONGEST: u16 = 0x8000;

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first block, counted from the start of the file.
    pub logical: u64,
    /// Where that block is in the filesystem.
    pub physical: Block,
    /// How many blocks it has, at least one.
    pub blocks: u64,
    /// Room that was taken and reads as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The first block of the file behind it.
    #[must_use]
    pub fn logical_end(&self) -> u64 {
        self.logical + self.blocks
    }

    /// Whether `next` goes on where this one ends.
    fn continues(&self, next: &Self) -> bool {
        self.logical_end() == next.logical
            && self.physical.0 + self.blocks == next.physical.0
            && self.unwritten == next.unwritten
    }
}

/// Adds `next` to `extents`, to the last one where that goes on.
pub(super) fn push(extents: &mut Vec<Extent>, next: Extent) {
    match extents.last_mut() {
        Some(last) if last.continues(&next) => last.blocks += next.blocks,
        _ => extents.push(next),
    }
}

impl<B: Bytes> Ext4<B> {
    /// The blocks of a file, in its order, those behind its end included; neighbours are one extent. Empty for what
    /// stands in the inode itself and for what has no content.
    ///
    /// # Errors
    /// `Corrupt` when the map breaks the format, or has a block of the filesystem twice.
    pub fn extents(&self, inode: &Inode) -> Result<Vec<Extent>> {
        if !has_blocks(inode) {
            return Ok(Vec::new());
        }
        let mut extents = Vec::new();
        if inode.has(flags::EXTENTS) {
            let depth = u16_at(&inode.map, 6);
            if depth > DEEPEST {
                return Err(damaged(format_args!("the extents of {} are {depth} levels deep", inode.ino)));
            }
            self.walk(inode, &inode.map, depth, 0..1 << 32, &mut extents)?;
        } else {
            self.map_blocks(inode, &mut extents)?;
        }
        self.check_extents(inode, &extents)?;
        Ok(extents)
    }

    /// Each block lies inside the filesystem and belongs to the file once: so no tree stands for more than it is.
    fn check_extents(&self, inode: &Inode, extents: &[Extent]) -> Result<()> {
        let mut places: Vec<(u64, u64)> =
            extents.iter().map(|extent| (extent.physical.0, extent.blocks)).collect();
        places.sort_unstable();
        let outside = places.iter().find(|(start, blocks)| !self.superblock.holds(Block(*start), *blocks));
        if let Some((start, _)) = outside {
            return Err(damaged(format_args!("{} has block {start}, which is not inside of it", inode.ino)));
        }
        let twice = places.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0);
        if let Some(pair) = twice {
            return Err(damaged(format_args!("{} has block {} twice", inode.ino, pair[1].0)));
        }
        Ok(())
    }

    /// Adds the extents below `node`, which maps `range` of the file and stands `depth` levels above the leaves.
    ///
    /// Ranges of neighbours do not overlap, so no node can be in the tree twice, unless it is an empty leaf.
    fn walk(
        &self,
        inode: &Inode,
        node: &[u8],
        depth: u16,
        range: Range<u64>,
        extents: &mut Vec<Extent>,
    ) -> Result<()> {
        let wrong = || damaged(format_args!("the extents of {} break their format", inode.ino));
        let entries = entries(node, depth).ok_or_else(wrong)?;
        let mut from = range.start;
        for (number, entry) in entries.chunks_exact(ENTRY).enumerate() {
            let logical = u64::from(u32_at(entry, 0));
            if logical < from || logical >= range.end {
                return Err(wrong());
            }
            if depth == 0 {
                let extent = parse(entry);
                from = extent.logical_end();
                if extent.blocks == 0 || from > range.end {
                    return Err(wrong());
                }
                push(extents, extent);
                continue;
            }
            let next = entries.get((number + 1) * ENTRY..).filter(|rest| !rest.is_empty());
            let end = next.map_or(range.end, |next| u64::from(u32_at(next, 0)));
            let child = Block(u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4)));
            let block = self.node(inode, child)?;
            self.walk(inode, &block, depth - 1, logical..end, extents)?;
            from = logical + 1;
        }
        Ok(())
    }

    /// A node that has a block of its own, its checksum verified.
    fn node(&self, inode: &Inode, at: Block) -> Result<Vec<u8>> {
        let block = self.block(at)?;
        let tail = (1 + usize::from(u16_at(&block, 4))) * ENTRY;
        if self.has(Feature::MetadataCsum)
            && block.get(..tail).is_none_or(|covered| crc32c(inode.seed, covered) != u32_at(&block, tail))
        {
            return Err(damaged(format_args!(
                "the extents of {} in {at} do not match their checksum",
                inode.ino
            )));
        }
        Ok(block)
    }
}

/// Whether there is a map of blocks in the inode.
fn has_blocks(inode: &Inode) -> bool {
    match inode.kind {
        FileKind::Regular | FileKind::Directory => !inode.has(flags::INLINE_DATA),
        FileKind::Symlink => !inode.has(flags::INLINE_DATA) && !super::content::is_fast_link(inode),
        FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo | FileKind::Socket => false,
    }
}

/// The entries of a node that says that it is `depth` levels above the leaves.
fn entries(node: &[u8], depth: u16) -> Option<&[u8]> {
    let (count, most) = (usize::from(u16_at(node, 2)), usize::from(u16_at(node, 4)));
    let sound = u16_at(node, 0) == MAGIC
        && count <= most
        && (1 + most) * ENTRY <= node.len()
        && u16_at(node, 6) == depth
        && (depth == 0 || count > 0);
    node.get(ENTRY..(1 + count) * ENTRY).filter(|_| sound)
}

fn parse(entry: &[u8]) -> Extent {
    let len = u16_at(entry, 4);
    let unwritten = len > LONGEST;
    Extent {
        logical: u64::from(u32_at(entry, 0)),
        physical: Block(u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8))),
        blocks: u64::from(if unwritten { len - LONGEST } else { len }),
        unwritten,
    }
}

/// The extent of `extents` that holds `logical`, or else the next one behind it.
pub(super) fn at_or_behind(extents: &[Extent], logical: u64) -> Option<&Extent> {
    let number = extents.partition_point(|extent| extent.logical_end() <= logical);
    extents.get(index(crate::units::length(number)))
}
