//! Verify: reads a base again and names what is damaged.

use super::Progress;
use super::scan::scan_damaged;
use crate::error::{Error, Kind, Result};
use crate::storage::forget_cached;
use crate::store::{BLOCK, Base, BaseRef, Seal, Store};
use serde::Serialize;
use std::fs::File;
use std::io::{BufReader, Read};

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
    let sums_ok = seal.crcs.is_some();
    let mut sealed = seal.crcs.map(BufReader::new);
    let (mut damaged, mut readable) = (Damage::new(seal.base.size), true);
    let found = scan_damaged(&open.disk, seal.base.size, progress, &mut |sum| {
        readable &= sum.readable;
        if let Some(sealed) = &mut sealed {
            let mut was = [0; 4];
            sealed
                .read_exact(&mut was)
                .map_err(|error| Error::io("cannot read the sums of the blocks", error))?;
            damaged.next_block(!sum.readable || was != sum.crc());
        }
        Ok(())
    })
    .map_err(|error| error.at(&place))?;
    Ok(VerifyReport {
        base: format!("{}@{}", seal.base.name, seal.base.version),
        damaged: damaged.ranges,
        digest_ok: readable && found.digest == seal.base.digest && open.disk.size() == seal.base.size,
        fingerprint_ok: seal.untouched,
        sums_ok,
    })
}

/// Damaged ranges in the making: blocks come in order, neighbours are merged.
struct Damage {
    ranges: Vec<DamagedRange>,
    at: u64,
    size: u64,
}

impl Damage {
    fn new(size: u64) -> Self {
        Self { ranges: Vec::new(), at: 0, size }
    }

    fn next_block(&mut self, damaged: bool) {
        let (start, length) = (self.at, BLOCK.min(self.size - self.at));
        self.at += length;
        match self.ranges.last_mut() {
            _ if !damaged => {}
            Some(last) if last.start + last.length == start => last.length += length,
            _ => self.ranges.push(DamagedRange { start, length }),
        }
    }
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
        let mut found = Damage::new(4 * BLOCK + 512);
        [true, true, false, false, true].into_iter().for_each(|damaged| found.next_block(damaged));
        let expected =
            [DamagedRange { start: 0, length: 2 * BLOCK }, DamagedRange { start: 4 * BLOCK, length: 512 }];
        assert_eq!(found.ranges, expected);
    }
}
