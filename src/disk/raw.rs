//! A raw file as a layer: its bytes are the disk's.

use crate::error::{Error, Kind, Result};
use crate::qcow2::{Piece, Reader, Source};
use crate::storage::{Latch, Storage};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{GuestOffset, HostOffset, KIB, MIB, index};
use std::fs::File;
use std::sync::Arc;

/// Reads of so many bytes ask the host for holes first: reading a hole takes as long as reading data, and fills the page
/// cache with zeros.
const WORTH_ASKING: u64 = 64 * KIB;

/// The part of the file that has one word of [`Stored`], over and over.
const SHARE: u64 = 16 * MIB;
/// What a word of [`Stored`] counts in.
const UNIT: u64 = WORTH_ASKING;
const WORDS: u64 = 64;

/// Runs that the host stores bytes for, as it said last: a large file has few, and asking for one takes three calls. A
/// run that is a hole by now is read as it is, so nothing that is kept can be wrong.
#[derive(Debug)]
struct Stored(Box<[AtomicU64]>);

impl Stored {
    fn word(&self, at: u64) -> &AtomicU64 {
        &self.0[index(at / SHARE % WORDS)]
    }

    /// Bytes from `at` on that are known to be stored.
    fn len_at(&self, at: u64) -> u64 {
        let word = self.word(at).load(Ordering::Relaxed);
        let (first, end) = (word >> 32, word & u64::from(u32::MAX));
        if first <= at / UNIT { (end * UNIT).saturating_sub(at) } else { 0 }
    }

    /// Keeps the whole units of a run.
    fn keep(&self, at: u64, len: u64) {
        let (first, end) = (at.div_ceil(UNIT), at.saturating_add(len) / UNIT);
        if let (Ok(first), Ok(end)) = (u32::try_from(first), u32::try_from(end)) {
            self.word(at).store(u64::from(first) << 32 | u64::from(end), Ordering::Relaxed);
        }
    }
}

/// A raw file.
#[derive(Debug)]
pub struct RawLayer {
    storage: Latch,
    size: u64,
    writable: bool,
    known: Stored,
}

impl RawLayer {
    /// A layer over `storage`, as long as the file is now.
    ///
    /// # Errors
    /// The host's.
    pub fn new(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        let size = storage.len().map_err(|e| Error::io("reading the length of a raw image", e))?;
        let known = Stored((0..WORDS).map(|_| AtomicU64::new(0)).collect());
        Ok(Self { storage: Latch::new(storage), size, writable, known })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file of the host, to share blocks with.
    pub(super) fn host_file(&self) -> Option<&File> {
        self.storage.host_file()
    }

    pub(super) fn read_to(&self, reader: &mut dyn Reader, mut at: GuestOffset, mut len: u64) -> Result<()> {
        while len >= WORTH_ASKING {
            let (run, data) = self.run(at)?;
            // Small pieces are read at once: asking for each would take longer.
            if run < WORTH_ASKING {
                break;
            }
            let run = run.min(len);
            reader.take(if data { self.stored(at, run) } else { Piece::Zeros(run) })?;
            (at, len) = (GuestOffset(at.0 + run), len - run);
        }
        if len > 0 { reader.take(self.stored(at, len)) } else { Ok(()) }
    }

    /// How many bytes from `at` on are alike, as far as that matters for a read, and whether they are stored.
    fn run(&self, at: GuestOffset) -> Result<(u64, bool)> {
        let known = self.known.len_at(at.0);
        if known >= WORTH_ASKING {
            return Ok((known, true));
        }
        let (len, source) = self.extent(at)?;
        let data = matches!(source, Source::Data(_));
        if data {
            self.known.keep(at.0, len);
        }
        Ok((len, data))
    }

    fn stored(&self, at: GuestOffset, len: u64) -> Piece<'_> {
        Piece::Stored { file: &self.storage, at: HostOffset(at.0), len, doing: "reading a raw image" }
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    fn writable(&self) -> Result<&Latch> {
        if self.writable {
            Ok(&self.storage)
        } else {
            Err(Error::new(Kind::ReadOnly, "the raw image is open for reading only"))
        }
    }

    pub(super) fn write(&self, data: &[u8], at: GuestOffset) -> Result<()> {
        self.writable()?.write_at(data, HostOffset(at.0)).map_err(|e| Error::io("writing a raw image", e))
    }

    pub(super) fn write_zeroes(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.writable()?.punch(HostOffset(at.0), len).map_err(|e| Error::io("punching a raw image", e))
    }

    pub(super) fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.storage.sync().map_err(|e| Error::io("syncing a raw image", e))
    }

