//! Images become bases, and disks become images.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::ops::export::{ExportRequest, export};
use cowshed::ops::import::{Format, ImportRequest, import};
use cowshed::ops::map::{MapExtent, map};
use cowshed::ops::verify::verify;
use cowshed::ops::{Progress, Silent};
use cowshed::store::{Access, DiskFormat, Target};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SIZE: usize = 9 << 20;

fn source(temp: &TempStore, name: &str) -> PathBuf {
    temp.dir.path().join(name)
}

fn qemu_convert(from: &Path, to: &Path, options: &[&str]) {
    let mut args = vec!["convert", "-f", "raw"];
    args.extend(options);
    args.extend([from.to_str().unwrap(), to.to_str().unwrap()]);
    must("qemu-img", &args);
}

fn nothing_left(temp: &TempStore) {
    assert!(temp.store.bases().unwrap().is_empty());
    assert!(temp.tmp_is_empty());
    assert!(fs::read_dir(temp.root().join("bases")).unwrap().next().is_none());
}

#[test]
fn every_format_gives_the_same_base() {
    let temp = TempStore::new();
    let raw = source(&temp, "in.raw");
    fs::write(&raw, sample(SIZE)).unwrap();
    let expected = import(&temp.store, &request(&raw, "raw", None), &Silent).unwrap();
    assert_eq!((expected.size, expected.version), (u64::try_from(SIZE).unwrap(), 1));
    let cases: [(&str, &[&str]); 11] = [
        ("qcow2", &["-O", "qcow2"]),
        ("qcow2-v2", &["-O", "qcow2", "-o", "compat=0.10"]),
        ("qcow2-ext", &["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"]),
        ("qcow2-zlib", &["-O", "qcow2", "-c"]),
        ("qcow2-zstd", &["-O", "qcow2", "-c", "-o", "compression_type=zstd"]),
        ("qcow2-512", &["-O", "qcow2", "-o", "cluster_size=512"]),
        ("vmdk", &["-O", "vmdk"]),
        ("vmdk-stream", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
        ("vdi", &["-O", "vdi"]),
        ("vhd", &["-O", "vpc", "-o", "force_size=on"]),
        ("vhdx", &["-O", "vhdx"]),
    ];
    for (name, options) in cases {
        let file = source(&temp, name);
        qemu_convert(&raw, &file, options);
        let base = import(&temp.store, &request(&file, name, None), &Silent).unwrap();
        assert_eq!((base.digest, base.size), (expected.digest, expected.size), "{name}");
        assert!(verify(&temp.store, &base_ref(name), &Silent).unwrap().is_ok(), "{name}");
        assert!(base.source.ends_with(name), "{}", base.source);
    }
    // A vhd of fixed size has its mark at the end, among bytes that a guest of a raw disk could write: it must be named.
    let file = source(&temp, "vhd-fixed");
    qemu_convert(&raw, &file, &["-O", "vpc", "-o", "subformat=fixed,force_size=on"]);
    let base = import(&temp.store, &request(&file, "vhd-fixed", Some(Format::Vhd)), &Silent).unwrap();
    assert_eq!(base.digest, expected.digest);
    assert!(temp.tmp_is_empty());
}

#[test]
fn holes_and_zeros_stay_holes() {
    let temp = TempStore::new();
    let path = source(&temp, "in.raw");
    let file = File::create(&path).unwrap();
    file.set_len(512 << 20).unwrap();
    file.write_all_at(&vec![0; 8 << 20], 1 << 20).unwrap();
    file.write_all_at(&[1; 4096], 100 << 20).unwrap();
    file.write_all_at(&[2], (512 << 20) - 1).unwrap();
    drop(file);
    import(&temp.store, &request(&path, "base", None), &Silent).unwrap();
    let base = fs::metadata(temp.base_disk()).unwrap();
    assert_eq!(base.len(), 512 << 20);
    assert!(base.blocks() * 512 <= 16 << 10, "{} bytes", base.blocks() * 512);
    assert_eq!(file_digest(&temp.base_disk()), file_digest(&path));
}

#[test]
fn an_odd_length_is_padded_with_zeros() {
    let temp = TempStore::new();
    for len in [1, 511, 513, 65_537, (4 << 20) + 1] {
        let bytes: Vec<u8> = sample(len).iter().map(|byte| byte | 1).collect();
        let path = source(&temp, "odd");
        fs::write(&path, &bytes).unwrap();
        let base = import(&temp.store, &request(&path, "base", None), &Silent).unwrap();
        assert_eq!(base.size, u64::try_from(len.next_multiple_of(512)).unwrap());
        let content = temp.content(&Target::Base(base_ref("base")));
        assert_eq!(content[..len], bytes);
        assert!(content[len..].iter().all(|byte| *byte == 0));
        temp.store.remove_base(&base_ref("base")).unwrap();
    }
    fs::write(source(&temp, "odd"), b"").unwrap();
    let error = import(&temp.store, &request(&source(&temp, "odd"), "base", None), &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    nothing_left(&temp);
}

#[test]
fn what_is_no_image_is_refused_in_a_sentence() {
    let temp = TempStore::new();
    let here = |name: &str| source(&temp, name);
    fs::create_dir(here("folder")).unwrap();
    must("mkfifo", &[here("fifo").to_str().unwrap()]);
    fs::write(here("parts"), "# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"/etc/shadow\" 0\n").unwrap();
    let mut vmdk = b"KDMV\x01\0\0\0\x03\0\0\0".to_vec();
    vmdk.resize(2048, 0);
    fs::write(here("vmdk"), &vmdk).unwrap();
    fs::write(here("raw"), sample(1 << 20)).unwrap();
    qemu_convert(&here("raw"), &here("qcow2"), &["-O", "qcow2"]);
    let good = fs::read(here("qcow2")).unwrap();
    fs::write(here("cut"), &good[..good.len() / 2]).unwrap();
    fs::write(here("short"), &good[..40]).unwrap();
    for (file, format, kind) in [
        ("absent", None, Kind::NotFound),
        ("folder", None, Kind::Invalid),
        ("fifo", None, Kind::Invalid),
        ("parts", None, Kind::Unsupported),
        ("vmdk", None, Kind::Unsupported),
        ("cut", None, Kind::Corrupt),
        ("short", None, Kind::Corrupt),
        ("raw", Some(Format::Qcow2), Kind::Corrupt),
        ("raw", Some(Format::Vmdk), Kind::Unsupported),
        ("raw", Some(Format::Vdi), Kind::Corrupt),
        ("raw", Some(Format::Vhd), Kind::Corrupt),
        ("raw", Some(Format::Vhdx), Kind::Corrupt),
        ("/dev/null", None, Kind::Invalid),
    ] {
        let error = import(&temp.store, &request(&here(file), "base", format), &Silent).unwrap_err();
        assert_eq!(error.kind(), kind, "{file} as {format:?}: {error}");
        assert!(error.to_string().contains(file), "{error}");
        nothing_left(&temp);
    }
    // Said to be raw, its bytes are the disk's, whatever they look like.
    let base = import(&temp.store, &request(&here("qcow2"), "base", Some(Format::Raw)), &Silent).unwrap();
    assert_eq!(base.size, u64::try_from(good.len().next_multiple_of(512)).unwrap());
}

#[test]
fn a_vmdk_that_names_a_parent_does_not_get_it_opened() {
    let temp = TempStore::new();
    let (parent, child) = (source(&temp, "parent.vmdk"), source(&temp, "child.vmdk"));
    let raw = source(&temp, "raw");
    fs::write(&raw, sample(1 << 20)).unwrap();
    qemu_convert(&raw, &parent, &["-O", "vmdk"]);
    let parent = parent.to_str().unwrap();
    must("qemu-img", &["create", "-q", "-f", "vmdk", "-b", parent, "-F", "vmdk", child.to_str().unwrap()]);
    let error = import(&temp.store, &request(&child, "base", None), &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    nothing_left(&temp);
}

#[test]
fn a_backing_file_is_read_when_it_is_asked_for_and_plain() {
    let temp = TempStore::new();
    let here = |name: &str| source(&temp, name);
    fs::write(here("low.raw"), sample(SIZE)).unwrap();
    let create = |file: &str, backing: &str, format: &[&str]| {
        let path = here(file);
        let mut args = vec!["create", "-q", "-u", "-f", "qcow2", "-b", backing];
        args.extend(format);
        args.extend([path.to_str().unwrap(), "9M"]);
        must("qemu-img", &args);
    };
    create("mid.qcow2", "low.raw", &["-F", "raw"]);
    create("top.qcow2", "mid.qcow2", &["-F", "qcow2"]);
    must("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 1M", here("top.qcow2").to_str().unwrap()]);
    let follow = |file: &str, name: &str| {
        let request = ImportRequest { follow_backing: true, ..request(&here(file), name, None) };
        import(&temp.store, &request, &Silent)
    };
    let error = import(&temp.store, &request(&here("top.qcow2"), "x", None), &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(
        error.to_string().contains("mid.qcow2") && error.to_string().contains("--follow-backing"),
        "{error}"
    );
    follow("top.qcow2", "good").unwrap();
    let mut expected = sample(SIZE);
    expected[1 << 20..2 << 20].fill(9);
    assert!(temp.content(&Target::Base(base_ref("good"))) == expected);
    temp.store.remove_base(&base_ref("good")).unwrap();

    let secret = temp.dir.path().join("low.raw");
    symlink("low.raw", here("link.raw")).unwrap();
    create("absolute", secret.to_str().unwrap(), &["-F", "raw"]);
    create("dots", "../low.raw", &["-F", "raw"]);
    create("sub", "./low.raw", &["-F", "raw"]);
    create("json", "json:{\"driver\":\"raw\",\"file.filename\":\"low.raw\"}", &["-F", "raw"]);
    create("scheme", "nbd:localhost:1", &["-F", "raw"]);
    create("linked", "link.raw", &["-F", "raw"]);
    create("self", "self", &["-F", "qcow2"]);
    create("circle", "elcric", &["-F", "qcow2"]);
    create("elcric", "circle", &["-F", "qcow2"]);
    create("exotic", "low.raw", &["-F", "vmdk"]);
    // A format that is not given is guessed by others from bytes of a guest.
    create("guess", "low.raw", &["-F", "raw"]);
    forget_format(&here("guess"));
    for (file, kind) in [
        ("absolute", Kind::Unsupported),
        ("dots", Kind::Unsupported),
        ("sub", Kind::Unsupported),
        ("json", Kind::Unsupported),
        ("scheme", Kind::Unsupported),
        ("linked", Kind::Io),
        ("self", Kind::Corrupt),
        ("circle", Kind::Corrupt),
        ("exotic", Kind::Unsupported),
        ("guess", Kind::Unsupported),
    ] {
        let error = follow(file, "bad").unwrap_err();
        assert_eq!(error.kind(), kind, "{file}: {error}");
        nothing_left(&temp);
    }
}

/// Turns the header extension that gives the backing file's format into an unknown one.
fn forget_format(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes[..512].windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at] = 0x12;
    fs::write(path, bytes).unwrap();
}

/// Writes to a file or stops, once the first bytes were read.
struct Meddler<'a> {
    file: Option<&'a File>,
    stop: bool,
    total: AtomicU64,
    done: AtomicU64,
    once: AtomicBool,
}

impl Progress for Meddler<'_> {
    fn total(&self, bytes: u64) {
        self.total.fetch_max(bytes, Ordering::SeqCst);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::SeqCst);
        if let Some(file) = self.file
            && !self.once.swap(true, Ordering::SeqCst)
        {
            file.write_all_at(b"other", 7).unwrap();
        }
    }

    fn cancelled(&self) -> bool {
        self.stop && self.done.load(Ordering::SeqCst) > 0
    }
}

