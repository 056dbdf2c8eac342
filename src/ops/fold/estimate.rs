//! What it costs to make one layer of several, told from their tables without reading what they hold.

use crate::disk::{Disk, Layer};
use crate::error::Result;
use crate::store::{Name, Store, refuse_more};
use crate::units::{KIB, MIB};
use serde::Serialize;
use std::ops::Range;

/// What 4 KiB of an L2 table map, with either kind of clusters that clones have.
const SLICE: u64 = 32 * MIB;
/// What is written of a table at once, and what the host counts in.
const BLOCK: u64 = 4 * KIB;
/// Header, L1, refcount table and the first refcount block of a new layer, and what the host notes of a long file.
const EMPTY: u64 = 64 * KIB;
/// What a block of refcounts counts of a file, with clusters of 64 KiB.
const COUNTED: u64 = 128 * MIB;

/// What the removal of a checkpoint gives and takes that one layer stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Foldable {
    /// What the host gets back at least.
    pub gives_back_bytes: u64,
    /// Room that it must have meanwhile, at most.
    pub needs_bytes: u64,
}

/// The costs of a fold of checkpoint `number` into the layer `into` that stands on it (`None`: the active one).
///
/// # Errors
/// As opening the clone gives; `Unsupported` when a layer holds internal snapshots or bitmaps.
pub fn foldable(store: &Store, clone: &Name, number: u32, into: Option<u32>) -> Result<Foldable> {
    let open = store.inspect_layer(clone, into)?;
    refuse_more(&open.disk, &[into, Some(number)]).map_err(|error| error.at(format!("clone {clone}")))?;
    let needs_bytes = cost(&open.disk, 2, 0..open.disk.size())?;
    let held = store.checkpoint_bytes_if_removed(clone, number)? + store.layer_bytes(clone, into)?;
    Ok(Foldable { gives_back_bytes: held.saturating_sub(needs_bytes), needs_bytes })
}

/// Bytes at most of a layer with what the `count` upper layers of `disk` hold of `range`. Bytes that are the same as below
/// are counted, for they are not read.
pub(in crate::ops) fn cost(disk: &Disk, count: usize, range: Range<u64>) -> Result<u64> {
    let unit = match disk.layers().first() {
        Some(Layer::Qcow2(image)) => image.header().geometry.subcluster_size(),
        _ => BLOCK,
    };
    // What is behind these is not counted yet: units of bytes, and pieces of tables.
    let (mut bytes, mut stored, mut pieces, mut mapped) = (0, 0, 0, 0);
    for run in disk.runs(range) {
        let (Range { start, end }, extent) = run?;
        // What is behind the end of a layer is zeros, which may have to hide something.
        if extent.depth.is_none_or(|depth| depth < count) {
            pieces += end.div_ceil(SLICE) - mapped.max(start / SLICE);
            mapped = end.div_ceil(SLICE);
            if extent.data {
                let up_to = end.next_multiple_of(unit);
                bytes += up_to - stored.max(start / unit * unit);
                stored = up_to;
            }
        }
    }
    Ok(EMPTY + bytes + (pieces + bytes / COUNTED) * BLOCK)
}

/// Bytes at most of the tables that map these ranges, in any order.
pub(in crate::ops) fn tables<'a>(ranges: impl Iterator<Item = &'a Range<u64>>) -> u64 {
    let mut slices: Vec<Range<u64>> =
        ranges.map(|range| range.start / SLICE..range.end.div_ceil(SLICE)).collect();
    slices.sort_unstable_by_key(|slices| slices.start);
    let (mut pieces, mut mapped) = (0, 0);
    for slice in slices {
        pieces += slice.end.saturating_sub(mapped.max(slice.start));
        mapped = mapped.max(slice.end);
    }
    pieces * BLOCK
}
