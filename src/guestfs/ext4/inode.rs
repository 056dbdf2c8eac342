//! Inode records.

use super::checksum::{crc32c, crc32c_around};
use super::features::Feature;
use super::groups::low_half;
use super::superblock::Superblock;
use super::units::{Block, Ino};
use super::{Ext4, damaged};
use crate::error::{Error, Result};
use crate::guestfs::Time;
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{index, length};

/// Flags of an inode, as `chattr` and `lsattr` have them.
pub mod flags {
    /// Secure deletion, asked for (`s`).
    pub const SECURE_DELETION: u32 = 0x1;
    /// Written at once (`S`).
    pub const SYNC: u32 = 0x8;
    /// Cannot be changed (`i`).
    pub const IMMUTABLE: u32 = 0x10;
    /// Can only grow (`a`).
    pub const APPEND: u32 = 0x20;
    /// Left out by `dump` (`d`).
    pub const NO_DUMP: u32 = 0x40;
    /// Its time of access is not kept (`A`).
    pub const NO_ATIME: u32 = 0x80;
    /// A folder with an index (`I`).
    pub const INDEX: u32 = 0x1000;
    /// `blocks` counts blocks of the filesystem.
    pub const HUGE_FILE: u32 = 0x4_0000;
    /// Mapped by extents (`e`).
    pub const EXTENTS: u32 = 0x8_0000;
    /// The inode holds the value of an extended attribute.
    pub const EA_INODE: u32 = 0x20_0000;
    /// Its content stands in the inode (`N`).
    pub const INLINE_DATA: u32 = 0x1000_0000;
    /// What is made in the folder gets its project (`P`).
    pub const PROJECT_INHERIT: u32 = 0x2000_0000;

    /// Those that are not read here, with what they mean.
    pub(super) const REFUSED: [(u32, &str); 5] = [
        (0x4, "compressed"),
        (0x200, "compressed"),
        (0x800, "encrypted"),
        (0x10_0000, "sealed by verity"),
        (0x4000_0000, "a folder that takes upper case for lower case"),
    ];
}

/// Bytes of a record that every filesystem has.
const OLD: usize = 128;
const CHECKSUM_LOW: usize = 0x7c;
const CHECKSUM_HIGH: usize = 0x82;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// Bytes.
    Regular,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }

    /// What the type byte of a folder's entry stands for.
    pub(super) fn of_entry(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }
}

/// Which device a special file stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

/// One inode: a file without its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Permissions, set-user-ID, set-group-ID and sticky bits: the low 12 bits of its mode.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its length in bytes.
    pub size: u64,
    /// What it takes on the disk, in units of 512 bytes.
    pub sectors: u64,
    /// How many names it has; 1 for a folder with more subfolders than can be counted.
    pub links: u16,
    /// Its [`flags`].
    pub flags: u32,
    /// Told apart from earlier files of the same number by this.
    pub generation: u32,
    /// Its project; 0 without the feature.
    pub project: u32,
    /// Which device it stands for, if it is one.
    pub device: Option<Device>,
    /// When it was read.
    pub accessed: Time,
    /// When its content was changed.
    pub modified: Time,
    /// When anything about it was changed.
    pub changed: Time,
    /// When it was made; records of 128 bytes have no room for it.
    pub created: Option<Time>,
    /// When it was deleted, in seconds; the next orphan while it waits for that.
    pub(super) deleted: u32,
    /// The block of its extended attributes, or 0.
    pub(super) xattr_block: Block,
    /// What its checksums, and those of its blocks, start from.
    pub(super) seed: u32,
    /// The map of its blocks, or what it holds inline.
    pub(super) map: [u8; 60],
    /// What stands in the record behind the last field.
    pub(super) tail: Box<[u8]>,
}

