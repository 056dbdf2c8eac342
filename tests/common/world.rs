//! A small file system in memory: names, files, what a folder of the host holds; built from one, and built into one.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

use cowshed::storage::{Fingerprint, set_immutable};
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

pub const SECTOR: usize = 512;
/// The folder that everything is in.
pub const ROOT: Id = 0;

nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
const IMMUTABLE: libc::c_long = 0x10;

/// A file or folder, whatever names it has.
pub type Id = u64;

/// What the host knows of a file beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub immutable: bool,
    pub mtime: i64,
    pub ctime: i64,
}

impl Meta {
    pub fn of(file: &File) -> Self {
        let meta = file.metadata().unwrap();
        let mut flags: libc::c_long = 0;
        // SAFETY: the descriptor is open, and the kernel writes at most one long to a long that lives on.
        let known = unsafe { get_flags(file.as_raw_fd(), &raw mut flags) }.is_ok();
        let nanos = |seconds: i64, nanos: i64| seconds * 1_000_000_000 + nanos;
        Self {
            mode: meta.mode() & 0o7777,
            immutable: known && flags & IMMUTABLE != 0,
            mtime: nanos(meta.mtime(), meta.mtime_nsec()),
            ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A regular file: sectors that are not all zero, by number.
#[derive(Clone, Debug, Default)]
pub struct Plain {
    pub len: u64,
    pub sectors: BTreeMap<u64, [u8; SECTOR]>,
    pub meta: Meta,
    /// The number that the recorded host gave it, which manifests remember.
    pub inode: u64,
}

impl Plain {
    pub fn write(&mut self, at: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let here = at + done as u64;
            let (number, within) = (here / SECTOR as u64, (here % SECTOR as u64) as usize);
            let len = (SECTOR - within).min(data.len() - done);
            self.sectors.entry(number).or_insert([0; SECTOR])[within..within + len]
                .copy_from_slice(&data[done..done + len]);
            done += len;
        }
        self.len = self.len.max(at + data.len() as u64);
    }

    pub fn punch(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.len);
        let touched: Vec<u64> =
            self.sectors.range(at / SECTOR as u64..end.div_ceil(SECTOR as u64)).map(|(n, _)| *n).collect();
        for number in touched {
            let start = number * SECTOR as u64;
            let (from, to) = (at.max(start) - start, end.min(start + SECTOR as u64) - start);
            self.sectors.get_mut(&number).unwrap()[from as usize..to as usize].fill(0);
        }
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            let all = self.len;
            self.punch(len, all - len);
        }
        self.len = len;
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        for (number, sector) in &self.sectors {
            let at = (*number as usize * SECTOR).min(bytes.len());
            let len = SECTOR.min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&sector[..len]);
        }
        bytes
    }
}

#[derive(Clone, Debug)]
pub enum Node {
    Folder(BTreeMap<String, Id>),
    File(Arc<Plain>),
}

/// Everything in one folder.
#[derive(Clone, Debug)]
pub struct World {
    pub nodes: BTreeMap<Id, Node>,
}

impl World {
    /// What is in the folder `dir` now, with the inode numbers of all of it.
    pub fn of(dir: &Path) -> (Self, HashMap<u64, Id>) {
        let mut world = Self { nodes: BTreeMap::new() };
        let mut ids = HashMap::new();
        world.take(dir, &mut ids);
        (world, ids)
    }

    fn take(&mut self, path: &Path, ids: &mut HashMap<u64, Id>) -> Id {
        let stat = fs::symlink_metadata(path).unwrap();
        if let Some(known) = ids.get(&stat.ino()) {
            return *known;
        }
        let id = ids.len() as Id;
        ids.insert(stat.ino(), id);
        let node = if stat.is_dir() {
            let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            Node::Folder(
                names.into_iter().map(|name| (name.clone(), self.take(&path.join(name), ids))).collect(),
            )
        } else {
            let file = File::open(path).unwrap();
            let mut plain =
                Plain { len: stat.len(), inode: stat.ino(), meta: Meta::of(&file), ..Plain::default() };
            for (number, sector) in fs::read(path).unwrap().chunks(SECTOR).enumerate() {
                if sector.iter().any(|byte| *byte != 0) {
                    plain.write((number * SECTOR) as u64, sector);
                }
            }
            Node::File(Arc::new(plain))
        };
        self.nodes.insert(id, node);
        id
    }

