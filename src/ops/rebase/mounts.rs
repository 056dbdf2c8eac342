//! Where a guest mounts the filesystems of its disk: rules, packages and reports know files by their paths in the guest.

use super::bases::Both;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::ext4::{FileKind, Ino};
use crate::guestfs::fstab::{Mount, Names, mounts};
use crate::guestfs::partitions::{PartitionKind, own_names};
use crate::guestfs::swap::{sleeper, sleeps_in};
use crate::ops::merge::fat;
use crate::ops::merge::tree::Tree;
use crate::ops::merge::volumes::{Place, Volume};
use crate::units::MIB;
use std::collections::HashMap;

const FSTAB: &[u8] = b"/etc/fstab";
/// Longest table that is read, in bytes.
const LONGEST: u64 = MIB;

/// The places of a disk that a guest mounts.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Where, by their numbers; nothing for `/`.
    at: HashMap<u32, Vec<u8>>,
    /// Whether all filesystems are those of one guest, and its table says where each of them is.
    pub(super) one_system: bool,
}

impl Mounts {
    /// As the only `/etc/fstab` of the old base says. What it does not name, and the root where there is none, is where the
    /// type of its partition says, if nothing else may be meant. With several tables, or without a root, each filesystem is a
    /// system of its own.
    ///
    /// # Errors
    /// Whatever reading the disk gives.
    pub(super) fn find(disk: &Disk, places: &[(Place, Option<Both>)]) -> Result<Self> {
        let mut roots = Vec::new();
        for (place, both) in places {
            let Some(both) = both else { continue };
            roots.extend(table(&both.trees[0], &both.old)?.map(|lines| (place.number, lines)));
        }
        if roots.is_empty() {
            let root = only(places, |kind| kind.mount_point() == Some(""));
            let is_seen =
                |root: &u32| places.iter().any(|(place, both)| place.number == *root && both.is_some());
            roots.extend(root.filter(is_seen).map(|root| (root, Vec::new())));
        }
        let Some((root, lines)) = roots.pop().filter(|_| roots.is_empty()) else {
            return Ok(Self::default());
        };
        let mut found = Self { at: HashMap::from([(root, Vec::new())]), one_system: true };
        let others = || places.iter().filter(|(place, _)| place.number != root);
        for (place, both) in others() {
            let names = names(disk, place, both.as_ref())?;
            let says = lines.iter().filter(|line| !line.is_swap && names.answer_to(&line.device));
            let at = says.filter_map(|line| line.at.as_ref()).find(|at| found.is_free(at));
            found.at.extend(at.map(|at| (place.number, at.clone())));
        }
        let root = places.iter().find(|(place, _)| place.number == root).and_then(|(_, both)| both.as_ref());
        if let Some(root) = root {
            found.discover(places, &root.trees[0]);
        }
        // Where it is not known, no rule for another place may hold by accident.
        for (place, _) in others().filter(|(_, both)| both.is_some()) {
            let unknown = || format!("/partition-{}", place.number).into_bytes();
            found.at.entry(place.number).or_insert_with(unknown);
        }
        Ok(found)
    }

    /// Places that no table names, by the types of their partitions. As systemd does it, nothing is mounted over files.
    fn discover(&mut self, places: &[(Place, Option<Both>)], root: &Tree) {
        let mut kinds: Vec<&str> = places.iter().filter_map(|(place, _)| place.kind.mount_point()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for at in kinds.into_iter().filter(|at| !at.is_empty()) {
            let number = only(places, |kind| kind.mount_point() == Some(at));
            if inside(root, at) != Inside::Files {
                self.put(number, at);
            }
        }
        let system = only(places, PartitionKind::is_efi_system);
        // The first of the two that is there.
        match ["/efi", "/boot"].into_iter().find(|at| inside(root, at) != Inside::Nothing) {
            Some(at) if inside(root, at) == Inside::Empty => self.put(system, at),
            _ => {}
        }
    }

    fn put(&mut self, number: Option<u32>, at: &str) {
        if let Some(number) = number.filter(|_| self.is_free(at.as_bytes())) {
            self.at.entry(number).or_insert_with(|| at.into());
        }
    }

    /// Whether nothing is mounted there.
    fn is_free(&self, at: &[u8]) -> bool {
        !self.at.values().any(|known| known == at)
    }

    /// Where a place is mounted, if that is known.
    pub(super) fn of(&self, place: &Place) -> Option<&[u8]> {
        self.at.get(&place.number).map(Vec::as_slice)
    }
}

/// The number of the only place of a kind.
fn only(places: &[(Place, Option<Both>)], is: impl Fn(PartitionKind) -> bool) -> Option<u32> {
    let mut found = places.iter().filter(|(place, _)| is(place.kind)).map(|(place, _)| place.number);
    found.next().filter(|_| found.next().is_none())
}

/// What the root filesystem has at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Nothing,
    /// A folder for what is mounted there.
    Empty,
    Files,
}