fn meddler(file: Option<&File>, stop: bool) -> Meddler<'_> {
    Meddler { file, stop, total: AtomicU64::new(0), done: AtomicU64::new(0), once: AtomicBool::new(false) }
}

#[test]
fn a_source_that_changes_meanwhile_is_refused() {
    let temp = TempStore::new();
    let path = source(&temp, "in.raw");
    fs::write(&path, sample(SIZE)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let error = import(&temp.store, &request(&path, "base", None), &meddler(Some(&file), false)).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    assert!(error.to_string().contains("in.raw"), "{error}");
    nothing_left(&temp);
}

#[test]
fn a_stopped_import_or_export_leaves_nothing_and_progress_adds_up() {
    let temp = TempStore::new();
    let path = source(&temp, "in.raw");
    let file = File::create(&path).unwrap();
    file.write_all_at(&sample(64 << 20), 0).unwrap();
    file.set_len(200 << 20).unwrap();
    let error = import(&temp.store, &request(&path, "base", None), &meddler(None, true)).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted, "{error}");
    nothing_left(&temp);
    let progress = meddler(None, false);
    import(&temp.store, &request(&path, "base", None), &progress).unwrap();
    assert_eq!(progress.total.load(Ordering::SeqCst), 200 << 20);
    assert_eq!(progress.done.load(Ordering::SeqCst), 200 << 20);
    let out = temp.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let request = ExportRequest {
        target: Target::Base(base_ref("base")),
        out: out.join("x"),
        format: DiskFormat::Qcow2,
        force: false,
    };
    let error = export(&temp.store, &request, &meddler(None, true)).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted, "{error}");
    assert!(fs::read_dir(&out).unwrap().next().is_none());
}

