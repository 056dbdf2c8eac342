//! The boot sector of an NTFS filesystem.

use super::damaged;
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, u16_at, u32_at, u64_at};
use crate::units::{GuestOffset, SECTOR, index};

/// How the filesystem is laid out.
#[derive(Debug)]
pub(super) struct Boot {
    /// Bytes in a cluster.
    pub(super) cluster: u64,
    pub(super) clusters: u64,
    /// The first cluster of the file table.
    pub(super) table: u64,
    /// Bytes in a record of it.
    pub(super) record: u64,
}

impl Boot {
    pub(super) fn read(bytes: &impl Bytes) -> Result<Self> {
        let mut raw = [0; index(SECTOR)];
        if bytes.size() < SECTOR {
            return Err(damaged("it is too short"));
        }
        bytes.read(&mut raw, GuestOffset(0))?;
        Self::parse(&raw, bytes.size())
            .ok_or_else(|| damaged("its boot sector contradicts itself or its partition"))
    }

    fn parse(raw: &[u8; index(SECTOR)], size: u64) -> Option<Self> {
        let sector = u64::from(u16_at(raw, 11));
        let per_cluster = match raw[13] {
            count @ 1..=128 => u64::from(count),
            // A power of two, negative.
            count @ 244..=255 => 1 << (256 - u32::from(count)),
            _ => return None,
        };
        let cluster = sector * per_cluster;
        let sectors = u64_at(raw, 40);
        let record = match raw[64] {
            count @ 1..=127 => u64::from(count) * cluster,
            count @ 225..=255 => 1 << (256 - u32::from(count)),
            _ => return None,
        };
        let clusters = sectors / per_cluster;
        let table = u64_at(raw, 48);
        let sound = &raw[3..11] == b"NTFS    "
            && raw.ends_with(&[0x55, 0xaa])
            && sector.is_power_of_two()
            && (512..=4096).contains(&sector)
            && per_cluster.is_power_of_two()
            && cluster <= 2 << 20
            // What a FAT has here is zero.
            && raw[14..21] == [0; 7]
            && u16_at(raw, 22) == 0
            && u32_at(raw, 32) == 0
            && sectors.checked_mul(sector).is_some_and(|bytes| bytes <= size)
            && clusters > 0
            && (1024..=4096).contains(&record)
            && record.is_power_of_two()
            && table > 0
            && table.checked_mul(cluster)?.checked_add(record)? <= clusters * cluster;
        sound.then_some(Self { cluster, clusters, table, record })
    }
}
