//! A whole image: read everywhere, written, checked, repaired.

use super::builder::{Built, build};
use super::input::Input;
use super::metered::Metered;
use cowshed::Kind;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{CheckReport, Image, OpenOptions, check, repair};
use cowshed::storage::{Memory, Storage};
use cowshed::units::GuestOffset;
use std::sync::Arc;

/// Bytes of a disk that are read, from its start, and in one request.
const READ: u64 = 256 << 10;
const REQUEST: u64 = 4096;
/// Operations on a file of at most a few hundred KiB.
const OPERATIONS: u64 = 200_000;

/// What each request read; `None` where it ended in an error.
pub type Reads = Vec<Option<Vec<u8>>>;

pub fn disk(storage: Arc<dyn Storage>, base: Option<&Vec<u8>>, writable: bool) -> cowshed::Result<Disk> {
    let image = Image::open(storage, OpenOptions { writable, metadata_cache: 1 << 20 })?;
    let names_base = image.backing().is_some_and(|backing| backing.file == "b.raw");
    let mut layers = vec![Layer::qcow2(image)];
    if let Some(base) = base.filter(|_| names_base) {
        layers.push(Layer::Raw(RawLayer::new(Arc::new(Memory::from_bytes(base)), false)?));
    }
    Disk::new(layers)
}

pub fn read_all(disk: &Disk) -> Reads {
    let mut reads = Vec::new();
    let size = disk.size();
    let far = (size > READ).then(|| (size - REQUEST.min(size)) / 512 * 512);
    for at in (0..size.min(READ)).step_by(REQUEST as usize).chain(far) {
        let mut buf = vec![0xee; REQUEST.min(size - at) as usize];
        let read = disk.read(&mut buf, GuestOffset(at));
        if let Err(error) = &read {
            super::is_sentence(&error.to_string());
        }
        reads.push(read.is_ok().then_some(buf));
        if let Ok(extent) = disk.extent(GuestOffset(at)) {
            assert!(extent.len >= 1 && at + extent.len <= size, "{extent:?} at {at} of {size}");
        }
    }
    reads
}

fn reads_of(bytes: &[u8], base: Option<&Vec<u8>>) -> cowshed::Result<Reads> {
    disk(Arc::new(Metered::new(bytes, OPERATIONS)), base, false).map(|disk| read_all(&disk))
}

pub fn check_of(bytes: &[u8]) -> cowshed::Result<CheckReport> {
    check(Arc::new(Metered::new(bytes, OPERATIONS)))
}

pub fn image(data: &[u8]) {
    let mut input = Input(data);
    let built = build(&mut input);
    let base = built.base.as_ref();
    let report = check_of(&built.bytes);
    match &report {
        Ok(report) => report.errors.iter().for_each(|error| super::is_sentence(error)),
        Err(error) => super::is_sentence(&error.to_string()),
    }
    let reads = reads_of(&built.bytes, base);
    if !built.damaged {
        let report = report.as_ref().unwrap();
        assert!(report.is_consistent() && report.leaks == 0, "a good image: {report:?}");
        let whole: Vec<u8> = reads.as_ref().unwrap().iter().flatten().flatten().copied().collect();
        let shown = &built.content[..built.content.len().min(whole.len())];
        assert!(&whole[..shown.len()] == shown, "a good image reads wrong");
    }
    if let Err(error) = &reads {
        super::is_sentence(&error.to_string());
        assert!(
            report.is_err() || report.is_ok_and(|report| !report.is_consistent()),
            "refused, and no error: {error}"
        );
    } else {
        write_on(&built, &mut input, &report);
    }
    let reads = reads.ok();
    compact(&built, reads.as_ref());
    mend(&built, reads);
}

/// A compaction leaves what could be read as it was, comes to an end, and a refused one changes nothing.
fn compact(built: &Built, before: Option<&Reads>) {
    let (storage, base) = (Arc::new(Metered::new(&built.bytes, OPERATIONS)), built.base.as_ref());
    let Ok(mut disk) = disk(storage.clone(), base, true) else { return };
    let opened = storage.bytes();
    match disk.compact(&mut |_| true) {
        Ok(compacted) => {
            let once = storage.bytes();
            assert!(compacted.after <= compacted.before && compacted.after == once.len() as u64);
            let report = check_of(&once).unwrap();
            assert!(report.is_consistent() && report.leaks == 0, "after a compaction: {report:?}");
            let after = reads_of(&once, base).unwrap();
            assert!(after == read_all(&disk), "the open disk reads otherwise than its file");
            for (before, after) in before.into_iter().flatten().zip(&after) {
                assert!(before.is_none() || before == after, "a compaction changed what is read");
            }
        }
        Err(error) => {
            super::is_sentence(&error.to_string());
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            assert!(storage.bytes() == opened, "a refused compaction changed something: {error}");
        }
    }
}

