//! The boot sector: where everything is.

use super::damaged;
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, SECTOR, index};

/// Fewer clusters than this have entries of 12 bits, as Linux counts them; and of 16 bits.
const SIXTEEN: u64 = 4085;
const THIRTY_TWO: u64 = 65525;

/// How wide the entries of the table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::guestfs) enum Width {
    Twelve,
    Sixteen,
    /// 28 bits of 32.
    ThirtyTwo,
}

impl Width {
    fn bits(self) -> u64 {
        match self {
            Self::Twelve => 12,
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }

    /// The largest value of an entry.
    pub(in crate::guestfs) fn most(self) -> u32 {
        match self {
            Self::Twelve => 0xfff,
            Self::Sixteen => 0xffff,
            Self::ThirtyTwo => 0x0fff_ffff,
        }
    }

    /// The bits of entry 1 that say: unmounted, and without errors of the disk.
    pub(in crate::guestfs) fn clean(self) -> u32 {
        match self {
            Self::Twelve => 0,
            Self::Sixteen => 0xc000,
            Self::ThirtyTwo => 0x0c00_0000,
        }
    }

    /// How many bytes `count` entries take.
    pub(in crate::guestfs) fn bytes(self, count: u32) -> u64 {
        (u64::from(count) * self.bits()).div_ceil(8)
    }

    /// Where entry `number` begins in a table.
    pub(in crate::guestfs) fn place(self, number: u32) -> u64 {
        u64::from(number) * self.bits() / 8
    }

    /// Entry `number` in a piece of the table from byte `at` on.
    pub(in crate::guestfs) fn entry(self, piece: &[u8], number: u32, at: u64) -> u32 {
        let place = index(self.place(number) - at);
        match self {
            Self::Twelve => {
                let pair = u32::from(u16_at(piece, place));
                if number.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            Self::Sixteen => u32::from(u16_at(piece, place)),
            Self::ThirtyTwo => u32_at(piece, place) & 0x0fff_ffff,
        }
    }
}

/// Where everything is, in bytes from the start of the filesystem. All of it lies inside the place.
#[derive(Clone, Debug)]
pub(in crate::guestfs) struct Layout {
    pub(in crate::guestfs) width: Width,
    pub(in crate::guestfs) medium: u8,
    pub(super) sector: u64,
    /// Bytes in a cluster.
    pub(in crate::guestfs) cluster: u64,
    /// The number behind the last cluster; they begin at 2.
    pub(in crate::guestfs) end: u32,
    /// The first table, and how long each is.
    pub(in crate::guestfs) table: u64,
    pub(in crate::guestfs) table_len: u64,
    pub(in crate::guestfs) tables: u64,
    /// The root folder of FAT12 and FAT16.
    pub(in crate::guestfs) root: u64,
    pub(in crate::guestfs) root_len: u64,
    /// The root folder's first cluster, of FAT32.
    pub(in crate::guestfs) root_cluster: u32,
    data: u64,
    /// The sector that counts free clusters, of FAT32.
    pub(super) info: Option<u64>,
    /// The marks of a mount and of errors that the kernel keeps here, beside those in the table.
    pub(in crate::guestfs) state: u8,
    /// Of boot sectors that have one, and a label.
    pub(super) serial: Option<u32>,
    pub(super) label: u64,
}

/// Whether `place` starts with a boot sector of such a filesystem.
pub(in crate::guestfs) fn is_boot_sector(place: &dyn Bytes) -> Result<bool> {
    Ok(boot_sector(place)?.is_some())
}

fn boot_sector(place: &dyn Bytes) -> Result<Option<[u8; index(SECTOR)]>> {
    let mut raw = [0; index(SECTOR)];
    if place.size() < SECTOR {
        return Ok(None);
    }
    place.read(&mut raw, GuestOffset(0))?;
    let sector = u16_at(&raw, 11);
    let is_one = matches!(raw[0], 0xeb | 0xe9)
        && raw.ends_with(&[0x55, 0xaa])
        && sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && raw[13].is_power_of_two()
        && u16_at(&raw, 14) > 0
        && (1..=2).contains(&raw[16])
        && raw[21] >= 0xf0;
    Ok(is_one.then_some(raw))
}

impl Layout {
    /// The layout of the filesystem that begins with the first of `bytes`.
    ///
    /// # Errors
    /// `Invalid` when there is none, `Corrupt` when the boot sector contradicts itself or its place; the disk's.
    pub(in crate::guestfs) fn read(bytes: &dyn Bytes) -> Result<Self> {
        let boot = boot_sector(bytes)?.ok_or_else(|| Error::invalid("there is no FAT filesystem"))?;
        let wrong = || damaged("its boot sector contradicts itself or its partition");
        Self::parse(&boot, bytes.size()).ok_or_else(wrong)
    }

    fn parse(boot: &[u8], size: u64) -> Option<Self> {
        let small = |at: usize| u64::from(u16_at(boot, at));
        let large = |at: usize| u64::from(u32_at(boot, at));
        let (sector, per_cluster, is_wide) = (small(11), u64::from(boot[13]), small(22) == 0);
        let total = match (small(19), large(32)) {
            (0, total) | (total, 0) => total,
            (one, two) => (one == two).then_some(one)?,
        };
        let (table, tables, root_len) = (small(14), u64::from(boot[16]), small(17) * 32);
        let table_len = if is_wide { large(36) } else { small(22) };
        let root = table + tables * table_len;
        let data = root + root_len.div_ceil(sector);
        let count = total.checked_sub(data)? / per_cluster;
        let width = match count {
            // Linux goes by the fields, others by the number; where they differ nobody knows.
            _ if is_wide => Width::ThirtyTwo,
            0..SIXTEEN => Width::Twelve,
            SIXTEEN..THIRTY_TWO => Width::Sixteen,
            _ => return None,
        };
        let end = u32::try_from(count + 2).ok().filter(|end| *end <= width.most() - 8)?;
        let root_cluster = if is_wide { u32_at(boot, 44) } else { 0 };
        // Of the version there is one; only one table that counts is a thing that no system makes.
        let is_known = !is_wide || small(40) == 0 && small(42) == 0 && (2..end).contains(&root_cluster);
        let sound = count > 0
            && total * sector <= size
            && root_len.is_multiple_of(sector)
            && is_wide == (root_len == 0)
            && width.bytes(end) <= table_len * sector
            && is_known;
        let extended = if is_wide { 64 } else { 36 };
        let info = Some(small(48)).filter(|number| is_wide && (1..table).contains(number));
        sound.then(|| Self {
            width,
            medium: boot[21],
            sector,
            cluster: per_cluster * sector,
            end,
            table: table * sector,
            table_len: table_len * sector,
            tables,
            root: root * sector,
            root_len,
            root_cluster,
            data: data * sector,
            info: info.map(|number| number * sector),
            state: boot[extended + 1],
            serial: (boot[extended + 2] == 0x29).then(|| u32_at(boot, extended + 3)),
            label: if is_wide { 71 } else { 43 },
        })
    }

    /// Where a cluster lies; its number is one of the table's.
    pub(in crate::guestfs) fn at(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster - 2) * self.cluster
    }
}
