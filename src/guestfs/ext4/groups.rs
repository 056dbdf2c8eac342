//! Group descriptors: where each group keeps its bitmaps and its inodes.

use super::checksum::{crc16, crc32c, crc32c_around};
use super::damaged;
use super::features::Feature;
use super::superblock::Superblock;
use super::units::Block;
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, index, length};

/// Most groups that are taken into memory: 128 TiB with blocks of 4 KiB.
const MOST: u32 = 1 << 20;
/// Where a descriptor keeps its checksum.
const CHECKSUM: usize = 0x1e;
const INODES_UNINIT: u16 = 1;
const BLOCKS_UNINIT: u16 = 2;

/// One group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) block_bitmap: Block,
    pub(super) inode_bitmap: Block,
    pub(super) inode_table: Block,
    /// Its block bitmap was never written: what is used follows from the layout.
    pub(super) blocks_uninit: bool,
    /// None of its inodes was ever used.
    pub(super) inodes_uninit: bool,
    /// How many inodes at the end of its table were never used.
    pub(super) unused_inodes: u32,
    /// How many of its clusters are free.
    pub(super) free_clusters: u32,
    pub(super) block_bitmap_sum: u32,
    pub(super) inode_bitmap_sum: u32,
}

/// All groups of the filesystem, their checksums verified.
pub(super) fn read_all(bytes: &impl Bytes, superblock: &Superblock) -> Result<Vec<Group>> {
    let count = superblock.layout.groups;
    if count > MOST {
        return Err(damaged(format_args!("{count} groups are more than any known disk has")));
    }
    let per_block = superblock.descriptors_per_block();
    let mut groups = Vec::new();
    let mut block = vec![0; index(superblock.block_size)];
    for number in 0..u64::from(count).div_ceil(per_block) {
        let at = superblock.descriptor_block(number);
        if !superblock.holds(at, 1) {
            return Err(damaged(format_args!("its group descriptors lie behind its end, in {at}")));
        }
        bytes.read(&mut block, GuestOffset(at.0 * superblock.block_size))?;
        let left = u64::from(count) - length(groups.len());
        for raw in block.chunks_exact(superblock.layout.descriptor).take(index(left.min(per_block))) {
            let group = u32::try_from(groups.len()).unwrap_or(u32::MAX);
            groups.push(parse(raw, group, superblock)?);
        }
    }
    Ok(groups)
}

fn parse(raw: &[u8], group: u32, superblock: &Superblock) -> Result<Group> {
    if !checksum_matches(raw, group, superblock) {
        return Err(damaged(format_args!("the descriptor of group {group} does not match its checksum")));
    }
    let has_sums = superblock.features.has_group_checksums();
    let flags = if has_sums { u16_at(raw, 0x12) } else { 0 };
    let wide = |low: usize, high: usize| {
        let high = if raw.len() >= 64 { u32_at(raw, high) } else { 0 };
        Block(u64::from(high) << 32 | u64::from(u32_at(raw, low)))
    };
    let pair = |low: usize, high: usize| {
        let high = if raw.len() >= 64 { u16_at(raw, high) } else { 0 };
        u32::from(high) << 16 | u32::from(u16_at(raw, low))
    };
    let found = Group {
        block_bitmap: wide(0, 0x20),
        inode_bitmap: wide(4, 0x24),
        inode_table: wide(8, 0x28),
        blocks_uninit: flags & BLOCKS_UNINIT != 0,
        inodes_uninit: flags & INODES_UNINIT != 0,
        unused_inodes: if has_sums { pair(0x1c, 0x32) } else { 0 },
        free_clusters: pair(0xc, 0x2c),
        block_bitmap_sum: pair(0x18, 0x38),
        inode_bitmap_sum: pair(0x1a, 0x3a),
    };
    let sound = superblock.holds(found.block_bitmap, 1)
        && superblock.holds(found.inode_bitmap, 1)
        && superblock.holds(found.inode_table, superblock.table_blocks())
        && found.unused_inodes <= superblock.layout.inodes_per_group;
    if !sound {
        return Err(damaged(format_args!("group {group} has its bitmaps or inodes outside of it")));
    }
    Ok(found)
}

fn checksum_matches(raw: &[u8], group: u32, superblock: &Superblock) -> bool {
    let kept = u16_at(raw, CHECKSUM);
    let number = group.to_le_bytes();
    if superblock.features.has(Feature::MetadataCsum) {
        let sum = crc32c_around(crc32c(superblock.checksum_seed, &number), raw, CHECKSUM, 2);
        return low_half(sum) == kept;
    }
    if superblock.features.has(Feature::UninitBg) {
        let sum = crc16(crc16(!0, &superblock.uuid), &number);
        let (before, rest) = raw.split_at(CHECKSUM);
        return crc16(crc16(sum, before), &rest[2..]) == kept;
    }
    true
}

/// The 16 bits that old fields have room for.
pub(super) fn low_half(sum: u32) -> u16 {
    let [low, high, ..] = sum.to_le_bytes();
    u16::from_le_bytes([low, high])
}
