//! The edits, in terms of inodes.

use super::super::wire::Answer;
use super::super::{Attributes, Edit, Kind, Node};
use super::ffi::{Inode, RawTime};
use super::fs::{Failure, Fs, Outcome};
use super::names::Names;
use crate::guestfs::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const ROOT: u32 = 2;
/// Most names that one object has; a folder with more subfolders counts 1, where the filesystem knows `dir_nlink`.
const LINKS: u32 = 65000;
/// Blocks mapped at a time.
const STEP: u64 = 1024;

const NEEDS_RECOVERY: u32 = 0x4;
const DIR_NLINK: u32 = 0x20;
const QUOTA: u32 = 0x100;
const PROJECT: u32 = 0x2000;
const ORPHAN_PRESENT: u32 = 0x1_0000;
const VALID: u32 = 1;
const ERRORS: u32 = 2;

const TYPE: u32 = 0o170_000;
const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const VERITY: u32 = 0x10_0000;
const EA_INODE: u32 = 0x20_0000;
const CASEFOLD: u32 = 0x4000_0000;
/// What `chattr` sets, for folders, for files, and for anything else.
const FLAGS_FOLDER: u32 = 0x2203_c0fb;
const FLAGS_FILE: u32 = FLAGS_FOLDER & !0x3_0000;
const FLAGS_OTHER: u32 = 0xc0;

/// The edits done so far.
pub(super) struct Work {
    fs: Fs,
    /// Inodes by the parent's numbers.
    new: HashMap<u32, u32>,
    /// How many names each folder has that lost or gained one.
    folders: BTreeMap<u32, i32>,
    /// Inodes that had no name at some time.
    loose: BTreeSet<u32>,
    names: Names,
    made: u32,
    freed: u32,
}

impl Work {
    pub(super) fn new(fs: Fs) -> Outcome<Self> {
        let info = &fs.info;
        let refused = if info.incompat & NEEDS_RECOVERY != 0 {
            "its journal must be replayed first"
        } else if info.ro_compat & ORPHAN_PRESENT != 0 || info.last_orphan != 0 {
            "it has orphans that must be cleaned up first"
        } else if info.state & VALID == 0 || info.state & ERRORS != 0 {
            "it was not unmounted cleanly, or it has errors; run e2fsck on it first"
        } else if info.ro_compat & QUOTA != 0 {
            "it counts quotas (the feature quota), which cannot be kept right here"
        } else {
            let (new, folders, loose) = (HashMap::new(), BTreeMap::new(), BTreeSet::new());
            return Ok(Self { fs, new, folders, loose, names: Names::default(), made: 0, freed: 0 });
        };
        Err(Failure::unsupported(format!("the filesystem cannot be changed: {refused}")))
    }

    fn resolve(&self, node: Node) -> Outcome<u32> {
        let inode = match node {
            Node::New(number) => self.new.get(&number).copied(),
            Node::Old(inode) => Some(inode).filter(|inode| self.is_ordinary(*inode)),
        };
        inode.ok_or_else(|| Failure::new(3, "there is no such object"))
    }

    fn is_ordinary(&self, inode: u32) -> bool {
        let info = &self.fs.info;
        let special = inode < info.first_inode || inode == info.orphan_file || inode == info.journal;
        (inode == ROOT || !special) && self.fs.in_use(inode)
    }

    /// The inode of `node`, which is of one of the types `kinds`.
    fn get(&self, node: Node, kinds: &[u32]) -> Outcome<(u32, Inode)> {
        let number = self.resolve(node)?;
        let inode = self.fs.inode(number)?;
        if inode.flags & EA_INODE != 0 {
            return Err(Failure::invalid("it holds an attribute of another object"));
        }
        if !kinds.is_empty() && !kinds.contains(&(inode.mode & TYPE)) {
            return Err(Failure::invalid("it is of another type"));
        }
        Ok((number, inode))
    }

    /// The folder of `node`, whose names are plain.
    fn folder(&self, node: Node) -> Outcome<u32> {
        let (number, inode) = self.get(node, &[FOLDER])?;
        if inode.flags & (ENCRYPTED | CASEFOLD) != 0 {
            return Err(Failure::unsupported("a folder with encrypted or case-insensitive names"));
        }
        Ok(number)
    }

