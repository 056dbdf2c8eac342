//! Swap space: all of it but its first page, unless the guest sleeps in it.
//!
//! Layout: `union swap_header` of the kernel; marks of sleep as uswsusp, the kernel and TuxOnIce write them.

use super::magic::has;
use super::ranges::Ranges;
use super::{Found, left};
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, u32_at};
use crate::guestfs::swap::{PAGES, SLEEPING};
use crate::units::{GuestOffset, index};

/// Where the header starts in the first page: what is before is left to boot loaders.
const HEADER: usize = 1024;

/// What is free of the swap space in `bytes`.
pub(super) fn free(bytes: &impl Bytes, mut ranges: Ranges) -> Result<Found> {
    let mut found = Vec::new();
    for page in PAGES {
        for mark in SLEEPING {
            if has(bytes, page - 10, mark)? {
                return Ok(Found::Asleep);
            }
        }
        if has(bytes, page - 10, b"SWAPSPACE2")? {
            found.push(page);
        }
    }
    let [page] = found[..] else { return left("its mark is of an old kind, or there several times") };
    let mut first = vec![0; index(page)];
    bytes.read(&mut first, GuestOffset(0))?;
    let (version, last, bad) =
        (u32_at(&first, HEADER), u32_at(&first, HEADER + 4), u32_at(&first, HEADER + 8));
    let room = (index(page) - 10 - 1536) / 4;
    let end = (u64::from(last) + 1) * page;
    if version != 1 || last == 0 || end > bytes.size() || index(u64::from(bad)) > room {
        return left("its header contradicts itself or its partition");
    }
    ranges.add(page, end);
    Ok(Found::Free(ranges.finish()))
}
