//! On hosts whose files can share blocks, XFS and btrfs, images come in and go out without their bytes being written. Needs
//! root, for loop devices.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/host.rs"]
mod host;

use common::store::{base_ref, file_digest, must, name, qemu_check, request, sample};
use common::{Shed, noise};
use cowshed::Kind;
use cowshed::ops::export::{ExportRequest, export};
use cowshed::ops::import::{Format, import, promote};
use cowshed::ops::verify::verify;
use cowshed::ops::{Progress, Silent};
use cowshed::store::{Access, CloneOptions, DiskFormat, Store, Target};
use cowshed::units::GuestOffset;
use host::Host;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MIB: usize = 1 << 20;
const SIZE: usize = 24 * MIB;

/// A store on a filesystem of its own, which goes before the folder that it is in.
struct Place {
    host: Host,
    store: Store,
    _shed: Shed,
}

impl Place {
    fn new(kind: &'static str) -> Self {
        let shed = Shed::new();
        let host = Host::new(kind, shed.path("host.img"), 512 << 20, shed.path("host"));
        let store = Store::open_or_create(&host.dir.join("store")).unwrap();
        Self { host, store, _shed: shed }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.dir.join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn import(&self, source: &Path, base: &str) -> PathBuf {
        import(&self.store, &request(source, base, None), &Silent).unwrap();
        self.disk(base)
    }

    fn disk(&self, base: &str) -> PathBuf {
        self.store.root().join(format!("bases/{base}/1/disk.raw"))
    }

    fn export(&self, target: Target, out: &str) -> PathBuf {
        let out = self.path(out);
        let request = ExportRequest { target, out: out.clone(), format: DiskFormat::Raw, force: true };
        export(&self.store, &request, &Silent).unwrap();
        out
    }

    fn is_sound(&self, base: &str) {
        assert!(verify(&self.store, &base_ref(base), &Silent).unwrap().is_ok(), "{base}");
    }
}

/// Bytes of a file in blocks that another file has too, and bytes in others, as the filesystem tells.
fn blocks(path: &Path) -> (usize, usize) {
    let (mut shared, mut own) = (0, 0);
    let said = must("filefrag", &["-v", "-b4096", path.to_str().unwrap()]);
    for line in said.lines() {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        // There is one more where an extent lies elsewhere than expected.
        if let [number, _, _, len, .., flags] = fields[..]
            && number.parse::<u32>().is_ok()
        {
            let bytes = 4096 * len.parse::<usize>().unwrap();
            *if flags.contains("shared") { &mut shared } else { &mut own } += bytes;
        }
    }
    (shared, own)
}

fn same(image: &Path, format: &str, raw: &Path) {
    must("qemu-img", &["compare", "-f", format, "-F", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
}

fn imports_share(kind: &'static str) {
    let place = Place::new(kind);
    // Not in whole blocks, nor in whole sectors; a third of it is no hole but zeros.
    let mut bytes = sample(SIZE + 1000);
    let source = place.file("in.raw", &bytes);
    let file = File::options().write(true).open(&source).unwrap();
    file.set_len((SIZE + 8 * MIB + 700) as u64).unwrap();
    bytes.resize(SIZE + 8 * MIB + 1024, 0);
    let disk = place.import(&source, "raw");
    let (shared, own) = blocks(&disk);
    assert!(shared >= SIZE && own <= 8192, "{kind}: {shared} bytes are shared, {own} are not");
    same(&disk, "raw", &source);
    file.write_all_at(&vec![0xaa; SIZE], 0).unwrap();
    file.sync_all().unwrap();
    assert!(fs::read(&disk).unwrap() == bytes, "{kind}: the base changed with its source");
    place.is_sound("raw");

    // The clusters of an image that is not compressed, and of one that is where compressing is of no use.
    bytes[..SIZE / 2].copy_from_slice(&noise(SIZE / 2, 1));
    let expected = place.file("expected.raw", &bytes);
    for (format, least) in [("qcow2", SIZE * 3 / 4), ("packed", SIZE / 2)] {
        let image = place.path(format);
        let (from, to) = (expected.to_str().unwrap(), image.to_str().unwrap());
        let compressed = if format == "packed" { &["-c"][..] } else { &[] };
        must("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], compressed, &[from, to]].concat());
        let disk = place.import(&image, format);
        let (shared, own) = blocks(&disk);
        assert!(shared >= least, "{kind}, {format}: {shared} bytes are shared, {own} are not");
        let image = File::options().write(true).open(&image).unwrap();
        image.write_all_at(&vec![0xaa; SIZE / 2], 0).unwrap();
        assert!(fs::read(&disk).unwrap() == bytes, "{kind}: {format}");
        place.is_sound(format);
    }
}

#[test]
fn an_imported_image_shares_its_blocks_on_xfs_and_is_not_what_its_source_becomes() {
    imports_share("xfs");
}

#[test]
fn an_imported_image_shares_its_blocks_on_btrfs_and_is_not_what_its_source_becomes() {
    imports_share("btrfs");
}

/// Writes to a clone and the same to `bytes`: long runs and short ones, at odd places, and zeros over what the base has.
fn change(place: &Place, clone: &str, bytes: &mut [u8], with: u8) {
    let open = place.store.open_clone(&name(clone), Access::Write).unwrap();
    let first = usize::from(with) * 20_480;
    for (at, len) in [(first, 4096), (3 * MIB + first, MIB), (6 * MIB + 77, 300_000), (SIZE - 5000, 5000)] {
        let data: Vec<u8> = (0..len).map(|n| (n % 249) as u8 ^ with).collect();
        open.disk.write(&data, GuestOffset(at as u64)).unwrap();
        bytes[at..at + len].copy_from_slice(&data);
    }
    for (at, len) in [(9 * MIB + first, 100_000), (12 * MIB, 2 * MIB)] {
        open.disk.write_zeroes(GuestOffset(at as u64), len as u64).unwrap();
        bytes[at..at + len].fill(0);
    }
    open.close().unwrap();
}

fn exports_share(kind: &'static str) {
    let place = Place::new(kind);
    let mut bytes = sample(SIZE);
    let disk = place.import(&place.file("in.raw", &bytes), "base");
    // A file that is removed gives its blocks up some time later, one that is cut at once.
    File::options().write(true).open(place.path("in.raw")).unwrap().set_len(0).unwrap();
    assert_eq!(blocks(&disk).0, 0, "{kind}: nobody shares with it");
    let out = place.export(Target::Base(base_ref("base")), "base.raw");
    let (shared, own) = blocks(&out);
    assert!(shared >= SIZE && own == 0, "{kind}: {shared} bytes are shared, {own} are not");
    assert_eq!(file_digest(&out), file_digest(&disk));

    place.store.create_clones(&base_ref("base"), &[name("web")], &CloneOptions::default()).unwrap();
    change(&place, "web", &mut bytes, 1);
    place.store.checkpoint(&name("web"), None).unwrap();
    change(&place, "web", &mut bytes, 2);
    let out = place.export(Target::Clone(name("web")), "web.raw");
    let (shared, own) = blocks(&out);
    assert!(fs::read(&out).unwrap() == bytes, "{kind}: the export is not what the clone shows");
    assert!(shared >= SIZE - 4 * MIB && own <= MIB, "{kind}: {shared} bytes are shared, {own} are not");
    let delta = place.store.root().join("clones/web/disk.qcow2");
    same(&delta, "qcow2", &out);
    // What is written to a copy is nobody else's.
    File::options().write(true).open(&out).unwrap().write_all_at(&vec![0x55; SIZE], 0).unwrap();
    place.is_sound("base");
    qemu_check(&delta);
    same(&delta, "qcow2", &place.file("expected.raw", &bytes));
}

#[test]
fn an_export_shares_the_blocks_of_every_layer_on_xfs() {
    exports_share("xfs");
}

#[test]
fn an_export_shares_the_blocks_of_every_layer_on_btrfs() {
    exports_share("btrfs");
}

fn is_there_after_a_cut(kind: &'static str) {
    let place = Place::new(kind);
    let mut bytes = sample(SIZE);
    let disk = place.import(&place.file("in.raw", &bytes), "base");
    place.store.create_clones(&base_ref("base"), &[name("web")], &CloneOptions::default()).unwrap();
    let before = bytes.clone();
    change(&place, "web", &mut bytes, 3);
    let out = place.export(Target::Clone(name("web")), "web.raw");
    let Place { host, store, _shed } = place;
    drop(store);
    host.cut();
    let store = Store::open_or_create(&host.dir.join("store")).unwrap();
    assert!(verify(&store, &base_ref("base"), &Silent).unwrap().is_ok());
    assert!(fs::read(&disk).unwrap() == before && fs::read(&out).unwrap() == bytes, "{kind}");
    assert!(blocks(&out).0 > SIZE / 2);
    drop(store);
    drop(host);
}

#[test]
fn what_shares_blocks_is_there_after_a_power_cut_on_xfs() {
    is_there_after_a_cut("xfs");
}

#[test]
fn what_shares_blocks_is_there_after_a_power_cut_on_btrfs() {
    is_there_after_a_cut("btrfs");
}

#[test]
fn a_version_that_is_stored_whole_shares_what_it_can() {
    let place = Place::new("xfs");
    let mut bytes = sample(SIZE);
    place.import(&place.file("in.raw", &bytes), "base");
    place.store.create_clones(&base_ref("base"), &[name("web")], &CloneOptions::default()).unwrap();
    let open = place.store.open_clone(&name("web"), Access::Write).unwrap();
    for at in (0..SIZE).step_by(2 * MIB) {
        let data = vec![(at / MIB) as u8 + 1; MIB + MIB / 2];
        open.disk.write(&data, GuestOffset(at as u64)).unwrap();
        bytes[at..at + data.len()].copy_from_slice(&data);
    }
    open.close().unwrap();
    promote(&place.store, &name("web"), &name("base"), &Silent).unwrap();
    let disk = place.store.root().join("bases/base/2/disk.raw");
    let (shared, own) = blocks(&disk);
    assert!(fs::read(&disk).unwrap() == bytes);
    assert!(shared >= SIZE - MIB, "{shared} bytes are shared, {own} are not");
    place.is_sound("base@2");
    place.is_sound("base@1");
}

/// Writes to the source once the import has begun to look at its copy; or stops it at the `stop`-th question.
struct Meddler {
    source: PathBuf,
    writes: bool,
    stop: u64,
    asked: AtomicU64,
    done: AtomicBool,
}

impl Progress for Meddler {
    fn total(&self, _: u64) {}

    fn advance(&self, _: u64) {
        if self.writes && !self.done.swap(true, Ordering::SeqCst) {
            let file = File::options().write(true).open(&self.source).unwrap();
            file.write_all_at(&[0xaa; 4096], 0).unwrap();
        }
    }

    fn cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst) >= self.stop
    }
}

#[test]
fn a_source_that_changes_and_a_stop_leave_nothing() {
    let place = Place::new("xfs");
    let source = place.file("in.raw", &sample(SIZE));
    let free = || {
        must("sync", &["-f", place.host.dir.to_str().unwrap()]);
        place.host.free()
    };
    let before = free();
    for (writes, stop, kind) in
        [(true, u64::MAX, Kind::Changed), (false, 0, Kind::Interrupted), (false, 9, Kind::Interrupted)]
    {
        let (asked, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let meddler = Meddler { source: source.clone(), writes, stop, asked, done };
        let failed =
            import(&place.store, &request(&source, "base", Some(Format::Raw)), &meddler).unwrap_err();
        assert_eq!(failed.kind(), kind, "{failed}");
        assert!(place.store.bases().unwrap().is_empty());
        assert!(fs::read_dir(place.store.root().join("tmp")).unwrap().next().is_none());
    }
    let lost = before.saturating_sub(free());
    assert!(lost < MIB as u64, "{lost} bytes are lost");
}
