//! Writing: in place where the bytes have a home, by allocation where they have none.

use super::Below;
use super::copy_up::Piece;
use super::entry::{Mapping, Standard};
use super::image::{Image, Writer};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, index, length};
use std::io;
use std::ops::Range;

/// Writes the next so many of a caller's bytes at a place of a file.
pub type Put<'a> = &'a mut dyn FnMut(&dyn Storage, u64, HostOffset) -> io::Result<()>;

impl Image {
    /// Writes `data` at `at`; the range must lie inside the disk. What is not covered of a subcluster that had no
    /// bytes of its own is copied up from `below`.
    ///
    /// # Errors
    /// `Invalid` outside of the disk; `ReadOnly`; `NoSpace`, then the range holds old or new bytes; `Latched` after a
    /// failed sync; `Corrupt`; the host's.
    pub fn write(&self, mut data: &[u8], mut at: GuestOffset, below: &dyn Below) -> Result<()> {
        self.check_range(at, length(data.len()))?;
        let writer = self.writer()?;
        while !data.is_empty() {
            let in_place = |storage: &dyn Storage, run: Range<u64>, host| {
                storage.write_at(&data[index(run.start)..index(run.end)], host)
            };
            let mut done = self.write_in_place(writer, at, length(data.len()), in_place)?;
            if done == 0 {
                let geometry = self.rules.geometry;
                done = (geometry.cluster_size() - geometry.within_cluster(at)).min(length(data.len()));
                let exclusive = writer.locks.exclude(geometry.cluster_of(at), &geometry);
                self.write_cluster(writer, &exclusive, &Piece { data: &data[..index(done)], at, below })?;
            }
            data = &data[index(done)..];
            at = at + done;
        }
        self.settle(writer)
    }

    /// Has `put` write the first part of `len` bytes at `at` that has its own host bytes already, and returns its length.
    fn write_in_place(
        &self,
        writer: &Writer,
        at: GuestOffset,
        len: u64,
        mut put: impl FnMut(&dyn Storage, Range<u64>, HostOffset) -> io::Result<()>,
    ) -> Result<u64> {
        let len = writer.locks.batch(at, len);
        let _shared = writer.locks.share(at, len);
        let mut done = 0;
        while done < len {
            let Some((host, run)) = self.owned_run(at + done, len - done)? else { break };
            self.write_by(writer, |storage| put(storage, done..done + run, host))?;
            done += run;
        }
        Ok(done)
    }

    /// Has `put` write the first part of `len` bytes at `at` that has its own host bytes already, piece by piece, and returns its
    /// length. For who has bytes that cannot be borrowed; the rest is for [`Image::write`].
    ///
    /// # Errors
    /// As [`Image::write`]; those of `put`.
    pub fn write_owned(&self, at: GuestOffset, len: u64, put: Put<'_>) -> Result<u64> {
        self.check_range(at, len)?;
        self.write_in_place(self.writer()?, at, len, |storage, run, host| {
            put(storage, run.end - run.start, host)
        })
    }

    /// Where the bytes from `at` on are stored, and how many lie there in a row, if they may be overwritten there.
    fn owned_run(&self, at: GuestOffset, limit: u64) -> Result<Option<(HostOffset, u64)>> {
        let Some((host, mut len)) = self.owned_piece(at, limit)? else { return Ok(None) };
        while len < limit {
            match self.owned_piece(at + len, limit - len)? {
                Some((next, more)) if next == host + len => len += more,
                _ => break,
            }
        }
        Ok(Some((host, len)))
    }

    /// The part of an owned run that lies in one cluster.
    fn owned_piece(&self, at: GuestOffset, limit: u64) -> Result<Option<(HostOffset, u64)>> {
        let geometry = self.rules.geometry;
        let within = geometry.within_cluster(at);
        let Mapping::Standard(Standard { host: Some(host), owned: true, allocated, .. }) =
            self.mapping(geometry.cluster_of(at))?
        else {
            return Ok(None);
        };
        let first = within >> geometry.subcluster_bits;
        let count = u64::from((allocated >> first).trailing_ones());
        let end = ((first + count) << geometry.subcluster_bits).min(geometry.cluster_size());
        Ok((count > 0).then(|| (host + within, (end - within).min(limit))))
    }

    pub(super) fn put_data(&self, writer: &Writer, data: &[u8], host: HostOffset) -> Result<()> {
        self.write_by(writer, |storage| storage.write_at(data, host))
    }

    fn write_by(&self, writer: &Writer, write: impl FnOnce(&dyn Storage) -> io::Result<()>) -> Result<()> {
        let result = write(&self.storage).map_err(|e| Error::io("writing the image", e));
        writer.written.set();
        result
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::qcow2::{CreateOptions, OpenOptions, create};
    use crate::storage::Memory;
    use crate::units::{KIB, MIB};
    use std::sync::Arc;

    struct Nothing;

    impl Below for Nothing {
        fn read_to(&self, reader: &mut dyn crate::qcow2::Reader, _: GuestOffset, len: u64) -> Result<()> {
            reader.take(crate::qcow2::Piece::Zeros(len))
        }

        fn size(&self) -> u64 {
            0
        }
    }

    #[test]
    fn only_what_has_a_place_of_its_own_is_written_without_being_looked_at() {
        let storage = Arc::new(Memory::default());
        create(&*storage, &CreateOptions::new(8 * MIB)).unwrap();
        let image = Image::open(storage, OpenOptions { writable: true, metadata_cache: MIB }).unwrap();
        image.write(&[1; 12 << 10], GuestOffset(8 * KIB), &Nothing).unwrap();
        image.write_zeroes(GuestOffset(12 * KIB), 4 * KIB, &Nothing).unwrap();
        let owned = |at, len| {
            let mut put = |storage: &dyn Storage, len, host| storage.write_at(&vec![2; index(len)], host);
            image.write_owned(GuestOffset(at), len, &mut put).unwrap()
        };
        assert_eq!(owned(0, 64 * KIB), 0, "nothing there");
        assert_eq!(owned(9 * KIB, 64 * KIB), 3 * KIB, "up to the zeros");
        assert_eq!(owned(12 * KIB, 512), 0, "zeros");
        assert_eq!(owned(16 * KIB, 64 * KIB), 4 * KIB, "up to what is not there");
        let mut seen = vec![9; 24 << 10];
        image.read(&mut seen, GuestOffset(0), &Nothing).unwrap();
        let wanted = [(8, 0), (1, 1), (3, 2), (4, 0), (4, 2), (4, 0)];
        let wanted: Vec<u8> = wanted.iter().flat_map(|(kib, byte)| vec![*byte; kib << 10]).collect();
        assert!(seen == wanted);
        let mut refuse = |_: &dyn Storage, _, _| Err(io::Error::from_raw_os_error(libc::EFAULT));
        image.write_owned(GuestOffset(8 * KIB), 512, &mut refuse).unwrap_err();
        assert_eq!(owned(8 * KIB, 512), 512, "a caller's fault is not the image's");
        image.write_owned(GuestOffset(8 * MIB), 1, &mut refuse).unwrap_err();
    }
}
