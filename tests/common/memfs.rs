//! A filesystem in memory: objects, their names and contents. It gives what a merge looks at, and does its steps as
//! strictly as the real editor.

use cowshed::error::Result;
use cowshed::guestfs::Time;
use cowshed::guestfs::edit::{Attributes, Edit, Kind, Node};
use cowshed::guestfs::ext4::{Device, FileKind};
use cowshed::ops::merge::tree::{Contents, File, Tree};
use cowshed::ops::merge::{Step, Three, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub type Bytes = Vec<u8>;
pub const ROOT: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub kind: FileKind,
    pub device: Option<Device>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub flags: u32,
    pub project: u32,
    pub target: Bytes,
    pub content: Bytes,
    pub xattrs: BTreeMap<Bytes, Bytes>,
    pub mtime: Time,
    pub ctime: Time,
    pub crtime: Time,
    pub generation: u32,
    pub children: BTreeMap<Bytes, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fs {
    pub inodes: BTreeMap<u32, Inode>,
    pub clock: i64,
    /// What tells this side's times and generations from those of others.
    pub side: u32,
}

/// What is seen at a path, but for the names of the same object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: FileKind,
    pub device: Option<Device>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub flags: u32,
    pub project: u32,
    pub target: Bytes,
    pub content: Bytes,
    pub xattrs: BTreeMap<Bytes, Bytes>,
}

pub type Map = BTreeMap<Bytes, Seen>;

