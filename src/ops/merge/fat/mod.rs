//! The merge of a FAT filesystem: the same planner and rules as for others, on trees that have less in them.
//!
//! A file has no number, no owner and one name; what is merged is its name, content, attributes (read-only, hidden,
//! system) and time. Names that differ in case are one name, and the new base's spelling is taken.

mod apply;
mod trees;

pub use apply::apply;

use super::decide::Input;
use super::pair::Pairs;
use super::plan::{Plan, plan};
use super::rules::Rules;
use super::tree::{self, Contents};
use super::volumes::refuse_long;
use super::{Three, Version};
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::guestfs::Window;
use crate::guestfs::fat::{Fat, Item, Tree};
use crate::guestfs::partitions::Partition;
use crate::units::{MIB, index, length};
use std::collections::HashMap;

const PIECE: u64 = MIB;

/// One version of a FAT filesystem.
#[derive(Debug)]
pub struct Volume<'a> {
    pub(super) fat: Fat<Window<&'a Disk>>,
    pub(super) tree: Tree,
}

/// The three versions.
pub type Volumes<'a> = Three<Volume<'a>>;

/// Whether `place` has a FAT filesystem, in order or not: files in it have no owners.
///
/// # Errors
/// Only what reading the disk gives.
pub fn is_there(disk: &Disk, place: &Partition) -> Result<bool> {
    Ok(!matches!(Fat::open(Window::new(disk, place)?), Err(error) if error.kind() == Kind::Invalid))
}

/// The serial number and the label of the FAT filesystem in `place`, if one is there that is in order.
///
/// # Errors
/// Only what reading the disk gives.
pub fn names(disk: &Disk, place: &Partition) -> Result<Option<(u32, Vec<u8>)>> {
    let found = Fat::open(Window::new(disk, place)?).and_then(|fat| Ok((fat.serial(), fat.label()?)));
    match found {
        Ok(names) => Ok(Some(names)),
        Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Unsupported | Kind::Corrupt) => Ok(None),
        Err(error) => Err(error),
    }
}

impl<'a> Volume<'a> {
    /// The FAT filesystem in `place`; nothing when there is none.
    ///
    /// # Errors
    /// As [`Fat::open`] and [`Fat::tree`].
    pub fn open(disk: &'a Disk, place: &Partition) -> Result<Option<Self>> {
        match Fat::open(Window::new(disk, place)?) {
            Ok(fat) => {
                let tree = fat.tree()?;
                Ok(Some(Self { fat, tree }))
            }
            Err(error) if error.kind() == Kind::Invalid => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What tells the filesystem from others.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.fat.serial()
    }
}

impl Volumes<'_> {
    fn item(&self, (version, ino): (Version, u32)) -> Result<(&Volume<'_>, &Item)> {
        let volume = self.of_version(version);
        let item = trees::item_of(ino).and_then(|number| volume.tree.items.get(number));
        item.map(|item| (volume, item)).ok_or_else(|| Error::invalid("there is no such file"))
    }
}

impl Contents for Volumes<'_> {
    fn same(&self, one: (Version, u32), other: (Version, u32)) -> Result<bool> {
        let ((first, one), (second, other)) = (self.item(one)?, self.item(other)?);
        if one.size != other.size {
            return Ok(false);
        }
        let (mut at, size) = (0, u64::from(one.size));
        while at < size {
            let len = index(PIECE.min(size - at));
            let (mut a, mut b) = (vec![0; len], vec![0; len]);
            first.fat.read(one, at, &mut a)?;
            second.fat.read(other, at, &mut b)?;
            if a != b {
                return Ok(false);
            }
            at += length(len);
        }
        Ok(true)
    }

    fn read(&self, of: (Version, u32)) -> Result<Vec<u8>> {
        let (volume, item) = self.item(of)?;
        refuse_long(item.size.into())?;
        let mut bytes = vec![0; item.size as usize];
        volume.fat.read(item, 0, &mut bytes)?;
        Ok(bytes)
    }
}

/// Where rules look for the files of a FAT partition whose guest does not say where it mounts it: an EFI system partition
/// is at `/boot/efi`, another one at `/partition-N`.
#[must_use]
pub fn mount_point(place: &Partition) -> Vec<String> {
    match place.kind.is_efi_system() {
        true => vec!["boot".to_owned(), "efi".to_owned()],
        false => vec![format!("partition-{}", place.number)],
    }
}

/// Plans the merge of a FAT filesystem whose root is at `above`.
///
/// # Errors
/// As [`plan`].
pub fn plan_fat(volumes: &Volumes<'_>, above: &[String], rules: &Rules, label: &str) -> Result<Plan> {
    let trees: Three<tree::Tree> = trees::trees(volumes.map(|volume| &volume.tree), above);
    // There are no inodes here, whose numbers could mean the same.
    let bases = Pairs::of_bases(&trees.old, &trees.base, false);
    let input = Input {
        trees: trees.map(|tree| tree),
        bases: &bases,
        contents: volumes,
        rules,
        units: None,
        forced: &HashMap::new(),
    };
    plan(&input, label)
}
