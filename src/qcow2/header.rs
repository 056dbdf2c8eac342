//! The header: strict validation of everything that needs no other structure.

use super::extensions::{Extensions, parse_extensions};
use super::geometry::Geometry;
use super::layout::{AUTOCLEAR_LOG_SHIFT, AUTOCLEAR_RAW_DATA, MAGIC, RawHeader, incompatible};
use super::{BackingName, Identity};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{HostOffset, MIB, SECTOR, index, length};

/// Largest L1 table in bytes, as QEMU has it.
const MAX_L1: u64 = 32 * MIB;
/// Largest refcount table in bytes, as QEMU has it.
pub(super) const MAX_REFCOUNT_TABLE: u64 = 8 * MIB;
/// Largest virtual disk in bytes.
pub(super) const MAX_VIRTUAL_SIZE: u64 = 1 << 56;
/// Most internal snapshots, as QEMU has it.
const MAX_SNAPSHOTS: u32 = 65536;
const V2_HEADER: u64 = 72;
const V3_HEADER: u64 = 104;
const MAX_BACKING_NAME: u32 = 1023;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// A validated header.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Cluster sizes and the virtual size.
    pub geometry: Geometry,
    /// Backing file, as the header names it.
    pub backing: Option<BackingName>,
    /// The base, from the private extension.
    pub identity: Option<Identity>,
    /// How compressed clusters are packed.
    pub compression: Compression,
    /// Entries of L1.
    pub l1_entries: usize,
    /// First byte of L1.
    pub l1_offset: HostOffset,
    /// Log2 of the bits of a refcount.
    pub refcount_order: u32,
    /// First byte of the refcount table.
    pub refcount_table: HostOffset,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u64,
    /// Internal snapshots.
    pub snapshots: u32,
    /// First byte of the snapshot table.
    pub snapshots_offset: HostOffset,
    /// Incompatible feature bits.
    pub incompatible: u64,
    /// Autoclear feature bits.
    pub autoclear: u64,
    /// The bitmaps extension: how many, the directory's place and length.
    pub(super) bitmaps: Option<(u32, HostOffset, u64)>,
}

impl Header {
    /// What the file holds that is no part of the disk, and which command removes it.
    pub(crate) fn beside_the_disk(&self) -> Option<(&'static str, &'static str)> {
        match (self.snapshots, self.bitmaps) {
            (0, None) => None,
            (0, _) => Some(("bitmaps", "qemu-img bitmap --remove")),
            _ => Some(("internal snapshots", "qemu-img snapshot -d")),
        }
    }

    /// The number of the log that belongs to the image; 0 when none does.
    pub(super) fn log_nonce(&self) -> u32 {
        let [a, b, c, d, ..] = (self.autoclear >> AUTOCLEAR_LOG_SHIFT).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Reads and validates the header of the image in `storage`.
    ///
    /// # Errors
    /// `Corrupt` for what breaks the format, `Unsupported` for what is refused.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let file_len = storage.len().map_err(|e| Error::io("reading the image's length", e))?;
        if file_len < V2_HEADER {
            return Err(Error::corrupt(format!("the file has {file_len} bytes, too few for a qcow2 header")));
        }
        let mut bytes = [0; RawHeader::SIZE];
        storage.read_at(&mut bytes, HostOffset(0)).map_err(|e| Error::io("reading the header", e))?;
        let raw = normalised(RawHeader::decode(&bytes))?;
        let geometry = geometry(&raw)?;
        check_features(&raw, geometry.cluster_size())?;
        let mut first = vec![0; index(geometry.cluster_size().min(file_len))];
        storage.read_at(&mut first, HostOffset(0)).map_err(|e| Error::io("reading the first cluster", e))?;
        let file = backing_file(&raw, &first)?;
        let area_end = file.as_ref().map_or(length(first.len()), |(at, _)| *at);
        let area = first.get(index(u64::from(raw.header_length))..index(area_end)).unwrap_or(&[]);
        let extensions = parse_extensions(area, raw.autoclear_features)?;
        if extensions.encrypted {
            return Err(encrypted());
        }
        if extensions.external_data {
            return Err(external_data());
        }
        Self::build(&raw, geometry, file.map(|(_, name)| name), extensions, file_len)
    }

