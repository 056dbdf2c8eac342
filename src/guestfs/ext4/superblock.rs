//! The superblock: what the filesystem is, how it is laid out, and in which state it was left.

use super::checksum::crc32c;
use super::damaged;
use super::features::{Feature, Features};
use super::units::{Block, Ino};
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at, u64_at};
use crate::units::{GuestOffset, length};

/// Where the superblock starts, in bytes, whatever the block size is.
pub(super) const AT: GuestOffset = GuestOffset(1024);
/// Its length in bytes.
pub(super) const LEN: usize = 1024;

/// Where its checksum is kept, which covers all that stands before.
const CHECKSUM: usize = 0x3fc;
const COMPAT: usize = 0x5c;
const INCOMPAT: usize = 0x60;
const RO_COMPAT: usize = 0x64;
const STATE: usize = 0x3a;
const MAGIC: u16 = 0xef53;
/// mke2fs makes no smaller groups; a million tiny ones would only take memory.
const SMALLEST_GROUP: u64 = 256;
/// Bits of the state.
const VALID: u16 = 1;
const ERRORS: u16 = 2;
/// The bit of `needs_recovery`.
const RECOVER: u32 = 4;

/// What a filesystem's superblock says of it, checked against the size of the disk.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// The filesystem's UUID, as its 16 bytes stand on the disk.
    pub uuid: [u8; 16],
    /// Its label, at most 16 bytes; usually UTF-8, often empty.
    pub label: Vec<u8>,
    /// Its features.
    pub features: Features,
    /// Bytes in a block: a power of two from 1 KiB to 64 KiB.
    pub block_size: u64,
    /// Bytes in a cluster, the unit of allocation: `block_size` unless there is `bigalloc`.
    pub cluster_size: u64,
    /// Its length in blocks.
    pub block_count: u64,
    /// Bytes in an inode record: a power of two from 128 on.
    pub inode_size: u64,
    /// How many inodes its tables have room for.
    pub inode_count: u32,
    /// The first inode that is not reserved.
    pub first_inode: Ino,
    /// What checksums of metadata start from.
    pub checksum_seed: u32,
    /// In which state it was left.
    pub state: State,
    pub(super) layout: Layout,
}

/// In which state a filesystem was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// It was unmounted in order, or has a journal that says more.
    pub valid: bool,
    /// The kernel, or e2fsck, saw errors that were not mended since.
    pub errors: bool,
    /// The journal has to be replayed before anything that is read is true.
    pub needs_recovery: bool,
    /// Inodes wait to be deleted or cut: see [`super::Ext4::orphans`].
    pub orphans: bool,
    /// The journal may hold fast commits.
    pub fast_commit: bool,
}

impl State {
    /// Whether what is read is what the guest would see, with nothing left to be done first.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.valid && !self.errors && !self.needs_recovery && !self.orphans
    }
}

/// How a filesystem is laid out.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Where the groups start: block 1 with blocks of 1 KiB, else block 0.
    pub(super) first_data: u64,
    pub(super) blocks_per_group: u64,
    pub(super) clusters_per_group: u64,
    /// Blocks in a cluster.
    pub(super) ratio: u64,
    pub(super) inodes_per_group: u32,
    pub(super) groups: u32,
    /// Bytes in a group descriptor.
    pub(super) descriptor: usize,
    /// Blocks that are kept behind the descriptors for more of them.
    pub(super) reserved_descriptors: u64,
    /// The first block of descriptors that has its place by `meta_bg`.
    pub(super) first_meta: u64,
    pub(super) backups: [u32; 2],
    pub(super) journal: Ino,
    pub(super) last_orphan: u32,
    pub(super) orphan_file: u32,
    pub(super) mmp: Block,
}

impl Superblock {
    /// Reads and checks the superblock of the filesystem that `bytes` holds.
    pub(super) fn read(bytes: &impl Bytes) -> Result<Self> {
        let mut raw = [0; LEN];
        if bytes.size() < AT.0 + length(LEN) {
            return Err(Error::invalid("this is no ext4 filesystem: it is too short for a superblock"));
        }
        bytes.read(&mut raw, AT)?;
        Self::parse(&raw, bytes.size())
    }

