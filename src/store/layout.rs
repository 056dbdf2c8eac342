//! Where things are in a store, and the backing names that follow from it.

use super::name::parse_version;
use super::types::DiskFormat;

pub(super) const STORE_FILE: &str = "cowshed.json";
pub(super) const BASES: &str = "bases";
pub(super) const CLONES: &str = "clones";
pub(super) const TMP: &str = "tmp";
pub(super) const BASE_FILE: &str = "base.json";
pub(super) const CRC_FILE: &str = "blocks.crc";
pub(super) const CLONE_FILE: &str = "clone.json";
pub(super) const CLONE_DISK: &str = "disk.qcow2";
pub(super) const CLONE_LOG: &str = "disk.log";
pub(super) const WAITING_FILE: &str = "rebase.json";
pub(super) const CANARY_FILE: &str = "canary.json";

/// A chain has at most this many layers, checkpoints and base versions included.
pub(super) const DEPTH_MAX: usize = 64;

/// A base's disk within its folder.
pub(super) fn base_disk(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "disk.raw",
        DiskFormat::Qcow2 => "disk.qcow2",
    }
}

/// A base's disk as a file two folders below the store's root names it: a clone's, or a staged layer.
pub(super) fn backing_of_clone(name: &str, version: u32, format: DiskFormat) -> String {
    format!("../../{BASES}/{name}/{version}/{}", base_disk(format))
}

/// An earlier version's disk as a later one names it.
pub(super) fn backing_of_base(parent: u32, format: DiskFormat) -> String {
    format!("../{parent}/{}", base_disk(format))
}

/// A checkpoint's file within its clone's folder, which is also how layers name it.
pub(super) fn checkpoint_disk(number: u32) -> String {
    format!("checkpoint-{number}.qcow2")
}

/// A checkpoint's manifest within its clone's folder.
pub(super) fn checkpoint_file(number: u32) -> String {
    format!("checkpoint-{number}.json")
}

/// The number in a name of [`checkpoint_disk`], in its one spelling.
pub(super) fn checkpoint_of_disk(file: &str) -> Option<u32> {
    parse_version(file.strip_prefix("checkpoint-")?.strip_suffix(".qcow2")?)
}

/// The number in a name of [`checkpoint_file`], in its one spelling.
pub(super) fn checkpoint_of_file(file: &str) -> Option<u32> {
    parse_version(file.strip_prefix("checkpoint-")?.strip_suffix(".json")?)
}
