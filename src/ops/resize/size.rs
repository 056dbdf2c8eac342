//! The size that a disk shall have, as people say it.

use crate::error::{Error, Result};
use crate::store::DISK_MAX;
use crate::units::SECTOR;

/// A size of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many bytes more than it has.
    More(u64),
    /// So many bytes fewer than it has.
    Less(u64),
    /// As few as its content allows.
    Least,
}

impl Size {
    /// The size for a disk that has `from` bytes; `None` for the least one.
    pub(super) fn of(self, from: u64) -> Result<Option<u64>> {
        let bytes = match self {
            Self::Least => return Ok(None),
            Self::Bytes(bytes) => Some(bytes),
            Self::More(bytes) => from.checked_add(bytes),
            Self::Less(bytes) => from.checked_sub(bytes),
        };
        let bytes = bytes.filter(|bytes| (SECTOR..=DISK_MAX).contains(bytes) && bytes.is_multiple_of(SECTOR));
        bytes.map(Some).ok_or_else(|| {
            Error::invalid("the disk's new size is not a positive multiple of 512 bytes up to 16 TiB")
        })
    }
}

impl std::str::FromStr for Size {
    type Err = Error;

    /// Bytes, or a number with K, M, G or T; with `+` or `-` before it for more or less.
    fn from_str(text: &str) -> Result<Self> {
        let (make, rest): (fn(u64) -> Self, &str) = match text.strip_prefix(['+', '-']) {
            Some(rest) if text.starts_with('+') => (Self::More, rest),
            Some(rest) => (Self::Less, rest),
            None => (Self::Bytes, text),
        };
        let digits = rest.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match rest.get(digits.len()..) {
            Some("" | "B" | "b") => 0,
            Some("K" | "k" | "KiB") => 10,
            Some("M" | "m" | "MiB") => 20,
            Some("G" | "g" | "GiB") => 30,
            Some("T" | "t" | "TiB") => 40,
            _ => return Err(no_size()),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|_| is_number);
        number.and_then(|number| number.checked_mul(1 << shift)).map(make).ok_or_else(no_size)
    }
}

fn no_size() -> Error {
    Error::invalid("a size is a number of bytes, or one with K, M, G or T; +10G is more, -5G less")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let gib = 1 << 30;
        for (text, size) in [
            ("12G", Size::Bytes(12 * gib)),
            ("+10G", Size::More(10 * gib)),
            ("-5G", Size::Less(5 * gib)),
            ("512", Size::Bytes(512)),
            ("3MiB", Size::Bytes(3 << 20)),
            ("1t", Size::Bytes(1 << 40)),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), size, "{text}");
        }
        for text in ["", "G", "+", "--5G", "+-5", "1.5G", "5 G", "99999999999T", "5X", "0x10", "٣"] {
            text.parse::<Size>().unwrap_err();
        }
    }

    #[test]
    fn a_size_that_no_disk_can_have_is_refused() {
        let from = 1 << 30;
        assert_eq!(Size::Less(512).of(from).unwrap(), Some(from - 512));
        assert_eq!(Size::Least.of(from).unwrap(), None);
        for size in [
            Size::Bytes(0),
            Size::Bytes(513),
            Size::Less(from),
            Size::Less(from + 1),
            Size::More(u64::MAX),
            Size::Bytes(17 << 40),
        ] {
            size.of(from).unwrap_err();
        }
    }
}
