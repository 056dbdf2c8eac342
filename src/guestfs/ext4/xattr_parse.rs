//! The lists of extended attributes, in an inode or in a block of their own, before their values are looked for.

use super::acl::acl_to_xattr;
use crate::error::Result;
use crate::guestfs::partitions::{u16_at, u32_at};
use crate::units::index;

/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// Longest value that Linux shows, in bytes.
pub(super) const LONGEST: u64 = 64 << 10;

/// One entry of a list.
pub(super) struct Raw<'a> {
    prefix: u8,
    suffix: &'a [u8],
    hash: u32,
    pub(super) value: Value<'a>,
}

/// Where the value of an attribute is.
pub(super) enum Value<'a> {
    /// In the list itself; what fills its last word comes with it.
    Here { bytes: &'a [u8], padded: &'a [u8] },
    /// In an inode of its own.
    Inode { number: u32, len: u64 },
}

/// The entries of a list that starts at `start` of `area`; values are counted from `base`. `None` when the list
/// breaks the format: names and values lie inside of the area, values behind the last name.
pub(super) fn parse(area: &[u8], start: usize, base: usize) -> Option<Vec<Raw<'_>>> {
    let end = list_end(area, start)?;
    let (mut entries, mut at) = (Vec::new(), start);
    while at < end {
        let entry = area.get(at..end)?;
        let name_len = usize::from(*entry.first()?);
        let (number, len) = (u32_at(entry, 4), u64::from(u32_at(entry, 8)));
        let value = if number != 0 {
            Value::Inode { number, len: Some(len).filter(|len| *len <= LONGEST)? }
        } else {
            let from = if len == 0 { end } else { base + usize::from(u16_at(entry, 2)) };
            // An empty value is nowhere. Behind the last name stand four zero bytes.
            let len = if len <= LONGEST { index(len) } else { return None };
            if len > 0 && from < end + 4 {
                return None;
            }
            let padded = area.get(from..from + len.next_multiple_of(4))?;
            Value::Here { bytes: padded.get(..len)?, padded }
        };
        let suffix = entry.get(ENTRY..ENTRY + name_len)?;
        entries.push(Raw { prefix: entry[1], suffix, hash: u32_at(entry, 12), value });
        at += (ENTRY + name_len).next_multiple_of(4);
    }
    Some(entries)
}

/// Where the four zero bytes stand that end the list.
fn list_end(area: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let word = area.get(at..at + 4)?;
        if word == [0; 4] {
            return Some(at);
        }
        at += (ENTRY + usize::from(word[0])).next_multiple_of(4);
    }
}

impl Raw<'_> {
    /// Its whole name; `None` for one that Linux does not know.
    pub(super) fn name(&self) -> Option<Vec<u8>> {
        let (prefix, needs_suffix): (&[u8], bool) = match self.prefix {
            1 => (b"user.", true),
            2 => (b"system.posix_acl_access", false),
            3 => (b"system.posix_acl_default", false),
            4 => (b"trusted.", true),
            6 => (b"security.", true),
            7 => (b"system.", true),
            _ => return None,
        };
        let sound = self.suffix.is_empty() != needs_suffix && !self.suffix.contains(&0);
        sound.then(|| [prefix, self.suffix].concat())
    }

    /// Whether it is what an inode with inline data keeps there of its content.
    pub(super) fn is_inline_data(&self) -> bool {
        self.prefix == 7 && self.suffix == b"data"
    }

    /// `value` in the form that `getxattr` gives.
    pub(super) fn shown(&self, value: &[u8]) -> Result<Vec<u8>> {
        if matches!(self.prefix, 2 | 3) { acl_to_xattr(value) } else { Ok(value.to_vec()) }
    }

    /// Whether its hash is that of its name and of `words`. In an inode there may be none, and old kernels took the
    /// bytes of a name for signed numbers.
    pub(super) fn hash_matches(&self, words: &[u8], may_be_zero: bool) -> bool {
        let over = |signed: bool| {
            let name = self.suffix.iter().fold(0_u32, |hash, byte| {
                let byte =
                    if signed && *byte > 0x7f { u32::from(*byte) | 0xffff_ff00 } else { u32::from(*byte) };
                hash.rotate_left(5) ^ byte
            });
            words.chunks_exact(4).fold(name, |hash, word| hash.rotate_left(16) ^ u32_at(word, 0))
        };
        self.hash == 0 && may_be_zero || self.hash == over(false) || self.hash == over(true)
    }
}
