//! What a resize without undo costs the host meanwhile, and gives back.

use super::{Changed, Resized};
use crate::disk::{Disk, Layer};
use crate::error::Result;
use crate::guestfs::Window;
use crate::guestfs::ext4::Ext4;
use crate::guestfs::free::{Free, survey};
use crate::ops::fold::{cost, tables};
use crate::store::{Name, Store};
use crate::units::{KIB, MIB, length};
use std::ops::Range;

/// What the programs that change a filesystem write anew as it was, besides what they move.
const TABLES: u64 = 16 * MIB;
/// Both copies of a partition table.
const PARTITION_TABLES: u64 = 64 * KIB;
/// Layers of the disk that are the clone's: the work's, and its own.
const OWN: usize = 2;

/// Bytes.
pub(super) struct Room {
    /// More or less.
    pub(super) needs_bytes: u64,
    /// At least; `None` when that cannot be said.
    pub(super) gives_back_bytes: Option<u64>,
}

/// What the work adds to the clone's own bytes.
#[derive(Default)]
struct Added {
    /// Content that is moved.
    moved: u64,
    /// All of it, at most.
    bytes: u64,
}

impl Room {
    /// Of a clone whose disk, under a layer with what the plan has done so far, is `disk`.
    pub(super) fn of(store: &Store, clone: &Name, disk: &Disk, planned: &Resized) -> Result<Self> {
        let kept = cost(disk, OWN, 0..planned.to.min(disk.size()))?;
        let held = store.layer_bytes(clone, None)?;
        let added = match &planned.changed {
            Some(changed) => added(changed, disk)?,
            None => Some(Added::default()),
        };
        let moved = added.as_ref().map_or(0, |added| added.moved);
        Ok(Self {
            // What is moved is written into the layer of the work first.
            needs_bytes: kept + 2 * (moved + TABLES),
            gives_back_bytes: added
                .map(|added| held.saturating_sub(kept + PARTITION_TABLES).saturating_sub(added.bytes)),
        })
    }
}

/// What is moved and what is written anew of a filesystem with another end; `None` when nobody can say.
fn added(changed: &Changed, disk: &Disk) -> Result<Option<Added>> {
    let start = changed.start.0;
    let filesystem = Ext4::open(Window::at(disk, changed.start, changed.from)?)?;
    if !filesystem.state().is_clean() {
        return Ok(None);
    }
    let (block, count) = (filesystem.superblock().block_size, filesystem.superblock().block_count);
    let (unit, left) = (unit(disk), changed.to / block);
    let Some(found) = filesystem.rewritten(left)? else { return Ok(None) };
    let place = |blocks: &Range<u64>| start + blocks.start * block..start + blocks.end * block;
    let moved = if left < count { in_use(disk, place(&(left..count)))? } else { 0 };
    let known = in_units(found.known.iter().map(place), unit);
    let moved_to = in_units(found.moved_to.iter().map(place), unit);
    // A run of blocks that are no whole units begins and ends in the middle of one.
    let (one, edges) = match start.is_multiple_of(unit) && block.is_multiple_of(unit) {
        true => (block, 0),
        false => (block.next_multiple_of(unit) + unit, 2 * unit * length(moved_to.len() + 1)),
    };
    let others = found.others.saturating_mul(one);
    let mut bytes = others.saturating_add(moved + edges + tables(known.iter().chain(&moved_to)));
    for range in known {
        bytes = bytes.saturating_add(not_own(disk, range)?);
    }
    Ok(Some(Added { moved, bytes }))
}

/// The unit in which the clone's layer stores.
fn unit(disk: &Disk) -> u64 {
    match disk.layers().get(OWN - 1) {
        Some(Layer::Qcow2(image)) => image.header().geometry.subcluster_size(),
        _ => 4 * KIB,
    }
}

/// The units that have something of a range, in order and apart.
fn in_units(ranges: impl Iterator<Item = Range<u64>>, unit: u64) -> Vec<Range<u64>> {
    let whole = |range: Range<u64>| range.start / unit * unit..range.end.next_multiple_of(unit);
    let mut all: Vec<Range<u64>> = ranges.map(whole).collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in all {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Bytes of a range that the clone does not store itself.
fn not_own(disk: &Disk, range: Range<u64>) -> Result<u64> {
    let end = range.end.min(disk.size());
    let mut bytes = 0;
    for run in disk.runs(range.start.min(end)..end) {
        let (range, extent) = run?;
        if !extent.data || extent.depth.is_none_or(|depth| depth >= OWN) {
            bytes += range.end - range.start;
        }
    }
    Ok(bytes)
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
