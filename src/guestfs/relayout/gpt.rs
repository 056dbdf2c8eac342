//! A GUID partition table with its end moved to where another size has it (UEFI specification 2.10, chapter 5.3).

use super::mbr::Mbr;
use super::{Slot, Writes, slot};
use crate::error::{Error, Result};
use crate::guestfs::gpt::{Header, SECTOR_SIZES, header_crc, read_array, read_header};
use crate::guestfs::partitions::{Bytes, PartitionKind, u32_at, u64_at};
use crate::units::{GuestOffset, index, length};

const SIGNATURE: &[u8] = b"EFI PART";
/// Places of fields in a header.
const CRC: usize = 16;
const OWN: usize = 24;
const ALTERNATE: usize = 32;
const LAST_USABLE: usize = 48;
const ARRAY: usize = 72;
const ARRAY_CRC: usize = 88;
/// Places of fields in an entry.
const FIRST: usize = 32;
const LAST: usize = 40;

/// A table, as its first copy on the disk says.
#[derive(Clone, Debug)]
pub(crate) struct Gpt {
    guard: Mbr,
    header: Header,
    array: Vec<u8>,
    slots: Vec<Slot>,
}

impl Gpt {
    /// The table of `disk`, whose boot record is `guard`.
    ///
    /// # Errors
    /// `Unsupported` for a damaged one, and for one whose boot record has partitions of its own; the disk's.
    pub(super) fn read(disk: &dyn Bytes, guard: Mbr) -> Result<Self> {
        if !guard.slots().is_empty() {
            return Err(Error::unsupported(
                "it has a GPT and an MBR with partitions at once (a hybrid); make one table of them first",
            ));
        }
        for sector in SECTOR_SIZES {
            let Some(header) = read_header(disk, sector, 1)? else { continue };
            let array = read_array(disk, &header)?.filter(|_| header.array.0 >= 2 * sector);
            let array = array.ok_or_else(damaged)?;
            let mut slots = Vec::new();
            for (number, raw) in (1..).zip(array.chunks_exact(index(header.entry.into()))) {
                let kind: [u8; 16] = raw[..16].try_into().unwrap_or_default();
                if kind != [0; 16] {
                    let sectors = (u64_at(raw, FIRST), u64_at(raw, LAST));
                    slots.push(slot(number, PartitionKind::Gpt(kind), sector, sectors, false)?);
                }
            }
            return Ok(Self { guard, header, array, slots });
        }
        Err(damaged())
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn sector(&self) -> u64 {
        self.header.sector
    }

    /// Sectors that a copy of the entries takes.
    fn array_sectors(&self) -> u64 {
        length(self.array.len()).div_ceil(self.sector())
    }

    /// Bytes at the disk's end that the second copy takes.
    pub(super) fn reserve(&self) -> u64 {
        (self.array_sectors() + 1) * self.sector()
    }

    /// Both copies for a disk of `size` bytes, and zeros over the second copy where it was.
    pub(super) fn rewrite(&self, disk: &dyn Bytes, size: u64, change: Option<(u32, u64)>) -> Result<Writes> {
        let total = size / self.sector();
        let second = total.saturating_sub(1 + self.array_sectors());
        let first = self.header.array.0 / self.sector();
        if second <= first + self.array_sectors() {
            return Err(Error::invalid("the disk is too small for its partition table"));
        }
        let mut writes = self.wipe(disk, size)?;
        let array = self.array_with(change);
        let mut header = self.header.raw.clone();
        put(&mut header, ALTERNATE, total - 1);
        put(&mut header, LAST_USABLE, second - 1);
        header[ARRAY_CRC..ARRAY_CRC + 4].copy_from_slice(&crc32fast::hash(&array).to_le_bytes());
        let mut backup = header.clone();
        put(&mut backup, OWN, total - 1);
        put(&mut backup, ALTERNATE, 1);
        put(&mut backup, ARRAY, second);
        for header in [&mut header, &mut backup] {
            let sum = header_crc(&header[..index(u64::from(u32_at(header, 12)))]);
            header[CRC..CRC + 4].copy_from_slice(&sum.to_le_bytes());
        }
        let at = |lba: u64| GuestOffset(lba * self.sector());
        writes.extend([
            (at(second), array.clone()),
            (at(total - 1), backup),
            (at(first), array),
            (at(1), header),
        ]);
        writes.extend(self.guard.guarding(total));
        Ok(writes)
    }

    fn array_with(&self, change: Option<(u32, u64)>) -> Vec<u8> {
        let mut array = self.array.clone();
        if let Some((number, end)) = change {
            let place = (index(u64::from(number)) - 1) * index(self.header.entry.into());
            put(&mut array, place + LAST, end / self.sector() - 1);
        }
        array
    }

    /// Zeros for the second copy of the present table, as far as it lies in nobody's partition and before the new end.
    fn wipe(&self, disk: &dyn Bytes, size: u64) -> Result<Writes> {
        let sector = self.sector();
        let Some(at) = self.header.other.checked_mul(sector) else { return Ok(Vec::new()) };
        let Some(start) = at.checked_sub(self.reserve() - sector) else { return Ok(Vec::new()) };
        let end = at.saturating_add(sector);
        let taken =
            self.slots.iter().any(|slot| slot.partition.start.0 < end && start < slot.partition.end().0);
        if taken || at < 2 * sector || end > disk.size().min(size) {
            return Ok(Vec::new());
        }
        let mut header = vec![0; index(sector)];
        disk.read(&mut header, GuestOffset(at))?;
        match header.starts_with(SIGNATURE) {
            true => Ok(vec![(GuestOffset(start), vec![0; index(end - start)])]),
            false => Ok(Vec::new()),
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn damaged() -> Error {
    Error::unsupported("its GPT is damaged in its first copy; mend it first (sgdisk or gdisk do)")
}
