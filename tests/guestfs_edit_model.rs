//! Random edits of ext filesystems of every kind against a model in memory. The kernel reads the result, `e2fsck` and our
//! own check judge it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]
#![allow(clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod common {
    pub mod ext;
    pub mod rng;
}

use common::ext::{Image, PROGRAM, xattrs};
use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::guestfs::edit::{Attributes, Edit, Editor, Kind, Node};
use cowshed::guestfs::{Time, Verdict, fsck};
use std::collections::BTreeMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

type Name = Vec<u8>;

#[derive(Clone, Debug)]
struct Object {
    node: Node,
    kind: Kind,
    attributes: Attributes,
    content: Vec<u8>,
    xattrs: BTreeMap<Name, Vec<u8>>,
    /// Names in it, of a folder.
    names: BTreeMap<Name, usize>,
}

struct Model {
    rng: Rng,
    objects: BTreeMap<usize, Object>,
    next: usize,
    edits: Vec<Step>,
    /// Whether inodes have room for nanoseconds.
    large: bool,
    longest: u64,
}

enum Step {
    Edit(Edit),
    Write(Node, u64, Vec<u8>),
}

const ROOT: usize = 0;

impl Model {
    fn new(seed: u64, large: bool, longest: u64) -> Self {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        let root = Object {
            node: Node::Old(2),
            kind: Kind::Folder,
            attributes,
            content: Vec::new(),
            xattrs: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        let mut model = Self {
            rng: Rng::new(seed),
            objects: BTreeMap::from([(ROOT, root)]),
            next: 1,
            edits: Vec::new(),
            large,
            longest,
        };
        model.set_attributes(ROOT);
        model
    }

    fn edit(&mut self, edit: Edit) {
        self.edits.push(Step::Edit(edit));
    }

    fn node(&self, object: usize) -> Node {
        self.objects[&object].node
    }

    fn some(&mut self, want: impl Fn(&Object) -> bool) -> Option<usize> {
        let all: Vec<usize> =
            self.objects.iter().filter(|(_, object)| want(object)).map(|(number, _)| *number).collect();
        (!all.is_empty()).then(|| *self.rng.pick(&all))
    }

    fn folder(&mut self) -> usize {
        self.some(|object| object.kind == Kind::Folder).unwrap()
    }

    fn fresh_name(&mut self, folder: usize) -> Name {
        loop {
            let len = if self.rng.chance(5) { 255 } else { self.rng.between(1, 24) as usize };
            let name: Vec<u8> = self
                .rng
                .bytes(len)
                .into_iter()
                .map(|byte| if matches!(byte, 0 | b'/') { b'x' } else { byte })
                .collect();
            if name != b"." && name != b".." && !self.objects[&folder].names.contains_key(&name) {
                return name;
            }
        }
    }

    fn time(&mut self) -> Time {
        let seconds = if self.large {
            self.rng.between(0, 1 << 33) as i64 - (1 << 30)
        } else {
            self.rng.below(1 << 31) as i64
        };
        Time { seconds, nanoseconds: if self.large { self.rng.below(1_000_000_000) as u32 } else { 0 } }
    }

    fn fresh_attributes(&mut self) -> Attributes {
        Attributes {
            mode: self.rng.below(0o10000) as u16,
            uid: if self.rng.chance(50) { self.rng.below(1000) as u32 } else { self.rng.bits() as u32 >> 1 },
            gid: self.rng.below(1 << 20) as u32,
            atime: self.time(),
            ctime: self.time(),
            mtime: self.time(),
            crtime: self.time(),
            flags: *self.rng.pick(&[0, 0, 0x40, 0x80, 0x10, 0xc0, 0x8]),
            project: None,
        }
    }

    fn set_attributes(&mut self, object: usize) {
        let attributes = self.fresh_attributes();
        self.objects.get_mut(&object).unwrap().attributes = attributes;
        let node = self.node(object);
        self.edit(Edit::Attributes { node, attributes });
    }

    fn make(&mut self) {
        let (major, minor) = (self.rng.below(300) as u32, self.rng.below(300) as u32);
        let kind = match self.rng.below(10) {
            0..=3 => Kind::File,
            4..=5 => Kind::Folder,
            6 => {
                let len = *self.rng.pick(&[1, 30, 59, 60, 61, 200, 1000]);
                Kind::Symlink(vec![b'a' + self.rng.below(26) as u8; len])
            }
            7 => Kind::Char { major, minor },
            8 => Kind::Block { major, minor },
            _ => self.rng.pick(&[Kind::Fifo, Kind::Socket]).clone(),
        };
        let attributes = self.fresh_attributes();
        let (number, folder) = (self.next, self.folder());
        self.next += 1;
        let object = Object {
            node: Node::New(number as u32),
            kind: kind.clone(),
            attributes,
            content: Vec::new(),
            xattrs: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        self.objects.insert(number, object);
        self.edit(Edit::Make { id: number as u32, kind: kind.clone(), attributes });
        self.link(folder, number);
        if kind == Kind::File {
            self.content(number);
        }
    }

    fn link(&mut self, folder: usize, to: usize) {
        let name = self.fresh_name(folder);
        self.objects.get_mut(&folder).unwrap().names.insert(name.clone(), to);
        let (folder, to) = (self.node(folder), self.node(to));
        self.edit(Edit::Link { folder, name, to });
    }

    fn unlink(&mut self, folder: usize, name: &[u8]) {
        self.objects.get_mut(&folder).unwrap().names.remove(name).unwrap();
        let folder = self.node(folder);
        self.edit(Edit::Unlink { folder, name: name.to_vec() });
    }

    fn some_name(&mut self) -> Option<(usize, Name, usize)> {
        let folder = self.some(|object| !object.names.is_empty())?;
        let names: Vec<_> = self.objects[&folder].names.clone().into_iter().collect();
        let (name, to) = self.rng.pick(&names).clone();
        Some((folder, name, to))
    }

    fn remove(&mut self) {
        let Some((folder, name, to)) = self.some_name() else { return };
        if self.objects[&to].names.is_empty() {
            self.unlink(folder, &name);
            if !self.objects.values().any(|object| object.names.values().any(|named| *named == to)) {
                self.objects.remove(&to);
            }
        }
    }

    fn is_below(&self, object: usize, top: usize) -> bool {
        object == top || self.objects[&top].names.values().any(|child| self.is_below(object, *child))
    }

    fn rename(&mut self) {
        let Some((from, name, to)) = self.some_name() else { return };
        let folder = self.folder();
        if self.is_below(folder, to) {
            return;
        }
        if self.rng.chance(50) {
            self.link(folder, to);
            self.unlink(from, &name);
        } else {
            self.unlink(from, &name);
            self.link(folder, to);
        }
    }

    fn content(&mut self, object: usize) {
        let size = match self.rng.below(10) {
            0 => 0,
            1..=4 => self.rng.below(9000),
            5..=7 => self.rng.below(200_000),
            _ => self.rng.below(self.longest),
        };
        let node = self.node(object);
        self.edit(Edit::Content { node, size });
        let (mut content, mut at) = (vec![0; size as usize], 0);
        while at < size {
            if self.rng.chance(50) {
                at += self.rng.below(size / 2 + 1);
            }
            let len = (self.rng.below(150_000) + 1).min(size.saturating_sub(at));
            let data = self.rng.bytes(len as usize);
            content[at.min(size) as usize..(at.min(size) + len) as usize].copy_from_slice(&data);
            self.edits.push(Step::Write(node, at.min(size), data));
            at += len + self.rng.below(size / 3 + 1);
        }
        self.objects.get_mut(&object).unwrap().content = content;
    }

    fn xattr(&mut self) {
        let object = self.some(|object| matches!(object.kind, Kind::File | Kind::Folder)).unwrap();
        let node = self.node(object);
        let old: Vec<Name> = self.objects[&object].xattrs.keys().cloned().collect();
        if !old.is_empty() && self.rng.chance(40) {
            let name = self.rng.pick(&old).clone();
            self.objects.get_mut(&object).unwrap().xattrs.remove(&name);
            return self.edit(Edit::RemoveXattr { node, name });
        }
        let name = self
            .rng
            .pick(&[
                &b"user.a"[..],
                b"user.note",
                b"trusted.x",
                b"security.capability",
                b"system.posix_acl_access",
            ])
            .to_vec();
        let len = *self.rng.pick(&[0, 3, 40, 150]);
        let value = match &name[..] {
            b"security.capability" => [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat(),
            b"system.posix_acl_access" => acl(self.rng.below(1000) as u32),
            _ => self.rng.bytes(len),
        };
        self.objects.get_mut(&object).unwrap().xattrs.insert(name.clone(), value.clone());
        self.edit(Edit::SetXattr { node, name, value });
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0..=5 => self.make(),
            6 => {
                let (folder, to) = (self.folder(), self.some(|object| object.kind != Kind::Folder));
                to.into_iter().for_each(|to| self.link(folder, to));
            }
            7..=9 => self.remove(),
            10..=12 => self.rename(),
            13..=14 => {
                let file = self.some(|object| object.kind == Kind::File);
                file.into_iter().for_each(|file| self.content(file));
            }
            15 => {
                let link = self.some(|object| matches!(object.kind, Kind::Symlink(_)));
                if let Some(link) = link {
                    let len = *self.rng.pick(&[1, 59, 60, 400]);
                    let target = vec![b'a' + self.rng.below(26) as u8; len];
                    self.objects.get_mut(&link).unwrap().kind = Kind::Symlink(target.clone());
                    let node = self.node(link);
                    self.edit(Edit::Target { node, target });
                }
            }
            16..=17 => {
                let object = self.some(|_| true).unwrap();
                self.set_attributes(object);
            }
            _ => self.xattr(),
        }
    }

    fn send(&mut self, image: &Image) {
        let mut editor = Editor::start(Path::new(PROGRAM), image).unwrap();
        for step in self.edits.drain(..) {
            match step {
                Step::Edit(edit) => editor.send(edit).unwrap(),
                Step::Write(node, at, data) => editor.write(node, at, data).unwrap(),
            }
        }
        editor.finish().unwrap();
    }

    /// Compares with what the kernel reads; gives each object its inode number for the next round.
    fn compare(&mut self, at: &Path) {
        let mut seen = BTreeMap::new();
        self.compare_object(ROOT, at, &mut seen);
        assert_eq!(seen.len(), self.objects.len());
        for (object, inode) in seen {
            self.objects.get_mut(&object).unwrap().node = Node::Old(inode);
        }
    }

    fn compare_object(&self, number: usize, at: &Path, seen: &mut BTreeMap<usize, u32>) {
        let object = &self.objects[&number];
        let meta = std::fs::symlink_metadata(at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        if let Some(inode) = seen.insert(number, meta.ino() as u32) {
            return assert_eq!(u64::from(inode), meta.ino(), "another inode at {}", at.display());
        }
        let of = &object.attributes;
        let context = format!("{number} at {}", at.display());
        assert_eq!((meta.uid(), meta.gid()), (of.uid, of.gid), "{context}");
        if !object.xattrs.contains_key(&b"system.posix_acl_access"[..]) {
            let mode =
                if matches!(object.kind, Kind::Symlink(_)) { meta.mode() & 0o7777 } else { of.mode.into() };
            assert_eq!(meta.mode() & 0o7777, mode, "{context}");
        }
        let kernel = [
            (meta.atime(), meta.atime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
            (meta.mtime(), meta.mtime_nsec()),
        ];
        let ours = [of.atime, of.ctime, of.mtime].map(|time| (time.seconds, i64::from(time.nanoseconds)));
        assert_eq!(kernel, ours, "{context}");
        assert_eq!(xattrs(at), object.xattrs, "{context}");
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        match (&object.kind, meta.mode() & 0o170_000) {
            (Kind::File, 0o100_000) => {
                assert_eq!(meta.len(), object.content.len() as u64, "{context}");
                assert!(std::fs::read(at).unwrap() == object.content, "other content, {context}");
            }
            (Kind::Folder, 0o040_000) => {
                let mut names: Vec<Name> = std::fs::read_dir(at)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_vec())
                    .collect();
                names.retain(|name| number != ROOT || name != b"lost+found");
                names.sort();
                assert_eq!(names, object.names.keys().cloned().collect::<Vec<_>>(), "{context}");
                for (name, child) in &object.names {
                    self.compare_object(*child, &at.join(std::ffi::OsStr::from_bytes(name)), seen);
                }
            }
            (Kind::Symlink(target), 0o120_000) => {
                assert_eq!(std::fs::read_link(at).unwrap().as_os_str().as_bytes(), target, "{context}");
            }
            (Kind::Char { major: a, minor: b }, 0o020_000)
            | (Kind::Block { major: a, minor: b }, 0o060_000) => {
                assert_eq!((major, minor), (*a, *b), "{context}");
            }
            (Kind::Fifo, 0o010_000) | (Kind::Socket, 0o140_000) => {}
            (kind, mode) => panic!("{context}: {kind:?} has mode {mode:o}"),
        }
    }
}

/// A list of access rights as `getxattr` gives it: owner, one user, group, mask, others.
fn acl(user: u32) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 5, user), (4, 4, u32::MAX), (16, 5, u32::MAX), (32, 4, u32::MAX)]
    {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&rights.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// Three rounds of random edits on a filesystem made with `options`.
fn play(mib: u64, options: &[&str], large: bool) {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("seed {seed:#x}");
    let image = Image::new(mib, options);
    let mut model = Model::new(seed, large, 3 << 20);
    for round in 0..3 {
        for _ in 0..150 {
            model.step();
        }
        model.send(&image);
        image.assert_clean(&format!("seed {seed:#x}, round {round}"));
        let verdict = fsck(Path::new(PROGRAM), &image, image.folder.path()).unwrap();
        assert_eq!(verdict, Verdict::Clean, "seed {seed:#x}, round {round}");
        model.compare(&image.mount(false).at);
    }
}

#[test]
fn random_edits_of_ext2_are_what_the_model_says() {
    play(64, &["-t", "ext2", "-I", "128"], false);
}

#[test]
fn random_edits_of_ext3_with_blocks_of_1_kib_are_what_the_model_says() {
    play(64, &["-t", "ext3", "-b", "1024"], true);
}

#[test]
fn random_edits_of_ext4_are_what_the_model_says() {
    play(64, &["-t", "ext4", "-b", "4096"], true);
}

#[test]
fn random_edits_of_ext4_with_blocks_of_1_kib_are_what_the_model_says() {
    play(64, &["-t", "ext4", "-b", "1024", "-O", "^resize_inode,meta_bg"], true);
}

#[test]
fn random_edits_without_checksums_are_what_the_model_says() {
    play(64, &["-t", "ext4", "-O", "^metadata_csum,^64bit,uninit_bg"], true);
}

#[test]
fn random_edits_with_large_clusters_are_what_the_model_says() {
    play(128, &["-t", "ext4", "-O", "bigalloc", "-C", "16384"], true);
}

#[test]
fn random_edits_with_data_inside_inodes_are_what_the_model_says() {
    play(64, &["-t", "ext4", "-O", "inline_data", "-I", "512"], true);
}

#[test]
fn random_edits_with_attributes_in_inodes_of_their_own_are_what_the_model_says() {
    play(64, &["-t", "ext4", "-O", "ea_inode,orphan_file,project", "-b", "2048"], true);
}
