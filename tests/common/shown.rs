//! What a store shows to its user, for comparing the store before a command with the one after it.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

use super::world::World;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::ops::check::check_clone;
use cowshed::qcow2::{Image, OpenOptions};
use cowshed::storage::{Fingerprint, HostFile, Storage};
use cowshed::store::{Access, BaseRef, Canary, CloneOptions, DiskFormat, Name, Store, Strategy};
use cowshed::units::{GuestOffset, HostOffset};
use cowshed::{Error, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A folder in memory with a world in it; removed when dropped, sealed files too.
pub struct Built(pub tempfile::TempDir);

impl Built {
    pub fn empty() -> Self {
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        Self(tempfile::tempdir_in(parent).unwrap())
    }

    pub fn of(world: &World) -> Self {
        let built = Self::empty();
        world.build(built.path());
        built
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        super::store::unseal_all(self.0.path());
    }
}

/// All that a user sees of a store and of the folder `out` beside it. Times of making are left out, so that a command
/// that is run again gives the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// By `NAME@V`: digest of the content, and why it is refused, if it is.
    pub bases: BTreeMap<String, (String, Option<String>)>,
    pub clones: BTreeMap<String, ShownClone>,
    /// By base: what its last canary run was told.
    pub canaries: BTreeMap<String, Canary>,
    /// Exported files by name: digest of the disk.
    pub out: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownClone {
    pub base: String,
    /// What its manifest says, which is its disk's.
    pub size: u64,
    pub labels: BTreeMap<String, String>,
    /// What waits for its next start: the version, the strategy and the rules.
    pub waiting: Option<(String, Strategy, String)>,
    pub content: String,
    /// By number: parent, note, and digest of the content.
    pub checkpoints: BTreeMap<u32, (Option<u32>, Option<String>, String)>,
    /// Why something of it is refused.
    pub refused: Vec<String>,
}

/// What is shown of the store at `root`, whose folder may be missing, and of `out`.
///
/// # Errors
/// A sentence that says what is broken.
pub fn shown(root: &Path, out: &Path) -> Result<Shown, String> {
    let mut shown = Shown::default();
    for entry in fs::read_dir(out).into_iter().flatten() {
        let (name, path) = (entry.as_ref().unwrap().file_name(), entry.as_ref().unwrap().path());
        if !name.to_str().unwrap().starts_with(".cowshed-") {
            shown.out.insert(name.into_string().unwrap(), file_content(&path)?);
        }
    }
    if !root.join("cowshed.json").exists() {
        return Ok(shown);
    }
    let store = Store::open(root).map_err(|error| say("open", &error))?;
    let survey = store.survey().map_err(|error| say("survey", &error))?;
    if let Some(broken) = survey.broken.first() {
        return Err(format!("{} {} is broken: {}", broken.kind, broken.name, broken.reason));
    }
    for base in survey.bases {
        let exact = BaseRef::exact(base.name.clone(), base.version);
        let refused = store.open_base(&exact).err().map(|error| error.to_string());
        let report = cowshed::ops::verify::verify(&store, &exact, &cowshed::ops::Silent);
        let report = report.map_err(|error| say("verify", &error))?;
        if !report.digest_ok || !report.sums_ok || report.fingerprint_ok != refused.is_none() {
            return Err(format!("{report:?}, refused: {refused:?}"));
        }
        shown.bases.insert(exact.to_string(), (base.digest.to_string(), refused));
        let canary = store.canary(&base.name).map_err(|error| say("canary", &error))?;
        shown.canaries.extend(canary.map(|canary| (base.name.to_string(), canary)));
    }
    for clone in survey.clones {
        let seen = shown_clone(&store, &clone)?;
        shown.clones.insert(clone.name.to_string(), seen);
    }
    Ok(shown)
}

fn shown_clone(store: &Store, clone: &cowshed::store::Clone) -> Result<ShownClone, String> {
    let name = &clone.name;
    let mut refused = checked(store, name)?;
    let content = match store.open_clone(name, Access::Read) {
        Ok(open) => disk_digest(&open.disk)?,
        Err(error) if error.kind() == Kind::Changed => {
            refused.push(error.to_string());
            String::new()
        }
        Err(error) => return Err(say(&format!("open {name}"), &error)),
    };
    let mut checkpoints = BTreeMap::new();
    for found in store.checkpoints(name).map_err(|error| say(&format!("checkpoints of {name}"), &error))? {
        let content = checkpoint_digest(store, clone, found.number)?;
        checkpoints.insert(found.number, (found.parent, found.note, content));
    }
    Ok(ShownClone {
        base: clone.base.to_string(),
        size: clone.size,
        labels: clone.labels.clone(),
        waiting: clone
            .waiting
            .as_ref()
            .map(|waiting| (waiting.onto.to_string(), waiting.strategy, waiting.rules.clone())),
        content,
        checkpoints,
        refused,
    })
}

/// Which checkpoints are refused; an error when a check finds one. What was checked before is not checked again.
fn checked(store: &Store, name: &Name) -> Result<Vec<String>, String> {
    static KNOWN: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());
    let key = clone_key(&store.root().join("clones").join(name.as_str()));
    if let Some(known) = KNOWN.lock().unwrap().get(&key) {
        return Ok(known.clone());
    }
    let report = check_clone(store, name, false).map_err(|error| say(&format!("check {name}"), &error))?;
    let damaged = report.layers.iter().find(|layer| layer.report.error_count > 0);
    if let Some(layer) = damaged {
        return Err(format!("{}: {:?}", layer.file.display(), layer.report.errors));
    }
    KNOWN.lock().unwrap().insert(key, report.refused_checkpoints.clone());
    Ok(report.refused_checkpoints)
}

