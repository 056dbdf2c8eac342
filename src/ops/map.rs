//! Map: where each byte of a disk comes from.

use crate::disk::{Disk, DiskExtent, Walk};
use crate::error::Result;
use crate::units::GuestOffset;
use serde::Serialize;
use std::path::PathBuf;

/// A run of the disk, in the words of `qemu-img map --output=json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapExtent {
    /// First byte of the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// The layer that decides, 0 for the top; the lowest one when none says anything.
    pub depth: usize,
    /// Whether any layer says anything.
    pub present: bool,
    /// Whether it reads as zeros because a layer says so, or none does.
    pub zero: bool,
    /// Whether bytes are stored.
    pub data: bool,
    /// Whether they are compressed.
    pub compressed: bool,
    /// Where in the layer's file, when stored as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The layer's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
}

/// All runs of a disk in order; see [`map`].
#[derive(Debug)]
pub struct Map<'a> {
    walk: Walk<'a>,
    files: &'a [PathBuf],
    at: u64,
    /// The run that was found after the last one given out.
    next: Option<DiskExtent>,
    failed: bool,
}

/// All runs of `disk` in order, neighbours of the same kind merged; the iteration ends after an error. `files` names
/// the layers, the top first; it may be empty.
#[must_use]
pub fn map<'a>(disk: &'a Disk, files: &'a [PathBuf]) -> Map<'a> {
    Map { walk: Walk::new(disk), files, at: 0, next: None, failed: false }
}

/// Whether `next` goes on where a run of `len` bytes that began like `first` ends.
fn continues(first: &DiskExtent, len: u64, next: &DiskExtent) -> bool {
    let host = match (first.host, next.host) {
        (Some(first), Some(next)) => first.0.checked_add(len) == Some(next.0),
        (None, None) => true,
        _ => false,
    };
    host && (first.data, first.depth, first.compressed) == (next.data, next.depth, next.compressed)
}

impl Map<'_> {
    fn extent(&mut self, at: u64) -> Result<DiskExtent> {
        let mut extent = self.walk.extent(GuestOffset(at))?;
        extent.len = extent.len.clamp(1, self.walk.disk().size() - at);
        if !extent.data {
            extent.host = None;
        }
        Ok(extent)
    }

    fn merged(&mut self) -> Result<MapExtent> {
        let start = self.at;
        let first = match self.next.take() {
            Some(extent) => extent,
            None => self.extent(start)?,
        };
        let mut len = first.len;
        while start + len < self.walk.disk().size() {
            let next = self.extent(start + len)?;
            if !continues(&first, len, &next) {
                self.next = Some(next);
                break;
            }
            len += next.len;
        }
        self.at = start + len;
        let depth = first.depth.unwrap_or(self.walk.disk().layers().len().saturating_sub(1));
        let file = if first.data { self.files.get(depth) } else { None };
        Ok(MapExtent {
            start,
            length: len,
            depth,
            present: first.depth.is_some(),
            zero: !first.data,
            data: first.data,
            compressed: first.compressed,
            offset: first.host.map(|host| host.0),
            filename: file.map(|file| file.display().to_string()),
        })
    }
}

impl Iterator for Map<'_> {
    type Item = Result<MapExtent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.at >= self.walk.disk().size() {
            return None;
        }
        let result = self.merged();
        self.failed = result.is_err();
        Some(result)
    }
}