pub fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl Fs {
    pub fn new() -> Self {
        let mut fs = Self { inodes: BTreeMap::new(), clock: 1000, side: 0 };
        let root = fs.fresh(FileKind::Directory);
        fs.inodes.insert(ROOT, root);
        fs
    }

    /// The same filesystem, as another side goes on with it.
    pub fn fork(&self, side: u32) -> Self {
        Self { side, ..self.clone() }
    }

    pub fn now(&mut self) -> Time {
        self.clock += 1;
        Time { seconds: self.clock, nanoseconds: self.side }
    }

    fn fresh(&mut self, kind: FileKind) -> Inode {
        let now = self.now();
        Inode {
            kind,
            device: None,
            mode: 0o644,
            uid: 0,
            gid: 0,
            flags: 0,
            project: 0,
            target: Bytes::new(),
            content: Bytes::new(),
            xattrs: BTreeMap::new(),
            mtime: now,
            ctime: now,
            crtime: now,
            generation: u32::try_from(self.clock).unwrap() * 8 + self.side,
            children: BTreeMap::new(),
        }
    }

    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        parts.try_fold(ROOT, |here, part| self.inodes.get(&here)?.children.get(part).copied())
    }

    /// The inode at a path that is there.
    pub fn at(&mut self, path: &[u8]) -> &mut Inode {
        let ino = self.find(path).unwrap_or_else(|| panic!("no {}", text(path)));
        self.inodes.get_mut(&ino).unwrap()
    }

    /// Splits a path into its folder and the name in it.
    pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap();
        (&path[..slash], &path[slash + 1..])
    }

    /// Makes an object at a free path, with the lowest free inode number.
    pub fn make(&mut self, path: &[u8], kind: FileKind) -> &mut Inode {
        let inode = self.fresh(kind);
        let number = (11..).find(|number| !self.inodes.contains_key(number)).unwrap();
        self.inodes.insert(number, inode);
        self.link(number, path);
        self.inodes.get_mut(&number).unwrap()
    }

    pub fn file(&mut self, path: &str, content: &str) {
        self.make(path.as_bytes(), FileKind::Regular).content = content.as_bytes().to_vec();
    }

    pub fn folder(&mut self, path: &str) {
        self.make(path.as_bytes(), FileKind::Directory).mode = 0o755;
    }

    /// Many files in one folder, without a search for a free number.
    pub fn file_below(&mut self, folder: &str, name: &str, content: &str) {
        self.below(folder, name, FileKind::Regular).content = content.as_bytes().to_vec();
    }

    pub fn symlink_below(&mut self, folder: &str, name: &str, target: &str) {
        self.below(folder, name, FileKind::Symlink).target = target.as_bytes().to_vec();
    }

    fn below(&mut self, folder: &str, name: &str, kind: FileKind) -> &mut Inode {
        let inode = self.fresh(kind);
        let number = self.inodes.keys().next_back().unwrap().max(&10) + 1;
        self.inodes.insert(number, inode);
        self.at(folder.as_bytes()).children.insert(name.as_bytes().to_vec(), number);
        self.inodes.get_mut(&number).unwrap()
    }

    /// As [`Fs::remove`], but for the sweep.
    pub fn remove_only(&mut self, path: &[u8]) {
        self.unlink(path);
    }

    /// When the content at a path was changed.
    pub fn at_time(&self, path: &[u8]) -> Time {
        self.inodes[&self.find(path).unwrap()].mtime
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.make(path.as_bytes(), FileKind::Symlink).target = target.as_bytes().to_vec();
    }

    pub fn link(&mut self, ino: u32, path: &[u8]) {
        let (folder, name) = Self::split(path);
        let now = self.now();
        let folder = self.at(folder);
        assert!(folder.children.insert(name.to_vec(), ino).is_none(), "{} is taken", text(path));
        (folder.mtime, folder.ctime) = (now, now);
        self.inodes.get_mut(&ino).unwrap().ctime = now;
    }

    /// Takes a name away, without a look at what it named.
    pub fn unlink(&mut self, path: &[u8]) -> u32 {
        let (folder, name) = Self::split(path);
        let now = self.now();
        let folder = self.at(folder);
        let ino = folder.children.remove(name).unwrap_or_else(|| panic!("no {}", text(path)));
        (folder.mtime, folder.ctime) = (now, now);
        ino
    }

    /// Removes what is at a path, with all that is in it.
    pub fn remove(&mut self, path: &[u8]) {
        self.unlink(path);
        self.sweep();
    }

    pub fn rename(&mut self, from: &[u8], to: &[u8]) {
        let ino = self.unlink(from);
        if self.find(to).is_some() {
            self.unlink(to);
        }
        self.link(ino, to);
        self.sweep();
    }

    pub fn write(&mut self, path: &[u8], content: &[u8]) {
        let now = self.now();
        let inode = self.at(path);
        assert_eq!(inode.kind, FileKind::Regular);
        (inode.mtime, inode.ctime) = (now, now);
        inode.content = content.to_vec();
    }

    /// As editors and package managers do it: another file gets the name.
    pub fn replace(&mut self, path: &[u8], content: &[u8]) {
        let old = self.at(path).clone();
        self.unlink(path);
        let new = self.make(path, FileKind::Regular);
        (new.mode, new.uid, new.gid, new.flags) = (old.mode, old.uid, old.gid, old.flags);
        (new.xattrs, new.project) = (old.xattrs, old.project);
        new.content = content.to_vec();
        self.sweep();
    }

    /// Frees what has no path.
    pub fn sweep(&mut self) {
        let named: BTreeSet<u32> = self.walk().into_iter().map(|(_, ino)| ino).collect();
        self.inodes.retain(|ino, _| named.contains(ino));
    }

    /// All paths with their inodes, the root first, each folder before what is in it.
    pub fn walk(&self) -> Vec<(Bytes, u32)> {
        let mut all = vec![(Bytes::new(), ROOT)];
        let mut next = 0;
        while let Some((path, ino)) = all.get(next).cloned() {
            assert!(next <= 20 * self.inodes.len() + 1000, "a folder is inside itself");
            for (name, child) in &self.inodes[&ino].children {
                all.push(([&path[..], b"/", name].concat(), *child));
            }
            next += 1;
        }
        all
    }

    pub fn tree(&self) -> Tree {
        let mut files: HashMap<u32, Arc<File>> = HashMap::new();
        for (ino, inode) in &self.inodes {
            let file = File {
                kind: inode.kind,
                mode: inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                flags: inode.flags,
                project: inode.project,
                size: inode.content.len() as u64,
                target: inode.target.clone(),
                device: inode.device,
                xattrs: inode.xattrs.clone(),
                accessed: inode.mtime,
                modified: inode.mtime,
                changed: inode.ctime,
                created: Some(inode.crtime),
                generation: inode.generation,
                names: Vec::new(),
                children: inode.children.clone(),
            };
            files.insert(*ino, Arc::new(file));
        }
        for (ino, inode) in &self.inodes {
            for (name, child) in &inode.children {
                Arc::get_mut(files.get_mut(child).unwrap()).unwrap().names.push((*ino, name.clone()));
            }
        }
        Tree { files, root: ROOT, ..Tree::default() }
    }

    /// What is at each path.
    pub fn map(&self) -> Map {
        self.walk().into_iter().map(|(path, ino)| (path, self.inodes[&ino].seen())).collect()
    }

    /// The paths of each object that has several.
    pub fn groups(&self) -> BTreeSet<BTreeSet<Bytes>> {
        let mut groups: BTreeMap<u32, BTreeSet<Bytes>> = BTreeMap::new();
        for (path, ino) in self.walk() {
            groups.entry(ino).or_default().insert(path);
        }
        groups.into_values().filter(|paths| paths.len() > 1).collect()
    }

    /// When the content at each path was changed.
    pub fn times(&self) -> BTreeMap<Bytes, Time> {
        self.walk().into_iter().map(|(path, ino)| (path, self.inodes[&ino].mtime)).collect()
    }
}