#[test]
fn a_block_device_can_be_imported() {
    let temp = TempStore::new();
    let path = source(&temp, "in.raw");
    fs::write(&path, sample(SIZE)).unwrap();
    let device = must("losetup", &["--show", "-r", "-f", path.to_str().unwrap()]);
    let device = device.trim();
    let result = import(&temp.store, &request(Path::new(device), "base", None), &Silent);
    must("losetup", &["-d", device]);
    assert_eq!(result.unwrap().size, u64::try_from(SIZE).unwrap());
    assert!(temp.content(&Target::Base(base_ref("base"))) == sample(SIZE));
}

#[test]
fn an_export_is_the_guest_visible_disk_sparse_and_never_replaces_unasked() {
    let (temp, _) = TempStore::with_base(SIZE);
    temp.clones(&["a"]);
    temp.write("a", &[8; 300_000], 123_456);
    temp.store.checkpoint(&name("a"), None).unwrap();
    temp.write("a", &vec![0; 4 << 20], 4 << 20);
    let expected = temp.clone_content("a");
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let out = source(&temp, "out");
        let mut request =
            ExportRequest { target: Target::Clone(name("a")), out: out.clone(), format, force: false };
        export(&temp.store, &request, &Silent).unwrap();
        assert!(qemu_content(&out, format) == expected, "{format}");
        let allocated = fs::metadata(&out).unwrap().blocks() * 512;
        assert!(allocated < 6 << 20, "{format}: {allocated}");
        if format == DiskFormat::Qcow2 {
            qemu_check(&out);
            assert!(!must("qemu-img", &["info", out.to_str().unwrap()]).contains("backing file"));
        }
        assert_eq!(export(&temp.store, &request, &Silent).unwrap_err().kind(), Kind::Exists);
        fs::write(&out, "old").unwrap();
        request.force = true;
        export(&temp.store, &request, &Silent).unwrap();
        assert!(qemu_content(&out, format) == expected, "{format} replaced");
        fs::remove_file(&out).unwrap();
    }
    let nowhere = ExportRequest {
        target: Target::Base(base_ref("base")),
        out: source(&temp, "no/such/folder"),
        format: DiskFormat::Raw,
        force: true,
    };
    assert_eq!(export(&temp.store, &nowhere, &Silent).unwrap_err().kind(), Kind::NotFound);
    let folder = ExportRequest { out: temp.dir.path().to_owned(), ..nowhere };
    assert_eq!(export(&temp.store, &folder, &Silent).unwrap_err().kind(), Kind::Invalid);
    let _open = temp.store.open_clone(&name("a"), Access::Write).unwrap();
    let busy = ExportRequest { target: Target::Clone(name("a")), out: source(&temp, "busy"), ..folder };
    assert_eq!(export(&temp.store, &busy, &Silent).unwrap_err().kind(), Kind::Busy);
}

