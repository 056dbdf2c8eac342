//! Whether the log of an NTFS filesystem was closed.

use super::damaged;
use super::record::mend;
use crate::error::Result;
use crate::guestfs::free::left;
use crate::guestfs::partitions::{u16_at, u32_at};

/// The log starts with two pages that say how it was left.
const PAGE: usize = 4096;
pub(super) const PAGES: usize = 2 * PAGE;
const NOBODY: u16 = 0xffff;
const CLEAN: u16 = 2;

/// Looks at the first two pages of the log.
pub(super) fn check(pages: &[u8]) -> Result<()> {
    // A log that was emptied.
    if pages.iter().all(|byte| *byte == 0xff) {
        return Ok(());
    }
    for page in pages.chunks_exact(PAGE) {
        let mut page = page.to_vec();
        let sound = page.starts_with(b"RSTR") && u32_at(&page, 16) == 4096 && mend(&mut page);
        if !sound {
            return Err(damaged("its log does not say how it was left"));
        }
        // A newer version is what a Windows writes that may go on where it was.
        if (u16_at(&page, 28), u16_at(&page, 26)) != (1, 1) {
            return left(
                "its Windows was not shut down whole; start it and shut it down first, without fast startup",
            );
        }
        let area = usize::from(u16_at(&page, 24));
        if area < 30 || area + 16 > PAGE {
            return Err(damaged("its log does not say how it was left"));
        }
        if u16_at(&page, area + 12) != NOBODY && u16_at(&page, area + 14) & CLEAN == 0 {
            return left("its log was not closed; start its guest and shut it down first");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(version: u8, users: u16, flags: u16) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..8].copy_from_slice(b"RSTR\x1e\0\x09\0");
        page[16..20].copy_from_slice(&4096_u32.to_le_bytes());
        page[24] = 0x30;
        (page[26], page[28]) = (version & 0xf, version >> 4);
        page[0x3c..0x3e].copy_from_slice(&users.to_le_bytes());
        page[0x3e..0x40].copy_from_slice(&flags.to_le_bytes());
        page
    }

    #[test]
    fn only_a_log_that_was_closed_or_emptied_is_taken() {
        let open = page(0x11, 0, 0);
        let closed = page(0x11, NOBODY, 0);
        let clean = page(0x11, 0, CLEAN);
        let newer = page(0x20, NOBODY, CLEAN);
        for (one, other, expected) in [
            (&closed, &closed, ""),
            (&clean, &closed, ""),
            (&open, &closed, "not closed"),
            (&closed, &open, "not closed"),
            (&newer, &newer, "fast startup"),
            (&closed, &vec![0; PAGE], "does not say"),
            (&vec![0xff; PAGE], &closed, "does not say"),
        ] {
            let said = check(&[one.clone(), other.clone()].concat()).err().map(|error| error.to_string());
            let said = said.unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        }
        assert!(check(&[0xff; PAGES]).is_ok());
        let mut torn = [closed.clone(), closed].concat();
        torn[511] = 1;
        assert!(check(&torn).is_err());
    }
}
