//! A FAT filesystem becomes another tree of files.
//!
//! What stays where it is keeps its clusters, its entry and its short name; new content goes into free clusters, a folder
//! in which anything changes is written anew, and then both tables. A filesystem that is cut short in between is in no
//! order: it must be on a layer that is thrown away then.

use super::folder::{DIRECTORY, FOLDER, Stamps, Tree, dots_of, set_first_cluster};
use super::names::{SLOT, Short, fold, slots};
use super::table::{END, FREE, Table};
use super::{ATTRIBUTES, Fat, run};
use crate::error::{Error, Kind, Result};
use crate::guestfs::edit::Volume;
use crate::guestfs::partitions::{Bytes, u32_at};
use crate::units::{GuestOffset, MIB, index, length};
use std::collections::HashSet;

const PIECE: u64 = MIB;
/// Attribute of files that were changed since a backup; of new ones it is set.
const ARCHIVE: u8 = 0x20;

/// Where the bytes of a file come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// They stay as they are; of a folder, always so.
    Kept,
    /// So many new ones.
    New(u32),
}

/// A file or folder of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The folder it is in, by number in the target.
    pub folder: usize,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Its number in the tree that there was, when it was there under the same name in the same folder.
    pub old: Option<usize>,
    /// Read-only, hidden, system.
    pub attributes: u8,
    /// Its times.
    pub stamps: Stamps,
    /// Its bytes.
    pub content: Content,
}

/// The tree that is wanted; number 0 is the root, and each folder stands before what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// They.
    pub items: Vec<Wanted>,
}

/// Gives the bytes of new content.
pub trait Supply {
    /// Fills `buf` with the bytes of item `item` of the target from `at` on.
    ///
    /// # Errors
    /// Whatever reading them gives.
    fn fill(&self, item: usize, at: u64, buf: &mut [u8]) -> Result<()>;
}

/// A change in the making.
struct Work<'a, B> {
    fat: &'a Fat<B>,
    tree: &'a Tree,
    target: &'a Target,
    table: Table,
    /// Clusters of each item.
    chains: Vec<Vec<u32>>,
    /// Where the search for free clusters goes on.
    free: std::vec::IntoIter<u32>,
}

/// Makes `volume`, which holds `fat` with `tree`, hold `target`; then all of it is read again and compared.
///
/// # Errors
/// `NoSpace` when it does not fit, `Exists` for two files of one name; `Corrupt` when what is read again is not what
/// was wanted; whatever reading and writing gives. What `volume` holds is in no order then.
pub fn rewrite<B: Bytes>(
    volume: &dyn Volume,
    fat: &Fat<B>,
    tree: &Tree,
    target: &Target,
    supply: &dyn Supply,
) -> Result<()> {
    let mut work = Work {
        fat,
        tree,
        target,
        table: fat.table.clone(),
        chains: Vec::new(),
        free: Vec::new().into_iter(),
    };
    work.release();
    work.free = work.table.free().collect::<Vec<_>>().into_iter();
    work.place_files(volume, supply)?;
    work.place_folders(volume)?;
    work.write_tables(volume)?;
    volume.flush()?;
    verify(volume, fat, tree, target, supply)
}

