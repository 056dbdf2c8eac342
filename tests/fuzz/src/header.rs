//! A file whose bytes are the input's, with a hole behind them.

use super::metered::Metered;
use cowshed::qcow2::{Header, Image, OpenOptions, check, repair};
use cowshed::storage::Storage;
use cowshed::units::GuestOffset;
use std::sync::Arc;

/// Bytes of the file that are the input's.
const MOST: usize = 256 << 10;

/// The first byte says how long the hole behind the other bytes is.
pub fn header(data: &[u8]) {
    let Some((hole, bytes)) = data.split_first() else { return };
    let bytes = &bytes[..bytes.len().min(MOST)];
    let file = |most| {
        let file = Arc::new(Metered::new(bytes, most));
        file.set_len(bytes.len() as u64 + (1 << (hole % 44)) - 1).unwrap();
        file
    };
    let header = match Header::read(&*file(16)) {
        Ok(header) => header,
        Err(error) => return super::is_sentence(&error.to_string()),
    };
    assert!(header.geometry.virtual_size <= 1 << 56 && header.l1_entries <= 4 << 20);
    let (size, len) = (header.geometry.virtual_size, file(2).len().unwrap());
    assert!(header.l1_offset.0 + header.l1_entries as u64 * 8 <= len, "L1 outside of the file");
    // Tables in the hole cost reads too: an L2 table each, and each piece of a refcount block.
    let most = 100_000 + 2 * header.l1_entries as u64 + len / 16384;
    match check(file(most)) {
        Ok(report) => report.errors.iter().for_each(|error| super::is_sentence(error)),
        Err(error) => super::is_sentence(&error.to_string()),
    }
    for writable in [false, true] {
        let options = OpenOptions { writable, metadata_cache: 1 << 20 };
        let image = match Image::open(file(100_000), options) {
            Ok(image) => image,
            Err(error) => {
                super::is_sentence(&error.to_string());
                continue;
            }
        };
        let end = size.saturating_sub(512);
        for at in [0, size / 2, end].map(|at| at / 512 * 512).into_iter().filter(|at| *at < size) {
            let mut buf = vec![0; 512.min(size - at) as usize];
            let _ = image.read(&mut buf, GuestOffset(at), &cowshed::qcow2::Nothing);
            if let Ok(extent) = image.extent(GuestOffset(at), size) {
                assert!(extent.len >= 1 && at + extent.len <= size);
            }
            let _ = image.write(&buf, GuestOffset(at), &cowshed::qcow2::Nothing);
        }
        let _ = image.close();
    }
    let before = file(1);
    let storage = file(20 * most);
    if repair(storage.clone()).is_err_and(|error| error.to_string().contains("nothing was changed")) {
        assert!(storage.len().unwrap() > MOST as u64 * 2 || storage.bytes() == before.bytes());
    }
}
