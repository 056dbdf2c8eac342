//! Records of the master file table: fixups, attributes, runs of clusters.

use super::damaged;
use crate::error::Result;
use crate::guestfs::partitions::{u16_at, u32_at, u64_at};
use crate::units::index;

/// Every so many bytes the last two are kept elsewhere, so that a torn write is seen.
const STRIDE: usize = 512;

pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
const END: u32 = 0xffff_ffff;

/// Puts the ends of the strides of a record back; false when they do not match.
pub(super) fn mend(record: &mut [u8]) -> bool {
    let (at, count) = (usize::from(u16_at(record, 4)), usize::from(u16_at(record, 6)));
    let strides = record.len() / STRIDE;
    if count != strides + 1 || !at.is_multiple_of(2) || at + count * 2 > STRIDE - 2 {
        return false;
    }
    let marks = record[at..at + count * 2].to_vec();
    record.chunks_exact_mut(STRIDE).zip(marks[2..].chunks_exact(2)).all(|(stride, kept)| {
        let matches = stride[STRIDE - 2..] == marks[..2];
        stride[STRIDE - 2..].copy_from_slice(kept);
        matches
    })
}

/// A record of the table.
pub(super) struct Record(Vec<u8>);

impl Record {
    /// The record in `bytes`; `None` when it is not in use.
    pub(super) fn parse(bytes: &[u8], number: u64) -> Result<Option<Self>> {
        // Behind what was ever used there may be zeros.
        if crate::zero::is_zero(bytes) {
            return Ok(None);
        }
        let mut record = bytes.to_vec();
        if !record.starts_with(b"FILE") || !mend(&mut record) {
            return Err(damaged(format_args!("file record {number} is torn")));
        }
        let (first, used) = (usize::from(u16_at(&record, 20)), index(u64::from(u32_at(&record, 24))));
        if first < 42 || !first.is_multiple_of(8) || used > record.len() || first + 4 > used {
            return Err(damaged(format_args!("file record {number} contradicts itself")));
        }
        let is_used = u16_at(&record, 22) & 1 != 0;
        record.truncate(used);
        Ok(is_used.then_some(Self(record)))
    }

    /// Its attributes; an error ends them.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Result<Attribute<'_>>> {
        let mut at = Some(usize::from(u16_at(&self.0, 20)));
        std::iter::from_fn(move || {
            let start = at.take()?;
            if self.0.len() < start + 4 {
                return Some(Err(damaged("a file record has no end")));
            }
            if u32_at(&self.0, start) == END {
                return None;
            }
            let len = index(u64::from(u32_at(&self.0, start + 4)));
            let whole = start.checked_add(len).and_then(|end| self.0.get(start..end));
            match whole.filter(|whole| whole.len() >= 24 && len.is_multiple_of(8)) {
                Some(whole) => {
                    at = Some(start + len);
                    Some(Ok(Attribute(whole)))
                }
                None => Some(Err(damaged("an attribute is longer than its record"))),
            }
        })
    }

    /// Its attribute of `kind` that has no name; none may be kept in other records.
    pub(super) fn only(&self, kind: u32) -> Result<Attribute<'_>> {
        let mut found = None;
        for attribute in self.attributes() {
            let attribute = attribute?;
            if attribute.kind() == ATTRIBUTE_LIST {
                return Err(damaged("one of its own files is in too many pieces to be read here"));
            }
            if attribute.kind() == kind && attribute.0[9] == 0 && found.replace(attribute).is_some() {
                return Err(damaged("one of its own files has an attribute twice"));
            }
        }
        found.ok_or_else(|| damaged("one of its own files lacks an attribute"))
    }
}

/// An attribute, all of its bytes: at least 24.
#[derive(Clone, Copy)]
pub(super) struct Attribute<'a>(&'a [u8]);

impl<'a> Attribute<'a> {
    pub(super) fn kind(self) -> u32 {
        u32_at(self.0, 0)
    }

    pub(super) fn is_nameless(self) -> bool {
        self.0[9] == 0
    }

    /// Whether its content is neither compressed, nor sparse, nor encrypted.
    pub(super) fn is_plain(self) -> bool {
        u16_at(self.0, 12) == 0
    }

