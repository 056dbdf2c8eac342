//! What a resize without undo costs the host meanwhile, and gives back.

use crate::disk::Disk;
use crate::error::Result;
use crate::guestfs::free::{Free, survey};
use crate::ops::fold::cost;
use crate::store::{Name, Store};
use crate::units::MIB;
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
    let mut bytes = 0;
    for run in disk.runs(range) {
        let (Range { start, end }, extent) = run?;
        if extent.data {
            let first = free.partition_point(|free| free.end <= start);
            let within = free[first..].iter().take_while(|free| free.start < end);
            let of_it: u64 = within.map(|free| free.end.min(end) - free.start.max(start)).sum();
            bytes += end - start - of_it;
        }
    }
    Ok(bytes)
}
