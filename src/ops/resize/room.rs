//! What a resize without undo costs the host meanwhile, and gives back.

use crate::disk::Disk;
use crate::error::Result;
use crate::guestfs::free::{Free, survey};
use crate::ops::fold::cost;
use crate::store::{Name, Store};
use crate::units::{GuestOffset, MIB};
use std::ops::Range;

/// What the programs that change a filesystem write besides what they move.
const TABLES: u64 = 16 * MIB;

/// Estimated bytes.
pub(super) struct Room {
    pub(super) needs_bytes: u64,
    pub(super) gives_back_bytes: u64,
}

impl Room {
    /// Of a clone whose disk, under an empty layer, is `disk` and gets `to` bytes.
    pub(super) fn of(store: &Store, clone: &Name, disk: &Disk, to: u64) -> Result<Self> {
        let moved = if to < disk.size() { in_use(disk, to..disk.size())? } else { 0 };
        let kept = cost(disk, 2, 0..to.min(disk.size()))?;
        let held = store.layer_bytes(clone, None)?;
        // What is moved is written into the layer of the work first.
        let needs_bytes = kept + 2 * (moved + TABLES);
        Ok(Self { needs_bytes, gives_back_bytes: held.saturating_sub(kept + moved) })
    }
}

/// Bytes of a range that are stored somewhere, and that the guest may need.
fn in_use(disk: &Disk, range: Range<u64>) -> Result<u64> {
    let mut free = Vec::new();
    for area in survey(disk)? {
        if let Free::Known(ranges) = area.free {
            free.extend(ranges);
        }
    }
    let Range { start: mut at, end } = range;
    let mut bytes = 0;
    while at < end {
        let extent = disk.extent(GuestOffset(at))?;
        let to = at + extent.len.clamp(1, end - at);
        if extent.data {
            let first = free.partition_point(|free| free.end <= at);
            let within = free[first..].iter().take_while(|free| free.start < to);
            let of_it: u64 = within.map(|free| free.end.min(to) - free.start.max(at)).sum();
            bytes += to - at - of_it;
        }
        at = to;
    }
    Ok(bytes)
}
