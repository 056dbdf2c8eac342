//! The boot sector of a FAT filesystem.

use super::damaged;
use crate::error::Result;
use crate::guestfs::free::left;
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, SECTOR, index};

/// How wide an entry of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

impl Width {
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Twelve => 12,
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }

    /// The largest value of an entry.
    pub(super) fn most(self) -> u32 {
        match self {
            Self::Twelve => 0xfff,
            Self::Sixteen => 0xffff,
            Self::ThirtyTwo => 0x0fff_ffff,
        }
    }

    /// The bits of entry 1 that say: unmounted, and without errors of the disk.
    pub(super) fn clean(self) -> u32 {
        match self {
            Self::Twelve => 0,
            Self::Sixteen => 0xc000,
            Self::ThirtyTwo => 0x0c00_0000,
        }
    }
}

/// How the filesystem is laid out, in bytes.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) width: Width,
    pub(super) medium: u8,
    /// Where the first table is, and how long each is.
    pub(super) table: u64,
    pub(super) table_len: u64,
    pub(super) tables: u64,
    /// The root folder of FAT12 and FAT16, before the clusters.
    pub(super) root: std::ops::Range<u64>,
    /// The first cluster of the root folder of FAT32.
    pub(super) root_cluster: u32,
    /// Where cluster 2 starts.
    pub(super) data: u64,
    /// Bytes in a cluster.
    pub(super) cluster: u64,
    /// The number behind the last cluster.
    pub(super) end: u32,
}

/// Whether `place` starts with a boot sector of such a filesystem.
pub(in crate::guestfs::free) fn is_boot_sector(place: &impl Bytes) -> Result<bool> {
    let mut raw = [0; index(SECTOR)];
    if place.size() < SECTOR {
        return Ok(false);
    }
    place.read(&mut raw, GuestOffset(0))?;
    Ok(looks_like(&raw))
}

fn looks_like(raw: &[u8; index(SECTOR)]) -> bool {
    let sector = u16_at(raw, 11);
    let jump = raw[0] == 0xe9 || raw[0] == 0xeb;
    jump && raw.ends_with(&[0x55, 0xaa])
        && sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && raw[13].is_power_of_two()
        && u16_at(raw, 14) > 0
        && (1..=2).contains(&raw[16])
        && raw[21] >= 0xf0
}

impl Boot {
    pub(super) fn read(bytes: &impl Bytes) -> Result<Self> {
        let mut raw = [0; index(SECTOR)];
        if bytes.size() < SECTOR {
            return Err(damaged("it is too short"));
        }
        bytes.read(&mut raw, GuestOffset(0))?;
        let boot = Self::parse(&raw, bytes.size())?;
        // The kernel keeps the mark of a mount here, beside the one in the table.
        let state = raw[if boot.width == Width::ThirtyTwo { 0x41 } else { 0x25 }];
        if state & 3 != 0 {
            return left("it was not unmounted, or had errors; check it in its guest first");
        }
        Ok(boot)
    }

    fn parse(raw: &[u8; index(SECTOR)], size: u64) -> Result<Self> {
        let wrong = || damaged("its boot sector contradicts itself or its partition");
        let field = |at| u64::from(u16_at(raw, at));
        let long = |at| u64::from(u32_at(raw, at));
        let (sector, per_cluster) = (field(11), u64::from(raw[13]));
        let either =
            |short: u64, long: u64| (short == 0 || long == 0 || short == long).then_some(short.max(long));
        let total = either(field(19), long(32)).ok_or_else(wrong)?;
        let is_wide = field(22) == 0;
        let table_len = if is_wide { long(36) } else { field(22) };
        let roots = field(17);
        let root = field(14) + u64::from(raw[16]) * table_len;
        let data = root + (roots * 32).div_ceil(sector.max(1));
        let sound = looks_like(raw)
            && table_len > 0
            && total > data
            && total * sector <= size
            && (roots * 32).is_multiple_of(sector)
            && is_wide == (roots == 0);
        if !sound {
            return Err(wrong());
        }
        let count = (total - data) / per_cluster;
        let width = match count {
            // Linux goes by the fields, others by the number; where they differ nobody knows.
            _ if is_wide => Width::ThirtyTwo,
            0..4085 => Width::Twelve,
            4085..65525 => Width::Sixteen,
            _ => return Err(wrong()),
        };
        let end = u32::try_from(count + 2).ok().filter(|end| *end <= width.most() - 8).ok_or_else(wrong)?;
        let boot = Self {
            width,
            medium: raw[21],
            table: field(14) * sector,
            table_len: table_len * sector,
            tables: raw[16].into(),
            root: root * sector..data * sector,
            root_cluster: if is_wide { u32_at(raw, 44) } else { 0 },
            data: data * sector,
            cluster: per_cluster * sector,
            end,
        };
        let one_table = is_wide && (u16_at(raw, 40) != 0 || u16_at(raw, 42) != 0);
        let has_root = !is_wide || (2..end).contains(&boot.root_cluster);
        if boot.width.bytes(end) > boot.table_len || one_table || !has_root {
            return Err(wrong());
        }
        Ok(boot)
    }

    /// The first byte of a cluster, from 2 on.
    pub(super) fn place(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster - 2) * self.cluster
    }
}