impl<B: Bytes> Work<'_, B> {
    /// Frees the clusters of what goes, and of what gets other content; what stays keeps its own.
    fn release(&mut self) {
        let mut stays = HashSet::new();
        for item in &self.target.items {
            let kept = item.old.filter(|_| item.content == Content::Kept);
            stays.extend(kept);
            self.chains.push(kept.map_or_else(Vec::new, |old| self.tree.items[old].chain.clone()));
        }
        let goes = self.tree.items.iter().enumerate().filter(|(number, _)| !stays.contains(number));
        for cluster in goes.flat_map(|(_, item)| &item.chain) {
            self.table.set(*cluster, FREE);
        }
    }

    /// Makes a chain as long as `len` bytes need, from what it has and free clusters.
    fn resize(&mut self, item: usize, len: u64) -> Result<()> {
        let wanted = index(len.div_ceil(self.fat.layout.cluster));
        let chain = &mut self.chains[item];
        for cluster in chain.drain(wanted.min(chain.len())..) {
            self.table.set(cluster, FREE);
        }
        while chain.len() < wanted {
            chain.push(self.free.next().ok_or_else(|| {
                Error::new(Kind::NoSpace, "the FAT filesystem has no room for the files of both sides")
            })?);
        }
        for (at, cluster) in chain.iter().enumerate() {
            self.table.set(*cluster, chain.get(at + 1).copied().unwrap_or(END));
        }
        Ok(())
    }

    fn place_files(&mut self, volume: &dyn Volume, supply: &dyn Supply) -> Result<()> {
        let cluster = self.fat.layout.cluster;
        let piece = PIECE.next_multiple_of(cluster);
        let target = self.target;
        for (number, item) in target.items.iter().enumerate() {
            let Content::New(size) = item.content else { continue };
            let size = u64::from(size);
            self.resize(number, size)?;
            for at in (0..size).step_by(index(piece)) {
                let len = piece.min(size - at);
                let mut bytes = vec![0; index(len.next_multiple_of(cluster))];
                supply.fill(number, at, &mut bytes[..index(len)])?;
                self.write_chain(volume, number, at, &bytes)?;
            }
        }
        Ok(())
    }

    /// Writes whole clusters of an item.
    fn write_chain(&self, volume: &dyn Volume, item: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let (chain, cluster) = (&self.chains[item], self.fat.layout.cluster);
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let first = index(at / cluster);
            let clusters =
                run(chain, first).ok_or_else(|| Error::invalid("content behind its last cluster"))?;
            let (now, later) = rest.split_at(index((clusters * cluster).min(length(rest.len()))));
            volume.write(now, GuestOffset(self.fat.layout.at(chain[first])))?;
            (at, rest) = (at + length(now.len()), later);
        }
        Ok(())
    }

    /// Writes the folders in which anything changes. Their entries are laid out first: how long a folder is says how many
    /// clusters it has, and where its first one is stands in the folder above.
    fn place_folders(&mut self, volume: &dyn Volume) -> Result<()> {
        let inside = self.inside();
        let mut layouts = Vec::new();
        for (number, children) in inside.iter().enumerate() {
            if !self.target.items[number].is_folder || !self.is_changed(number, children) {
                continue;
            }
            let entries = self.entries(children)?;
            let head = if number == 0 { self.tree.label.len() } else { 2 * SLOT };
            let len = length(head + entries.iter().map(Vec::len).sum::<usize>());
            let fixed = number == 0 && self.fat.layout.root_cluster == 0;
            if len > if fixed { self.fat.layout.root_len } else { FOLDER } {
                return Err(Error::new(Kind::NoSpace, "a folder of the FAT filesystem takes no more names"));
            }
            if !fixed {
                self.resize(number, len.max(1))?;
            }
            layouts.push((number, entries));
        }
        for (number, entries) in layouts {
            self.write_folder(volume, number, &inside[number], entries)?;
        }
        Ok(())
    }

    /// What is in each item of the target.
    fn inside(&self) -> Vec<Vec<usize>> {
        let mut inside = vec![Vec::new(); self.target.items.len()];
        for (number, item) in self.target.items.iter().enumerate().skip(1) {
            inside[item.folder].push(number);
        }
        inside
    }

    /// Whether a folder is not as it was; new ones are not.
    fn is_changed(&self, number: usize, children: &[usize]) -> bool {
        let Some(old) = self.target.items[number].old else { return true };
        self.tree.items[old].children.len() != children.len()
            || children.iter().any(|child| !self.is_as_it_was(&self.target.items[*child]))
    }

    fn is_as_it_was(&self, item: &Wanted) -> bool {
        item.content == Content::Kept
            && item.old.is_some_and(|old| {
                let was = &self.tree.items[old];
                (was.attributes & ATTRIBUTES, was.stamps) == (item.attributes, item.stamps)
            })
    }

    /// The slots of what is in a folder, with names only. Short names that are all there is to a name come first, so that
    /// what has a long name gives way.
    fn entries(&self, children: &[usize]) -> Result<Vec<Vec<u8>>> {
        let (mut taken, mut seen): (HashSet<Short>, HashSet<String>) = (HashSet::new(), HashSet::new());
        for child in children {
            let name = &self.target.items[*child].name;
            if !seen.insert(fold(name)) {
                return Err(Error::new(
                    Kind::Exists,
                    format!("two files of a FAT folder would be named {name}"),
                ));
            }
        }
        let old = |child: &usize| self.target.items[*child].old.map(|old| &self.tree.items[old]);
        let plain = children.iter().filter_map(old).filter(|item| !item.has_long());
        taken.extend(plain.filter_map(|item| item.short()));
        let mut entries = Vec::with_capacity(children.len());
        for child in children {
            let name = &self.target.items[*child].name;
            entries.push(match old(child) {
                Some(item) if !item.has_long() || item.short().is_some_and(|short| taken.insert(short)) => {
                    item.slots.clone()
                }
                _ => slots(name, &mut taken)?,
            });
        }
        Ok(entries)
    }

    fn write_folder(
        &self,
        volume: &dyn Volume,
        number: usize,
        children: &[usize],
        entries: Vec<Vec<u8>>,
    ) -> Result<()> {
        let first = |item: usize| self.chains[item].first().copied().unwrap_or(0);
        let item = &self.target.items[number];
        let mut bytes = self.tree.label.clone();
        if number != 0 {
            let mut own = vec![0; SLOT];
            set_stamps(&mut own, item.stamps);
            let above = if item.folder == 0 { 0 } else { first(item.folder) };
            bytes = dots_of(&own, first(number), above);
        }
        for (child, mut slots) in children.iter().zip(entries) {
            let start = slots.len() - SLOT;
            self.fill_entry(*child, &mut slots[start..]);
            bytes.extend(slots);
        }
        let layout = &self.fat.layout;
        if number == 0 && layout.root_cluster == 0 {
            bytes.resize(index(layout.root_len), 0);
            return volume.write(&bytes, GuestOffset(layout.root));
        }
        bytes.resize(index(length(self.chains[number].len()) * layout.cluster), 0);
        self.write_chain(volume, number, 0, &bytes)
    }

    /// What an entry says beside its name.
    fn fill_entry(&self, number: usize, entry: &mut [u8]) {
        let item = &self.target.items[number];
        let was = item.old.map(|old| &self.tree.items[old]);
        let more = was.map_or(if item.is_folder { 0 } else { ARCHIVE }, |was| was.attributes & !ATTRIBUTES);
        entry[11] = more | item.attributes & ATTRIBUTES | if item.is_folder { DIRECTORY } else { 0 };
        set_stamps(entry, item.stamps);
        set_first_cluster(entry, self.chains[number].first().copied().unwrap_or(0));
        let size = match item.content {
            Content::New(size) => size,
            Content::Kept => was.map_or(0, |was| was.size),
        };
        entry[28..32].copy_from_slice(&size.to_le_bytes());
    }

    fn write_tables(&self, volume: &dyn Volume) -> Result<()> {
        let layout = &self.fat.layout;
        for (at, bytes) in self.table.changed(layout) {
            for copy in 0..layout.tables {
                volume.write(&bytes, GuestOffset(layout.table + copy * layout.table_len + at))?;
            }
        }
        let Some(info) = layout.info else { return Ok(()) };
        let mut sector = vec![0; 512];
        self.fat.bytes.read(&mut sector, GuestOffset(info))?;
        if u32_at(&sector, 0) == 0x4161_5252 && u32_at(&sector, 484) == 0x6141_7272 {
            let free = u32::try_from(self.table.free().count()).unwrap_or(u32::MAX);
            sector[488..492].copy_from_slice(&free.to_le_bytes());
            volume.write(&sector, GuestOffset(info))?;
        }
        Ok(())
    }
}