    pub(super) fn apply(&mut self, edit: Edit) -> Outcome {
        match edit {
            Edit::Make { id, kind, attributes } => self.make(id, &kind, &attributes),
            Edit::Link { folder, name, to } => self.link(folder, &name, to),
            Edit::Unlink { folder, name } => self.unlink(folder, &name),
            Edit::Content { node, size } => self.content(node, size),
            Edit::Target { node, target } => {
                let (number, inode) = self.get(node, &[SYMLINK])?;
                self.target(number, &inode, &target)
            }
            Edit::Attributes { node, attributes } => {
                let (number, _) = self.get(node, &[])?;
                self.attributes(number, &attributes)
            }
            Edit::SetXattr { node, name, value } => {
                check_xattr(&name)?;
                let (number, _) = self.get(node, &[])?;
                self.fs.set_xattr(number, &name, &value)
            }
            Edit::RemoveXattr { node, name } => {
                check_xattr(&name)?;
                let (number, _) = self.get(node, &[])?;
                self.fs.remove_xattr(number, &name)
            }
        }
    }

    fn make(&mut self, id: u32, kind: &Kind, attributes: &Attributes) -> Outcome {
        if self.new.contains_key(&id) {
            return Err(Failure::new(4, "the number is taken"));
        }
        let (mode, device) = match kind {
            Kind::File => (FILE, [0, 0]),
            Kind::Folder => (FOLDER, [0, 0]),
            Kind::Symlink(_) => (SYMLINK, [0, 0]),
            Kind::Char { major, minor } => (0o020_000, [*major, *minor]),
            Kind::Block { major, minor } => (0o060_000, [*major, *minor]),
            Kind::Fifo => (0o010_000, [0, 0]),
            Kind::Socket => (0o140_000, [0, 0]),
        };
        if device[0] > 0xfff || device[1] > 0xf_ffff {
            return Err(Failure::invalid(
                "a device has a major number below 4096 and a minor one below 1048576",
            ));
        }
        // Another generation than the inode had before tells that the object is another one.
        let generation = attributes.crtime.nanoseconds.rotate_left(7) ^ id.rotate_left(16) ^ (self.made + 1);
        let number = self.fs.make(mode, device, generation)?;
        self.made += 1;
        self.new.insert(id, number);
        if mode == FOLDER {
            self.folders.insert(number, 0);
        } else {
            self.loose.insert(number);
        }
        if let Kind::Symlink(target) = kind {
            self.target(number, &self.fs.inode(number)?, target)?;
        }
        self.attributes(number, attributes)
    }

    fn target(&self, number: u32, inode: &Inode, target: &[u8]) -> Outcome {
        if inode.flags & ENCRYPTED != 0 {
            return Err(Failure::unsupported("an encrypted object"));
        }
        if target.is_empty() || target.contains(&0) || target.len() >= self.fs.info.block_size as usize {
            return Err(Failure::invalid(
                "a target has at least one byte, no NUL, and is shorter than a block",
            ));
        }
        self.fs.set_target(number, target)
    }

    fn attributes(&self, number: u32, of: &Attributes) -> Outcome {
        let mut inode = self.fs.inode(number)?;
        let settable = match inode.mode & TYPE {
            FOLDER => FLAGS_FOLDER,
            FILE => FLAGS_FILE,
            _ => FLAGS_OTHER,
        };
        inode.mode = inode.mode & TYPE | u32::from(of.mode & 0o7777);
        (inode.uid, inode.gid) = (of.uid, of.gid);
        inode.flags = inode.flags & !settable | of.flags & settable;
        inode.atime = time(of.atime)?;
        inode.ctime = time(of.ctime)?;
        inode.mtime = time(of.mtime)?;
        inode.crtime = time(of.crtime)?;
        if let Some(project) = of.project {
            let kept = inode.has_project != 0 && self.fs.info.ro_compat & PROJECT != 0;
            if project != 0 && !kept {
                return Err(Failure::unsupported("the filesystem keeps no projects"));
            }
            inode.project = project;
        }
        self.fs.set_inode(number, &inode)
    }

