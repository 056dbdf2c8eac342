//! One qcow2 image file.

mod allocator;
mod check;
mod commit;
mod compact;
mod compressed;
mod copy_up;
mod create;
mod entry;
mod extensions;
mod fresh;
mod geometry;
mod growth;
mod header;
mod holes;
mod image;
pub mod layout;
mod locks;
mod log;
mod metadata;
#[cfg(all(test, cowshed_model = "loom"))]
mod models;
mod movables;
mod pack;
mod publish;
mod read;
mod refcounts;
mod references;
mod relocate;
mod repair;
mod replay;
mod report;
mod resize;
mod snapshots;
mod table_uses;
mod tables;
mod uncover;
mod walk;
mod write;
mod written;
mod zero;

use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, index, length};

pub use check::check;
pub use compact::{Compacted, Ended, GoOn};
pub use create::create;
pub use geometry::Geometry;
pub use header::{Compression, Header};
pub use image::Image;
pub use log::LogPlace;
pub use pack::Packed;
pub use repair::repair;
pub use report::CheckReport;
pub use resize::shrink;
pub use write::Put;

/// How an image is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Whether the image may be changed.
    pub writable: bool,
    /// Bytes of L2 tables kept in memory.
    pub metadata_cache: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { writable: false, metadata_cache: 32 << 20 }
    }
}

/// What a new image is like.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the virtual disk in bytes, a multiple of 512.
    pub virtual_size: u64,
    /// Log2 of the cluster size: 9 to 21 (14 to 21 with extended L2).
    pub cluster_bits: u32,
    /// Whether each cluster is mapped by 32 subclusters.
    pub extended_l2: bool,
    /// Backing file name and format as the header gives them.
    pub backing: Option<BackingName>,
    /// The base that the image stands on.
    pub identity: Option<Identity>,
}

impl CreateOptions {
    /// A clone's geometry: 128 KiB clusters with 4 KiB subclusters.
    #[must_use]
    pub fn new(virtual_size: u64) -> Self {
        Self { virtual_size, cluster_bits: 17, extended_l2: true, backing: None, identity: None }
    }
}

/// A backing file as a header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// File name, relative to the image's folder unless absolute.
    pub file: String,
    /// `raw` or `qcow2`; `None` when the header leaves it to be guessed.
    pub format: Option<String>,
}

/// Which base a delta stands on: a private header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the base.
    pub name: String,
    /// Its version, from 1 on.
    pub version: u32,
    /// Digest of its content.
    pub digest: [u8; 32],
}

/// Bytes on their way from a disk to its reader.
#[derive(Debug)]
pub enum Piece<'a> {
    /// So many zeros.
    Zeros(u64),
    /// Bytes of a file.
    Stored {
        /// The file.
        file: &'a dyn Storage,
        /// Where they start.
        at: HostOffset,
        /// How many.
        len: u64,
        /// What is said when they cannot be read.
        doing: &'static str,
    },
    /// Bytes in memory.
    Bytes(&'a [u8]),
}

/// Whoever reads from a disk: takes the pieces of a range, in their order, while the disk keeps them where they are.
pub trait Reader {
    /// Takes the next piece.
    ///
    /// # Errors
    /// The host's, when it cannot be read; the reader's own.
    fn take(&mut self, piece: Piece<'_>) -> Result<()>;
}

/// A buffer, of which the part that is not filled is left.
impl Reader for &mut [u8] {
    fn take(&mut self, piece: Piece<'_>) -> Result<()> {
        let mut part = |len: u64| {
            let (now, later) = std::mem::take(self).split_at_mut(index(len));
            *self = later;
            now
        };
        match piece {
            Piece::Zeros(len) => part(len).fill(0),
            Piece::Stored { file, at, len, doing } => {
                file.read_at(part(len), at).map_err(|error| Error::io(doing, error))?;
            }
            Piece::Bytes(bytes) => part(length(bytes.len())).copy_from_slice(bytes),
        }
        Ok(())
    }
}

/// What is under an image: its backing chain.
pub trait Below: Sync {
    /// Gives `reader` the `len` bytes that the guest sees at `at` without this image; zeros past the end of the chain.
    ///
    /// # Errors
    /// Whatever reading the chain gives.
    fn read_to(&self, reader: &mut dyn Reader, at: GuestOffset, len: u64) -> Result<()>;
    /// Length of the disk below in bytes; past it zeros are read.
    fn size(&self) -> u64;
}

/// Nothing below: zeros.
#[derive(Debug)]
pub struct Nothing;

impl Below for Nothing {
    fn read_to(&self, reader: &mut dyn Reader, _: GuestOffset, len: u64) -> Result<()> {
        reader.take(Piece::Zeros(len))
    }
    fn size(&self) -> u64 {
        0
    }
}

/// Where the bytes of a run come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The image says nothing: what is below shows.
    Below,
    /// Zeros; `host` when a host cluster is kept allocated for it.
    Zero {
        /// Whether the image holds a host cluster for it.
        allocated: bool,
    },
    /// Bytes of the image file.
    Data(HostOffset),
    /// A compressed cluster.
    Compressed,
}

/// A run of the virtual disk that comes from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Where its bytes are.
    pub source: Source,
}
