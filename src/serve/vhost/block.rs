//! What a virtio block device is (virtio 1.2, 5.2): its features, its configuration, its requests.

use crate::units::{MIB, SECTOR, index};

/// Features of every virtio device.
pub mod feature {
    /// Requests may use a table of descriptors of their own.
    pub const INDIRECT: u64 = 1 << 28;
    /// Both sides tell by index when they want to be woken.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// There are vhost-user protocol features.
    pub const PROTOCOL: u64 = 1 << 30;
    /// Virtio 1.
    pub const VERSION_1: u64 = 1 << 32;

    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk cannot be written.
    pub const READ_ONLY: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLOCK_SIZE: u64 = 1 << 6;
    /// There is a cache to flush.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// There are several queues.
    pub const QUEUES: u64 = 1 << 12;
    /// Discard works.
    pub const DISCARD: u64 = 1 << 13;
    /// Writing zeros works.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Most buffers with data of one request.
const SEGMENTS: u32 = 254;
/// Most ranges of one discard or write-zeroes request.
pub const RANGES: u32 = 64;
/// Most bytes of one such range, and of the data of any request: who waits for the end of a request waits a bounded time.
pub const RANGE_MAX: u64 = 1024 * MIB;
/// What the engine frees at once, in bytes: a subcluster.
const GRAIN: u64 = 4096;
/// Bytes of the configuration, up to and with the limits of write-zeroes.
pub const CONFIG: usize = 60;
/// Bytes of the name that the device gives itself.
pub const ID: usize = 20;

/// The features of a disk.
#[must_use]
pub fn features(read_only: bool) -> u64 {
    let common = feature::VERSION_1 | feature::PROTOCOL | feature::INDIRECT | feature::EVENT_INDEX;
    let disk = feature::SEG_MAX | feature::BLOCK_SIZE | feature::TOPOLOGY | feature::QUEUES | feature::FLUSH;
    let write = if read_only { feature::READ_ONLY } else { feature::DISCARD | feature::WRITE_ZEROES };
    common | disk | write
}

/// The configuration of a disk of `size` bytes with `queues` queues.
#[must_use]
pub fn config(size: u64, queues: u16, read_only: bool) -> [u8; CONFIG] {
    let mut config = [0; CONFIG];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    // A last part of a sector is not served.
    put(0, &(size / SECTOR).to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &word(SECTOR));
    // A physical block is eight logical ones; the smallest and the best request have that size.
    put(24, &[3, 0, 8, 0]);
    put(28, &word(8));
    // Writes are cached until they are flushed.
    put(32, &[1]);
    put(34, &queues.to_le_bytes());
    if !read_only {
        put(36, &word(RANGE_MAX / SECTOR));
        put(40, &RANGES.to_le_bytes());
        put(44, &word(GRAIN / SECTOR));
        put(48, &word(RANGE_MAX / SECTOR));
        put(52, &RANGES.to_le_bytes());
        // Writing zeros frees what they cover.
        put(56, &[1]);
    }
    config
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the disk.
    Read,
    /// New bytes for the disk.
    Write,
    /// What was written is to be durable.
    Flush,
    /// The device's name.
    Id,
    /// Ranges are not needed.
    Discard,
    /// Ranges are to read as zeros.
    WriteZeroes,
    /// Something that this device does not know.
    Unknown,
}

/// Bytes of a request's header.
pub const HEADER: usize = 16;

/// The start of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked for.
    pub kind: Kind,
    /// Where on the disk.
    pub sector: u64,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: [u8; HEADER]) -> Self {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
        let kind = match u32::from_le_bytes([k0, k1, k2, k3]) {
            0 => Kind::Read,
            1 => Kind::Write,
            4 => Kind::Flush,
            8 => Kind::Id,
            11 => Kind::Discard,
            13 => Kind::WriteZeroes,
            _ => Kind::Unknown,
        };
        Self { kind, sector: u64::from_le_bytes(sector) }
    }
}

/// Bytes of a range in a discard or write-zeroes request.
pub const RANGE: usize = 16;

/// A range of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Length in bytes.
    pub len: u64,
    /// Flag bits.
    pub flags: u32,
}

impl Range {
    /// Reads a range.
    #[must_use]
    pub fn parse(bytes: [u8; RANGE]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, l0, l1, l2, l3, flags @ ..] = bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            len: u64::from(u32::from_le_bytes([l0, l1, l2, l3])) * SECTOR,
            flags: u32::from_le_bytes(flags),
        }
    }
}

/// Zeros may be written by giving space back.
pub const MAY_UNMAP: u32 = 1;

/// How a request ended, as the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Well.
    Ok,
    /// It failed.
    Failed,
    /// It is not known here.
    Unsupported,
}

impl Status {
    /// The byte that says so.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Unsupported => 2,
        }
    }
}

/// The name of a device, cut and padded to its place.
#[must_use]
pub fn id(name: &str) -> [u8; ID] {
    let mut id = [0; ID];
    for (to, from) in id.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    id
}

/// Most bytes of data that are copied at once: small enough to stay in the processor's cache.
pub const PIECE: usize = index(128 << 10);
