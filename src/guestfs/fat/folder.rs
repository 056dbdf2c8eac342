//! Folders, and the tree of all files.

use super::names::{self, SLOT, Short, fold};
use super::table::Claims;
use super::{Fat, damaged};
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, index, length};
use std::collections::{BTreeMap, HashSet};

const FILES: usize = 100_000;
const DEPTH: usize = 64;
/// Longest folder in bytes, as the specification has it.
pub(super) const FOLDER: u64 = 65_536 * 32;
pub(super) const DIRECTORY: u8 = 0x10;
const LABEL: u8 = 0x08;
const LONG: u8 = 0x0f;
const DELETED: u8 = 0xe5;
const DOTS: [&Short; 2] = [b".          ", b"..         "];

/// Times as they stand in an entry: the date in the upper 16 bits, the time in the lower ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// When it was made.
    pub created: u32,
    /// Hundredths of a second more, up to 199.
    pub hundredths: u8,
    /// The day of the last access; it is kept, and never a change.
    pub accessed: u16,
    /// When its content was changed.
    pub modified: u32,
}

/// One file or folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// Its name; none of the root.
    pub name: String,
    /// The folder it is in, by number in the tree.
    pub folder: usize,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// All attributes.
    pub attributes: u8,
    /// Its times.
    pub stamps: Stamps,
    /// Length in bytes; 0 of a folder.
    pub size: u32,
    /// What a folder holds, by folded name.
    pub children: BTreeMap<String, usize>,
    /// Its clusters, in order.
    pub(super) chain: Vec<u32>,
    /// Its entry as it stands in its folder, the slots of its long name first.
    pub(super) slots: Vec<u8>,
}

/// All files and folders; number 0 is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// They, each folder before what is in it.
    pub items: Vec<Item>,
    /// The entry of the volume's label.
    pub(super) label: Vec<u8>,
}

impl Item {
    /// A root folder with nothing in it.
    #[must_use]
    pub fn root() -> Self {
        Self { is_folder: true, ..Self::default() }
    }

    /// The short name in its entry.
    pub(super) fn short(&self) -> Option<Short> {
        let entry = self.slots.len().checked_sub(SLOT)?;
        self.slots[entry..].first_chunk().copied()
    }

    /// Whether its entry has a long name.
    pub(super) fn has_long(&self) -> bool {
        self.slots.len() > SLOT
    }
}

pub(super) fn tree<B: Bytes>(fat: &Fat<B>) -> Result<Tree> {
    let mut claims = Claims::new(&fat.table);
    let mut root = Item::root();
    if fat.layout.root_cluster != 0 {
        root.chain =
            claims.chain(&fat.table, fat.layout.root_cluster, FOLDER.div_ceil(fat.layout.cluster))?;
    }
    let mut tree = Tree { items: vec![root], label: Vec::new() };
    let mut depths = vec![0];
    let mut next = 0;
    while next < tree.items.len() {
        if tree.items[next].is_folder {
            read_folder(fat, &mut tree, next, &mut claims)?;
            depths.resize(tree.items.len(), depths[next] + 1);
            if tree.items.len() > FILES || depths[next] >= DEPTH {
                return Err(Error::unsupported(format!(
                    "a FAT filesystem of more than {FILES} files, or {DEPTH} folders deep, is not merged by files"
                )));
            }
        }
        next += 1;
    }
    claims.check_rest(&fat.table)?;
    Ok(tree)
}

/// All bytes of a folder.
pub(super) fn bytes<B: Bytes>(fat: &Fat<B>, item: &Item) -> Result<Vec<u8>> {
    let fixed = item.slots.is_empty() && fat.layout.root_cluster == 0;
    let len = if fixed { fat.layout.root_len } else { length(item.chain.len()) * fat.layout.cluster };
    let mut bytes = vec![0; index(len)];
    if fixed {
        fat.bytes.read(&mut bytes, GuestOffset(fat.layout.root))?;
    } else {
        fat.read_chain(&item.chain, 0, &mut bytes)?;
    }
    Ok(bytes)
}

