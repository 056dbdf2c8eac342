//! The boot sector: where everything is.

use super::damaged;
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, KIB, SECTOR, index};

/// Most clusters that are looked at.
const CLUSTERS: u64 = 4 << 20;
/// Fewer clusters than this have entries of 12 bits, as Linux counts them.
const SIXTEEN: u64 = 4085;

/// How wide the entries of the table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Twelve,
    Sixteen,
    /// 28 bits of 32.
    ThirtyTwo,
}

/// Where everything is, in bytes from the start of the filesystem. All of it lies inside the place.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) width: Width,
    pub(super) sector: u64,
    /// Bytes in a cluster.
    pub(super) cluster: u64,
    /// Clusters of data; their numbers begin at 2.
    pub(super) clusters: u32,
    pub(super) table: u64,
    pub(super) table_len: u64,
    pub(super) tables: u64,
    /// The root folder of FAT12 and FAT16.
    pub(super) root: u64,
    pub(super) root_len: u64,
    /// The root folder's first cluster, of FAT32.
    pub(super) root_cluster: u32,
    data: u64,
    /// The sector that counts free clusters, of FAT32.
    pub(super) info: Option<u64>,
    pub(super) serial: u32,
    /// The boot sector's label.
    pub(super) label: u64,
}

impl Layout {
    pub(super) fn read(bytes: &dyn Bytes) -> Result<Self> {
        let none = || Error::invalid("there is no FAT filesystem");
        if bytes.size() < SECTOR {
            return Err(none());
        }
        let mut boot = [0; index(SECTOR)];
        bytes.read(&mut boot, GuestOffset(0))?;
        let wide = u16_at(&boot, 22) == 0;
        let extended = if wide { 64 } else { 36 };
        let (sector, per_cluster) = (u64::from(u16_at(&boot, 11)), u64::from(boot[13]));
        let known = matches!(boot[0], 0xeb | 0xe9)
            && boot[510..] == [0x55, 0xaa]
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && matches!(boot[16], 1 | 2)
            && boot[21] >= 0xf0
            && boot[extended + 2] == 0x29
            && (u16_at(&boot, 17) == 0) == wide;
        if !known {
            return Err(none());
        }
        if boot[extended + 1] & 1 != 0 {
            return Err(dirty());
        }
        let layout = Self::of(&boot, wide, sector, u32_at(&boot, extended + 3))?;
        let end = layout.data + u64::from(layout.clusters) * layout.cluster;
        if end > bytes.size() {
            return Err(damaged("it is longer than its place"));
        }
        Ok(layout)
    }

    fn of(boot: &[u8], wide: bool, sector: u64, serial: u32) -> Result<Self> {
        let small = |at: usize| u64::from(u16_at(boot, at));
        let large = |at: usize| u64::from(u32_at(boot, at));
        let sectors = if small(19) == 0 { large(32) } else { small(19) };
        let table_len = sector * if wide { large(36) } else { small(22) };
        let (table, tables) = (small(14) * sector, u64::from(boot[16]));
        let cluster = u64::from(boot[13]) * sector;
        let root = table + tables * table_len;
        let root_len = small(17) * 32;
        let data = root + root_len.next_multiple_of(sector);
        let clusters = (sectors * sector).checked_sub(data).map_or(0, |len| len / cluster);
        if table == 0
            || table_len == 0
            || clusters == 0
            || cluster > 64 * KIB
            || !root_len.is_multiple_of(sector)
        {
            return Err(damaged("the boot sector makes no sense"));
        }
        if clusters > CLUSTERS {
            return Err(Error::unsupported(
                "a FAT filesystem of more than 4 million clusters is not merged by files",
            ));
        }
        let width = match wide {
            true => Width::ThirtyTwo,
            false if clusters < SIXTEEN => Width::Twelve,
            false => Width::Sixteen,
        };
        // Bit 7: only one table counts.
        if wide && (u16_at(boot, 40) & 0x80 != 0 || u16_at(boot, 42) != 0) {
            return Err(Error::unsupported(
                "a FAT32 filesystem without a mirrored table is not merged by files",
            ));
        }
        if entries(width, table_len) < clusters + 2 {
            return Err(damaged("the table is too short"));
        }
        let info = Some(small(48)).filter(|number| wide && (1..small(14)).contains(number));
        Ok(Self {
            width,
            sector,
            cluster,
            clusters: u32::try_from(clusters).unwrap_or(u32::MAX),
            table,
            table_len,
            tables,
            root,
            root_len,
            root_cluster: if wide { u32_at(boot, 44) } else { 0 },
            data,
            info: info.map(|number| number * sector),
            serial,
            label: if wide { 71 } else { 43 },
        })
    }

    /// Where a cluster lies; its number is one of the table's.
    pub(super) fn at(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster - 2) * self.cluster
    }
}

fn entries(width: Width, len: u64) -> u64 {
    match width {
        Width::Twelve => len * 2 / 3,
        Width::Sixteen => len / 2,
        Width::ThirtyTwo => len / 4,
    }
}

pub(super) fn dirty() -> Error {
    Error::unsupported(
        "a FAT filesystem was not unmounted, so what is in it may be torn: start the guest and shut it down first",
    )
}
