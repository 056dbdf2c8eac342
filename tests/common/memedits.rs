//! Random trees in memory, and random edits of them.

use super::memfs::{Bytes, Fs, ROOT};
use super::rng::Rng;
use cowshed::guestfs::ext4::{Device, FileKind};

/// What edits are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Nothing moves and nothing has two names.
    Plain,
    /// Everything.
    All,
}

/// Draws trees and edits. Each content, target and value is drawn once, but for now and then.
pub struct Editing {
    pub rng: Rng,
    pub range: Range,
    serial: u64,
}

const KINDS: [FileKind; 6] = [
    FileKind::Regular,
    FileKind::Regular,
    FileKind::Directory,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::CharDevice,
];

impl Editing {
    pub fn new(rng: Rng, range: Range) -> Self {
        Self { rng, range, serial: 0 }
    }

    pub fn fresh(&mut self) -> Bytes {
        self.serial += 1;
        format!("v{}", self.serial).into_bytes()
    }

    /// A tree of a few objects.
    pub fn tree(&mut self) -> Fs {
        let mut fs = Fs::new();
        for _ in 0..self.rng.between(3, 16) {
            if self.range == Range::All && self.rng.chance(12) {
                self.link(&mut fs);
            } else {
                self.make(&mut fs);
            }
        }
        fs
    }

    /// Some edits.
    pub fn edit(&mut self, fs: &mut Fs, most: u64) {
        for _ in 0..self.rng.between(1, most) {
            self.one(fs);
        }
    }

    fn one(&mut self, fs: &mut Fs) {
        match (self.rng.below(21), self.range) {
            (0..=3, _) => self.make(fs),
            (4..=5, _) => self.content(fs),
            (6..=8, _) => self.facts(fs),
            (9..=10, _) => self.remove(fs),
            (11..=12, _) => self.again(fs),
            (13, _) => self.replace(fs),
            (14..=16, Range::All) => self.rename(fs),
            (17, Range::All) => self.swap(fs),
            (18..=19, Range::All) => self.link(fs),
            (20, Range::All) => self.rotate(fs),
            _ => self.facts(fs),
        }
    }

    pub fn paths(fs: &Fs, want: impl Fn(FileKind) -> bool) -> Vec<Bytes> {
        fs.walk().into_iter().filter(|(_, ino)| want(fs.inodes[ino].kind)).map(|(path, _)| path).collect()
    }

    /// A path of an object, not the root.
    fn some(&mut self, fs: &Fs, want: impl Fn(FileKind) -> bool) -> Option<Bytes> {
        let mut all = Self::paths(fs, want);
        all.retain(|path| !path.is_empty());
        (!all.is_empty()).then(|| self.rng.pick(&all).clone())
    }

    /// A path that is free, in a folder that is there.
    fn free(&mut self, fs: &Fs) -> Option<Bytes> {
        let folders = Self::paths(fs, |kind| kind == FileKind::Directory);
        for _ in 0..4 {
            let folder = self.rng.pick(&folders).clone();
            let name = *self.rng.pick(b"abcde");
            let path = [&folder[..], b"/", &[name]].concat();
            if fs.find(&path).is_none() && folder.len() < 10 {
                return Some(path);
            }
        }
        None
    }

    fn make(&mut self, fs: &mut Fs) {
        if let Some(path) = self.free(fs) {
            let kind = *self.rng.pick(&KINDS);
            self.make_at(fs, &path, kind);
        }
    }

    fn make_at(&mut self, fs: &mut Fs, path: &[u8], kind: FileKind) {
        let fresh = if self.rng.chance(10) { b"same".to_vec() } else { self.fresh() };
        let minor = self.rng.below(3) as u32;
        let inode = fs.make(path, kind);
        match kind {
            FileKind::Regular => inode.content = fresh,
            FileKind::Symlink => inode.target = fresh,
            FileKind::CharDevice => inode.device = Some(Device { major: 1, minor }),
            _ => inode.mode = 0o755,
        }
    }