impl Inode {
    pub fn seen(&self) -> Seen {
        Seen {
            kind: self.kind,
            device: self.device,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            flags: self.flags,
            project: self.project,
            target: self.target.clone(),
            content: self.content.clone(),
            xattrs: self.xattrs.clone(),
        }
    }
}

/// The contents of three filesystems.
pub struct Three3<'a>(pub Three<&'a Fs>);

impl Three3<'_> {
    fn content(&self, (version, ino): (Version, u32)) -> &Bytes {
        let inode = &self.0.of_version(version).inodes[&ino];
        assert_eq!(inode.kind, FileKind::Regular, "only files have contents");
        &inode.content
    }
}

impl Contents for Three3<'_> {
    fn same(&self, one: (Version, u32), other: (Version, u32)) -> Result<bool> {
        Ok(self.content(one) == self.content(other))
    }

    fn read(&self, of: (Version, u32)) -> Result<Vec<u8>> {
        Ok(self.content(of).clone())
    }
}

/// Does the steps of a plan on the new base.
pub struct Executor<'a> {
    three: Three<&'a Fs>,
    fs: Fs,
    new: HashMap<u32, u32>,
    /// How many names each object has.
    names: BTreeMap<u32, usize>,
}

impl<'a> Executor<'a> {
    pub fn run(three: Three<&'a Fs>, steps: &[Step]) -> std::result::Result<Fs, String> {
        let mut names = BTreeMap::new();
        for inode in three.base.inodes.values() {
            for child in inode.children.values() {
                *names.entry(*child).or_insert(0) += 1;
            }
        }
        let mut executor = Self { three, fs: three.base.clone(), new: HashMap::new(), names };
        for step in steps {
            executor.step(step).map_err(|error| format!("{error}: {step:?}"))?;
        }
        executor.finish()
    }

    fn ino(&self, node: Node) -> std::result::Result<u32, String> {
        match node {
            Node::Old(ino) if self.three.base.inodes.contains_key(&ino) => Ok(ino),
            Node::New(id) if self.new.contains_key(&id) => Ok(self.new[&id]),
            node => Err(format!("{node:?} is not there")),
        }
    }

    fn inode(&mut self, node: Node) -> std::result::Result<&mut Inode, String> {
        let ino = self.ino(node)?;
        Ok(self.fs.inodes.get_mut(&ino).unwrap())
    }

    fn of_kind(&mut self, node: Node, kind: FileKind) -> std::result::Result<&mut Inode, String> {
        let inode = self.inode(node)?;
        if inode.kind == kind { Ok(inode) } else { Err(format!("{:?} is no {kind:?}", inode.kind)) }
    }

    fn step(&mut self, step: &Step) -> std::result::Result<(), String> {
        match step {
            Step::Copy { node, from } => {
                let source = &self.three.of_version(from.0).inodes[&from.1];
                if source.kind != FileKind::Regular {
                    return Err("only files are copied".into());
                }
                self.of_kind(*node, FileKind::Regular)?.content = source.content.clone();
            }
            Step::Put { node, bytes } => {
                self.of_kind(*node, FileKind::Regular)?.content.clone_from(bytes);
            }
            Step::Edit(edit) => self.edit(edit)?,
        }
        Ok(())
    }