/// All that a check of a clone depends on: names, which of them are one file, bytes of the layers, and whether the
/// manifests of checkpoints fit.
fn clone_key(folder: &Path) -> String {
    let (mut key, mut inodes) = (folder.file_name().unwrap().to_str().unwrap().to_owned(), Vec::new());
    for name in listing(folder) {
        let path = folder.join(&name);
        let inode = fs::metadata(&path).unwrap().ino();
        if !inodes.contains(&inode) {
            inodes.push(inode);
        }
        key += &format!(" {} {:?}", name.display(), inodes.iter().position(|one| *one == inode));
        if path.extension().is_some_and(|extension| extension == "qcow2") {
            key += &sparse_digest(&path);
        } else if let Some(disk) = name.to_str().unwrap().strip_suffix(".json")
            && let Ok(file) = File::open(folder.join(format!("{disk}.qcow2")))
        {
            let manifest: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap_or_default();
            let now = Fingerprint::of(&file).unwrap();
            let fits = manifest["fingerprint"]["mtime_ns"] == now.mtime_ns
                && manifest["fingerprint"]["size"] == now.size;
            key += &format!("{fits} {} {}", manifest["parent"], manifest["folding"]);
        }
    }
    key
}

fn sparse_digest(path: &Path) -> String {
    let file = HostFile::new(File::open(path).unwrap());
    let (mut hasher, mut at, len) = (blake3::Hasher::new(), 0, file.len().unwrap());
    while at < len {
        let run = file.run_at(HostOffset(at)).unwrap();
        let mut bytes = vec![0; run.len.min(len - at) as usize];
        if run.data {
            file.read_at(&mut bytes, HostOffset(at)).unwrap();
            hasher.update(&at.to_le_bytes()).update(&bytes);
        }
        at += run.len.min(len - at);
    }
    hasher.update(&len.to_le_bytes()).finalize().to_hex()[..16].to_owned()
}

