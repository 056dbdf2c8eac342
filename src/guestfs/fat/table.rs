//! The table of clusters: what follows what.

use super::layout::{Layout, Width};
use super::{damaged, dirty};
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, index, length};

pub(super) const FREE: u32 = 0;
/// The entry of a file's last cluster, however wide entries are.
pub(super) const END: u32 = u32::MAX;
const BAD: u32 = u32::MAX - 1;

/// What follows each cluster; the entries of 0 and 1 are none.
#[derive(Clone, Debug)]
pub(super) struct Table {
    next: Vec<u32>,
    /// The bytes of the first copy.
    raw: Vec<u8>,
}

impl Table {
    pub(super) fn read(bytes: &dyn Bytes, layout: &Layout) -> Result<Self> {
        let mut raw = vec![0; needed(layout)];
        bytes.read(&mut raw, GuestOffset(layout.table))?;
        let mut copy = vec![0; raw.len()];
        for number in 1..layout.tables {
            bytes.read(&mut copy, GuestOffset(layout.table + number * layout.table_len))?;
            if copy != raw {
                return Err(damaged("its tables differ"));
            }
        }
        let clean = layout.width.clean();
        if layout.width.entry(&raw, 1, 0) & clean != clean {
            return Err(dirty());
        }
        let next = (0..layout.end).map(|cluster| entry(layout.width, &raw, cluster)).collect();
        Ok(Self { next, raw })
    }

    /// What follows a cluster.
    pub(super) fn next(&self, cluster: u32) -> Option<u32> {
        let next = self.next.get(cluster as usize)?;
        (cluster >= 2).then_some(*next)
    }

    /// Gives a cluster, one of the table's, another successor.
    pub(super) fn set(&mut self, cluster: u32, next: u32) {
        if let Some(entry) = self.next.get_mut(cluster as usize) {
            *entry = next;
        }
    }

    /// The free clusters.
    pub(super) fn free(&self) -> impl Iterator<Item = u32> + '_ {
        (2..).zip(self.next.iter().skip(2)).filter(|(_, next)| **next == FREE).map(|(cluster, _)| cluster)
    }

    /// The sectors of a copy that are not as they were: where in it, and their bytes.
    pub(super) fn changed(&self, layout: &Layout) -> Vec<(u64, Vec<u8>)> {
        let mut raw = self.raw.clone();
        for (cluster, next) in (0..).zip(&self.next).skip(2) {
            put(layout.width, &mut raw, cluster, *next);
        }
        let sector = index(layout.sector);
        let pairs = raw.chunks(sector).zip(self.raw.chunks(sector)).enumerate();
        pairs
            .filter(|(_, (new, old))| new != old)
            .map(|(number, (new, _))| (length(number * sector), new.to_vec()))
            .collect()
    }
}

/// Bytes of a table that hold entries, in whole sectors.
fn needed(layout: &Layout) -> usize {
    index(layout.width.bytes(layout.end).next_multiple_of(layout.sector).min(layout.table_len))
}

fn entry(width: Width, raw: &[u8], cluster: u32) -> u32 {
    let bad = width.most() - 8;
    match width.entry(raw, cluster, 0) {
        value if value == bad => BAD,
        value if value > bad => END,
        value => value,
    }
}

/// Writes an entry that was changed; others keep all their bits.
fn put(width: Width, raw: &mut [u8], cluster: u32, next: u32) {
    if entry(width, raw, cluster) == next {
        return;
    }
    let at = cluster as usize;
    let (place, len, new) = match width {
        Width::Twelve => {
            let place = at + at / 2;
            let (old, new) = (u32::from(u16_at(raw, place)), next & 0xfff);
            (place, 2, if at.is_multiple_of(2) { old & 0xf000 | new } else { old & 0xf | new << 4 })
        }
        Width::Sixteen => (at * 2, 2, next & 0xffff),
        Width::ThirtyTwo => (at * 4, 4, u32_at(raw, at * 4) & 0xf000_0000 | next & 0x0fff_ffff),
    };
    if let Some(field) = raw.get_mut(place..place + len) {
        field.copy_from_slice(&new.to_le_bytes()[..len]);
    }
}

/// Who has which cluster: each has one owner, or the filesystem is damaged.
#[derive(Debug)]
pub(super) struct Claims {
    taken: Vec<bool>,
}

impl Claims {
    pub(super) fn new(table: &Table) -> Self {
        Self { taken: vec![false; table.next.len()] }
    }

    /// The chain from `first` on, at most `most` clusters.
    pub(super) fn chain(&mut self, table: &Table, first: u32, most: u64) -> Result<Vec<u32>> {
        let (mut chain, mut here) = (Vec::new(), first);
        while here != END {
            let next = table.next(here).ok_or_else(|| damaged("a chain of clusters leads outside"))?;
            if next == FREE || next == BAD {
                return Err(damaged("a chain of clusters leads into free or bad ones"));
            }
            if std::mem::replace(&mut self.taken[here as usize], true) {
                return Err(damaged("a cluster belongs to two files"));
            }
            if length(chain.len()) >= most {
                return Err(damaged("a file has more clusters than bytes for them"));
            }
            chain.push(here);
            here = next;
        }
        Ok(chain)
    }

    /// That nothing is in use which nobody has.
    pub(super) fn check_rest(&self, table: &Table) -> Result<(), Error> {
        let lost = |(taken, next): (&bool, &u32)| !taken && *next != FREE && *next != BAD;
        if self.taken.iter().zip(&table.next).skip(2).any(lost) {
            return Err(damaged("clusters are in use that no file has"));
        }
        Ok(())
    }
}
