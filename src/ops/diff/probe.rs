//! The name of what lies in a place, by its mark.

use crate::error::Result;
use crate::guestfs::free::kinds;
use crate::guestfs::partitions::Bytes;
use crate::units::{GuestOffset, index};

/// What `place` holds; "unknown" when no mark says it.
pub(super) fn kind(place: &dyn Bytes) -> Result<&'static str> {
    if let Some(kind) = kinds(&place)?.first() {
        return Ok(kind);
    }
    let mut start = vec![0; index(place.size().min(4096))];
    place.read(&mut start, GuestOffset(0))?;
    Ok(if crate::zero::is_zero(&start) { "empty or unknown" } else { "unknown" })
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn a_place_is_called_by_its_mark_and_short_places_have_none() {
        for (at, mark, name) in [(0, &b"LUKS\xba\xbe"[..], "LUKS"), (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID")]
        {
            let mut bytes = vec![0; 70_000];
            bytes[at..][..mark.len()].copy_from_slice(mark);
            assert_eq!(kind(&bytes.clone()).ok(), Some(name));
            bytes.truncate(at + mark.len() - 1);
            assert_ne!(kind(&bytes).ok(), Some(name));
        }
        assert_eq!(kind(&vec![0_u8; 70_000]).ok(), Some("empty or unknown"));
        assert_eq!(kind(&vec![1_u8; 70_000]).ok(), Some("unknown"));
        assert_eq!(kind(&Vec::<u8>::new()).ok(), Some("empty or unknown"));
    }
}