/// The content of a checkpoint, whether the present state stands on it or not: the layers by what the manifests say.
fn checkpoint_digest(store: &Store, clone: &cowshed::store::Clone, number: u32) -> Result<String, String> {
    let folder = store.root().join("clones").join(clone.name.as_str());
    let (mut layers, mut next, mut base) = (Vec::new(), Some(number), None);
    let all = store.checkpoints(&clone.name).map_err(|error| say("checkpoints", &error))?;
    while let Some(number) = next {
        let path = folder.join(format!("checkpoint-{number}.qcow2"));
        layers.push(Layer::qcow2(image(&path)?));
        let found = all.iter().find(|one| one.number == number).ok_or("a parent is missing")?;
        (next, base) = (found.parent, Some(found.base.clone()));
    }
    let (name, mut next) = base.map(|base| (base.name, Some(base.version))).ok_or("no checkpoint")?;
    while let Some(version) = next {
        let found =
            store.base(&BaseRef::exact(name.clone(), version)).map_err(|error| say("base", &error))?;
        let path = store.root().join(format!("bases/{name}/{version}/disk.{}", found.format));
        if found.format == DiskFormat::Qcow2 {
            layers.push(Layer::qcow2(image(&path)?));
        } else {
            let file = HostFile::new(File::open(path).map_err(|error| error.to_string())?);
            layers.push(Layer::Raw(RawLayer::new(Arc::new(file), false).map_err(|error| error.to_string())?));
        }
        next = found.parent;
    }
    disk_digest(&Disk::new(layers).map_err(|error| error.to_string())?)
}

fn image(path: &Path) -> Result<Image, String> {
    let file = HostFile::new(File::open(path).map_err(|error| format!("{}: {error}", path.display()))?);
    Image::open(Arc::new(file), OpenOptions::default())
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn disk_digest(disk: &Disk) -> Result<String, String> {
    let mut bytes = vec![0xee; usize::try_from(disk.size()).unwrap()];
    disk.read(&mut bytes, GuestOffset(0)).map_err(|error| say("read", &error))?;
    leave_times_out(&mut bytes);
    Ok(blake3::hash(&bytes).to_hex()[..16].to_owned())
}

/// An ext filesystem's superblock says when a program looked at it last, and has a sum over that.
fn leave_times_out(disk: &mut [u8]) {
    if disk.get(1080..1082) == Some(&[0x53, 0xef]) {
        for (at, len) in [(0x2c, 8), (0x40, 4), (0x3fc, 4)] {
            disk[1024 + at..][..len].fill(0);
        }
    }
}

fn file_content(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).unwrap();
    if bytes.starts_with(b"QFI\xfb") {
        return disk_digest(&Disk::new(vec![Layer::qcow2(image(path)?)]).map_err(|e| e.to_string())?);
    }
    Ok(blake3::hash(&bytes).to_hex()[..16].to_owned())
}

pub fn say(what: &str, error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{what}: {error}{cause}")
}

/// All names below a folder, relative to it.
pub fn listing(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    walk(dir, dir, &mut found);
    found
}

fn walk(top: &Path, dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.insert(path.strip_prefix(top).unwrap().to_owned());
        if path.is_dir() {
            walk(top, &path, found);
        }
    }
}

/// The commands that come next in a user's life, on everything that is there: they succeed, and clean up.
///
/// # Errors
/// A sentence that says what failed.
pub fn probe(root: &Path) -> Result<(), String> {
    if !root.join("cowshed.json").exists() {
        return Ok(());
    }
    let store = Store::open(root).map_err(|error| say("open", &error))?;
    let sound = |base: &cowshed::store::Base| {
        store.open_base(&BaseRef::exact(base.name.clone(), base.version)).is_ok()
    };
    if let Some(base) = store.bases().map_err(|error| say("bases", &error))?.into_iter().find(sound) {
        let exact = BaseRef::exact(base.name, base.version);
        let names: [Name; 1] = ["probe".parse().unwrap()];
        let made = store.create_clones(&exact, &names, &CloneOptions::default());
        made.map_err(|error| say("the next clone", &error))?;
    }
    for clone in store.clones().map_err(|error| say("clones", &error))? {
        // One with checkpoints and one without, whatever they are called now.
        let few = matches!(
            clone.name.as_str(),
            "a" | "aa" | "b" | "bb" | "c" | "d" | "e" | "f" | "g" | "h" | "n-1"
        );
        if few && store.open_clone(&clone.name, Access::Read).is_ok() {
            let made = store.checkpoint(&clone.name, Some("probe"));
            made.map_err(|error| say(&format!("the next checkpoint of {}", clone.name), &error))?;
        }
    }
    Ok(())
}
