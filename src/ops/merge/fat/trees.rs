//! FAT trees as the planner sees trees.

use crate::guestfs::Time;
use crate::guestfs::ext4::FileKind;
use crate::guestfs::fat::{ATTRIBUTES, Item, Stamps, Tree as Fat, fold};
use crate::ops::merge::Three;
use crate::ops::merge::tree::{File, Tree};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The number of the root of all; the folders above the filesystem follow.
const ROOT: u32 = 1;
/// The number of a filesystem's item 0.
const FIRST: u32 = 100;

/// How each name is spelled: by the folded path.
type Spelling = HashMap<String, String>;

/// The number of an item in the planner's tree.
pub(super) fn ino_of(item: usize) -> u32 {
    u32::try_from(item).unwrap_or(u32::MAX - FIRST).saturating_add(FIRST)
}

/// The item of a number; nothing for the folders above the filesystem.
pub(super) fn item_of(ino: u32) -> Option<usize> {
    ino.checked_sub(FIRST).map(|item| item as usize)
}

/// The three trees, below the folders `above`; one name is spelled in one way in all of them.
pub(super) fn trees(fats: Three<&Fat>, above: &[String]) -> Three<Tree> {
    let mut spelling = Spelling::new();
    for fat in [fats.base, fats.clone, fats.old] {
        for (path, name) in folded(fat).into_iter().zip(&fat.items) {
            spelling.entry(path).or_insert_with(|| name.name.clone());
        }
    }
    Three {
        old: tree(fats.old, above, &spelling, 1),
        base: tree(fats.base, above, &spelling, 2),
        clone: tree(fats.clone, above, &spelling, 3),
    }
}

/// The folded path of each item.
fn folded(fat: &Fat) -> Vec<String> {
    let mut paths: Vec<String> = Vec::with_capacity(fat.items.len());
    for (number, item) in fat.items.iter().enumerate() {
        let above = if number == 0 { "" } else { &paths[item.folder] };
        paths.push(if number == 0 { String::new() } else { format!("{above}/{}", fold(&item.name)) });
    }
    paths
}

/// Numbers of items mean nothing in another version: each version has a generation of its own.
fn tree(fat: &Fat, above: &[String], spelling: &Spelling, generation: u32) -> Tree {
    let mut tree = Tree { root: ROOT, ..Tree::default() };
    let top = |item: Option<&Item>| file(item, generation);
    let mut here = ROOT;
    tree.files.insert(ROOT, Arc::new(top(None)));
    for (name, number) in above.iter().zip((ROOT + 1)..) {
        let last = number as usize == above.len() + ROOT as usize;
        let number = if last { ino_of(0) } else { number };
        tree.files.insert(number, Arc::new(top(None)));
        link(&mut tree, here, number, name);
        here = number;
    }
    let paths = folded(fat);
    for (number, item) in fat.items.iter().enumerate().skip(1) {
        tree.files.insert(ino_of(number), Arc::new(top(Some(item))));
        let name = spelling.get(&paths[number]).unwrap_or(&item.name);
        link(&mut tree, ino_of(item.folder), ino_of(number), name);
    }
    tree
}

fn link(tree: &mut Tree, folder: u32, ino: u32, name: &str) {
    if let Some(file) = tree.files.get_mut(&ino) {
        Arc::make_mut(file).names.push((folder, name.as_bytes().to_vec()));
    }
    if let Some(folder) = tree.files.get_mut(&folder) {
        Arc::make_mut(folder).children.insert(name.as_bytes().to_vec(), ino);
    }
}

/// A time of the planner for one of FAT: it counts nothing, but is in the same order.
fn time(stamp: u32, hundredths: u8) -> Time {
    Time { seconds: i64::from(stamp), nanoseconds: u32::from(hundredths) }
}

/// The times of an entry for those that the planner came to.
pub(super) fn stamps(modified: Time, created: Time, accessed: Time) -> Stamps {
    let stamp = |time: Time| u32::try_from(time.seconds).unwrap_or(0);
    Stamps {
        created: stamp(created),
        hundredths: u8::try_from(created.nanoseconds).unwrap_or(0),
        accessed: u16::try_from(accessed.seconds).unwrap_or(0),
        modified: stamp(modified),
    }
}

fn file(item: Option<&Item>, generation: u32) -> File {
    let root = Item::root();
    let item = item.unwrap_or(&root);
    let modified = time(item.stamps.modified, 0);
    File {
        kind: if item.is_folder { FileKind::Directory } else { FileKind::Regular },
        mode: u16::from(item.attributes & ATTRIBUTES),
        uid: 0,
        gid: 0,
        flags: 0,
        project: 0,
        size: u64::from(item.size),
        target: Vec::new(),
        device: None,
        xattrs: BTreeMap::new(),
        accessed: time(u32::from(item.stamps.accessed), 0),
        modified,
        changed: modified,
        created: Some(time(item.stamps.created, item.stamps.hundredths)),
        generation,
        names: Vec::new(),
        children: BTreeMap::new(),
    }
}