    pub fn entries(&mut self, folder: Id) -> &mut BTreeMap<String, Id> {
        match self.nodes.entry(folder).or_insert_with(|| Node::Folder(BTreeMap::new())) {
            Node::Folder(entries) => entries,
            Node::File(_) => panic!("{folder} is a file"),
        }
    }

    pub fn file(&mut self, id: Id) -> &mut Plain {
        match self.nodes.entry(id).or_insert_with(|| Node::File(Arc::default())) {
            Node::File(file) => Arc::make_mut(file),
            Node::Folder(_) => panic!("{id} is a folder"),
        }
    }

    /// Two worlds of the same digest cannot be told apart from outside.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.feed(ROOT, &mut hasher, &mut HashMap::new());
        hasher.finalize()
    }

    fn feed(&self, id: Id, hasher: &mut blake3::Hasher, seen: &mut HashMap<Id, u64>) {
        let fresh = seen.len() as u64;
        let number = *seen.entry(id).or_insert(fresh);
        hasher.update(&number.to_le_bytes());
        if number != fresh {
            return;
        }
        match &self.nodes[&id] {
            Node::Folder(entries) => {
                for (name, id) in entries {
                    hasher.update(name.as_bytes()).update(b"/");
                    self.feed(*id, hasher, seen);
                }
                hasher.update(b"//");
            }
            Node::File(file) => {
                hasher.update(format!("{} {:?}", file.len, file.meta).as_bytes());
                for (number, sector) in &file.sectors {
                    hasher.update(&number.to_le_bytes()).update(sector);
                }
            }
        }
    }

    /// Makes all of it in the empty folder `dir`. A base's manifest is given the numbers that its file has there, if it
    /// had the ones that the file had here.
    pub fn build(&self, dir: &Path) {
        self.build_folder(ROOT, dir, &mut HashMap::new());
    }

    fn build_folder(&self, id: Id, dir: &Path, built: &mut HashMap<Id, std::path::PathBuf>) {
        let Node::Folder(entries) = &self.nodes[&id] else { panic!("{id} is a file") };
        for (name, id) in entries {
            let path = dir.join(name);
            match &self.nodes[id] {
                Node::Folder(_) => {
                    fs::create_dir(&path).unwrap();
                    self.build_folder(*id, &path, built);
                }
                Node::File(file) => match built.get(id) {
                    Some(other) => fs::hard_link(other, &path).unwrap(),
                    None => {
                        build_file(file, &path);
                        built.insert(*id, path);
                    }
                },
            }
        }
        for name in ["disk.raw", "disk.qcow2"] {
            let disk = entries.get(name).map(|id| &self.nodes[id]);
            if let (Some(Node::File(disk)), true) = (disk, entries.contains_key("base.json")) {
                translate(disk, name, dir);
            }
        }
    }
}

fn build_file(file: &Plain, path: &Path) {
    let made = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    made.set_len(file.len).unwrap();
    for (number, sector) in &file.sectors {
        let at = number * SECTOR as u64;
        let len = file.len.saturating_sub(at).min(SECTOR as u64) as usize;
        made.write_all_at(&sector[..len], at).unwrap();
    }
    if file.meta.mode != 0 {
        made.set_permissions(Permissions::from_mode(file.meta.mode)).unwrap();
    }
    let mtime = UNIX_EPOCH + Duration::from_nanos(file.meta.mtime.unsigned_abs());
    made.set_times(FileTimes::new().set_modified(mtime)).unwrap();
    if file.meta.immutable {
        set_immutable(&made, true).unwrap();
    }
}

fn translate(disk: &Plain, name: &str, dir: &Path) {
    let path = dir.join("base.json");
    let Ok(mut manifest) = serde_json::from_slice::<serde_json::Value>(&fs::read(&path).unwrap()) else {
        return;
    };
    let Some(fingerprint) = manifest.get_mut("fingerprint") else { return };
    if fingerprint["inode"] == disk.inode && fingerprint["ctime_ns"] == disk.meta.ctime {
        let now = Fingerprint::of(&File::open(dir.join(name)).unwrap()).unwrap();
        fingerprint["inode"] = now.inode.into();
        fingerprint["ctime_ns"] = now.ctime_ns.into();
        fs::write(&path, serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    }
}
