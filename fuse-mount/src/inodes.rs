//! Inode numbers: the same number for a name while the kernel knows it, and another one for another disk.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::Stat;

/// The root's number.
pub(crate) const ROOT: u64 = 1;
/// The first folder's number; the others follow.
const FIRST_FOLDER: u64 = 2;

/// What tells a disk from another one that takes its name later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    given: u64,
    /// Size and time, for a disk that never changes.
    sealed: Option<(u64, SystemTime)>,
}

impl Identity {
    pub(crate) fn new(given: u64, stat: &Stat) -> Self {
        Identity { given, sealed: stat.immutable.then_some((stat.size, stat.modified)) }
    }
}

/// A file that the kernel knows.
#[derive(Clone)]
pub(crate) struct Node {
    /// Index of its folder.
    pub(crate) folder: usize,
    pub(crate) name: Arc<str>,
    pub(crate) identity: Identity,
}

/// What an inode number stands for.
pub(crate) enum Place {
    Root,
    /// A folder, by index.
    Folder(usize),
    File(Node),
}

struct Known {
    node: Node,
    /// Lookups that the kernel has not given back; it holds at least one while a file is open.
    lookups: u64,
}

struct Table {
    known: HashMap<u64, Known>,
    /// For each folder, the number that a name has now. Every value is a key of `known`.
    current: Vec<HashMap<Arc<str>, u64>>,
}

/// The inode table. It holds what the kernel holds: [`Inodes::forget`] shrinks it.
pub(crate) struct Inodes {
    folders: usize,
    table: Mutex<Table>,
}

impl Inodes {
    pub(crate) fn new(folders: usize) -> Self {
        let current = vec![HashMap::new(); folders];
        Inodes { folders, table: Mutex::new(Table { known: HashMap::new(), current }) }
    }

    pub(crate) fn folder_ino(index: usize) -> u64 {
        FIRST_FOLDER + index as u64
    }

    /// What `ino` stands for; none when the kernel does not know it, as far as we can tell.
    pub(crate) fn place(&self, ino: u64) -> Option<Place> {
        if ino == ROOT {
            return Some(Place::Root);
        }
        let index = ino.checked_sub(FIRST_FOLDER).and_then(|index| usize::try_from(index).ok())?;
        if index < self.folders {
            return Some(Place::Folder(index));
        }
        self.lock().known.get(&ino).map(|known| Place::File(known.node.clone()))
    }

    /// Counts a lookup of `name` that finds the disk `identity`, and returns its number.
    pub(crate) fn lookup(&self, folder: usize, name: &str, identity: Identity) -> u64 {
        let mut table = self.lock();
        if let Some(&ino) = table.current[folder].get(name)
            && let Some(known) = table.known.get_mut(&ino)
            && known.node.identity == identity
        {
            known.lookups += 1;
            return ino;
        }
        let ino = free_number(&table, self.folders, folder, name);
        let name: Arc<str> = name.into();
        table.current[folder].insert(name.clone(), ino);
        table.known.insert(ino, Known { node: Node { folder, name, identity }, lookups: 1 });
        ino
    }

    /// The number that `name` has, or most likely gets at its next lookup; for listings.
    pub(crate) fn number_of(&self, folder: usize, name: &str) -> u64 {
        let table = self.lock();
        let known = table.current[folder].get(name).copied();
        known.unwrap_or_else(|| free_number(&table, self.folders, folder, name))
    }

    /// `name` is gone: whatever comes under this name later is another disk.
    pub(crate) fn retire(&self, folder: usize, name: &str) {
        self.lock().current[folder].remove(name);
    }

    /// The kernel gives back `count` lookups of `ino`.
    pub(crate) fn forget(&self, ino: u64, count: u64) {
        let mut table = self.lock();
        let Some(known) = table.known.get_mut(&ino) else { return };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return;
        }
        if let Some(Known { node, .. }) = table.known.remove(&ino) {
            let current = &mut table.current[node.folder];
            if current.get(&node.name) == Some(&ino) {
                current.remove(&node.name);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that nothing has; the same one for the same name, as long as nobody else took it.
fn free_number(table: &Table, folders: usize, folder: usize, name: &str) -> u64 {
    (0u64..)
        .map(|attempt| {
            let mut hasher = DefaultHasher::new();
            (folder, name, attempt).hash(&mut hasher);
            // 63 bits: some programs keep inode numbers in signed integers.
            hasher.finish() >> 1
        })
        .find(|&ino| ino >= Inodes::folder_ino(folders) && !table.known.contains_key(&ino))
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(given: u64) -> Identity {
        Identity { given, sealed: None }
    }

    fn size(inodes: &Inodes) -> (usize, usize) {
        let table = inodes.lock();
        (table.known.len(), table.current.iter().map(HashMap::len).sum())
    }

    #[test]
    fn a_name_keeps_its_number_until_it_is_forgotten_and_the_table_shrinks() {
        let inodes = Inodes::new(2);
        let hint = inodes.number_of(1, "a");
        let first = inodes.lookup(1, "a", identity(0));
        assert_eq!((hint, first), (first, inodes.lookup(1, "a", identity(0))));
        assert_ne!(first, inodes.lookup(0, "a", identity(0)), "folders are apart");
        inodes.forget(first, 1);
        assert!(matches!(inodes.place(first), Some(Place::File(_))));
        inodes.forget(first, 1);
        assert!(inodes.place(first).is_none());
        inodes.forget(inodes.number_of(0, "a"), 5);
        assert_eq!(size(&inodes), (0, 0));
    }

    #[test]
    fn another_disk_under_the_same_name_has_another_number() {
        let inodes = Inodes::new(1);
        let first = inodes.lookup(0, "a", identity(1));
        let second = inodes.lookup(0, "a", identity(2));
        assert_ne!(first, second);
        inodes.retire(0, "a");
        let third = inodes.lookup(0, "a", identity(2));
        assert!(third != first && third != second);
        inodes.forget(first, 1);
        assert_eq!(inodes.number_of(0, "a"), third, "forgetting an old one leaves the present one");
        inodes.forget(second, 1);
        inodes.forget(third, 1);
        assert_eq!(size(&inodes), (0, 0));
    }

    #[test]
    fn a_sealed_disk_of_other_size_or_time_is_another_one() {
        let stat = |size: u64, immutable: bool| Stat {
            size,
            blocks: 0,
            modified: SystemTime::UNIX_EPOCH,
            writable: !immutable,
            immutable,
        };
        assert_eq!(Identity::new(0, &stat(1, false)), Identity::new(0, &stat(2, false)));
        assert_ne!(Identity::new(0, &stat(1, true)), Identity::new(0, &stat(2, true)));
    }

    #[test]
    fn fixed_places_are_always_there() {
        let inodes = Inodes::new(2);
        assert!(matches!(inodes.place(ROOT), Some(Place::Root)));
        assert!(matches!(inodes.place(3), Some(Place::Folder(1))));
        assert!(inodes.place(0).is_none() && inodes.place(4).is_none());
    }
}
