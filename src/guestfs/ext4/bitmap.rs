//! Free blocks.

use super::checksum::crc32c;
use super::features::Feature;
use super::groups::{Group, low_half};
use super::table::is_set;
use super::units::{Block, Run};
use super::{Ext4, damaged};
use crate::error::{Error, Kind, Result};
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
    /// a bitmap does not match its checksum, or calls something free that cannot be.
    pub fn free(&self, mut each: impl FnMut(Run) -> Result<()>) -> Result<()> {
        if self.state().needs_recovery {
            return Err(Error::new(
                Kind::Busy,
                "the filesystem was not unmounted and its free blocks are not known before its journal is replayed",
            ));
        }
        let metadata = self.metadata();
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
    fn free_in_group(&self, group: u32, metadata: &[Run]) -> Result<Vec<Run>> {
        let layout = &self.superblock.layout;
        let start = self.superblock.group_start(group);
        let len = layout.blocks_per_group.min(self.superblock.block_count - start);
        let bitmap = self.block_bitmap(group, metadata)?;
        let clusters = u32::try_from(len.div_ceil(layout.ratio)).unwrap_or(u32::MAX);
        Ok(clear_runs(&bitmap, clusters)
            .map(|(first, end)| {
                let first = u64::from(first) * layout.ratio;
                let end = (u64::from(end) * layout.ratio).min(len);
                Run { start: Block(start + first), blocks: end - first }
            })
            .collect())
    }

    /// A bit for each cluster of `group`.
    fn block_bitmap(&self, number: u32, metadata: &[Run]) -> Result<Vec<u8>> {
        let group = self.group(number)?;
        if group.blocks_uninit {
            return Ok(self.fresh_bitmap(number, metadata));
        }
        let mut bitmap = self.block(group.block_bitmap)?;
        bitmap.truncate(index(self.superblock.layout.clusters_per_group / 8));
        self.check_bitmap(&bitmap, group.block_bitmap_sum, BLOCK_SUM_END)
            .map_err(|error| error.at(format_args!("the block bitmap of group {number}")))?;
        let mut places = self.places(group).into_iter();
        if places.any(|run| self.bits(number, run).any(|bit| !is_set(&bitmap, bit))) {
            return Err(damaged(format_args!("group {number} calls its own bitmaps or inodes free")));
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

    /// The bitmap of a group that has never been written to: what the layout takes is used, and nothing else.
    fn fresh_bitmap(&self, number: u32, metadata: &[Run]) -> Vec<u8> {
        let mut bitmap = vec![0; index(self.superblock.layout.clusters_per_group / 8)];
        let start = self.superblock.group_start(number);
        let end = start + self.superblock.layout.blocks_per_group;
        let first = metadata.partition_point(|run| run.end().0 <= start);
        let inside = metadata[first..].iter().take_while(|run| run.start.0 < end).copied();
        for bit in inside.chain([self.copies(number)]).flat_map(|run| self.bits(number, run)) {
            if let Some(byte) = bitmap.get_mut(index(u64::from(bit / 8))) {
                *byte |= 1 << (bit % 8);
            }
        }
        bitmap
    }

    /// Where all groups have their bitmaps and inodes, in order and without overlaps; empty when no group needs it. A
    /// group may have those of others: with `flex_bg` that is the rule.
    fn metadata(&self) -> Vec<Run> {
        let mut merged: Vec<Run> = Vec::new();
        if !self.groups.iter().any(|group| group.blocks_uninit) {
            return merged;
        }
        let mut places: Vec<Run> = self.groups.iter().flat_map(|group| self.places(group)).collect();
        places.sort_unstable();
        for place in places {
            match merged.last_mut() {
                Some(last) if place.start <= last.end() => {
                    last.blocks = last.end().max(place.end()).0 - last.start.0;
                }
                _ => merged.push(place),
            }
        }
        merged
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
    fn copies(&self, group: u32) -> Run {
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

    /// The bits of `group`'s bitmap that stand for the blocks of `run` that are in it.
    fn bits(&self, group: u32, run: Run) -> impl Iterator<Item = u32> + use<B> {
        let layout = &self.superblock.layout;
        let start = self.superblock.group_start(group);
        let end = start + layout.blocks_per_group;
        let first = run.start.0.clamp(start, end) - start;
        let last = run.end().0.clamp(start, end) - start;
        let (first, last) =
            if first < last { (first / layout.ratio, last.div_ceil(layout.ratio)) } else { (0, 0) };
        (first..last).filter_map(|bit| u32::try_from(bit).ok())
    }
}

/// The runs of clear bits below `end`, as first bit and the bit behind.
fn clear_runs(bitmap: &[u8], end: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = next_bit(bitmap, at, end, false)?;
        at = next_bit(bitmap, first, end, true).unwrap_or(end);
        Some((first, at))
    })
}

/// The next bit that is `wanted` in `from..end`; whole bytes that hold none are passed at once.
fn next_bit(bitmap: &[u8], from: u32, end: u32, wanted: bool) -> Option<u32> {
    let skip = if wanted { 0 } else { 0xff };
    let mut bit = from;
    while bit < end {
        let byte = *bitmap.get(index(u64::from(bit / 8)))?;
        if bit.is_multiple_of(8) && byte == skip {
            bit += 8;
        } else if (byte >> (bit % 8) & 1 != 0) == wanted {
            return Some(bit);
        } else {
            bit += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_clear_bits_are_found_across_bytes() {
        let runs = |bytes: &[u8], end| clear_runs(bytes, end).collect::<Vec<_>>();
        assert_eq!(runs(&[0b1111_0001, 0xff, 0b0000_0011], 24), [(1, 4), (18, 24)]);
        assert_eq!(runs(&[0, 0, 0], 20), [(0, 20)]);
        assert_eq!(runs(&[0xff, 0xff], 16), []);
        assert_eq!(runs(&[0x7f, 0xfe], 16), [(7, 9)]);
        assert_eq!(runs(&[], 16), []);
    }
}
