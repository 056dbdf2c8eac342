//! What is on a disk that gets another size: its table, and what lies last.

use crate::error::{Error, Result};
use crate::guestfs::partitions::Bytes;
use crate::guestfs::relayout::{Content, Slot, Table};
use crate::guestfs::{Partition, Window};

/// A disk's partitions, and what they hold.
pub(super) struct Layout {
    pub(super) table: Table,
    /// The slots in the order of the disk.
    slots: Vec<(Slot, Content)>,
}

impl Layout {
    /// Reads what is on `disk`.
    ///
    /// # Errors
    /// `Unsupported` for a table that cannot be changed, and while a guest hibernates; the disk's.
    pub(super) fn read(disk: &Window<&crate::disk::Disk>) -> Result<Self> {
        let table = Table::read(disk)?;
        let mut slots = Vec::new();
        for slot in table.slots(disk.size()) {
            slots.push((slot, Content::of(disk, &slot.partition)?));
        }
        slots.sort_by_key(|(slot, _)| slot.partition.start);
        if let Some((slot, content)) = slots.iter().find(|(_, content)| *content == Content::Hibernated) {
            return Err(Error::unsupported(format!(
                "{} holds {content}; start it and shut it down first",
                place(&slot.partition)
            )));
        }
        Ok(Self { table, slots })
    }

    /// What lies last on the disk.
    pub(super) fn last(&self) -> Option<(Slot, Content)> {
        self.slots.last().copied()
    }

    /// The byte behind the last partition but one.
    pub(super) fn others_end(&self) -> u64 {
        let others = self.slots.iter().rev().skip(1);
        others.map(|(slot, _)| slot.partition.end().0).max().unwrap_or(0)
    }

    /// Partitions that would lie behind the end of what has `room` bytes, by their names.
    pub(super) fn behind(&self, room: u64) -> String {
        let behind = self.slots.iter().filter(|(slot, _)| slot.partition.end().0 > room);
        behind.map(|(slot, content)| named(slot, *content)).collect::<Vec<_>>().join(", ")
    }

    /// Whether swap space would lie behind the end of what has `room` bytes.
    pub(super) fn has_swap_behind(&self, room: u64) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|(slot, content)| *content == Content::SWAP && slot.partition.end().0 > room)
    }

    /// Whether another reading of the disk has the same partitions, but for a new end of `change.0`.
    pub(super) fn is_same(&self, other: &Self, change: Option<(u32, u64)>) -> bool {
        let expected = self.slots.iter().map(|(slot, content)| {
            let mut slot = *slot;
            if let Some((number, end)) = change
                && number == slot.partition.number
            {
                slot.partition.len = end - slot.partition.start.0;
            }
            (slot, *content)
        });
        expected.eq(other.slots.iter().copied())
    }
}

/// A partition, or the disk as a whole, in words.
pub(super) fn place(partition: &Partition) -> String {
    match partition.number {
        0 => "its disk".to_owned(),
        number => format!("partition {number}"),
    }
}

/// The same with what it holds.
pub(super) fn named(slot: &Slot, content: Content) -> String {
    let place = place(&slot.partition);
    match slot.is_container {
        true => format!("{place} (extended, with logical ones in it)"),
        false => format!("{place} ({content})"),
    }
}
