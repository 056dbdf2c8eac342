//! Compressed clusters: unpacked whole, bounded by one cluster.

use super::entry::Compressed;
use super::header::Compression;
use super::image::Image;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::sync::Mutex;
use crate::units::{HostOffset, index};
use flate2::{Decompress, FlushDecompress, Status};
use std::io::Read;
use std::sync::Arc;

/// The cluster that was unpacked last: small reads in a row unpack it once.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    last: Mutex<Option<(HostOffset, Arc<[u8]>)>>,
}

impl Image {
    /// The bytes of a compressed cluster.
    pub(super) fn unpack(&self, compressed: Compressed) -> Result<Arc<[u8]>> {
        if let Some((host, bytes)) = &*self.unpacked.last.lock()
            && *host == compressed.host
        {
            return Ok(bytes.clone());
        }
        let mut packed = vec![0; index(compressed.len)];
        self.storage
            .read_at(&mut packed, compressed.host)
            .map_err(|e| Error::io("reading a compressed cluster", e))?;
        let bytes =
            unpack(&packed, index(self.cluster_size()), self.header.compression).ok_or_else(|| {
                Error::corrupt(format!("the compressed cluster at {} cannot be unpacked", compressed.host))
            })?;
        let bytes: Arc<[u8]> = bytes.into();
        *self.unpacked.last.lock() = Some((compressed.host, bytes.clone()));
        Ok(bytes)
    }

    /// Forgets unpacked bytes: their place in the file may be used for others.
    pub(super) fn forget_unpacked(&self) {
        *self.unpacked.last.lock() = None;
    }
}

/// Unpacks exactly one cluster; what follows it in `packed` is padding.
fn unpack(packed: &[u8], cluster_size: usize, compression: Compression) -> Option<Vec<u8>> {
    let mut bytes = vec![0; cluster_size];
    match compression {
        Compression::Zlib => {
            let mut inflate = Decompress::new(false);
            let status = inflate.decompress(packed, &mut bytes, FlushDecompress::Finish).ok()?;
            let full = usize::try_from(inflate.total_out()).ok()? == cluster_size;
            (full && matches!(status, Status::StreamEnd | Status::Ok | Status::BufError)).then_some(bytes)
        }
        Compression::Zstd => {
            let mut frames = zstd::stream::read::Decoder::new(packed).ok()?;
            frames.window_log_max(24).ok()?;
            frames.read_exact(&mut bytes).ok()?;
            Some(bytes)
        }
    }
}