    fn content(&mut self, fs: &mut Fs) {
        if let Some(path) = self.some(fs, |kind| kind == FileKind::Regular) {
            let fresh = if self.rng.chance(10) { b"same".to_vec() } else { self.fresh() };
            fs.write(&path, &fresh);
        }
    }

    fn facts(&mut self, fs: &mut Fs) {
        let all = Self::paths(fs, |_| true);
        let path = self.rng.pick(&all).clone();
        let (what, value, fresh) = (self.rng.below(9), self.rng.below(3) as u32, self.fresh());
        let name = vec![b'u', b's', b'e', b'r', b'.', *self.rng.pick(b"xy")];
        let now = fs.now();
        let inode = fs.at(&path);
        inode.ctime = now;
        match what {
            0 => inode.mode = 0o600 + value as u16,
            1 => inode.uid = value,
            2 => inode.gid = value,
            3 => inode.flags = value * 0x10,
            4 => inode.project = value,
            5 => inode.mtime = now,
            6 => drop(inode.xattrs.remove(&name)),
            _ => drop(inode.xattrs.insert(name, fresh)),
        }
    }

    fn remove(&mut self, fs: &mut Fs) {
        if let Some(path) = self.some(fs, |_| true) {
            fs.remove(&path);
        }
    }

    /// Another object, often of another kind, at the same path.
    fn again(&mut self, fs: &mut Fs) {
        if let Some(path) = self.some(fs, |_| true) {
            fs.remove(&path);
            let kind = *self.rng.pick(&KINDS);
            self.make_at(fs, &path, kind);
        }
    }

    fn replace(&mut self, fs: &mut Fs) {
        if let Some(path) = self.some(fs, |kind| kind == FileKind::Regular) {
            let fresh = self.fresh();
            fs.replace(&path, &fresh);
        }
    }

    fn is_below(folder: &[u8], path: &[u8]) -> bool {
        path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
    }

    fn rename(&mut self, fs: &mut Fs) {
        let Some(from) = self.some(fs, |_| true) else { return };
        let over = self.some(fs, |kind| kind != FileKind::Directory).filter(|_| self.rng.chance(25));
        let Some(to) = over.or_else(|| self.free(fs)) else { return };
        let is_folder = fs.at(&from).kind == FileKind::Directory;
        if Self::is_below(&from, &to) || (is_folder && fs.find(&to).is_some()) {
            return;
        }
        fs.rename(&from, &to);
    }

    fn swap(&mut self, fs: &mut Fs) {
        let (Some(one), Some(other)) = (self.some(fs, |_| true), self.some(fs, |_| true)) else { return };
        if Self::is_below(&one, &other) || Self::is_below(&other, &one) {
            return;
        }
        fs.rename(&one, b"/swapped");
        fs.rename(&other, &one);
        fs.rename(b"/swapped", &other);
    }

    fn link(&mut self, fs: &mut Fs) {
        let Some(file) = self.some(fs, |kind| kind != FileKind::Directory) else { return };
        let Some(to) = self.free(fs) else { return };
        let ino = fs.find(&file).unwrap();
        assert_ne!(ino, ROOT);
        fs.link(ino, &to);
    }

    /// As logs are: `x` becomes `x.1`, what was `x.1` becomes `x.2`, and a new `x` begins.
    fn rotate(&mut self, fs: &mut Fs) {
        let Some(path) = self.some(fs, |kind| kind == FileKind::Regular) else { return };
        let (first, second) = ([&path[..], b".1"].concat(), [&path[..], b".2"].concat());
        if fs.find(&first).is_some() {
            if fs.find(&second).is_some() {
                fs.remove(&second);
            }
            fs.rename(&first, &second);
        }
        fs.rename(&path, &first);
        self.make_at(fs, &path, FileKind::Regular);
    }
}