impl Inode {
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

impl<B: Bytes> Ext4<B> {
    /// The inode of that number, its checksum verified.
    ///
    /// Whether it is in use is not looked at: an entry of a folder says so, or [`Ext4::inodes`].
    ///
    /// # Errors
    /// `Invalid` when there is no such number, `Corrupt` when the record breaks the format, `Unsupported` when the
    /// file is one that is not read here.
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        let record = self.record(ino)?;
        parse(&record, ino, &self.superblock)
    }

    pub(super) fn record(&self, ino: Ino) -> Result<Vec<u8>> {
        let superblock = &self.superblock;
        if ino.0 == 0 || ino.0 > superblock.inode_count {
            return Err(Error::invalid(format!(
                "there is no {ino}: the filesystem has {} inodes",
                superblock.inode_count
            )));
        }
        let per_group = superblock.layout.inodes_per_group;
        let (group, slot) = ((ino.0 - 1) / per_group, (ino.0 - 1) % per_group);
        let Some(group) = self.groups.get(index(u64::from(group))) else {
            return Err(damaged(format_args!("{ino} is in no group")));
        };
        let mut record = vec![0; index(superblock.inode_size)];
        self.read_inside(group.inode_table, u64::from(slot) * superblock.inode_size, &mut record)?;
        Ok(record)
    }
}

/// The inode in `raw`, a whole record.
pub(super) fn parse(raw: &[u8], ino: Ino, superblock: &Superblock) -> Result<Inode> {
    let extra = extra_size(raw, ino)?;
    let seed = seed(raw, ino, superblock);
    check_sum(raw, ino, superblock, seed, extra)?;
    let mode = u16_at(raw, 0);
    let Some(kind) = FileKind::of_mode(mode) else {
        return Err(damaged(format_args!("{ino} is of no known type (mode {mode:#o})")));
    };
    let flags = u32_at(raw, 0x20);
    if let Some((_, what)) = flags::REFUSED.iter().find(|(flag, _)| flags & flag != 0) {
        return Err(Error::unsupported(format!(
            "{ino} is {what}, which is not read here; leave this filesystem as it is"
        )));
    }
    let wide = |low: usize, high: usize| u32::from(u16_at(raw, high)) << 16 | u32::from(u16_at(raw, low));
    let time =
        |low: usize, high: usize| time(raw, low, if fits(extra, high) { u32_at(raw, high) } else { 0 });
    let mut map = [0; 60];
    map.copy_from_slice(&raw[0x28..0x64]);
    let acl_high = if superblock.features.has(Feature::SixtyFourBit) { u16_at(raw, 0x76) } else { 0 };
    let has_project = superblock.features.has(Feature::Project) && fits(extra, 0x9c);
    Ok(Inode {
        ino,
        kind,
        mode: mode & 0o7777,
        uid: wide(2, 0x78),
        gid: wide(0x18, 0x7a),
        size: size(raw, ino, kind, superblock)?,
        sectors: sectors(raw, flags, superblock),
        links: u16_at(raw, 0x1a),
        flags,
        generation: u32_at(raw, 0x64),
        project: if has_project { u32_at(raw, 0x9c) } else { 0 },
        device: device(kind, &map),
        accessed: time(8, 0x8c),
        modified: time(0x10, 0x88),
        changed: time(0xc, 0x84),
        created: fits(extra, 0x90).then(|| time(0x90, 0x94)),
        deleted: u32_at(raw, 0x14),
        xattr_block: Block(u64::from(acl_high) << 32 | u64::from(u32_at(raw, 0x68))),
        seed,
        map,
        tail: if extra == 0 { Box::default() } else { raw[OLD + extra..].into() },
    })
}

/// How many bytes of fields there are behind the first 128.
fn extra_size(raw: &[u8], ino: Ino) -> Result<usize> {
    if raw.len() <= OLD {
        return Ok(0);
    }
    let extra = usize::from(u16_at(raw, 0x80));
    if OLD + extra > raw.len() || extra % 4 != 0 {
        return Err(damaged(format_args!("{ino} says that its record has {extra} more bytes")));
    }
    Ok(extra)
}

