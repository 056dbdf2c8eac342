//! Where a guest mounts the filesystems of its disk: rules, packages and reports know files by their paths in the guest.

use super::bases::Both;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::ext4::FileKind;
use crate::guestfs::fstab::{Mount, Names, mounts};
use crate::guestfs::partitions::own_names;
use crate::guestfs::swap::{HEADER, Swap};
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
    /// As the only `/etc/fstab` of the old base says; with none, or with several, each filesystem is a system of its own.
    ///
    /// # Errors
    /// Whatever reading the disk gives.
    pub(super) fn find(disk: &Disk, places: &[(Place, Option<Both>)]) -> Result<Self> {
        let mut roots = Vec::new();
        for (place, both) in places {
            let Some(both) = both else { continue };
            roots.extend(table(&both.trees[0], &both.old)?.map(|lines| (place.number, lines)));
        }
        let Some((root, lines)) = roots.pop().filter(|_| roots.is_empty()) else {
            return Ok(Self::default());
        };
        let mut found = Self { at: HashMap::from([(root, Vec::new())]), one_system: true };
        for (place, both) in places.iter().filter(|(place, _)| place.number != root) {
            let names = names(disk, place, both.as_ref())?;
            let says = lines.iter().filter(|line| !line.is_swap && names.answer_to(&line.device));
            let at = says
                .filter_map(|line| line.at.as_ref())
                .find(|at| !found.at.values().any(|known| known == *at));
            // Where it is not known, no rule for another place may hold by accident.
            let unknown = || both.as_ref().map(|_| format!("/partition-{}", place.number).into_bytes());
            if let Some(at) = at.cloned().or_else(unknown) {
                found.at.insert(place.number, at);
            }
        }
        Ok(found)
    }

    /// Where a place is mounted, if that is known.
    pub(super) fn of(&self, place: &Place) -> Option<&[u8]> {
        self.at.get(&place.number).map(Vec::as_slice)
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
    } else if let Some(serial) = fat::serial(disk, place)? {
        names.uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
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

/// Refuses a system that sleeps in a swap file: it would wake up with another disk. `filesystems` are all that it has,
/// `whose` says of which side.
///
/// # Errors
/// `Unsupported` with the name of the file; whatever reading gives.
pub(super) fn refuse_sleeping(filesystems: &[(&Tree, &Volume<'_>)], whose: &str) -> Result<()> {
    for (tree, volume) in filesystems {
        for line in table(tree, volume)?.into_iter().flatten().filter(|line| line.is_swap) {
            for (tree, volume) in filesystems {
                let found = tree.find(&line.device).filter(|ino| tree.file(*ino).kind == FileKind::Regular);
                let Some(ino) = found else { continue };
                if Swap::find(&volume.start_of(ino, HEADER)?)?.is_some_and(|swap| swap.hibernated) {
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
