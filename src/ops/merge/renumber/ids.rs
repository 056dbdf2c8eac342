//! The numbers of users and groups that files name.

use crate::guestfs::partitions::{u16_at, u32_at};
use crate::ops::merge::tree::{File, Tree};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
const CAPABILITY: &[u8] = b"security.capability";
/// Bytes of a capability that holds below one user namespace, which it names by its root.
const WITH_ROOT: usize = 24;
const USER: u16 = 2;
const GROUP: u16 = 8;

/// Numbers that are in use.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    /// Users that own files, or that lists of access name.
    pub users: BTreeSet<u32>,
    /// Groups, in the same way.
    pub groups: BTreeSet<u32>,
    /// Users that capabilities name as the root of their namespace.
    pub roots: BTreeSet<u32>,
    /// A list of access cannot be read: there may be more.
    pub unknown: bool,
}

impl Ids {
    /// Adds all that `other` has.
    pub fn append(&mut self, other: &Self) {
        self.users.extend(&other.users);
        self.groups.extend(&other.groups);
        self.roots.extend(&other.roots);
        self.unknown |= other.unknown;
    }

    /// Adds what the files of a tree name.
    pub fn add(&mut self, tree: &Tree) {
        for file in tree.files.values() {
            self.users.insert(file.uid);
            self.groups.insert(file.gid);
            for list in LISTS.iter().filter_map(|name| file.xattrs.get(*name)) {
                self.unknown |= list.len() % 8 != 4;
                for entry in list.get(4..).unwrap_or_default().chunks_exact(8) {
                    match u16_at(entry, 0) {
                        USER => drop(self.users.insert(u32_at(entry, 4))),
                        GROUP => drop(self.groups.insert(u32_at(entry, 4))),
                        _ => {}
                    }
                }
            }
            if let Some(value) = file.xattrs.get(CAPABILITY).filter(|value| value.len() >= WITH_ROOT) {
                self.roots.insert(u32_at(value, WITH_ROOT - 4));
            }
        }
    }
}

/// Numbers, and what they become.
pub(super) type Map = BTreeMap<u32, u32>;

/// The file with other numbers; nothing when it names none of them.
pub(super) fn renumbered(file: &File, users: &Map, groups: &Map) -> Option<File> {
    let mut new = file.clone();
    new.uid = *users.get(&file.uid).unwrap_or(&file.uid);
    new.gid = *groups.get(&file.gid).unwrap_or(&file.gid);
    for name in LISTS {
        if let Some(list) = new.xattrs.get_mut(name) {
            *list = list_with(list, users, groups);
        }
    }
    (new != *file).then_some(new)
}

/// A list of access, as `getxattr` gives it, with other numbers; sorted by them, as it was.
fn list_with(list: &[u8], users: &Map, groups: &Map) -> Vec<u8> {
    let Some((head, entries)) =
        list.split_first_chunk::<4>().filter(|(_, rest)| rest.len().is_multiple_of(8))
    else {
        return list.to_vec();
    };
    let mut entries: Vec<(u16, u32, Vec<u8>)> = entries
        .chunks(8)
        .map(|entry| {
            let (tag, id) = (u16_at(entry, 0), u32_at(entry, 4));
            let new = match tag {
                USER => users.get(&id),
                GROUP => groups.get(&id),
                _ => None,
            };
            let mut bytes = entry.to_vec();
            if let (Some(new), Some(place)) = (new, bytes.get_mut(4..8)) {
                place.copy_from_slice(&new.to_le_bytes());
            }
            (tag, *new.unwrap_or(&id), bytes)
        })
        .collect();
    for kind in [USER, GROUP] {
        let named = |entry: &(u16, u32, Vec<u8>)| entry.0 == kind;
        let start = entries.iter().position(named).unwrap_or(0);
        let count = entries[start..].iter().take_while(|entry| named(entry)).count();
        entries[start..start + count].sort_by_key(|entry| entry.1);
    }
    let mut bytes = head.to_vec();
    entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.2));
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Map, list_with};

    fn list(entries: &[(u16, u32)]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend([6, 0]);
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_list_of_access_names_the_new_numbers_in_their_order() {
        let (users, groups) = (Map::from([(1001, 1009)]), Map::from([(1001, 7)]));
        let old = list(&[(1, u32::MAX), (2, 1001), (2, 1005), (4, u32::MAX), (8, 5), (8, 1001), (0x20, 0)]);
        let new = list(&[(1, u32::MAX), (2, 1005), (2, 1009), (4, u32::MAX), (8, 5), (8, 7), (0x20, 0)]);
        assert_eq!(list_with(&old, &users, &groups), new);
        assert_eq!(list_with(&old, &Map::new(), &Map::new()), old);
        for len in 0..old.len() {
            assert_eq!(list_with(&old[..len], &Map::new(), &Map::new()), &old[..len]);
        }
    }
}