    fn build(
        raw: &RawHeader,
        geometry: Geometry,
        backing: Option<String>,
        extensions: Extensions,
        file_len: u64,
    ) -> Result<Self> {
        let needed = geometry.tables();
        let l1_bytes = u64::from(raw.l1_size) * 8;
        if l1_bytes > MAX_L1 || u64::from(raw.l1_size) < needed {
            return Err(Error::corrupt(format!(
                "the L1 table has {} entries; the virtual size needs {needed}, and the most is {}",
                raw.l1_size,
                MAX_L1 / 8
            )));
        }
        check_table("L1 table", raw.l1_table_offset, l1_bytes, geometry, file_len)?;
        let table_bytes = u64::from(raw.refcount_table_clusters) << geometry.cluster_bits;
        if table_bytes == 0 || table_bytes > MAX_REFCOUNT_TABLE {
            return Err(Error::corrupt(format!(
                "the refcount table has {table_bytes} bytes, not 1 to 8 MiB"
            )));
        }
        check_table("refcount table", raw.refcount_table_offset, table_bytes, geometry, file_len)?;
        if raw.snapshot_count > MAX_SNAPSHOTS {
            return Err(Error::corrupt(format!(
                "{} internal snapshots, more than 65536",
                raw.snapshot_count
            )));
        }
        check_table(
            "snapshot table",
            raw.snapshots_offset,
            u64::from(raw.snapshot_count),
            geometry,
            file_len,
        )?;
        Ok(Self {
            version: raw.version,
            geometry,
            backing: backing.map(|file| BackingName { file, format: extensions.backing_format }),
            identity: extensions.identity,
            compression: if raw.compression_type == 0 { Compression::Zlib } else { Compression::Zstd },
            l1_entries: index(u64::from(raw.l1_size)),
            l1_offset: HostOffset(raw.l1_table_offset),
            refcount_order: raw.refcount_order,
            refcount_table: HostOffset(raw.refcount_table_offset),
            refcount_table_clusters: u64::from(raw.refcount_table_clusters),
            snapshots: raw.snapshot_count,
            snapshots_offset: HostOffset(raw.snapshots_offset),
            incompatible: raw.incompatible_features,
            autoclear: raw.autoclear_features,
            bitmaps: extensions.bitmaps,
        })
    }
}

/// Gives a version 2 header the values that version 3 spells out, and checks magic, version and length.
fn normalised(mut raw: RawHeader) -> Result<RawHeader> {
    if raw.magic != MAGIC {
        return Err(Error::corrupt("the file does not start with the qcow2 magic"));
    }
    match raw.version {
        2 => {
            raw.incompatible_features = 0;
            raw.compatible_features = 0;
            raw.autoclear_features = 0;
            raw.refcount_order = 4;
            raw.header_length = 72;
            raw.compression_type = 0;
        }
        3 => {
            if u64::from(raw.header_length) < V3_HEADER || !raw.header_length.is_multiple_of(8) {
                return Err(Error::corrupt(format!(
                    "the header length {} is not a multiple of 8 from 104 on",
                    raw.header_length
                )));
            }
            if u64::from(raw.header_length) == V3_HEADER {
                raw.compression_type = 0;
            }
        }
        other => return Err(Error::unsupported(format!("qcow2 version {other}; only 2 and 3 are known"))),
    }
    Ok(raw)
}

fn geometry(raw: &RawHeader) -> Result<Geometry> {
    let extended = raw.incompatible_features & incompatible::EXTENDED_L2 != 0;
    let least = if extended { 14 } else { 9 };
    if !(least..=21).contains(&raw.cluster_bits) {
        return Err(Error::corrupt(format!(
            "cluster bits {} are not {least} to 21{}",
            raw.cluster_bits,
            if extended { " as extended L2 needs" } else { "" }
        )));
    }
    if raw.virtual_size > MAX_VIRTUAL_SIZE {
        return Err(Error::unsupported(format!(
            "a virtual size of {} bytes, more than 64 PiB",
            raw.virtual_size
        )));
    }
    if !raw.virtual_size.is_multiple_of(SECTOR) {
        return Err(Error::corrupt(format!(
            "a virtual size of {} bytes, no multiple of 512",
            raw.virtual_size
        )));
    }
    Ok(Geometry::new(raw.cluster_bits, extended, raw.virtual_size))
}

