//! Verify: reads a base again and names what is damaged.

use super::Progress;
use super::scan::scan_damaged;
use crate::error::{Error, Kind, Result};
use crate::storage::forget_cached;
use crate::store::{BLOCK, Base, BaseRef, Seal, Store};
use crate::units::length;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;

/// A damaged part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedRange {
    /// First byte, a multiple of 64 KiB.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What reading a base again showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// `NAME@V`.
    pub base: String,
    /// Damaged ranges in order, neighbours merged.
    pub damaged: Vec<DamagedRange>,
    /// Whether the content is what was sealed.
    pub digest_ok: bool,
    /// Whether the file is untouched (length, inode, times).
    pub fingerprint_ok: bool,
    /// Whether the list of block sums is what was sealed; when it is not, `damaged` is empty.
    pub sums_ok: bool,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.digest_ok && self.fingerprint_ok && self.sums_ok && self.damaged.is_empty()
    }
}

/// Reads a base version again.
///
/// # Errors
/// `NotFound`, `Busy` (somebody writes to it), `Interrupted`, the host's. Damage is no error: it is in the report.
pub fn verify(store: &Store, base: &BaseRef, progress: &dyn Progress) -> Result<VerifyReport> {
    let seal = store.seal_of(base)?;
    let open = store.open_base_untrusted(base)?;
    for file in open.files() {
        // Only where that works does the reading tell something of the medium.
        let _ = File::open(file).and_then(|file| forget_cached(&file));
    }
    let place = format!("base {}@{}", seal.base.name, seal.base.version);
    let (found, unreadable) =
        scan_damaged(&open.disk, seal.base.size, progress).map_err(|error| error.at(&place))?;
    let damaged = match &seal.crcs {
        Some(sealed) => damaged(sealed, &found.crcs, &unreadable, seal.base.size),
        None => Vec::new(),
    };
    Ok(VerifyReport {
        base: format!("{}@{}", seal.base.name, seal.base.version),
        damaged,
        digest_ok: unreadable.is_empty()
            && found.digest == seal.base.digest
            && open.disk.size() == seal.base.size,
        fingerprint_ok: seal.untouched,
        sums_ok: seal.crcs.is_some(),
    })
}

/// Ranges whose sums differ or that cannot be read, neighbours merged.
fn damaged(sealed: &[u8], found: &[u8], unreadable: &BTreeSet<u64>, size: u64) -> Vec<DamagedRange> {
    let mut ranges: Vec<DamagedRange> = Vec::new();
    for (number, (was, is)) in sealed.chunks(4).zip(found.chunks(4)).enumerate() {
        let start = length(number) * BLOCK;
        if was == is && !unreadable.contains(&start) {
            continue;
        }
        let len = BLOCK.min(size - start);
        match ranges.last_mut() {
            Some(last) if last.start + last.length == start => last.length += len,
            _ => ranges.push(DamagedRange { start, length: len }),
        }
    }
    ranges
}

/// Accepts a base whose content is still right though its file was touched (copied, restored, moved).
///
/// # Errors
/// `Changed` when the content is not what was sealed; as [`verify()`].
pub fn reseal(store: &Store, base: &BaseRef, progress: &dyn Progress) -> Result<Base> {
    let Seal { base: found, .. } = store.seal_of(base)?;
    let exact = BaseRef::exact(found.name, found.version);
    // The fingerprint is taken before the reading: a change during or after it is not sealed in.
    let fingerprint = store.fingerprint_of(&exact)?;
    let report = verify(store, &exact, progress)?;
    if !report.digest_ok || !report.sums_ok {
        return Err(Error::new(
            Kind::Changed,
            format!(
                "base {} is damaged: its content is not what was sealed; put it back from a backup",
                report.base
            ),
        ));
    }
    store.reseal_base(&exact, &fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_named_as_one_range_and_the_last_block_is_short() {
        let sealed = [0; 20];
        let mut found = sealed;
        for block in [0, 1, 4] {
            found[block * 4 + 1] = 7;
        }
        let size = 4 * BLOCK + 512;
        let expected =
            [DamagedRange { start: 0, length: 2 * BLOCK }, DamagedRange { start: 4 * BLOCK, length: 512 }];
        assert_eq!(damaged(&sealed, &found, &BTreeSet::new(), size), expected);
        assert!(damaged(&sealed, &sealed, &BTreeSet::new(), size).is_empty());
    }
}