fn read_folder<B: Bytes>(fat: &Fat<B>, tree: &mut Tree, at: usize, claims: &mut Claims) -> Result<()> {
    let bytes = bytes(fat, &tree.items[at])?;
    let mut rest = &bytes[..];
    if at != 0 {
        rest = dots(tree, at, rest)?;
    }
    let (mut long, mut shorts) = (Vec::new(), HashSet::new());
    for slot in rest.chunks_exact(SLOT).take_while(|slot| slot[0] != 0) {
        if slot[0] == DELETED {
            if !long.is_empty() {
                return Err(damaged("a long name has no short one"));
            }
        } else if slot[11] == LONG {
            long.extend_from_slice(slot);
        } else if slot[11] & LABEL != 0 {
            if at != 0 || slot[11] & DIRECTORY != 0 || !long.is_empty() || !tree.label.is_empty() {
                return Err(damaged("a label stands where none may be"));
            }
            tree.label = slot.to_vec();
        } else {
            let item = item(fat, at, std::mem::take(&mut long), slot, claims)?;
            let (number, name) = (tree.items.len(), fold(&item.name));
            let fresh = item.short().is_some_and(|short| shorts.insert(short));
            if !fresh || tree.items[at].children.insert(name, number).is_some() {
                return Err(damaged("two files have one name"));
            }
            tree.items.push(item);
        }
    }
    if long.is_empty() { Ok(()) } else { Err(damaged("a long name has no short one")) }
}

/// What is behind a folder's first two entries: itself, and the folder that it is in.
fn dots<'a>(tree: &Tree, at: usize, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let item = &tree.items[at];
    let first = |item: &Item| item.chain.first().copied().unwrap_or(0);
    // The root is named as cluster 0, wherever it is.
    let above = if item.folder == 0 { 0 } else { first(&tree.items[item.folder]) };
    let expected = [first(item), above];
    for (number, (name, cluster)) in DOTS.into_iter().zip(expected).enumerate() {
        let slot = bytes.get(number * SLOT..(number + 1) * SLOT);
        let fine =
            |slot: &[u8]| &slot[..11] == name && slot[11] & DIRECTORY != 0 && first_cluster(slot) == cluster;
        if !slot.is_some_and(fine) {
            return Err(damaged("a folder does not name itself or the one that it is in"));
        }
    }
    Ok(&bytes[2 * SLOT..])
}

/// The two entries that a folder begins with; `entry` is its own.
pub(super) fn dots_of(entry: &[u8], own: u32, above: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * SLOT);
    for (name, cluster) in DOTS.into_iter().zip([own, above]) {
        let mut slot = entry.to_vec();
        slot[..11].copy_from_slice(name);
        (slot[11], slot[12]) = (DIRECTORY, 0);
        set_first_cluster(&mut slot, cluster);
        bytes.extend(slot);
    }
    bytes
}

pub(super) fn first_cluster(slot: &[u8]) -> u32 {
    u32::from(u16_at(slot, 20)) << 16 | u32::from(u16_at(slot, 26))
}

pub(super) fn set_first_cluster(slot: &mut [u8], cluster: u32) {
    let [a, b, c, d] = cluster.to_le_bytes();
    (slot[26], slot[27], slot[20], slot[21]) = (a, b, c, d);
}

fn item<B: Bytes>(
    fat: &Fat<B>,
    folder: usize,
    long: Vec<u8>,
    slot: &[u8],
    claims: &mut Claims,
) -> Result<Item> {
    let Some(short) = slot.first_chunk::<11>() else { return Err(damaged("an entry is cut off")) };
    let (attributes, size, first) = (slot[11], u32_at(slot, 28), first_cluster(slot));
    let is_folder = attributes & DIRECTORY != 0;
    let name = if long.is_empty() {
        names::shown(short, slot[12])?
    } else {
        names::check_short(short)?;
        names::long(&long, short)?
    };
    let cluster = fat.layout.cluster;
    let clusters = if is_folder { FOLDER.div_ceil(cluster) } else { u64::from(size).div_ceil(cluster) };
    if attributes & 0xc0 != 0 || (is_folder && size != 0) || (first == 0) != (clusters == 0) || first == 1 {
        return Err(damaged("an entry makes no sense"));
    }
    let chain = if first == 0 { Vec::new() } else { claims.chain(&fat.table, first, clusters)? };
    if !is_folder && length(chain.len()) != clusters {
        return Err(damaged("a file has more bytes than clusters for them"));
    }
    let date = |time: usize, date: usize| u32::from(u16_at(slot, date)) << 16 | u32::from(u16_at(slot, time));
    let stamps = Stamps {
        created: date(14, 16),
        hundredths: slot[13],
        accessed: u16_at(slot, 18),
        modified: date(22, 24),
    };
    let slots = [&long[..], slot].concat();
    Ok(Item { name, folder, is_folder, attributes, stamps, size, children: BTreeMap::new(), chain, slots })
}