fn inside(root: &Tree, path: &str) -> Inside {
    match root.find(path.as_bytes()).map(|ino| root.file(ino)) {
        None => Inside::Nothing,
        Some(file) if file.kind == FileKind::Directory && file.children.is_empty() => Inside::Empty,
        Some(_) => Inside::Files,
    }
}

/// What a guest may call a place.
fn names(disk: &Disk, place: &Place, both: Option<&Both>) -> Result<Names> {
    let (part_uuid, part_label) = own_names(disk, place.number)?;
    let mut names = Names { number: place.number, part_uuid, part_label, ..Names::default() };
    if let Some(both) = both {
        let superblock = both.old.filesystem.superblock();
        names.uuid = uuid_text(superblock.uuid);
        names.label.clone_from(&superblock.label);
    } else if let Some((serial, label)) = fat::names(disk, place)? {
        (names.uuid, names.label) = (format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff), label);
    }
    Ok(names)
}

/// As blkid writes it.
fn uuid_text(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]).join("-")
}

/// The lines of the table of a filesystem that has one.
fn table(tree: &Tree, volume: &Volume<'_>) -> Result<Option<Vec<Mount>>> {
    let Some(ino) = tree.find(FSTAB) else { return Ok(None) };
    let file = tree.file(ino);
    if file.kind != FileKind::Regular || file.size > LONGEST {
        return Ok(None);
    }
    Ok(Some(mounts(&volume.start_of(ino, LONGEST)?)))
}

/// Refuses a system that sleeps in a swap file: it would wake up with another disk. A file counts that the table names, and
/// any of a filesystem that was not unmounted. `filesystems` are all that the system has, `whose` says of which side.
///
/// # Errors
/// `Unsupported` with the name of the file; whatever reading gives.
pub(super) fn refuse_sleeping(filesystems: &[(&Tree, &Volume<'_>)], whose: &str) -> Result<()> {
    for (tree, volume) in filesystems.iter().filter(|(_, volume)| volume.was_mounted()) {
        if let Some(ino) = sleeper(&volume.filesystem)? {
            let path = tree.files.contains_key(&ino.0).then(|| tree.path(ino.0));
            return Err(sleeping(&String::from_utf8_lossy(&path.unwrap_or_default()), whose));
        }
    }
    for (tree, volume) in filesystems {
        for line in table(tree, volume)?.into_iter().flatten().filter(|line| line.is_swap) {
            for (tree, volume) in filesystems {
                let found = tree.find(&line.device).filter(|ino| tree.file(*ino).kind == FileKind::Regular);
                let Some(ino) = found else { continue };
                if sleeps_in(&volume.filesystem, &volume.filesystem.inode(Ino(ino))?)? {
                    return Err(sleeping(&String::from_utf8_lossy(&line.device), whose));
                }
            }
        }
    }
    Ok(())
}

/// Why a disk is left alone whose guest sleeps in `place`.
pub(super) fn sleeping(place: &str, whose: &str) -> Error {
    Error::unsupported(format!(
        "{place} holds the memory of {whose}, which hibernates and would wake up with another disk: start it and shut \
         it down first"
    ))
}
