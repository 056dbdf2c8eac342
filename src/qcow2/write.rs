//! Writing: in place where the bytes have a home, by allocation where they have none.

use super::Below;
use super::copy_up::Piece;
use super::entry::{Mapping, Standard};
use super::image::{Image, Writer};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, index, length};

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
            let mut done = self.write_in_place(writer, data, at)?;
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

    /// Writes the first part of `data` that has its own host bytes already, and returns its length.
    fn write_in_place(&self, writer: &Writer, data: &[u8], at: GuestOffset) -> Result<u64> {
        let len = writer.locks.batch(at, length(data.len()));
        let _shared = writer.locks.share(at, len);
        let mut done = 0;
        while done < len {
            let Some((host, run)) = self.owned_run(at + done, len - done)? else { break };
            self.put_data(writer, &data[index(done)..index(done + run)], host)?;
            done += run;
        }
        Ok(done)
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
        let result = self.storage.write_at(data, host).map_err(|e| Error::io("writing the image", e));
        writer.written.set();
        result
    }
}