fn set_stamps(entry: &mut [u8], stamps: Stamps) {
    let mut put = |at: usize, value: u32| entry[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(14, stamps.created);
    put(22, stamps.modified);
    entry[13] = stamps.hundredths;
    entry[18..20].copy_from_slice(&stamps.accessed.to_le_bytes());
}

/// That what `volume` holds now is in order, and is what was wanted.
fn verify<B: Bytes>(
    volume: &dyn Volume,
    before: &Fat<B>,
    tree: &Tree,
    target: &Target,
    supply: &dyn Supply,
) -> Result<()> {
    let wrong = |what: &str| {
        Error::corrupt(format!(
            "the merged FAT filesystem is not what was planned ({what}), so it is not used"
        ))
    };
    let fat = Fat::open(volume)?;
    let found = fat.tree()?;
    if found.items.len() != target.items.len() {
        return Err(wrong("files are missing or too many"));
    }
    let mut places = vec![0; target.items.len()];
    for (number, item) in target.items.iter().enumerate().skip(1) {
        let above = &found.items[places[item.folder]];
        let at = *above.children.get(&fold(&item.name)).ok_or_else(|| wrong("a file is missing"))?;
        places[number] = at;
        let is = &found.items[at];
        let size = match (item.content, item.old) {
            (Content::New(size), _) => size,
            (Content::Kept, old) => old.map_or(0, |old| tree.items[old].size),
        };
        let expected = (&item.name, item.is_folder, item.attributes, item.stamps, size);
        if (&is.name, is.is_folder, is.attributes & ATTRIBUTES, is.stamps, is.size) != expected {
            return Err(wrong("an entry says something else"));
        }
        let mut at = 0;
        while at < u64::from(size) {
            let len = index(PIECE.min(u64::from(size) - at));
            let (mut new, mut wanted) = (vec![0; len], vec![0; len]);
            fat.read(is, at, &mut new)?;
            match (item.content, item.old) {
                (Content::Kept, Some(old)) => before.read(&tree.items[old], at, &mut wanted)?,
                _ => supply.fill(number, at, &mut wanted)?,
            }
            if new != wanted {
                return Err(wrong("a file has other content"));
            }
            at += length(len);
        }
    }
    Ok(())
}
