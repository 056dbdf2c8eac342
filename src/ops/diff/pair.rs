//! Which names of two trees are the same file.
//!
//! A folder is what has its inode, then what has its path; anything else is what has its path, then what has its inode.
//! Programs replace a file by writing another one and giving it the name; nobody replaces a folder so, and a folder that
//! was moved must not be told as thousands of files.

use crate::guestfs::ext4::FileKind;
use crate::ops::merge::Pairs;
use crate::ops::merge::tree::{Tree, is_same_inode};
use std::collections::{HashMap, HashSet, VecDeque};

/// One name of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// The folder that it is in.
    pub(super) folder: u32,
    /// The name; empty for the root.
    pub(super) name: &'a [u8],
    /// What it names.
    pub(super) ino: u32,
}

/// The names of two trees.
#[derive(Debug, Default)]
pub(super) struct Pairing<'a> {
    /// The same name in the same folder.
    pub(super) kept: Vec<[Entry<'a>; 2]>,
    /// The same file, elsewhere.
    pub(super) moved: Vec<[Entry<'a>; 2]>,
    /// Only in the old tree.
    pub(super) gone: Vec<Entry<'a>>,
    /// Only in the new tree.
    pub(super) added: Vec<Entry<'a>>,
    /// Folders of the new tree of whose names one went, came, or leads to another file.
    pub(super) touched: HashSet<u32>,
}

/// Pairs two trees; `related`: inode numbers mean the same in both.
pub(super) fn pair<'a>(old: &'a Tree, new: &'a Tree, related: bool) -> Pairing<'a> {
    let folders = folders(old, new, related);
    let mut pairing = Pairing::default();
    let root = |tree: &Tree| Entry { folder: tree.root, name: b"", ino: tree.root };
    pairing.kept.push([root(old), root(new)]);
    let keeps = |was: u32, is: u32| {
        let kind = old.file(was).kind;
        kind == new.file(is).kind && (kind != FileKind::Directory || folders.to.get(&was) == Some(&is))
    };
    for folder in sorted_folders(old) {
        let beside = folders.to.get(&folder).copied();
        for (name, ino) in &old.file(folder).children {
            let was = Entry { folder, name, ino: *ino };
            let found = beside.and_then(|beside| Some((beside, *new.file(beside).children.get(name)?)));
            match found {
                Some((folder, ino)) if keeps(was.ino, ino) => {
                    pairing.kept.push([was, Entry { folder, name, ino }]);
                    if was.ino != ino {
                        pairing.touched.insert(folder);
                    }
                }
                _ => pairing.gone.push(was),
            }
        }
    }
    for folder in sorted_folders(new) {
        let beside = folders.from.get(&folder).map(|beside| old.file(*beside));
        for (name, ino) in &new.file(folder).children {
            let was = beside.and_then(|beside| beside.children.get(name));
            if !was.is_some_and(|was| keeps(*was, *ino)) {
                pairing.added.push(Entry { folder, name, ino: *ino });
            }
        }
    }
    let names = pairing.gone.iter().filter_map(|gone| folders.to.get(&gone.folder).copied());
    pairing.touched.extend(names.chain(pairing.added.iter().map(|added| added.folder)));
    pairing.find_moves(old, new, &folders, related);
    pairing
}

impl Pairing<'_> {
    /// What went and came is one move where it is the same file.
    fn find_moves(&mut self, old: &Tree, new: &Tree, folders: &Pairs, related: bool) {
        let mut places: HashMap<u32, VecDeque<usize>> = HashMap::new();
        for (at, added) in self.added.iter().enumerate() {
            places.entry(added.ino).or_default().push_back(at);
        }
        let mut used = HashSet::new();
        let target = |gone: &Entry<'_>| {
            let was = old.file(gone.ino);
            if was.kind == FileKind::Directory {
                return folders.to.get(&gone.ino).copied();
            }
            let is = new.files.get(&gone.ino).filter(|_| related)?;
            is_same_inode(was, is).then_some(gone.ino)
        };
        let (moved, added) = (&mut self.moved, &self.added);
        self.gone.retain(|gone| {
            let place = target(gone).and_then(|ino| places.get_mut(&ino)?.pop_front());
            let Some(place) = place else { return true };
            moved.push([*gone, added[place]]);
            used.insert(place);
            false
        });
        let mut at = 0;
        self.added.retain(|_| {
            at += 1;
            !used.contains(&(at - 1))
        });
    }
}

fn folders(old: &Tree, new: &Tree, related: bool) -> Pairs {
    let mut folders = Pairs::default();
    folders.add(old.root, new.root);
    for ino in sorted_folders(old).into_iter().filter(|_| related) {
        if new.files.get(&ino).is_some_and(|is| is_same_inode(old.file(ino), is)) {
            folders.add(ino, ino);
        }
    }
    let mut left: Vec<(u32, u32)> = folders.to.iter().map(|(old, new)| (*old, *new)).collect();
    left.sort_unstable();
    while let Some((above, beside)) = left.pop() {
        for (name, was) in &old.file(above).children {
            let Some(is) = new.file(beside).children.get(name) else { continue };
            let both =
                old.file(*was).kind == FileKind::Directory && new.file(*is).kind == FileKind::Directory;
            if both && folders.add(*was, *is) {
                left.push((*was, *is));
            }
        }
    }
    folders
}

fn sorted_folders(tree: &Tree) -> Vec<u32> {
    let folders = tree.files.iter().filter(|(_, file)| file.kind == FileKind::Directory);
    let mut folders: Vec<u32> = folders.map(|(ino, _)| *ino).collect();
    folders.sort_unstable();
    folders
}