    fn link(&mut self, folder: Node, name: &[u8], to: Node) -> Outcome {
        check_name(name)?;
        let folder = self.folder(folder)?;
        let (number, mut inode) = self.get(to, &[])?;
        if self.names.find(&self.fs, folder, name)?.is_some() {
            return Err(Failure::new(4, "the name is taken"));
        }
        if inode.mode & TYPE == FOLDER {
            if number == ROOT {
                return Err(Failure::invalid("the root folder has no name"));
            }
            self.names.add(&self.fs, folder, name, number, 2)?;
            self.fs.set_parent(number, folder)?;
            *self.folders.entry(number).or_insert(1) += 1;
            return self.count_subfolder(folder, true);
        }
        if inode.links >= LINKS {
            return Err(Failure::new(1, format!("an object has at most {LINKS} names")));
        }
        self.names.add(&self.fs, folder, name, number, kind(inode.mode))?;
        inode.links += 1;
        self.fs.set_inode(number, &inode)
    }

    fn unlink(&mut self, folder: Node, name: &[u8]) -> Outcome {
        check_name(name)?;
        let folder = self.folder(folder)?;
        let number = self.names.find(&self.fs, folder, name)?;
        let number = number.ok_or_else(|| Failure::new(3, "there is no such name"))?;
        if !self.is_ordinary(number) || number == ROOT {
            return Err(Failure::invalid("the filesystem keeps that name for itself"));
        }
        let mut inode = self.fs.inode(number)?;
        self.names.remove(&self.fs, folder, name)?;
        if inode.mode & TYPE == FOLDER {
            *self.folders.entry(number).or_insert(1) -= 1;
            return self.count_subfolder(folder, false);
        }
        inode.links = inode.links.saturating_sub(1);
        if inode.links == 0 {
            self.loose.insert(number);
        }
        self.fs.set_inode(number, &inode)
    }

    /// A folder has a name of its own, `.`, and the `..` of each folder in it.
    fn count_subfolder(&self, folder: u32, more: bool) -> Outcome {
        let mut inode = self.fs.inode(folder)?;
        inode.links = match (inode.links, more) {
            // Too many were counted once: it stays at that.
            (1, _) => 1,
            (LINKS.., true) if self.fs.info.ro_compat & DIR_NLINK != 0 => 1,
            (LINKS.., true) => {
                return Err(Failure::new(1, format!("a folder has at most {LINKS} folders in it")));
            }
            (links, true) => links + 1,
            (links, false) => links.saturating_sub(1),
        };
        self.fs.set_inode(folder, &inode)
    }

    /// A file whose content may be changed.
    fn file(&self, node: Node) -> Outcome<(u32, Inode)> {
        let (number, inode) = self.get(node, &[FILE])?;
        if inode.flags & (ENCRYPTED | VERITY) != 0 {
            return Err(Failure::unsupported("an encrypted or a sealed file"));
        }
        Ok((number, inode))
    }

    fn content(&self, node: Node, size: u64) -> Outcome {
        let (number, _) = self.file(node)?;
        self.fs.truncate(number, 0)?;
        let block = u64::from(self.fs.info.block_size);
        let pointers = block / 4;
        let most = match self.fs.inode(number)?.flags & EXTENTS {
            0 => 12 + pointers + pointers * pointers + pointers * pointers * pointers,
            _ => u64::from(u32::MAX) - 1,
        };
        if size.div_ceil(block) > most.min(u64::from(u32::MAX) - 1) {
            return Err(Failure::new(1, "the filesystem takes no file as long as that"));
        }
        self.fs.truncate(number, size)
    }

    /// Finds the place of `len` bytes at `at` of a file, the content of edit `edit`, and tells the parent.
    pub(super) fn write(&self, edit: u64, node: Node, at: u64, len: u32) -> Outcome {
        let (number, inode) = self.file(node)?;
        let end = at.checked_add(len.into()).filter(|end| *end <= inode.size);
        let end = end.ok_or_else(|| Failure::invalid("it reaches past the file's end"))?;
        let size = u64::from(self.fs.info.block_size);
        let (mut first, last) = (at / size, end.div_ceil(size));
        while first < last {
            let count = (last - first).min(STEP);
            let blocks = self.fs.map(number, first, u32::try_from(count).unwrap_or(0))?;
            let mut run = Run { file: 0, len: 0, disk: 0 };
            for (block, (place, fresh)) in (first..).zip(blocks) {
                let (from, to) = (at.max(block * size), end.min((block + 1) * size));
                let disk = place * size + (from - block * size);
                if fresh && to - from < size {
                    self.zero(place * size, from - block * size, to - block * size)?;
                }
                if run.len == 0 || !run.grow(from, disk, to - from) {
                    self.put(edit, at, &run)?;
                    run = Run { file: from, len: to - from, disk };
                }
            }
            self.put(edit, at, &run)?;
            first += count;
        }
        Ok(())
    }