/// Whether the 4 bytes of the field at `at` are among the `extra` bytes.
fn fits(extra: usize, at: usize) -> bool {
    at + 4 <= OLD + extra
}

fn seed(raw: &[u8], ino: Ino, superblock: &Superblock) -> u32 {
    let seed = crc32c(superblock.checksum_seed, &ino.0.to_le_bytes());
    crc32c(seed, &u32_at(raw, 0x64).to_le_bytes())
}

fn check_sum(raw: &[u8], ino: Ino, superblock: &Superblock, seed: u32, extra: usize) -> Result<()> {
    if !superblock.features.has(Feature::MetadataCsum) {
        return Ok(());
    }
    let has_high = extra >= 4;
    let low = u16_at(raw, CHECKSUM_LOW);
    let (first, rest) = raw.split_at(OLD);
    let mut sum = crc32c_around(seed, first, CHECKSUM_LOW, 2);
    sum = if has_high { crc32c_around(sum, rest, CHECKSUM_HIGH - OLD, 2) } else { crc32c(sum, rest) };
    let matches = if has_high {
        sum == u32::from(u16_at(raw, CHECKSUM_HIGH)) << 16 | u32::from(low)
    } else {
        low_half(sum) == low
    };
    if !matches {
        return Err(damaged(format_args!("{ino} does not match its checksum")));
    }
    Ok(())
}

/// Seconds with a sign, two more bits of them, and nanoseconds.
fn time(raw: &[u8], at: usize, extra: u32) -> Time {
    let low = raw.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, i32::from_le_bytes);
    let seconds = i64::from(low) + (i64::from(extra & 3) << 32);
    // What no clock gives is brought to the last nanosecond.
    Time { seconds, nanoseconds: (extra >> 2).min(999_999_999) }
}

fn size(raw: &[u8], ino: Ino, kind: FileKind, superblock: &Superblock) -> Result<u64> {
    let low = u64::from(u32_at(raw, 4));
    let large_folder = kind == FileKind::Directory && superblock.features.has(Feature::LargeDir);
    let size = if kind == FileKind::Regular || large_folder {
        u64::from(u32_at(raw, 0x6c)) << 32 | low
    } else {
        low
    };
    // A file has at most 2^32 blocks.
    if size.div_ceil(superblock.block_size) > 1 << 32 {
        return Err(damaged(format_args!("{ino} has a length of {size} bytes")));
    }
    Ok(size)
}

fn sectors(raw: &[u8], flags: u32, superblock: &Superblock) -> u64 {
    let low = u64::from(u32_at(raw, 0x1c));
    if !superblock.features.has(Feature::HugeFile) {
        return low;
    }
    let blocks = u64::from(u16_at(raw, 0x74)) << 32 | low;
    if flags & flags::HUGE_FILE == 0 { blocks } else { blocks * (superblock.block_size / 512) }
}

/// Small numbers are kept in one word, larger ones in the next.
fn device(kind: FileKind, map: &[u8; 60]) -> Option<Device> {
    if !matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
        return None;
    }
    let (old, new) = (u32_at(map, 0), u32_at(map, 4));
    Some(if old != 0 {
        Device { major: old >> 8 & 0xff, minor: old & 0xff }
    } else {
        Device { major: new >> 8 & 0xfff, minor: new & 0xff | new >> 12 & 0xf_ff00 }
    })
}

/// The number of the inode at `slot` of `group`.
pub(super) fn number(group: u32, slot: u32, superblock: &Superblock) -> Ino {
    Ino(group * superblock.layout.inodes_per_group + slot + 1)
}

/// How many records fit into `bytes`.
pub(super) fn records_in(bytes: usize, superblock: &Superblock) -> u32 {
    u32::try_from(length(bytes) / superblock.inode_size).unwrap_or(u32::MAX)
}
