//! Bitmaps whose first bit is the lowest one of the first byte, and sets of numbers.

use crate::units::{index, length};

/// A bit for each number below some end.
#[derive(Clone, Debug)]
pub(super) struct Bits(Vec<u8>);

impl Bits {
    /// None of the numbers below `count` is in it.
    pub(super) fn new(count: u32) -> Self {
        Self(vec![0; index(u64::from(count).div_ceil(8))])
    }

    pub(super) fn has(&self, number: u32) -> bool {
        is_set(&self.0, number)
    }

    /// Puts a number in; whether it was not yet there.
    pub(super) fn set(&mut self, number: u32) -> bool {
        let Some(byte) = self.0.get_mut(index(u64::from(number / 8))) else { return false };
        let was_clear = *byte >> (number % 8) & 1 == 0;
        *byte |= 1 << (number % 8);
        was_clear
    }

    /// They as a bitmap.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Whether a bit is set; those behind the end are not.
pub(super) fn is_set(bitmap: &[u8], bit: u32) -> bool {
    bitmap.get(index(u64::from(bit / 8))).is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
}

/// The runs of clear bits below `end`, as first bit and the bit behind.
pub(super) fn clear_runs(bitmap: &[u8], end: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
    let end = u32::try_from(length(bitmap.len()) * 8).unwrap_or(u32::MAX).min(end);
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = next_bit(bitmap, at, end, false)?;
        at = next_bit(bitmap, first, end, true).unwrap_or(end);
        Some((first, at))
    })
}

/// The next bit that is `wanted` in `from..end`. What is behind the bitmap is neither set nor clear.
pub(super) fn next_bit(bitmap: &[u8], from: u32, end: u32, wanted: bool) -> Option<u32> {
    let end = u64::from(end).min(length(bitmap.len()) * 8);
    let mut at = u64::from(from);
    while at < end {
        let word = word(bitmap, at / 64);
        let rest = (if wanted { word } else { !word }) >> (at % 64);
        if rest != 0 {
            let bit = at + u64::from(rest.trailing_zeros());
            return u32::try_from(bit).ok().filter(|_| bit < end);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

/// 64 bits; zeros behind the end.
fn word(bitmap: &[u8], number: u64) -> u64 {
    let bytes = bitmap.get(index(number * 8)..).unwrap_or_default();
    match bytes.first_chunk::<8>() {
        Some(chunk) => u64::from_le_bytes(*chunk),
        None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_clear_bits_are_found_across_bytes() {
        let runs = |bytes: &[u8], end| clear_runs(bytes, end).collect::<Vec<_>>();
        assert_eq!(runs(&[0b1111_0001, 0xff, 0b0000_0011], 24), [(1, 4), (18, 24)]);
        assert_eq!(runs(&[0, 0, 0], 20), [(0, 20)]);
        assert_eq!(runs(&[0xff, 0xff], 16), []);
        assert_eq!(runs(&[0x7f, 0xfe], 16), [(7, 9)]);
        assert_eq!(runs(&[], 16), []);
        assert_eq!(runs(&[0; 3], 100), [(0, 24)]);
        assert_eq!(runs(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xfe], 72), [(63, 65)]);
    }

    #[test]
    fn a_number_is_in_a_set_from_when_it_was_put_there() {
        let mut bits = Bits::new(21);
        for number in [0, 7, 8, 20] {
            assert!(!bits.has(number) && bits.set(number));
            assert!(bits.has(number) && !bits.set(number), "{number}");
        }
        assert!(!bits.set(24) && !bits.has(24) && !bits.has(1));
        assert_eq!(bits.into_bytes(), [0x81, 1, 0x10]);
    }

    #[test]
    fn every_bit_is_told_as_it_is() {
        let bitmap: Vec<u8> = (0..37_u32).map(|byte| byte.wrapping_mul(151).to_le_bytes()[0]).collect();
        let is_set = |bit: u32| super::is_set(&bitmap, bit);
        for from in 0..37 * 8 {
            for wanted in [false, true] {
                let slow = (from..290).find(|bit| is_set(*bit) == wanted);
                assert_eq!(next_bit(&bitmap, from, 290, wanted), slow, "{from}");
            }
        }
    }
}