#[test]
fn the_map_is_the_one_that_qemu_gives() {
    let (temp, _) = TempStore::with_base(SIZE);
    temp.clones(&["a"]);
    temp.write("a", &[8; 300_000], 123_456);
    temp.store.checkpoint(&name("a"), None).unwrap();
    temp.write("a", &[9; 4096], 2 << 20);
    {
        let open = temp.store.open_clone(&name("a"), Access::Write).unwrap();
        open.disk.write_zeroes(cowshed::units::GuestOffset(3 << 20), 1 << 20).unwrap();
        open.close().unwrap();
    }
    let open = temp.store.open_clone(&name("a"), Access::Inspect).unwrap();
    let ours: Vec<MapExtent> = map(&open.disk, open.files()).map(Result::unwrap).collect();
    let disk = temp.clone_folder("a").join("disk.qcow2");
    let said = must("qemu-img", &["map", "--output=json", "-f", "qcow2", disk.to_str().unwrap()]);
    let theirs: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    let kind = |start: u64, len: u64, depth: u64, zero: bool, data: bool, offset: Option<u64>| {
        (start, len, depth, zero, data, offset.filter(|_| data))
    };
    let ours_short: Vec<_> = ours
        .iter()
        .map(|e| kind(e.start, e.length, u64::try_from(e.depth).unwrap(), e.zero, e.data, e.offset))
        .collect();
    let number = |value: &serde_json::Value, key: &str| value[key].as_u64();
    let theirs_short: Vec<_> = theirs
        .iter()
        .map(|e| {
            let (zero, data) = (e["zero"].as_bool().unwrap(), e["data"].as_bool().unwrap());
            let [start, length, depth] = ["start", "length", "depth"].map(|key| number(e, key).unwrap());
            kind(start, length, depth, zero, data, number(e, "offset"))
        })
        .collect();
    assert_eq!(ours_short, theirs_short);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(Some(ours.present), theirs["present"].as_bool(), "{ours:?}");
    }
    assert!(
        ours.iter().any(|e| e.filename.as_deref().is_some_and(|file| file.ends_with("checkpoint-1.qcow2")))
    );
}
