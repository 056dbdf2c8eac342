//! Free blocks.

use super::checksum::crc32c;
use super::features::Feature;
use super::groups::{Group, low_half};
use super::units::{Block, Run};
use super::{Ext4, damaged};
use crate::error::{Error, Kind, Result};
use crate::guestfs::bits::{Bits, clear_runs, next_bit};
use crate::guestfs::partitions::Bytes;
use crate::units::index;

/// Descriptors of at least these lengths have the high half of a bitmap's checksum.
const BLOCK_SUM_END: usize = 0x3a;
pub(super) const INODE_SUM_END: usize = 0x3c;

impl<B: Bytes> Ext4<B> {
    /// Calls `each` with every run of free blocks, in order, neighbours as one. With `bigalloc` whole clusters are
    /// free, but the last one may be cut short by the filesystem's end.
    ///
    /// # Errors
    /// `Busy` while the journal waits to be replayed: blocks that the bitmaps call free may be in use. `Corrupt` when
    /// a bitmap does not match its checksum or its descriptor, or calls something free that cannot be.
    pub fn free(&self, mut each: impl FnMut(Run) -> Result<()>) -> Result<()> {
        if self.state().needs_recovery {
            return Err(Error::new(
                Kind::Busy,
                "the filesystem was not unmounted and its free blocks are not known before its journal is replayed",
            ));
        }
        let metadata = self.metadata()?;
        let mut pending: Option<Run> = None;
        for group in 0..self.superblock.layout.groups {
            for run in self.free_in_group(group, &metadata)? {
                match &mut pending {
                    Some(last) if last.end() == run.start => last.blocks += run.blocks,
                    Some(last) => each(std::mem::replace(last, run))?,
                    None => pending = Some(run),
                }
            }
        }
        pending.map_or(Ok(()), each)
    }

    /// The free runs of one group.
    fn free_in_group(&self, number: u32, metadata: &[Run]) -> Result<Vec<Run>> {
        let layout = &self.superblock.layout;
        let start = self.superblock.group_start(number);
        let len = layout.blocks_per_group.min(self.superblock.block_count - start);
        let bitmap = self.block_bitmap(number, metadata)?;
        let clusters = u32::try_from(len.div_ceil(layout.ratio)).unwrap_or(u32::MAX);
        let runs: Vec<_> = clear_runs(&bitmap, clusters).collect();
        let free: u32 = runs.iter().map(|(first, end)| end - first).sum();
        let kept = self.group(number)?.free_clusters;
        if free != kept {
            return Err(damaged(format_args!(
                "group {number} has {free} free clusters by its bitmap and {kept} by its descriptor"
            )));
        }
        let run = |(first, end): (u32, u32)| {
            let first = u64::from(first) * layout.ratio;
            let end = (u64::from(end) * layout.ratio).min(len);
            Run { start: Block(start + first), blocks: end - first }
        };
        Ok(runs.into_iter().map(run).collect())
    }

    /// A bit for each cluster of group `number`.
    fn block_bitmap(&self, number: u32, metadata: &[Run]) -> Result<Vec<u8>> {
        let (group, layout) = (self.group(number)?, self.layout_of(number, metadata)?);
        if group.blocks_uninit {
            return Ok(self.fresh_bitmap(layout));
        }
        let mut bitmap = self.block(group.block_bitmap)?;
        bitmap.truncate(index(self.superblock.layout.clusters_per_group / 8));
        self.check_bitmap(&bitmap, group.block_bitmap_sum, BLOCK_SUM_END)
            .map_err(|error| error.at(format_args!("the block bitmap of group {number}")))?;
        if layout.into_iter().any(|(first, end)| next_bit(&bitmap, first, end, false).is_some()) {
            return Err(damaged(format_args!(
                "group {number} calls free what holds the superblock, descriptors, bitmaps or inodes"
            )));
        }
        Ok(bitmap)
    }

    pub(super) fn check_bitmap(&self, bitmap: &[u8], kept: u32, long: usize) -> Result<()> {
        if !self.has(Feature::MetadataCsum) {
            return Ok(());
        }
        let sum = crc32c(self.superblock.checksum_seed, bitmap);
        let wide = self.superblock.layout.descriptor >= long;
        if if wide { sum == kept } else { low_half(sum) == low_half(kept) } {
            return Ok(());
        }
        Err(damaged("it does not match its checksum"))
    }

