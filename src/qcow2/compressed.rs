//! Compressed clusters: unpacked whole, bounded by one cluster.

use super::entry::Compressed;
use super::header::Compression;
use super::image::Image;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::sync::Mutex;
use crate::units::{HostOffset, index};
use flate2::{Decompress, FlushDecompress, Status};
use std::cell::Cell;
use std::sync::Arc;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

/// Larger windows than this are refused, as a power of two.
const WINDOW_LOG_MAX: u32 = 24;
/// What zstd keeps in mind is kept for the next cluster up to this many bytes: a hostile window needs more.
const KEPT_MAX: usize = 1 << 20;

/// The cluster that was unpacked last: small reads in a row unpack it once.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    last: Mutex<Option<(HostOffset, Arc<Vec<u8>>)>>,
}

thread_local! {
    /// Kept from one cluster to the next one: to make it anew takes a good part of the time of unpacking.
    static TOOLS: Cell<Tools> = Cell::default();
}

/// What unpacking needs beside the bytes.
#[derive(Default)]
struct Tools {
    packed: Vec<u8>,
    inflate: Option<Decompress>,
    zstd: Option<DCtx<'static>>,
}

impl Image {
    /// The bytes of a compressed cluster.
    pub(super) fn unpack(&self, compressed: Compressed) -> Result<Arc<Vec<u8>>> {
        if let Some((host, bytes)) = &*self.unpacked.last.lock()
            && *host == compressed.host
        {
            return Ok(bytes.clone());
        }
        let mut tools = TOOLS.take();
        tools.packed.resize(index(compressed.len), 0);
        self.storage
            .read_at(&mut tools.packed, compressed.host)
            .map_err(|e| Error::io("reading a compressed cluster", e))?;
        let mut bytes = vec![0; index(self.cluster_size())];
        tools.unpack(&mut bytes, self.header.compression).ok_or_else(|| {
            Error::corrupt(format!("the compressed cluster at {} cannot be unpacked", compressed.host))
        })?;
        TOOLS.set(tools);
        let bytes = Arc::new(bytes);
        *self.unpacked.last.lock() = Some((compressed.host, bytes.clone()));
        Ok(bytes)
    }

    /// Forgets unpacked bytes: their place in the file may be used for others.
    pub(super) fn forget_unpacked(&self) {
        *self.unpacked.last.lock() = None;
    }
}

impl Tools {
    /// Unpacks exactly one cluster; what follows it in `packed` is padding.
    fn unpack(&mut self, bytes: &mut [u8], compression: Compression) -> Option<()> {
        match compression {
            Compression::Zlib => self.inflate(bytes),
            Compression::Zstd => self.unzstd(bytes),
        }
    }

    fn inflate(&mut self, bytes: &mut [u8]) -> Option<()> {
        let inflate = self.inflate.get_or_insert_with(|| Decompress::new(false));
        inflate.reset(false);
        let status = inflate.decompress(&self.packed, bytes, FlushDecompress::Finish).ok()?;
        let full = usize::try_from(inflate.total_out()).ok()? == bytes.len();
        (full && matches!(status, Status::StreamEnd | Status::Ok | Status::BufError)).then_some(())
    }

    fn unzstd(&mut self, bytes: &mut [u8]) -> Option<()> {
        let mut zstd = self.zstd.take().or_else(DCtx::try_create)?;
        zstd.reset(ResetDirective::SessionOnly).ok()?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).ok()?;
        let (len, mut packed, mut bytes) =
            (bytes.len(), InBuffer::around(&self.packed), OutBuffer::around(bytes));
        while bytes.pos() < len {
            let before = (packed.pos(), bytes.pos());
            zstd.decompress_stream(&mut bytes, &mut packed).ok()?;
            if (packed.pos(), bytes.pos()) == before {
                return None;
            }
        }
        self.zstd = Some(zstd).filter(|zstd| zstd.sizeof() <= KEPT_MAX);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CLUSTER: usize = 65_536;

    fn unpacked(tools: &mut Tools, packed: &[u8]) -> Option<Vec<u8>> {
        tools.packed = packed.to_vec();
        let mut bytes = vec![9; CLUSTER];
        tools.unpack(&mut bytes, Compression::Zstd).map(|()| bytes)
    }

    /// A frame of bytes as they are, that says nothing of its length and asks for a window of 2 to the power of `log`.
    fn frame(log: u8, bytes: &[u8]) -> Vec<u8> {
        let block = u32::try_from(bytes.len()).unwrap() << 3 | 1;
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3], &block.to_le_bytes()[..3], bytes].concat()
    }

    #[test]
    fn what_unpacked_one_cluster_unpacks_the_next_one_whatever_that_was_like() {
        let cluster: Vec<u8> = (0..CLUSTER).map(|n| u8::try_from(n / 300 % 256).unwrap()).collect();
        let whole = zstd::bulk::compress(&cluster, 3).unwrap();
        let (first, second) = cluster.split_at(1000);
        let streamed = [zstd::stream::encode_all(first, 3).unwrap(), frame(20, second)].concat();
        let padded = [&whole[..], &[0; 700]].concat();
        let mut tools = Tools::default();
        for packed in [&whole, &streamed, &padded, &frame(24, &cluster), &whole] {
            // Cut short, too long a window, no frame at all, less than a cluster: each time the next one is unpacked.
            for broken in [&whole[..whole.len() - 9], &frame(25, &cluster), &[7; 600], &frame(20, first), &[]]
            {
                assert!(unpacked(&mut tools, broken).is_none());
            }
            assert!(unpacked(&mut tools, packed).unwrap() == cluster);
            assert!(tools.zstd.as_ref().is_none_or(|zstd| zstd.sizeof() <= KEPT_MAX));
        }
        assert!(unpacked(&mut tools, &frame(24, &cluster)).is_some() && tools.zstd.is_none());
        // More than a cluster is not written anywhere.
        assert!(
            unpacked(&mut tools, &zstd::bulk::compress(&[&cluster[..], &[7]].concat(), 3).unwrap()).is_some()
        );
    }
}
