//! Map: where each byte of a disk comes from.

use crate::disk::Disk;
use crate::error::Result;
use serde::Serialize;
use std::path::PathBuf;

/// A run of the disk, in the words of `qemu-img map --output=json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapExtent {
    /// First byte of the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// The layer that decides, 0 for the top.
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
    _disk: &'a Disk,
    _files: &'a [PathBuf],
}

/// All runs of `disk` in order, neighbours of the same kind merged. `files` names the layers, the top first; it may be
/// empty.
#[must_use]
pub fn map<'a>(disk: &'a Disk, files: &'a [PathBuf]) -> Map<'a> {
    Map { _disk: disk, _files: files }
}

impl Iterator for Map<'_> {
    type Item = Result<MapExtent>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}