    /// The bitmap of a group that has never been written to: what its layout takes is used, and nothing else.
    fn fresh_bitmap(&self, layout: Vec<(u32, u32)>) -> Vec<u8> {
        let mut bitmap =
            Bits::new(u32::try_from(self.superblock.layout.clusters_per_group).unwrap_or(u32::MAX));
        layout.into_iter().flat_map(|(first, end)| first..end).for_each(|bit| _ = bitmap.set(bit));
        bitmap.into_bytes()
    }

    /// The bits of group `number` that stand for what the filesystem itself keeps there, for this group or for others.
    fn layout_of(&self, number: u32, metadata: &[Run]) -> Result<Vec<(u32, u32)>> {
        let copies = self.copies(number);
        let start = self.superblock.group_start(number);
        let end = start + self.superblock.layout.blocks_per_group;
        let first = metadata.partition_point(|run| run.end().0 <= start);
        let inside = || metadata[first..].iter().take_while(|run| run.start.0 < end).copied();
        if copies.blocks > 0 && inside().any(|run| run.start < copies.end()) {
            return Err(damaged(format_args!(
                "bitmaps or inodes lie over the descriptors in group {number}"
            )));
        }
        Ok(inside().chain([copies]).map(|run| self.bits(number, run)).collect())
    }

    /// Where all groups have their bitmaps and inodes, in order. A group may have those of others: with `flex_bg` that
    /// is the rule.
    fn metadata(&self) -> Result<Vec<Run>> {
        let mut places: Vec<Run> = self.groups.iter().flat_map(|group| self.places(group)).collect();
        places.sort_unstable();
        let mut merged: Vec<Run> = Vec::new();
        for place in places {
            match merged.last_mut() {
                Some(last) if place.start < last.end() => {
                    return Err(damaged(format_args!("two bitmaps or inode tables lie in {}", place.start)));
                }
                Some(last) if place.start == last.end() => last.blocks += place.blocks,
                _ => merged.push(place),
            }
        }
        Ok(merged)
    }

    /// Where a group has its bitmaps and its inodes.
    fn places(&self, group: &Group) -> [Run; 3] {
        [
            Run { start: group.block_bitmap, blocks: 1 },
            Run { start: group.inode_bitmap, blocks: 1 },
            Run { start: group.inode_table, blocks: self.superblock.table_blocks() },
        ]
    }

    /// What `group` starts with: copies of the superblock and of the descriptors, and room for more of these.
    pub(super) fn copies(&self, group: u32) -> Run {
        let superblock = &self.superblock;
        let layout = &superblock.layout;
        let per_block = superblock.descriptors_per_block();
        let has_copy = superblock.has_superblock(group);
        let has_meta = superblock.features.has(Feature::MetaBg);
        let all = u64::from(layout.groups).div_ceil(per_block);
        let by_meta = has_meta && u64::from(group) / per_block >= layout.first_meta;
        let descriptors = if by_meta {
            let place = u64::from(group) % per_block;
            u64::from(place <= 1 || place == per_block - 1)
        } else if has_copy {
            let whole = if has_meta { layout.first_meta.min(all) } else { all };
            whole + layout.reserved_descriptors
        } else {
            0
        };
        // With clusters and blocks of 1 KiB the superblock is the second block of its group.
        let before = if group == 0 { superblock.superblock_block() - layout.first_data } else { 0 };
        let blocks = before + u64::from(has_copy) + descriptors;
        Run { start: Block(superblock.group_start(group)), blocks }
    }

    /// The bits of `group`'s bitmap that stand for the blocks of `run` that are in it: the first, and the one behind.
    fn bits(&self, group: u32, run: Run) -> (u32, u32) {
        let layout = &self.superblock.layout;
        let start = self.superblock.group_start(group);
        let end = start + layout.blocks_per_group;
        let first = (run.start.0.clamp(start, end) - start) / layout.ratio;
        let last = (run.end().0.clamp(start, end) - start).div_ceil(layout.ratio);
        let bit = |bit| u32::try_from(bit).unwrap_or(u32::MAX);
        if run.end().0 <= start || run.start.0 >= end { (0, 0) } else { (bit(first), bit(last)) }
    }
}