    pub(super) fn extent(&self, at: GuestOffset) -> Result<(u64, Source)> {
        let run = self
            .storage
            .run_at(HostOffset(at.0))
            .map_err(|e| Error::io("asking for the holes of a raw image", e))?;
        let source =
            if run.data { Source::Data(HostOffset(at.0)) } else { Source::Zero { allocated: false } };
        Ok((run.len, source))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::Memory;
    use crate::units::length;

    /// What a reader was given: how many zeros, and how many bytes of the file.
    #[derive(Default)]
    struct Given {
        zeros: u64,
        stored: Vec<(u64, u64)>,
        bytes: Vec<u8>,
    }

    impl Reader for Given {
        fn take(&mut self, piece: Piece<'_>) -> Result<()> {
            let from = self.bytes.len();
            match piece {
                Piece::Zeros(len) => {
                    self.zeros += len;
                    self.bytes.resize(from + index(len), 0);
                }
                Piece::Stored { file, at, len, .. } => {
                    self.stored.push((at.0, len));
                    self.bytes.resize(from + index(len), 0);
                    file.read_at(&mut self.bytes[from..], at).unwrap();
                }
                Piece::Bytes(_) => unreachable!("a raw file has none"),
            }
            Ok(())
        }
    }

    fn given(layer: &RawLayer, at: u64, len: u64) -> Given {
        let mut given = Given::default();
        layer.read_to(&mut given, GuestOffset(at), len).unwrap();
        given
    }

    #[test]
    fn holes_are_not_read_unless_they_are_small() {
        let file = Arc::new(Memory::default());
        file.set_len(1024 * KIB).unwrap();
        file.write_at(&[7; 64 << 10], HostOffset(256 * KIB)).unwrap();
        (0..8).for_each(|n| file.write_at(&[8; 4096], HostOffset((512 + 8 * n) * KIB)).unwrap());
        let layer = RawLayer::new(file.clone(), false).unwrap();
        let all = given(&layer, 0, 1024 * KIB);
        assert_eq!(all.stored, [(256 * KIB, 64 * KIB), (512 * KIB, 512 * KIB)]);
        assert_eq!(all.zeros, 448 * KIB);
        for (at, len) in
            [(0, 1024), (1, 300), (255, 3), (250, 100), (300, 200), (500, 100), (512, 64), (1000, 24)]
        {
            let mut expected = vec![0; index(len * KIB)];
            file.read_at(&mut expected, HostOffset(at * KIB)).unwrap();
            let given = given(&layer, at * KIB, len * KIB);
            assert!(given.bytes == expected, "{len} KiB at {at}");
            assert_eq!(
                given.zeros + given.stored.iter().map(|(_, len)| len).sum::<u64>(),
                length(expected.len())
            );
        }
        // Not worth a question.
        assert_eq!(given(&layer, 0, 4096).stored, [(0, 4096)]);
    }

    #[test]
    fn a_run_that_is_known_is_not_asked_for_again_and_may_change() {
        let file = Arc::new(Memory::default());
        file.set_len(100 * SHARE).unwrap();
        let run = 70_000..70_000 + SHARE * 3 / 2;
        file.write_at(&vec![7; index(run.end - run.start)], HostOffset(run.start)).unwrap();
        let layer = RawLayer::new(file.clone(), false).unwrap();
        let known = |at: u64| layer.known.len_at(at);
        assert_eq!(known(2 * UNIT), 0, "nothing was asked");
        given(&layer, run.start, UNIT);
        let first = run.start.next_multiple_of(UNIT);
        // The host counts in pages, the layer in whole units.
        let end = run.end.next_multiple_of(4096) / UNIT * UNIT;
        assert_eq!((known(first), known(first + 5)), (end - first, end - first - 5));
        assert_eq!((known(first - 1), known(WORDS * SHARE)), (0, 0));
        file.punch(HostOffset(first), MIB).unwrap();
        let (seen, mut expected) = (given(&layer, first, 2 * SHARE), vec![9; index(2 * SHARE)]);
        file.read_at(&mut expected, HostOffset(first)).unwrap();
        assert!(seen.bytes == expected);
        assert_eq!(seen.stored[0], (first, end - first), "read as it is");
    }
}