fn check_features(raw: &RawHeader, cluster_size: u64) -> Result<()> {
    let known = incompatible::DIRTY
        | incompatible::CORRUPT
        | incompatible::DATA_FILE
        | incompatible::COMPRESSION
        | incompatible::EXTENDED_L2;
    if raw.encryption_method != 0 {
        return Err(encrypted());
    }
    if raw.incompatible_features & incompatible::DATA_FILE != 0 {
        return Err(external_data());
    }
    if raw.autoclear_features & AUTOCLEAR_RAW_DATA != 0 {
        return Err(Error::corrupt(
            "the header says that an external data file is raw, and that there is none",
        ));
    }
    let unknown = raw.incompatible_features & !known;
    if unknown != 0 {
        return Err(Error::unsupported(format!(
            "the image has unknown incompatible features (bits {unknown:#x})"
        )));
    }
    if u64::from(raw.header_length) > cluster_size {
        return Err(Error::corrupt(format!(
            "a header of {} bytes, longer than a cluster",
            raw.header_length
        )));
    }
    if raw.refcount_order > 6 {
        return Err(Error::corrupt(format!("refcount order {}, more than 6", raw.refcount_order)));
    }
    let typed = raw.incompatible_features & incompatible::COMPRESSION != 0;
    match (raw.compression_type, typed) {
        (0, false) | (1, true) => Ok(()),
        (0 | 1, _) => Err(Error::corrupt("the compression type and its feature bit disagree")),
        (other, _) => {
            Err(Error::unsupported(format!("compression type {other}; only zlib and zstd are known")))
        }
    }
}

fn encrypted() -> Error {
    Error::unsupported("the image is encrypted; decrypt it first with `qemu-img convert`")
}

fn external_data() -> Error {
    Error::unsupported("the image keeps its data in another file; flatten it first with `qemu-img convert`")
}

/// The backing file's name and where it starts.
fn backing_file(raw: &RawHeader, first: &[u8]) -> Result<Option<(u64, String)>> {
    if raw.backing_file_offset == 0 {
        return Ok(None);
    }
    let (at, len) = (raw.backing_file_offset, raw.backing_file_size);
    if len == 0 || len > MAX_BACKING_NAME {
        return Err(Error::corrupt(format!(
            "a backing file name of {len} bytes, not 1 to {MAX_BACKING_NAME}"
        )));
    }
    let end = at.checked_add(u64::from(len)).filter(|end| *end <= length(first.len()));
    let Some(end) = end.filter(|_| at >= u64::from(raw.header_length)) else {
        return Err(Error::corrupt(
            "the backing file name does not lie in the first cluster, behind the header",
        ));
    };
    let name = std::str::from_utf8(&first[index(at)..index(end)])
        .map_err(|_| Error::corrupt("the backing file name is not UTF-8"))?;
    if name.chars().any(char::is_control) {
        return Err(Error::corrupt("the backing file name has control characters"));
    }
    Ok(Some((at, name.to_owned())))
}

/// A table lies on a cluster border, behind the header's cluster and inside the file.
fn check_table(what: &str, at: u64, bytes: u64, geometry: Geometry, file_len: u64) -> Result<()> {
    let end = at.checked_add(bytes);
    // A table of no bytes lies where the largest file could have it, as QEMU has it.
    if bytes == 0 && geometry.is_aligned(at) && i64::try_from(at).is_ok() {
        return Ok(());
    }
    if at == 0 || !geometry.is_aligned(at) || end.is_none_or(|end| end > file_len) {
        return Err(Error::corrupt(format!(
            "the {what} ({bytes} bytes at {at:#x}) does not lie on a cluster border inside the file of {file_len} bytes"
        )));
    }
    Ok(())
}