    /// Zeros in the block at `start`, but for its bytes `from` to `to`.
    fn zero(&self, start: u64, from: u64, to: u64) -> Outcome {
        let mut cache = self.fs.cache.borrow_mut();
        let size = self.fs.info.block_size.into();
        cache.forget(start, size)?;
        for (from, to) in [(0, from), (to, size)] {
            if from < to {
                let data = vec![0; crate::units::index(to - from)];
                cache.port.say(&Answer::Write { at: start + from, data })?;
            }
        }
        Ok(())
    }

    fn put(&self, edit: u64, at: u64, run: &Run) -> Outcome {
        if run.len == 0 {
            return Ok(());
        }
        let mut cache = self.fs.cache.borrow_mut();
        cache.forget(run.disk, run.len)?;
        let skip = u32::try_from(run.file - at).unwrap_or(u32::MAX);
        let len = u32::try_from(run.len).unwrap_or(u32::MAX);
        Ok(cache.port.say(&Answer::Put { edit, skip, len, at: run.disk })?)
    }

    /// Frees what has no name, and writes everything: how many inodes were made, and freed.
    pub(super) fn finish(mut self) -> Outcome<(u32, u32)> {
        for (folder, names) in std::mem::take(&mut self.folders) {
            match names {
                1 => {}
                0 if self.fs.is_empty(folder)? => self.free(folder)?,
                0 => {
                    return Err(Failure::invalid(format!(
                        "the folder with inode {folder} has no name, but names in it"
                    )));
                }
                _ => {
                    return Err(Failure::invalid(format!(
                        "the folder with inode {folder} has {names} names"
                    )));
                }
            }
        }
        for inode in std::mem::take(&mut self.loose) {
            if self.fs.inode(inode)?.links == 0 {
                self.free(inode)?;
            }
        }
        self.fs.flush()?;
        Ok((self.made, self.freed))
    }

    fn free(&mut self, inode: u32) -> Outcome {
        self.freed += 1;
        self.fs.free(inode)
    }
}

/// A part of a file that lies in one piece on the disk, in bytes.
struct Run {
    file: u64,
    len: u64,
    disk: u64,
}

impl Run {
    fn grow(&mut self, file: u64, disk: u64, len: u64) -> bool {
        let fits = self.file + self.len == file && self.disk + self.len == disk;
        if fits {
            self.len += len;
        }
        fits
    }
}

/// The type that an entry of a folder has.
fn kind(mode: u32) -> i32 {
    match mode & TYPE {
        FILE => 1,
        FOLDER => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        SYMLINK => 7,
        _ => 0,
    }
}

fn time(time: Time) -> Outcome<RawTime> {
    if time.nanoseconds >= 1_000_000_000 {
        return Err(Failure::invalid("a time has 1,000,000,000 nanoseconds or more"));
    }
    Ok(RawTime { seconds: time.seconds, nanoseconds: time.nanoseconds, present: 1 })
}

fn check_name(name: &[u8]) -> Outcome {
    let plain = !name.contains(&b'/') && !name.contains(&0) && name != b"." && name != b"..";
    if plain && (1..=255).contains(&name.len()) {
        return Ok(());
    }
    Err(Failure::invalid("a name has 1 to 255 bytes, no / and no NUL, and is neither . nor .."))
}

fn check_xattr(name: &[u8]) -> Outcome {
    let known = [&b"user."[..], b"trusted.", b"security.", b"system.posix_acl_"];
    if known.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix)) && name.len() <= 255 {
        return Ok(());
    }
    Err(Failure::invalid(
        "only attributes of user, trusted and security and the lists of access rights are set",
    ))
}