    /// What stands in the record itself.
    pub(super) fn resident(self) -> Option<&'a [u8]> {
        let (len, at) = (index(u64::from(u32_at(self.0, 16))), usize::from(u16_at(self.0, 20)));
        self.0.get(at..at.checked_add(len)?).filter(|_| self.0[8] == 0)
    }

    /// Where its content lies, if that is not in the record.
    pub(super) fn runs(self, clusters: u64) -> Result<Option<Runs>> {
        match self.0[8] {
            0 => return Ok(None),
            1 if self.0.len() >= 64 => (),
            _ => return Err(damaged("an attribute is of no known form")),
        }
        let pairs = self.0.get(usize::from(u16_at(self.0, 32))..).unwrap_or_default();
        let first = u64_at(self.0, 16);
        let found =
            pieces(pairs, first, clusters).ok_or_else(|| damaged("the runs of a file break their format"))?;
        let next = found.last().map_or(first, |piece| piece.end());
        if u64_at(self.0, 24).wrapping_add(1) != next {
            return Err(damaged("the runs of a file are not as long as they say"));
        }
        Ok(Some(Runs { pieces: found, first, size: u64_at(self.0, 48), written: u64_at(self.0, 56) }))
    }
}

/// Clusters of an attribute.
pub(super) struct Runs {
    pub(super) pieces: Vec<Piece>,
    /// Its first cluster: not 0 when it goes on from another record.
    pub(super) first: u64,
    /// Bytes of the content, and how many of them were ever written; of the first record only.
    pub(super) size: u64,
    pub(super) written: u64,
}

/// Clusters that follow on each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Counted in the attribute.
    pub(super) virtual_start: u64,
    /// Counted in the filesystem; `None` for a hole.
    pub(super) start: Option<u64>,
    pub(super) len: u64,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.virtual_start + self.len
    }
}

/// Each run: a byte with the lengths of what follows, its number of clusters, and where it starts, counted from the
/// start of the one before.
fn pieces(mut pairs: &[u8], first: u64, clusters: u64) -> Option<Vec<Piece>> {
    let (mut found, mut next, mut place) = (Vec::new(), first, 0_i64);
    loop {
        let (head, rest) = pairs.split_first()?;
        if *head == 0 {
            return Some(found);
        }
        let (len, offset) = (usize::from(head & 0xf), usize::from(head >> 4));
        let (count, behind) = (number(rest.get(..len)?)?, rest.get(len..)?);
        let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
        let start = if offset == 0 {
            None
        } else {
            place = place.checked_add(number(behind.get(..offset)?)?)?;
            Some(
                u64::try_from(place)
                    .ok()
                    .filter(|start| start.checked_add(count).is_some_and(|end| end <= clusters))?,
            )
        };
        found.push(Piece { virtual_start: next, start, len: count });
        next = next.checked_add(count).filter(|next| *next < 1 << 60)?;
        pairs = behind.get(offset..)?;
    }
}

/// A number with a sign, of 1 to 8 bytes.
fn number(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last()? & 0x80 != 0;
    let mut whole = [if negative { 0xff } else { 0 }; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_with_their_signs_and_holes() {
        let bytes = [0x21, 0x18, 0x34, 0x56, 0x11, 0x03, 0xf0, 0x01, 0x07, 0x31, 0x01, 0, 0, 1, 0, 9];
        let found = pieces(&bytes, 5, 1 << 20).expect("good runs");
        let plain: Vec<_> = found.iter().map(|piece| (piece.virtual_start, piece.start, piece.len)).collect();
        assert_eq!(
            plain,
            [(5, Some(0x5634), 0x18), (29, Some(0x5624), 3), (32, None, 7), (39, Some(0x1_5624), 1)]
        );
    }

    #[test]
    fn runs_that_break_their_format_are_refused() {
        for bytes in [
            &[0x11, 1][..],
            &[],
            &[0x11, 1, 5],
            &[0x11, 0, 5, 0],
            &[0x11, 0xff, 5, 0],
            &[0x11, 1, 0x80, 0],
            &[0x11, 1, 100, 0],
            &[0x19, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
            &[0x01, 0],
            &[0x10, 1, 0],
        ] {
            assert!(pieces(bytes, 0, 100).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_torn_record_is_noticed() {
        let mut record = vec![1_u8; 1024];
        record[4..8].copy_from_slice(&[48, 0, 3, 0]);
        record[48..54].copy_from_slice(&[7, 0, 0xaa, 0xbb, 0xcc, 0xdd]);
        record[510..512].copy_from_slice(&[7, 0]);
        record[1022..].copy_from_slice(&[7, 0]);
        let mut whole = record.clone();
        assert!(mend(&mut whole));
        assert_eq!((&whole[510..512], &whole[1022..]), (&[0xaa, 0xbb][..], &[0xcc, 0xdd][..]));
        for at in [4, 6, 48, 49, 510, 511, 1022, 1023] {
            let mut torn = record.clone();
            torn[at] ^= 3;
            assert!(!mend(&mut torn), "{at}");
        }
    }
}