/// The first `size` bytes of what requests read, each byte by itself.
fn known(reads: Reads, size: u64) -> Vec<Option<u8>> {
    let each = reads.into_iter().flat_map(|read| {
        read.map_or(vec![None; REQUEST as usize], |bytes| bytes.into_iter().map(Some).collect())
    });
    each.take(size as usize).collect()
}

/// Writes into the image. As long as it was sound nothing may go wrong.
fn write_on(built: &Built, input: &mut Input<'_>, report: &cowshed::Result<CheckReport>) {
    let base = built.base.as_ref();
    let storage = Arc::new(Metered::new(&built.bytes, OPERATIONS));
    let disk = match disk(storage.clone(), base, true) {
        Ok(disk) => disk,
        Err(error) => return super::is_sentence(&error.to_string()),
    };
    let sound = report.as_ref().is_ok_and(CheckReport::is_consistent);
    let size = disk.size().min(READ);
    let mut model = known(read_all(&disk), size);
    for _ in 0..12 {
        if input.is_empty() {
            break;
        }
        let (kind, at, len) = (input.byte(), input.below(size.min(65536)), input.below(size.min(20_000)) + 1);
        let len = len.min(size.saturating_sub(at));
        let range = at as usize..(at + len) as usize;
        let (result, new) = match kind % 6 {
            0 => (disk.write_zeroes(GuestOffset(at), len), Some(0)),
            1 => (disk.discard(GuestOffset(at), len), Some(0)),
            2 => (disk.flush(), None),
            3 => (disk.close(), None),
            _ => (disk.write(&vec![kind; len as usize], GuestOffset(at)), Some(kind)),
        };
        if let Err(error) = &result {
            super::is_sentence(&error.to_string());
            // Compressed data that cannot be unpacked are an error of their own cluster only.
            // Counts that say that everything is used lead far behind the end of the file.
            let allowed = error.kind() == Kind::NoSpace || error.to_string().contains("unpacked");
            assert!(!sound || allowed, "a sound image: {error}");
        }
        if let Some(new) = new {
            model[range].fill(result.is_ok().then_some(new));
        }
    }
    let closed = disk.close();
    drop(disk);
    if sound {
        closed.unwrap();
        let bytes = storage.bytes();
        let report = check_of(&bytes).unwrap();
        assert!(report.is_consistent(), "writes broke a sound image: {:?}", report.errors);
        let reads = reads_of(&bytes, base).unwrap();
        for (at, (expected, found)) in model.iter().zip(known(reads, size)).enumerate() {
            // One cluster that cannot be unpacked fails the request of its neighbours too.
            let same = expected.is_none() || found.is_none() || *expected == found;
            assert!(same, "byte {at:#x} after the writes: {found:?}, not {expected:?}");
        }
    }
}

/// A repair leaves what could be read as it was, comes to an end, and a refused one changes nothing.
fn mend(built: &Built, before: Option<Reads>) {
    let storage = Arc::new(Metered::new(&built.bytes, OPERATIONS));
    match repair(storage.clone()) {
        Ok(report) => {
            assert!(report.is_consistent() && report.leaks == 0, "after a repair: {report:?}");
            let once = storage.bytes();
            if let Some(before) = before {
                let after = reads_of(&once, built.base.as_ref()).unwrap();
                for (before, after) in before.iter().zip(&after) {
                    assert!(before.is_none() || before == after, "a repair changed what is read");
                }
            }
            repair(storage.clone()).unwrap();
            assert!(storage.bytes() == once, "a second repair changed something");
        }
        Err(error) => {
            super::is_sentence(&error.to_string());
            assert_ne!(error.kind(), Kind::Io, "{error}");
            assert!(storage.bytes() == built.bytes, "a refused repair changed something: {error}");
        }
    }
}
