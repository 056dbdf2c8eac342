//! A store in a temporary folder, and hands to meddle with it.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

use cowshed::ops::Silent;
use cowshed::ops::import::{Format, ImportRequest, import};
use cowshed::storage::{FileAccess, Folder, set_immutable};
use cowshed::store::{Access, Base, BaseRef, CloneOptions, DiskFormat, Name, Store, Target};
use cowshed::units::GuestOffset;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A store that may be thrown away, sealed files and all.
pub struct TempStore {
    pub store: Store,
    pub dir: Scrap,
}

/// A temporary folder whose sealed files are unsealed when it is dropped.
pub struct Scrap(pub tempfile::TempDir);

impl Scrap {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        unseal_all(self.0.path());
    }
}

pub fn unseal_all(path: &Path) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            unseal_all(&path);
        } else if kind.is_file() {
            unseal(&path);
        }
    }
}

pub fn unseal(path: &Path) {
    let _ = set_immutable(&File::open(path).unwrap(), false);
}

impl TempStore {
    pub fn new() -> Self {
        let dir = Scrap::new();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        Self { store, dir }
    }

    /// A store with the base `base` of `size` bytes: a third of them noise, a third holes.
    pub fn with_base(size: usize) -> (Self, Base) {
        let this = Self::new();
        let base = this.add_base("base", &sample(size));
        (this, base)
    }

    pub fn add_base(&self, name: &str, bytes: &[u8]) -> Base {
        let source = self.dir.path().join(format!("{name}.source"));
        fs::write(&source, bytes).unwrap();
        import(&self.store, &request(&source, name, Some(Format::Raw)), &Silent).unwrap()
    }

    pub fn clones(&self, names: &[&str]) {
        let names: Vec<Name> = names.iter().map(|name| self::name(name)).collect();
        self.store.create_clones(&base_ref("base"), &names, &CloneOptions::default()).unwrap();
    }

    pub fn write(&self, clone: &str, data: &[u8], at: u64) {
        let open = self.store.open_clone(&name(clone), Access::Write).unwrap();
        open.disk.write(data, GuestOffset(at)).unwrap();
        open.close().unwrap();
    }

    pub fn content(&self, target: &Target) -> Vec<u8> {
        let open = self.store.open_target(target, Access::Read).unwrap();
        let mut bytes = vec![0xee; usize::try_from(open.disk.size()).unwrap()];
        open.disk.read(&mut bytes, GuestOffset(0)).unwrap();
        bytes
    }

    pub fn clone_content(&self, clone: &str) -> Vec<u8> {
        self.content(&Target::Clone(name(clone)))
    }

    pub fn root(&self) -> &Path {
        self.store.root()
    }

    pub fn clone_folder(&self, clone: &str) -> PathBuf {
        self.root().join("clones").join(clone)
    }

    pub fn base_disk(&self) -> PathBuf {
        self.root().join("bases/base/1/disk.raw")
    }

    pub fn tmp_is_empty(&self) -> bool {
        fs::read_dir(self.root().join("tmp")).unwrap().next().is_none()
    }

    /// Runs `meddle` on the base's file with the seal taken off.
    pub fn meddle(&self, meddle: impl FnOnce(&File)) {
        let path = self.base_disk();
        unseal(&path);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        meddle(&File::options().read(true).write(true).open(&path).unwrap());
    }
}

pub fn request(source: &Path, name: &str, format: Option<Format>) -> ImportRequest {
    ImportRequest {
        source: source.to_owned(),
        format,
        name: self::name(name),
        update: false,
        follow_backing: false,
    }
}

pub fn name(name: &str) -> Name {
    name.parse().unwrap()
}

pub fn base_ref(base: &str) -> BaseRef {
    base.parse().unwrap()
}

/// Bytes that are the same each time: noise, zeros and a pattern in turns of 48 KiB.
pub fn sample(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (number, piece) in bytes.chunks_mut(48 << 10).enumerate() {
        match number % 3 {
            0 => piece.iter_mut().for_each(|byte| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = state.to_be_bytes()[0];
            }),
            1 => {}
            _ => piece.fill(u8::try_from(number % 251 + 1).unwrap()),
        }
    }
    bytes
}

pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a program that must succeed, and returns what it said.
pub fn must(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{said}", output.status);
    said
}

/// Neither errors nor leaks.
pub fn qemu_check(path: &Path) {
    let path = path.to_str().unwrap();
    must("qemu-img", &["check", "-f", "qcow2", path]);
}

/// What QEMU reads from an image of the store.
pub fn qemu_content(path: &Path, format: DiskFormat) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.raw");
    let (from, to) = (path.to_str().unwrap(), out.to_str().unwrap());
    must("qemu-img", &["convert", "-f", format.as_str(), "-O", "raw", from, to]);
    fs::read(&out).unwrap()
}

pub fn file_digest(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).unwrap();
    let (mut at, mut buf) = (0, vec![0; 1 << 20]);
    loop {
        match file.read_at(&mut buf, at).unwrap() {
            0 => return hasher.finalize(),
            len => {
                hasher.update(&buf[..len]);
                at += u64::try_from(len).unwrap();
            }
        }
    }
}

/// The folder trait's own way to open, for tests that hold a file.
pub fn open_file(folder: &Path, name: &str) -> File {
    Folder::open(folder).unwrap().file(name, FileAccess::Read).unwrap().to_file().unwrap()
}