    /// `device` is the length in bytes of what the filesystem lies in.
    fn parse(raw: &[u8; LEN], device: u64) -> Result<Self> {
        if u16_at(raw, 0x38) != MAGIC {
            return Err(Error::invalid("this is no ext2, ext3 or ext4 filesystem: there is no superblock"));
        }
        let features = features(raw)?;
        check_words(raw, features)?;
        let (block_size, cluster_size) = sizes(raw, features)?;
        let inode_size = inode_size(raw, block_size)?;
        let wide = features.has(Feature::SixtyFourBit);
        let high = if wide { u64::from(u32_at(raw, 0x150)) << 32 } else { 0 };
        let block_count = high | u64::from(u32_at(raw, 4));
        if block_count.checked_mul(block_size).is_none_or(|bytes| bytes > device) {
            return Err(damaged(format_args!(
                "it has {block_count} blocks of {block_size} bytes, more than the {device} bytes that it lies in"
            )));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        let layout = layout(raw, features, block_size, cluster_size, block_count)?;
        let superblock = Self {
            uuid,
            label: raw[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
            features,
            block_size,
            cluster_size,
            block_count,
            inode_size,
            inode_count: u32_at(raw, 0),
            first_inode: Ino(if u32_at(raw, 0x4c) == 0 { 11 } else { u32_at(raw, 0x54) }),
            checksum_seed: checksum_seed(raw, features, &uuid),
            state: state(raw, features),
            layout,
        };
        superblock.check_inodes()?;
        Ok(superblock)
    }

    fn check_inodes(&self) -> Result<()> {
        let layout = &self.layout;
        let per_block = self.block_size / self.inode_size;
        let per_group = u64::from(layout.inodes_per_group);
        let all = u64::from(layout.groups) * per_group;
        let sound = per_group >= per_block
            && per_group <= self.block_size * 8
            && all == u64::from(self.inode_count)
            && self.first_inode.0 >= 11
            && self.first_inode.0 <= self.inode_count;
        if !sound {
            return Err(damaged(format_args!(
                "{} inodes do not fit into {} groups of {per_group}",
                self.inode_count, layout.groups
            )));
        }
        Ok(())
    }

    /// Whether the blocks lie inside the filesystem.
    pub(super) fn holds(&self, start: Block, blocks: u64) -> bool {
        start.0 >= self.layout.first_data
            && start.0.checked_add(blocks).is_some_and(|end| end <= self.block_count)
    }

    /// Blocks that the inode table of a group takes.
    pub(super) fn table_blocks(&self) -> u64 {
        (u64::from(self.layout.inodes_per_group) * self.inode_size).div_ceil(self.block_size)
    }

    pub(super) fn group_start(&self, group: u32) -> u64 {
        self.layout.first_data + u64::from(group) * self.layout.blocks_per_group
    }

    pub(super) fn descriptors_per_block(&self) -> u64 {
        self.block_size / length(self.layout.descriptor)
    }

    /// Whether `group` starts with a copy of the superblock.
    pub(super) fn has_superblock(&self, group: u32) -> bool {
        let power_of = |root: u32| {
            std::iter::successors(Some(root), |power| power.checked_mul(root)).any(|power| power == group)
        };
        if group == 0 {
            true
        } else if self.features.has(Feature::SparseSuper2) {
            self.layout.backups.contains(&group)
        } else {
            !self.features.has(Feature::SparseSuper)
                || group == 1
                || power_of(3)
                || power_of(5)
                || power_of(7)
        }
    }

    /// The block in which the `number`-th block of group descriptors is.
    pub(super) fn descriptor_block(&self, number: u64) -> Block {
        let layout = &self.layout;
        if !self.features.has(Feature::MetaBg) || number < layout.first_meta {
            return Block(self.superblock_block() + 1 + number);
        }
        let group = number * self.descriptors_per_block();
        // With a first group that starts before the superblock, the superblock is its second block.
        let first = if number == 0 { self.superblock_block() - layout.first_data } else { 0 };
        let copy = u32::try_from(group).is_ok_and(|group| self.has_superblock(group));
        Block(layout.first_data + group * layout.blocks_per_group + u64::from(copy) + first)
    }

    /// The block that holds the superblock.
    pub(super) fn superblock_block(&self) -> u64 {
        AT.0 / self.block_size
    }
}

fn features(raw: &[u8; LEN]) -> Result<Features> {
    // Before there were revisions there were no features.
    if u32_at(raw, 0x4c) == 0 {
        return Ok(Features::default());
    }
    let features = words(raw);
    features.check()?;
    Ok(features)
}

/// The checksum, and what is refused without being a feature.
fn check_words(raw: &[u8; LEN], features: Features) -> Result<()> {
    if features.has(Feature::MetadataCsum) {
        if raw[0x175] != 1 {
            return Err(Error::unsupported(format!(
                "the filesystem has checksums of a kind {} that is not known here",
                raw[0x175]
            )));
        }
        if crc32c(!0, &raw[..CHECKSUM]) != u32_at(raw, CHECKSUM) {
            return Err(damaged("the superblock does not match its checksum"));
        }
    }
    if u32_at(raw, 0x4c) > 1 {
        return Err(Error::unsupported("the filesystem has a revision above 1, which is not known here"));
    }
    if u32_at(raw, 0x48) != 0 {
        return Err(Error::unsupported(
            "the filesystem was not made for Linux: its inodes have another form",
        ));
    }
    if features.has(Feature::HasJournal) && u32_at(raw, 0xe0) == 0 {
        return Err(Error::unsupported(
            "the filesystem has its journal on another disk; such a filesystem is not read here",
        ));
    }
    Ok(())
}

/// The bytes in a block, and those in a cluster.
fn sizes(raw: &[u8; LEN], features: Features) -> Result<(u64, u64)> {
    let (block, cluster) = (u32_at(raw, 0x18), u32_at(raw, 0x1c));
    if block > 6 {
        return Err(damaged("the size of its blocks is none of 1 KiB to 64 KiB"));
    }
    let sound = if features.has(Feature::Bigalloc) {
        (block..=block + 16).contains(&cluster)
    } else {
        // Old filesystems kept the size of a fragment here, which never differed.
        cluster == block
    };
    if !sound {
        return Err(damaged("the size of its clusters does not fit the size of its blocks"));
    }
    Ok((1024 << block, 1024 << cluster))
}

fn inode_size(raw: &[u8; LEN], block_size: u64) -> Result<u64> {
    let size = if u32_at(raw, 0x4c) == 0 { 128 } else { u64::from(u16_at(raw, 0x58)) };
    if !size.is_power_of_two() || !(128..=block_size).contains(&size) {
        return Err(damaged(format_args!("inodes of {size} bytes do not exist")));
    }
    Ok(size)
}

fn layout(
    raw: &[u8; LEN],
    features: Features,
    block_size: u64,
    cluster_size: u64,
    blocks: u64,
) -> Result<Layout> {
    let ratio = cluster_size / block_size;
    let blocks_per_group = u64::from(u32_at(raw, 0x20));
    let clusters_per_group = if ratio == 1 { blocks_per_group } else { u64::from(u32_at(raw, 0x24)) };
    let first_data = u64::from(u32_at(raw, 0x14));
    let sound = blocks_per_group >= SMALLEST_GROUP
        && blocks_per_group % 8 == 0
        && clusters_per_group % 8 == 0
        && clusters_per_group <= block_size * 8
        && blocks_per_group == clusters_per_group * ratio
        && first_data == u64::from(block_size == 1024 && ratio == 1)
        && blocks > first_data + AT.0 / block_size;
    let groups = blocks.saturating_sub(first_data).div_ceil(blocks_per_group.max(1));
    let descriptor = descriptor_size(raw, features)?;
    let Some(groups) = u32::try_from(groups).ok().filter(|_| sound) else {
        return Err(damaged("the sizes of its groups contradict each other"));
    };
    Ok(Layout {
        first_data,
        blocks_per_group,
        clusters_per_group,
        ratio,
        inodes_per_group: u32_at(raw, 0x28),
        groups,
        descriptor,
        reserved_descriptors: u64::from(u16_at(raw, 0xce)),
        first_meta: u64::from(u32_at(raw, 0x104)),
        backups: [u32_at(raw, 0x24c), u32_at(raw, 0x250)],
        journal: Ino(if features.has(Feature::HasJournal) { u32_at(raw, 0xe0) } else { 0 }),
        last_orphan: u32_at(raw, 0xe8),
        orphan_file: if features.has(Feature::OrphanFile) { u32_at(raw, 0x280) } else { 0 },
        mmp: Block(if features.has(Feature::Mmp) { u64_at(raw, 0x168) } else { 0 }),
    })
}

fn descriptor_size(raw: &[u8; LEN], features: Features) -> Result<usize> {
    if !features.has(Feature::SixtyFourBit) {
        return Ok(32);
    }
    let size = usize::from(u16_at(raw, 0xfe));
    if !size.is_power_of_two() || !(64..=1024).contains(&size) {
        return Err(damaged(format_args!("group descriptors of {size} bytes do not exist")));
    }
    Ok(size)
}

fn checksum_seed(raw: &[u8; LEN], features: Features, uuid: &[u8; 16]) -> u32 {
    if features.has(Feature::MetadataCsumSeed) { u32_at(raw, 0x270) } else { crc32c(!0, uuid) }
}

fn state(raw: &[u8; LEN], features: Features) -> State {
    let state = u16_at(raw, STATE);
    State {
        valid: state & VALID != 0,
        errors: state & ERRORS != 0,
        needs_recovery: features.has(Feature::NeedsRecovery),
        orphans: u32_at(raw, 0xe8) != 0 || features.has(Feature::OrphanPresent),
        fast_commit: features.has(Feature::FastCommit),
    }
}

fn words(raw: &[u8; LEN]) -> Features {
    Features {
        compat: u32_at(raw, COMPAT),
        incompat: u32_at(raw, INCOMPAT),
        ro_compat: u32_at(raw, RO_COMPAT),
    }
}

/// Whether a superblock notes that errors were seen.
pub(super) fn has_errors(raw: &[u8; LEN]) -> bool {
    u16_at(raw, STATE) & ERRORS != 0
}

/// Makes a superblock say that its journal is replayed, and that there were errors, if there were.
pub(super) fn mark_recovered(raw: &mut [u8; LEN], errors: bool) {
    let incompat = u32_at(raw, INCOMPAT) & !RECOVER;
    raw[INCOMPAT..INCOMPAT + 4].copy_from_slice(&incompat.to_le_bytes());
    let state = u16_at(raw, STATE) | if errors { ERRORS } else { 0 };
    raw[STATE..STATE + 2].copy_from_slice(&state.to_le_bytes());
    if words(raw).has(Feature::MetadataCsum) {
        let sum = crc32c(!0, &raw[..CHECKSUM]);
        raw[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    }
}
