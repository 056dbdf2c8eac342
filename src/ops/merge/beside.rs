//! Names for what lies beside the version that won.

use super::Version;
use super::decide::Merge;
use std::collections::{HashMap, HashSet};

/// A name in the result: the folder's object, and the name.
pub(super) type Name = (usize, Vec<u8>);

/// The names given so far.
#[derive(Debug)]
pub(super) struct Beside {
    label: String,
    given: HashSet<Name>,
    /// The number to try next, so that many files whose names are cut to the same one take no longer.
    next: HashMap<Name, u32>,
    /// Objects that have such a name, by folder.
    pub(super) renamed: HashMap<usize, Vec<usize>>,
}

impl Beside {
    pub(super) fn new(label: &str) -> Self {
        Self { label: label.to_owned(), given: HashSet::new(), next: HashMap::new(), renamed: HashMap::new() }
    }
}

impl Merge<'_> {
    /// The object that has a name in a version.
    pub(super) fn holder(&self, version: Version, name: &Name) -> Option<usize> {
        let folder = (*self.objects.all[name.0].of_version(version))?;
        let ino = self.file(version, folder).children.get(&name.1)?;
        Some(self.objects.object(version, *ino))
    }

    /// A free name beside `name`: `NAME.LABEL`, or `NAME.LABEL-2` when that is taken on any side.
    pub(super) fn name_beside(&mut self, name: &Name) -> Name {
        let stem = (name.0, shortened(&name.1, &format!(".{}", self.beside.label)));
        loop {
            let number = self.beside.next.entry(stem.clone()).or_insert(0);
            *number += 1;
            let end = match *number {
                1 => format!(".{}", self.beside.label),
                more => format!(".{}-{more}", self.beside.label),
            };
            let name = (name.0, shortened(&name.1, &end));
            let taken = |version| self.holder(version, &name).is_some();
            if !taken(Version::Base) && !taken(Version::Clone) && self.beside.given.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// A name with an end, cut to what a name may have.
fn shortened(name: &[u8], end: &str) -> Vec<u8> {
    let room = 255_usize.saturating_sub(end.len());
    [&name[..name.len().min(room)], end.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn a_name_beside_has_at_most_255_bytes_and_its_whole_end() {
        assert_eq!(shortened(b"conf", ".base-2"), b"conf.base-2");
        let long = shortened(&[b'x'; 255], ".base-2");
        assert_eq!((long.len(), &long[248..]), (255, &b".base-2"[..]));
    }
}