    fn edit(&mut self, edit: &Edit) -> std::result::Result<(), String> {
        match edit {
            Edit::Make { id, kind, attributes } => self.make(*id, kind, attributes)?,
            Edit::Link { folder, name, to } => {
                let ino = self.ino(*to)?;
                if name.is_empty() || name.len() > 255 || name.contains(&b'/') {
                    return Err("no name".into());
                }
                let folder = self.of_kind(*folder, FileKind::Directory)?;
                if folder.children.insert(name.clone(), ino).is_some() {
                    return Err("the name is taken".into());
                }
                *self.names.entry(ino).or_insert(0) += 1;
            }
            Edit::Unlink { folder, name } => {
                let folder = self.of_kind(*folder, FileKind::Directory)?;
                let ino = folder.children.remove(name).ok_or("no such name")?;
                *self.names.get_mut(&ino).unwrap() -= 1;
            }
            Edit::Content { .. } => return Err("a plan copies and puts".into()),
            Edit::Target { node, target } => {
                self.of_kind(*node, FileKind::Symlink)?.target.clone_from(target);
            }
            Edit::Attributes { node, attributes } => set(self.inode(*node)?, attributes),
            Edit::SetXattr { node, name, value } => {
                self.inode(*node)?.xattrs.insert(name.clone(), value.clone());
            }
            Edit::RemoveXattr { node, name } => {
                self.inode(*node)?.xattrs.remove(name).ok_or("no such attribute")?;
            }
        }
        Ok(())
    }

    fn make(&mut self, id: u32, kind: &Kind, attributes: &Attributes) -> std::result::Result<(), String> {
        let (file_kind, device, target) = match kind {
            Kind::File => (FileKind::Regular, None, &[][..]),
            Kind::Folder => (FileKind::Directory, None, &[][..]),
            Kind::Symlink(target) => (FileKind::Symlink, None, &target[..]),
            Kind::Char { major, minor } => {
                (FileKind::CharDevice, Some(Device { major: *major, minor: *minor }), &[][..])
            }
            Kind::Block { major, minor } => {
                (FileKind::BlockDevice, Some(Device { major: *major, minor: *minor }), &[][..])
            }
            Kind::Fifo => (FileKind::Fifo, None, &[][..]),
            Kind::Socket => (FileKind::Socket, None, &[][..]),
        };
        let number = 1_000_000 + u32::try_from(self.new.len()).unwrap();
        if self.new.insert(id, number).is_some() {
            return Err("the number is taken".into());
        }
        let mut inode = self.fs.fresh(file_kind);
        (inode.device, inode.target) = (device, target.to_vec());
        set(&mut inode, attributes);
        self.fs.inodes.insert(number, inode);
        Ok(())
    }

    fn finish(mut self) -> std::result::Result<Fs, String> {
        let all: Vec<u32> = self.fs.inodes.keys().copied().collect();
        for ino in all {
            let names = self.names.get(&ino).copied().unwrap_or(0);
            let inode = &self.fs.inodes[&ino];
            if ino == ROOT {
                continue;
            }
            if inode.kind == FileKind::Directory && names > 1 {
                return Err(format!("folder {ino} has {names} names"));
            }
            if names == 0 {
                if !inode.children.is_empty() {
                    return Err(format!("folder {ino} is freed with {:?} in it", inode.children));
                }
                self.fs.inodes.remove(&ino);
            }
        }
        let reached: BTreeSet<u32> = self.fs.walk().into_iter().map(|(_, ino)| ino).collect();
        if reached.len() != self.fs.inodes.len() {
            return Err("something is in a circle of folders".into());
        }
        Ok(self.fs)
    }
}

fn set(inode: &mut Inode, of: &Attributes) {
    (inode.mode, inode.uid, inode.gid, inode.flags) = (of.mode, of.uid, of.gid, of.flags);
    (inode.mtime, inode.ctime, inode.crtime) = (of.mtime, of.ctime, of.crtime);
    inode.project = of.project.unwrap_or(inode.project);
}
