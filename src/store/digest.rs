//! The identity of a disk's content, and the sums of its blocks.

use crate::error::{Error, Result};
use crate::units::index;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// Bytes of one block: the grain of digests and of CRCs.
pub const BLOCK: u64 = 64 << 10;

/// Identity of a disk's content: the BLAKE3 of its length (u64, little endian) followed by the BLAKE3 of each 64 KiB
/// block in order, the last one short. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("a digest must be 64 lower-case hexadecimal digits");
        if text.len() != 64 || text.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The sums of one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSum {
    hash: [u8; 32],
    crc: u32,
    /// Whether the block could be read; if not, these are the sums of zeros.
    pub(crate) readable: bool,
}

impl BlockSum {
    /// The sums of `block`, at most [`BLOCK`] bytes.
    pub(crate) fn of(block: &[u8]) -> Self {
        Self { hash: blake3::hash(block).into(), crc: crc32fast::hash(block), readable: true }
    }

    /// The sums of a whole block of zeros: a hole costs no reading and no hashing.
    pub(crate) fn zeros() -> Self {
        static ZEROS: LazyLock<BlockSum> = LazyLock::new(|| BlockSum::of(&vec![0; index(BLOCK)]));
        *ZEROS
    }

    /// Whether it is that of a whole block of zeros.
    pub(crate) fn is_zeros(&self) -> bool {
        self.hash == Self::zeros().hash
    }

    /// Its entry in `blocks.crc`.
    pub(crate) fn crc(&self) -> [u8; 4] {
        self.crc.to_le_bytes()
    }
}

/// Takes the sums of a disk's blocks in order.
#[derive(Debug)]
pub(crate) struct ContentSums {
    identity: Pieces,
    crcs: Pieces,
}

/// A digest of many small things: they are hashed in pieces, which is many times quicker than one by one.
#[derive(Debug)]
struct Pieces {
    hasher: blake3::Hasher,
    piece: Vec<u8>,
}

impl Pieces {
    const BYTES: usize = 64 << 10;

    fn new() -> Self {
        Self { hasher: blake3::Hasher::new(), piece: Vec::with_capacity(Self::BYTES) }
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.piece.len() + bytes.len() > Self::BYTES {
            self.hasher.update(&self.piece);
            self.piece.clear();
        }
        self.piece.extend_from_slice(bytes);
    }

    fn finish(mut self) -> Digest {
        Digest(self.hasher.update(&self.piece).finalize().into())
    }
}

/// The sums of a whole disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// Identity of the content.
    pub(crate) digest: Digest,
    /// What `base.json` says of `blocks.crc`, the CRC-32 of each block.
    pub(crate) crc_digest: Digest,
}

impl ContentSums {
    /// For a disk of `len` bytes.
    pub(crate) fn new(len: u64) -> Self {
        let mut identity = Pieces::new();
        identity.push(&len.to_le_bytes());
        Self { identity, crcs: Pieces::new() }
    }

    /// The next block.
    pub(crate) fn push(&mut self, sum: &BlockSum) {
        self.identity.push(&sum.hash);
        self.crcs.push(&sum.crc());
    }

    /// All blocks were pushed.
    pub(crate) fn finish(self) -> Sums {
        Sums { digest: self.identity.finish(), crc_digest: self.crcs.finish() }
    }
}
