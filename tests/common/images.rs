//! Opening images as the store would, and comparing what they give with QEMU.

use super::rng::Rng;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{CheckReport, Image, OpenOptions};
use cowshed::storage::{HostFile, Storage};
use cowshed::units::{GuestOffset, SECTOR};
use std::fs::OpenOptions as FileOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// What a sector of a disk comes from: data or not, the layer that says so, compressed, place in the layer's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub data: bool,
    pub depth: Option<u64>,
    pub compressed: bool,
    pub host: Option<u64>,
}

/// A host file as a storage.
pub fn host_file(path: &Path, writable: bool) -> Arc<dyn Storage> {
    let file = FileOptions::new().read(true).write(writable).open(path);
    Arc::new(HostFile::new(file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
}

/// A new, empty host file as a storage.
pub fn new_file(path: &Path) -> Arc<dyn Storage> {
    let file = FileOptions::new().read(true).write(true).create_new(true).open(path);
    Arc::new(HostFile::new(file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
}

/// Bytes that the host has set aside for a file.
pub fn host_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * SECTOR
}

/// Opens the image at `path` and everything below it, as its headers name it.
pub fn try_open(path: &Path, writable: bool) -> cowshed::Result<Disk> {
    let mut layers = Vec::new();
    let mut next = Some((path.to_path_buf(), Some("qcow2".to_owned())));
    while let Some((path, format)) = next.take() {
        let top = layers.is_empty();
        let storage = host_file(&path, writable && top);
        if format.as_deref() == Some("raw") {
            layers.push(Layer::Raw(RawLayer::new(storage, false)?));
            break;
        }
        let options = OpenOptions { writable: writable && top, ..OpenOptions::default() };
        let image = Image::open(storage, options)?;
        next = image
            .backing()
            .map(|backing| (path.parent().unwrap().join(&backing.file), backing.format.clone()));
        layers.push(Layer::Qcow2(Box::new(image)));
    }
    Disk::new(layers)
}

/// As [`try_open`]; an error fails the test.
pub fn open(path: &Path, writable: bool) -> Disk {
    try_open(path, writable).unwrap_or_else(|error| panic!("opening {}: {error}", path.display()))
}

/// Our check of the image at `path`.
pub fn check(path: &Path) -> CheckReport {
    cowshed::qcow2::check(host_file(path, false))
        .unwrap_or_else(|error| panic!("checking {}: {error}", path.display()))
}

/// Reads the whole disk by requests of odd sizes at odd places.
pub fn read_all(disk: &Disk, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0xee; disk.size() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let wish = match rng.below(4) {
            0 => rng.between(1, 700),
            1 => rng.between(4000, 4200),
            2 => rng.between(30_000, 140_000),
            _ => rng.between(200_000, 3_000_000),
        };
        let end = bytes.len().min(at + wish as usize);
        disk.read(&mut bytes[at..end], GuestOffset(at as u64))
            .unwrap_or_else(|error| panic!("reading {at}..{end}: {error}"));
        at = end;
    }
    bytes
}

/// Asserts that two disks are equal, and says where they first differ.
pub fn assert_same(got: &[u8], want: &[u8], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    if let Some(at) = (0..got.len()).find(|at| got[*at] != want[*at]) {
        let end = (at + 16).min(got.len());
        let differing = got.chunks(512).zip(want.chunks(512)).filter(|(a, b)| a != b).count();
        panic!(
            "{what}: first difference at byte {at:#x} (sector {}), {differing} sectors differ: got {:02x?}, want {:02x?}",
            at / 512,
            &got[at..end],
            &want[at..end]
        );
    }
}

/// The origin of each sector, by our extents.
pub fn origins(disk: &Disk) -> Vec<Origin> {
    let mut origins = Vec::new();
    let mut at = 0;
    while at < disk.size() {
        let extent =
            disk.extent(GuestOffset(at)).unwrap_or_else(|error| panic!("extent at {at:#x}: {error}"));
        assert!(extent.len >= 1 && at + extent.len <= disk.size(), "extent at {at:#x}: {extent:?}");
        // A raw layer of odd length ends inside a sector: the sector is what its first byte is.
        for start in (origins.len() as u64 * SECTOR..at + extent.len).step_by(SECTOR as usize) {
            origins.push(Origin {
                data: extent.data,
                depth: extent.depth.map(|depth| depth as u64),
                compressed: extent.compressed,
                host: extent
                    .host
                    .filter(|_| extent.data && !extent.compressed)
                    .map(|host| host.0 + start - at),
            });
        }
        at += extent.len;
    }
    origins
}

/// The origin of each sector, by `qemu-img map`.
///
/// QEMU's `zero` is not kept: it is true for stored bytes as well where a preallocated image file has a hole, and
/// what is not data is zero anyway. A run that no layer claims has QEMU's depth of the layer it stopped at; here `None`.
pub fn origins_by_qemu(path: &Path, size: u64) -> Vec<Origin> {
    let args = ["map", "-f", "qcow2", "--output=json", path.to_str().unwrap()];
    let text = super::qemu::run(path.parent().unwrap(), "qemu-img", &args);
    let runs: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut origins = Vec::new();
    let mut expected = 0;
    for run in &runs {
        let flag = |name: &str| run[name].as_bool().unwrap_or(false);
        let data = flag("data");
        assert!(size == 0 || data || flag("zero"), "qemu-img map calls a run neither data nor zero: {run}");
        let (start, len) = (run["start"].as_u64().unwrap(), run["length"].as_u64().unwrap());
        assert_eq!(start, expected, "qemu-img map leaves a gap: {run}");
        expected = start + len;
        // A raw file of odd length ends inside a sector: the sector is what its first byte is.
        for at in (origins.len() as u64 * SECTOR..expected).step_by(SECTOR as usize) {
            let host = run["offset"].as_u64().filter(|_| data && !flag("compressed"));
            origins.push(Origin {
                data,
                depth: run["depth"].as_u64().filter(|_| flag("present")),
                compressed: flag("compressed"),
                host: host.map(|host| host + at - start),
            });
        }
    }
    assert_eq!(origins.len() as u64 * SECTOR, size, "qemu-img map covers the whole disk");
    origins
}

/// Every file of `folder` but `but`, with its bytes.
pub fn files_but(folder: &Path, but: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != but)
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}
