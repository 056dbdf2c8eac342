//! Everything else that is parsed: names, manifests, block sums, the marks of foreign formats, QEMU's messages.

use cowshed::ops::Silent;
use cowshed::ops::check::check_clone;
use cowshed::ops::import::{Format, ImportRequest, import};
use cowshed::ops::verify::verify;
use cowshed::storage::set_immutable;
use cowshed::store::{Access, BaseRef, CloneOptions, Digest, Name, Store, Target};
use cowshed::vm::qmp::Qmp;
use std::fs::{self, File};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Files of the store that an input takes the place of, by its first byte.
const FILES: [&str; 6] = [
    "cowshed.json",
    "bases/b/1/base.json",
    "bases/b/1/blocks.crc",
    "clones/c/clone.json",
    "clones/c/checkpoint-1.json",
    "clones/c/disk.qcow2",
];
/// No read of a small file or of a dead socket takes so long.
const LIMIT: Duration = Duration::from_secs(10);

/// A small store that inputs are put into.
pub struct Texts {
    folder: PathBuf,
    store: Store,
    good: Vec<(PathBuf, Vec<u8>)>,
}

fn must<T>(error: cowshed::Result<T>) -> T {
    error.unwrap_or_else(|error| panic!("{error}"))
}

fn said<T>(result: cowshed::Result<T>) {
    if let Err(error) = result {
        super::is_sentence(&error.to_string());
    }
}

impl Texts {
    /// Makes the store in `folder`: a base, a clone of it, and a checkpoint of that.
    pub fn new(folder: &Path) -> Self {
        let store = must(Store::open_or_create(&folder.join("store")));
        let source = folder.join("source");
        fs::write(&source, vec![7; 200 << 10]).unwrap();
        let (base, clone): (Name, Name) = ("b".parse().unwrap(), "c".parse().unwrap());
        must(import(&store, &request(&source, &base, Some(Format::Raw)), &Silent));
        let base = BaseRef::exact(base, 1);
        must(store.create_clones(&base, std::slice::from_ref(&clone), &CloneOptions::default()));
        must(store.checkpoint(&clone, Some("note")));
        unseal(&store);
        let good = FILES.iter().map(|file| store.root().join(file));
        let good = good.map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
        Self { folder: folder.to_owned(), store, good }
    }

    /// The good bytes of each file that an input can take the place of: seeds.
    pub fn seeds(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        (0..).zip(&self.good).map(|(number, (_, bytes))| [&[number], &bytes[..]].concat())
    }

    /// Puts `bytes` in the place of a file, and asks for everything that reads it.
    fn replace(&self, number: usize, bytes: &[u8]) {
        let (path, good) = &self.good[number];
        fs::write(path, bytes).unwrap();
        let start = Instant::now();
        said(Store::open(self.store.root()));
        let survey = must(self.store.survey());
        survey.broken.iter().for_each(|broken| super::is_sentence(&broken.reason));
        let (name, base): (Name, BaseRef) = ("c".parse().unwrap(), "b@1".parse().unwrap());
        said(self.store.checkpoints(&name));
        said(self.store.open_clone(&name, Access::Inspect));
        said(self.store.open_target(&Target::Base(base.clone()), Access::Inspect));
        said(check_clone(&self.store, &name, false).map(|report| {
            let refused = report.refused.iter().chain(&report.refused_checkpoints);
            refused.for_each(|reason| super::is_sentence(reason));
        }));
        said(verify(&self.store, &base, &Silent));
        assert!(start.elapsed() < LIMIT, "{} took too long", FILES[number]);
        fs::write(path, good).unwrap();
    }

    /// Recognises a format; no converter is found, so that only our own code reads the bytes.
    fn recognise(&self, bytes: &[u8]) {
        let source = self.folder.join("foreign");
        fs::write(&source, bytes).unwrap();
        let name: Name = "new".parse().unwrap();
        if import(&self.store, &request(&source, &name, None), &Silent)
            .map_err(|error| said::<()>(Err(error)))
            .is_ok()
        {
            unseal(&self.store);
            must(self.store.remove_base(&BaseRef::exact(name, 1)));
        }
    }

    pub fn run(&self, data: &[u8]) {
        let Some((kind, bytes)) = data.split_first() else { return };
        match usize::from(*kind) % 9 {
            number @ 0..6 => self.replace(number, bytes),
            6 => self.recognise(bytes),
            7 => names(bytes),
            _ => messages(bytes),
        }
    }
}

/// Takes the seals off, so that the store can be thrown away, and makes the manifests right for that.
fn unseal(store: &Store) {
    for base in must(store.bases()) {
        let folder = store.root().join(format!("bases/{}/{}", base.name, base.version));
        let disk = File::open(folder.join("disk.raw")).unwrap();
        // Only where the file system has the attribute, and for root, was it set.
        let _ = set_immutable(&disk, false);
        let meta = disk.metadata().unwrap();
        let path = folder.join("base.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        manifest["fingerprint"]["ctime_ns"] = (meta.ctime() * 1_000_000_000 + meta.ctime_nsec()).into();
        fs::write(&path, manifest.to_string()).unwrap();
    }
}

fn request(source: &Path, name: &Name, format: Option<Format>) -> ImportRequest {
    ImportRequest {
        source: source.to_owned(),
        format,
        name: name.clone(),
        update: false,
        follow_backing: true,
    }
}

fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<Name>() {
        Ok(name) => {
            let path = Path::new(name.as_str());
            assert!(
                path.components().count() == 1 && path.file_name().is_some() && !text.starts_with(['.', '-'])
            );
        }
        Err(error) => super::is_sentence(&error.to_string()),
    }
    match text.parse::<BaseRef>() {
        Ok(base) => assert_eq!(base.to_string(), text),
        Err(error) => super::is_sentence(&error.to_string()),
    }
    match text.parse::<Digest>() {
        Ok(digest) => assert_eq!(digest.to_string(), text),
        Err(error) => super::is_sentence(&error.to_string()),
    }
    said(text.parse::<Format>());
}

/// A hypervisor that says `bytes` and hangs up.
fn messages(bytes: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&bytes[..bytes.len().min(64 << 10)]).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let start = Instant::now();
    if let Ok(mut qmp) = Qmp::handshake(ours, LIMIT) {
        if let Err(error) = qmp.query_status(LIMIT) {
            assert!(error.to_string().len() < 80_000, "{error}");
        }
        while let Ok(Some(event)) = qmp.next_event(LIMIT) {
            let _ = cowshed::vm::qmp::Shutdown::from_event(&event);
        }
    }
    assert!(start.elapsed() < LIMIT, "a socket that was closed is waited for");
}

/// One input, in a store of this thread.
pub fn texts(data: &[u8]) {
    thread_local!(static STORE: (Texts, tempfile::TempDir) = {
        let folder = tempfile::tempdir().unwrap();
        (Texts::new(folder.path()), folder)
    });
    STORE.with(|(store, _)| store.run(data));
}
