//! Numbers of the base's new accounts that the clone has given to somebody else.
//!
//! Two `useradd`s on two sides give out the same numbers. The base's account gets another number then, and its files
//! follow. Never the clone's: its services run under its numbers, and what they wrote outside of the disk, or into
//! files that hold numbers, is not seen. The base's account is as old as the new version and no machine has used it.

mod find;
mod ids;
mod ranges;

pub use ids::Ids;

use super::accounts::{Database, FILE_MAX, range, with_numbers};
use super::fate::{Clash, Conflict, Facts};
use super::keyed::lines;
use super::steps::{Step, attributes, later};
use super::tree::{Contents, Tree};
use super::{Three, Version};
use crate::error::Result;
use crate::guestfs::edit::{Edit, Node};
use crate::guestfs::ext4::FileKind;
use crate::units::length;
use ids::{LISTS, Map};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The account databases of the three versions, in the order of [`Database::ALL`].
#[derive(Clone, Debug, Default)]
pub struct AccountFiles(pub [Three<Vec<u8>>; 6]);

/// A range of numbers in a database: name, first number, the one behind the last.
type Range = (Vec<u8>, u64, u64);

/// What is renumbered in the new base before it is merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    users: Map,
    groups: Map,
    /// The new first number of each range.
    ranges: BTreeMap<Range, u64>,
    /// What is moved, in sentences.
    pub told: Vec<String>,
    /// What cannot be moved, and why: a conflict of this database each.
    pub refused: Vec<(Database, String)>,
}

/// The new base's tree with other numbers, and how the filesystem gets them.
#[derive(Debug)]
pub(super) struct Renumbered {
    pub(super) tree: Tree,
    pub(super) steps: Vec<Step>,
    /// The files that follow.
    pub(super) paths: BTreeSet<Vec<u8>>,
}

impl AccountFiles {
    /// Reads them; a missing one is empty. With one that is longer than a merge takes, all are: nothing is moved then,
    /// and the merge says what it must.
    ///
    /// # Errors
    /// Whatever reading them gives.
    pub fn read(trees: Three<&Tree>, contents: &dyn Contents) -> Result<Self> {
        let mut all = Self::default();
        for (place, database) in all.0.iter_mut().zip(Database::ALL) {
            for version in [Version::Old, Version::Base, Version::Clone] {
                let tree = trees.of_version(version);
                let found = tree.find(database.path());
                if let Some(ino) = found.filter(|ino| tree.file(*ino).kind == FileKind::Regular) {
                    if tree.file(ino).size > length(FILE_MAX) {
                        return Ok(Self::default());
                    }
                    *place.of_version_mut(version) = contents.read((version, ino))?;
                }
            }
        }
        Ok(all)
    }

    fn of(&self, database: Database) -> Three<&[u8]> {
        let at = Database::ALL.iter().position(|known| *known == database).unwrap_or(0);
        self.0[at].map(Vec::as_slice)
    }
}

impl Moves {
    /// Whether nothing is moved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.ranges.is_empty()
    }

    /// The base's database with the new numbers.
    #[must_use]
    pub fn text(&self, database: Database, file: &[u8]) -> Vec<u8> {
        let of = |map: &Map, id: u32| *map.get(&id).unwrap_or(&id);
        match database {
            Database::Passwd => with_numbers(database, file, |at, id| match at {
                0 => of(&self.users, id),
                _ => of(&self.groups, id),
            }),
            Database::Group => with_numbers(database, file, |_, id| of(&self.groups, id)),
            Database::Subuid | Database::Subgid => self.with_ranges(file),
            Database::Shadow | Database::Gshadow => file.to_vec(),
        }
    }

    fn with_ranges(&self, file: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(file.len());
        for line in lines(file) {
            let moved = range(line).and_then(|(start, end, name)| {
                let new = self.ranges.get(&(name.to_vec(), start, end))?;
                Some([name, format!(":{new}:{}", end - start).as_bytes()].concat())
            });
            bytes.extend_from_slice(moved.as_deref().unwrap_or(line));
            bytes.push(b'\n');
        }
        if !file.ends_with(b"\n") {
            bytes.pop();
        }
        bytes
    }

    /// The new base's tree with the new numbers.
    pub(super) fn tree(&self, base: &Tree) -> Renumbered {
        let mut new = Renumbered { tree: base.clone(), steps: Vec::new(), paths: BTreeSet::new() };
        let mut all: Vec<u32> = base.files.keys().copied().collect();
        all.sort_unstable();
        for ino in all {
            let was = base.file(ino);
            let Some(mut is) = ids::renumbered(was, &self.users, &self.groups) else { continue };
            let node = Node::Old(ino);
            // A change shows: the next merge may go by the times of inodes.
            is.changed = later(was.changed);
            for name in LISTS.into_iter().filter(|name| was.xattrs.get(*name) != is.xattrs.get(*name)) {
                let value = is.xattrs.get(name).cloned().unwrap_or_default();
                new.steps.push(Step::Edit(Edit::SetXattr { node, name: name.to_vec(), value }));
            }
            let attributes = attributes(&is, &Facts::of(&is));
            new.steps.push(Step::Edit(Edit::Attributes { node, attributes }));
            new.paths.insert(base.path(ino));
            new.tree.files.insert(ino, Arc::new(is));
        }
        new
    }

    /// What could not be moved, for a report.
    pub(super) fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.refused.iter().map(|(database, detail)| Conflict {
            path: database.path().to_vec(),
            clash: Clash::Database,
            taken: None,
            detail: detail.clone(),
            diff: String::new(),
        })
    }
}
