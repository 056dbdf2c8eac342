//! The byte tables of the format, written once. `docs/on-disk.md` shows the same tables; a test compares the two.
//!
//! Source: the qcow2 specification that QEMU keeps in `docs/interop/qcow2.rst`. All numbers are big-endian.

use crate::units::{HostOffset, length};

/// A number or byte string with a fixed place in a file.
pub(super) trait OnDisk: Sized {
    const SIZE: usize;
    fn get(bytes: &[u8]) -> Self;
    fn put(&self, bytes: &mut [u8]);
}

macro_rules! numbers {
    ($($ty:ty),*) => {$(
        impl OnDisk for $ty {
            const SIZE: usize = size_of::<$ty>();
            fn get(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(&bytes[..Self::SIZE]);
                Self::from_be_bytes(raw)
            }
            fn put(&self, bytes: &mut [u8]) {
                bytes[..Self::SIZE].copy_from_slice(&self.to_be_bytes());
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64);

impl<const N: usize> OnDisk for [u8; N] {
    const SIZE: usize = N;
    fn get(bytes: &[u8]) -> Self {
        let mut raw = [0; N];
        raw.copy_from_slice(&bytes[..N]);
        raw
    }
    fn put(&self, bytes: &mut [u8]) {
        bytes[..N].copy_from_slice(self);
    }
}

/// One row of a byte table: field, first byte, length in bytes.
pub type Row = (&'static str, usize, usize);

macro_rules! on_disk {
    ($(#[$doc:meta])* $name:ident [$size:literal] { $($(#[$field_doc:meta])* $field:ident: $ty:ty = $at:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(super) struct $name { $($(#[$field_doc])* pub(super) $field: $ty),* }

        impl $name {
            /// Length in bytes.
            pub(super) const SIZE: usize = $size;
            /// The byte table.
            pub(super) const ROWS: &'static [Row] = &[$((stringify!($field), $at, <$ty as OnDisk>::SIZE)),*];

            /// Reads the fields; `bytes` holds at least [`Self::SIZE`] bytes.
            pub(super) fn decode(bytes: &[u8]) -> Self {
                Self { $($field: <$ty as OnDisk>::get(&bytes[$at..])),* }
            }

            /// Writes the fields.
            #[allow(dead_code, reason = "some structures are only read")]
            pub(super) fn encode(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                $(self.$field.put(&mut bytes[$at..]);)*
                bytes
            }
        }

        const _: () = {
            let mut end = 0;
            let mut row = 0;
            while row < $name::ROWS.len() {
                assert!($name::ROWS[row].1 == end, "a gap or an overlap in a byte table");
                end += $name::ROWS[row].2;
                row += 1;
            }
            assert!(end == $size, "a byte table does not fill its size");
        };
    };
}

on_disk! {
    /// The header of version 3. Version 2 ends before `incompatible_features`.
    RawHeader [112] {
        magic: u32 = 0,
        version: u32 = 4,
        backing_file_offset: u64 = 8,
        backing_file_size: u32 = 16,
        cluster_bits: u32 = 20,
        virtual_size: u64 = 24,
        encryption_method: u32 = 32,
        l1_size: u32 = 36,
        l1_table_offset: u64 = 40,
        refcount_table_offset: u64 = 48,
        refcount_table_clusters: u32 = 56,
        snapshot_count: u32 = 60,
        snapshots_offset: u64 = 64,
        incompatible_features: u64 = 72,
        compatible_features: u64 = 80,
        autoclear_features: u64 = 88,
        refcount_order: u32 = 96,
        header_length: u32 = 100,
        compression_type: u8 = 104,
        padding: [u8; 7] = 105,
    }
}

on_disk! {
    /// The head of a header extension; its data follow, padded to a multiple of 8 bytes.
    RawExtension [8] {
        kind: u32 = 0,
        length: u32 = 4,
    }
}

on_disk! {
    /// The fixed part of the private extension that names a clone's base; the base's name follows.
    RawIdentity [44] {
        format: u32 = 0,
        base_version: u32 = 4,
        digest: [u8; 32] = 8,
        name_length: u32 = 40,
    }
}

on_disk! {
    /// The fixed part of an entry of the snapshot table; extra data, id and name follow, padded to 8 bytes.
    RawSnapshot [40] {
        l1_table_offset: u64 = 0,
        l1_size: u32 = 8,
        id_length: u16 = 12,
        name_length: u16 = 14,
        seconds: u32 = 16,
        nanoseconds: u32 = 20,
        vm_clock: u64 = 24,
        vm_state_size: u32 = 32,
        extra_length: u32 = 36,
    }
}

on_disk! {
    /// The bitmaps extension.
    RawBitmaps [24] {
        count: u32 = 0,
        reserved: u32 = 4,
        directory_size: u64 = 8,
        directory_offset: u64 = 16,
    }
}

on_disk! {
    /// The fixed part of an entry of the bitmap directory; extra data and name follow, padded to 8 bytes.
    RawBitmap [24] {
        table_offset: u64 = 0,
        table_size: u32 = 8,
        flags: u32 = 12,
        kind: u8 = 16,
        granularity_bits: u8 = 17,
        name_length: u16 = 18,
        extra_length: u32 = 20,
    }
}

on_disk! {
    /// The head of a log; its records begin at [`LOG_RECORDS`]. The sum covers the fields before it.
    RawLogHead [64] {
        magic: u64 = 0,
        session: [u8; 32] = 8,
        nonce: u32 = 40,
        sum: u32 = 44,
        first_number: u64 = 48,
        padding: u64 = 56,
    }
}

on_disk! {
    /// A change of an entry. The sum covers the fields before it.
    RawLogRecord [40] {
        number: u64 = 0,
        place: u64 = 8,
        word: u64 = 16,
        bitmap: u64 = 24,
        kind: u32 = 32,
        sum: u32 = 36,
    }
}

/// Where a field lies in a structure at a file's start. For constants only: an unknown field does not compile there.
const fn place_of(field: &str, rows: &[Row]) -> HostOffset {
    let mut row = 0;
    while row < rows.len() {
        if is_same(rows[row].0.as_bytes(), field.as_bytes()) {
            return HostOffset(length(rows[row].1));
        }
        row += 1;
    }
    panic!("there is no such field")
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// The place of the L1 table.
pub(super) const L1_TABLE_FIELD: HostOffset = place_of("l1_table_offset", RawHeader::ROWS);
/// The refcount table's place, and behind it its clusters: the 12 bytes that switch to another table.
pub(super) const REFCOUNT_TABLE_FIELD: HostOffset = place_of("refcount_table_offset", RawHeader::ROWS);
/// The size of the virtual disk.
pub(super) const SIZE_FIELD: HostOffset = place_of("virtual_size", RawHeader::ROWS);
/// The incompatible feature bits.
pub(super) const INCOMPATIBLE_FIELD: HostOffset = place_of("incompatible_features", RawHeader::ROWS);
/// The autoclear feature bits.
pub(super) const AUTOCLEAR_FIELD: HostOffset = place_of("autoclear_features", RawHeader::ROWS);

/// First eight bytes of a log: `COWSLOG` and its version.
pub const LOG_MAGIC: u64 = 0x434f_5753_4c4f_4701;
/// The number of the first record of a log that is still needed.
pub(super) const LOG_FIRST_FIELD: HostOffset = place_of("first_number", RawLogHead::ROWS);
/// Where the records of a log begin.
pub(super) const LOG_RECORDS: HostOffset = HostOffset(4096);

/// First four bytes of every image: `QFI` and 0xfb.
pub const MAGIC: u32 = 0x5146_49fb;

/// Header extensions that are known here.
pub mod extension {
    /// Ends the list.
    pub const END: u32 = 0;
    /// Format of the backing file.
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Names of feature bits.
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    /// Persistent bitmaps.
    pub const BITMAPS: u32 = 0x2385_2875;
    /// Full-disk encryption header.
    pub const ENCRYPTION: u32 = 0x0537_be77;
    /// Name of an external data file.
    pub const DATA_FILE: u32 = 0x4441_5441;
    /// Identity of a clone's base (private to cowshed): "COWS".
    pub const IDENTITY: u32 = 0x434f_5753;
}

/// Incompatible feature bits.
pub mod incompatible {
    /// Reference counts may be wrong (lazy refcounts).
    pub const DIRTY: u64 = 1;
    /// A program found damage.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data lie in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type field counts.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries have subcluster bitmaps.
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Autoclear feature bit: the bitmaps extension is consistent.
pub const AUTOCLEAR_BITMAPS: u64 = 1;
/// Autoclear feature bit: the external data file is raw.
pub const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;
/// Autoclear bits from this one on hold the number of the log that belongs to the image; 0 for none. A program that does
/// not know them clears them when it opens the image for writing, and the log is void from then on.
pub const AUTOCLEAR_LOG_SHIFT: u32 = 32;

/// Bit 63 of an L1 or L2 entry: reference count exactly one, so it may be written in place.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: the cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a plain L2 entry: the cluster reads as zeros.
pub const ZERO: u64 = 1;
/// Bits 9 to 55: a host offset.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Every byte table with its name, in the order of `docs/on-disk.md`.
#[must_use]
pub fn tables() -> Vec<(&'static str, usize, &'static [Row])> {
    vec![
        ("Header", RawHeader::SIZE, RawHeader::ROWS),
        ("Header extension", RawExtension::SIZE, RawExtension::ROWS),
        ("Identity extension", RawIdentity::SIZE, RawIdentity::ROWS),
        ("Snapshot table entry", RawSnapshot::SIZE, RawSnapshot::ROWS),
        ("Bitmaps extension", RawBitmaps::SIZE, RawBitmaps::ROWS),
        ("Bitmap directory entry", RawBitmap::SIZE, RawBitmap::ROWS),
        ("Log head", RawLogHead::SIZE, RawLogHead::ROWS),
        ("Log record", RawLogRecord::SIZE, RawLogRecord::ROWS),
    ]
}
