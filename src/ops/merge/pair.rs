//! Which files of the three versions are the same file.
//!
//! A file is what has its path: most programs replace a file by writing another one and giving it the name. Where the
//! path is gone, a file is what has its inode: it was moved, and what is below a moved folder is looked for there.

use super::tree::{File, Tree, is_same_inode};
use super::{Three, Version};
use crate::units::index;
use std::collections::{BTreeMap, HashMap, HashSet};

/// One file in the versions that have it.
pub(super) type Object = Three<Option<u32>>;

/// All files of the three versions, each once.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) all: Vec<Object>,
    /// The number of the object of each file.
    of: Three<HashMap<u32, u32>>,
}

/// Pairs of files of the old base with those of another version.
#[derive(Debug, Default)]
pub struct Pairs {
    /// From the old tree to the other one.
    pub(crate) to: HashMap<u32, u32>,
    /// And back.
    pub(crate) from: HashMap<u32, u32>,
}

impl Pairs {
    /// Those of two versions of a base. `related` says whether inode numbers mean the same in both.
    #[must_use]
    pub fn of_bases(old: &Tree, new: &Tree, related: bool) -> Self {
        // A clone was written on top of the old base; a new base may have been built anew from the same recipe.
        pairs(old, new, related.then_some(is_same_inode))
    }

    /// Adds a pair; false when one of the two has another one.
    pub(crate) fn add(&mut self, old: u32, new: u32) -> bool {
        if self.to.contains_key(&old) || self.from.contains_key(&new) {
            return false;
        }
        self.to.insert(old, new);
        self.from.insert(new, old);
        true
    }
}

/// Whether two records may be of one object: no edit turns one kind, or one device, into another.
fn is_alike(one: &File, other: &File) -> bool {
    (one.kind, one.device) == (other.kind, other.device)
}

/// Whether two records of filesystems of which one was made from the other, block by block, are of one inode.
fn has_same_record(old: &File, new: &File) -> bool {
    is_alike(old, new) && (old.generation, old.created) == (new.generation, new.created)
}

/// Pairs what is at the same path, and what was moved; `moved` tells whether one number is one file in
/// both; without it numbers mean nothing.
fn pairs(old: &Tree, new: &Tree, moved: Option<fn(&File, &File) -> bool>) -> Pairs {
    let mut pairs = Pairs::default();
    pairs.add(old.root, new.root);
    descend(old, new, (old.root, new.root), &mut pairs);
    if let Some(is_same) = moved {
        pair_moved(old, new, is_same, &mut pairs);
    }
    pairs
}

/// Pairs what has the same name below two paired folders. Of several names of one file those that still are that file
/// come first.
fn descend(old: &Tree, new: &Tree, from: (u32, u32), pairs: &mut Pairs) {
    for same in [true, false] {
        let (mut folders, mut seen) = (vec![from], HashSet::new());
        while let Some((above, beside)) = folders.pop() {
            if !seen.insert(above) {
                continue;
            }
            for (name, was) in &old.file(above).children {
                let Some(is) = new.file(beside).children.get(name) else { continue };
                let (one, other) = (old.file(*was), new.file(*is));
                if is_alike(one, other) && (!same || (was == is && has_same_record(one, other))) {
                    pairs.add(*was, *is);
                }
                if one.is_folder() && pairs.to.get(was) == Some(is) {
                    folders.push((*was, *is));
                }
            }
        }
    }
}

/// Pairs by inode what has no pair. Folders come first, from the top, each with what is in it by its path: a file that
/// was replaced in a moved folder is still that file.
fn pair_moved(old: &Tree, new: &Tree, is_same: fn(&File, &File) -> bool, pairs: &mut Pairs) {
    let mut pair = |ino: u32| {
        let same = old
            .files
            .get(&ino)
            .zip(new.files.get(&ino))
            .is_some_and(|(was, is)| is_alike(was, is) && is_same(was, is));
        let added = same && pairs.add(ino, ino);
        if added && old.file(ino).is_folder() {
            descend(old, new, (ino, ino), pairs);
        }
    };
    let (mut folders, mut others, mut seen) = (vec![old.root], Vec::new(), HashSet::new());
    while let Some(above) = folders.pop() {
        if !seen.insert(above) {
            continue;
        }
        for ino in old.file(above).children.values() {
            if old.file(*ino).is_folder() {
                pair(*ino);
                folders.push(*ino);
            } else {
                others.push(*ino);
            }
        }
    }
    others.into_iter().for_each(pair);
}

impl Objects {
    /// The objects of three trees, of which `base` pairs those of the bases.
    pub(super) fn of(trees: Three<&Tree>, base: &Pairs) -> Self {
        let clone = pairs(trees.old, trees.clone, Some(has_same_record));
        let mut objects = Self::default();
        for old in sorted(trees.old) {
            let (base, clone) = (base.to.get(&old).copied(), clone.to.get(&old).copied());
            objects.add(Three { old: Some(old), base, clone });
        }
        objects.pair_added(trees);
        for base in sorted(trees.base) {
            if !objects.of.base.contains_key(&base) {
                objects.add(Three { old: None, base: Some(base), clone: None });
            }
        }
        for clone in sorted(trees.clone) {
            if !objects.of.clone.contains_key(&clone) {
                objects.add(Three { old: None, base: None, clone: Some(clone) });
            }
        }
        objects
    }

    fn add(&mut self, object: Object) -> usize {
        let at = self.all.len();
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        for version in [Version::Old, Version::Base, Version::Clone] {
            if let Some(ino) = object.of_version(version) {
                self.of.of_version_mut(version).insert(*ino, number);
            }
        }
        self.all.push(object);
        at
    }

    /// The object of a file.
    pub(super) fn object(&self, version: Version, ino: u32) -> usize {
        index(self.of.of_version(version)[&ino].into())
    }

    /// What both sides added under the same name in the same folder is one object, if it is of one kind.
    fn pair_added(&mut self, trees: Three<&Tree>) {
        let mut next = 0;
        while let Some(object) = self.all.get(next).copied() {
            next += 1;
            let (Some(base), Some(clone)) = (object.base, object.clone) else { continue };
            let (base, clone): (&BTreeMap<_, _>, _) =
                (&trees.base.file(base).children, &trees.clone.file(clone).children);
            for (name, in_base) in base {
                let Some(in_clone) = clone.get(name) else { continue };
                let known = self.of.base.contains_key(in_base) || self.of.clone.contains_key(in_clone);
                if !known && is_alike(trees.base.file(*in_base), trees.clone.file(*in_clone)) {
                    self.add(Three { old: None, base: Some(*in_base), clone: Some(*in_clone) });
                }
            }
        }
    }
}

fn sorted(tree: &Tree) -> Vec<u32> {
    let mut all: Vec<u32> = tree.files.keys().copied().collect();
    all.sort_unstable();
    all
}
