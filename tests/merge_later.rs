//! Of a later state of a filesystem only what differs is read, and the tree is the one that reading all of it gives.
//!
//! Needs root: the kernel changes the filesystems, and leaves them with what waits in their journals.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/ext4/mod.rs"]
mod ext4;
#[path = "common/rng.rs"]
mod rng;

use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::guestfs::ext4::{FileKind, Ino};
use cowshed::guestfs::partitions::places;
use cowshed::ops::merge::later::{Owners, Touched};
use cowshed::ops::merge::tree::Tree;
use cowshed::ops::merge::volumes::Volume;
use cowshed::qcow2::{self, CreateOptions, OpenOptions};
use cowshed::storage::Memory;
use cowshed::units::GuestOffset;
use ext4::{Image, Mount};
use rng::{Rng, fresh_seed, seed_from_environment};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SIZE: u64 = 24 << 20;
const KINDS: [&[&str]; 6] = [
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext3", "-b", "1024"],
    &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit", "-I", "128"],
    &["-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode"],
    &["-t", "ext4", "-b", "1024", "-O", "^extents,^flex_bg,^64bit"],
];

/// All folders, and everything else, below a folder.
fn walk(root: &Path) -> [Vec<PathBuf>; 2] {
    let (mut folders, mut files, mut left) = (vec![root.to_path_buf()], Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.ends_with("lost+found") {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(path.clone());
                left.push(path);
            } else {
                files.push(path);
            }
        }
    }
    folders.sort();
    files.sort();
    [folders, files]
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: both strings end with a zero byte, and the value is as long as it says.
    // A filesystem without room for it says so, which is no matter here.
    unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
}

/// One thing that a guest does.
fn change(root: &Path, rng: &mut Rng, number: u64) {
    let [folders, files] = walk(root);
    let folder = rng.pick(&folders).clone();
    let fresh = folder.join(format!("{}-{number}", "name".repeat(1 + rng.below(6) as usize)));
    let len = rng.below(40_000) as usize;
    let file = (!files.is_empty()).then(|| rng.pick(&files).clone());
    match (rng.below(16), file) {
        (0..=3, _) => fs::write(&fresh, rng.bytes(len)).unwrap(),
        (4, _) => fs::create_dir(&fresh).unwrap(),
        (5, _) => symlink("t".repeat(1 + rng.below(120) as usize), &fresh).unwrap(),
        (6, Some(file)) => fs::remove_file(file).unwrap(),
        (7, Some(file)) => fs::rename(file, &fresh).unwrap(),
        (8, Some(file)) => fs::hard_link(file, &fresh).unwrap(),
        (9, Some(file)) if file.is_file() => {
            // In place: nothing but the bytes and the times is another.
            let file = File::options().write(true).open(file).unwrap();
            let size = file.metadata().unwrap().len();
            file.write_all_at(b"other", rng.below(size.saturating_sub(5) + 1)).unwrap();
        }
        (10, Some(file)) if file.is_file() => {
            File::options().write(true).open(file).unwrap().set_len(rng.below(60_000)).unwrap();
        }
        (11, Some(file)) => set_xattr(&file, "trusted.x", &rng.bytes(20 + len / 60)),
        (12, _) if folder != root => {
            let other = rng.pick(&folders);
            if !other.starts_with(&folder) {
                fs::rename(&folder, other.join(format!("moved-{number}"))).unwrap();
            }
        }
        (13, _) if folder != root && rng.chance(40) => fs::remove_dir_all(folder).unwrap(),
        (14, Some(file)) => {
            let path = CString::new(file.as_os_str().as_bytes()).unwrap();
            // SAFETY: the string ends with a zero byte.
            assert_eq!(unsafe { libc::lchown(path.as_ptr(), rng.below(2000) as u32, 7) }, 0);
        }
        (15, _) if rng.chance(25) => {
            (0..150).for_each(|name| fs::write(folder.join(format!("{number}-many-{name}")), b"").unwrap());
        }
        _ => {}
    }
}

/// A later state of a filesystem; `dirty` leaves it as a guest that is not shut down.
fn later(of: &Image, dir: &Path, rng: &mut Rng, changes: u64, dirty: bool) -> Image {
    let number = rng.bits();
    let copy = of.copy(&dir.join(format!("state-{number}")));
    let mount = Mount::new(&copy.path, dir.join(format!("mount-{number}")), "rw");
    for each in 0..changes {
        change(&mount.0, rng, number % 1000 * 1000 + each);
        if dirty && rng.chance(20) {
            File::open(&mount.0).unwrap().sync_all().unwrap();
        }
    }
    if dirty {
        return copy.copy(&dir.join(format!("torn-{number}")));
    }
    drop(mount);
    Image::open(&copy.path)
}

/// A chain of states, each a layer over the one before.
struct Chain {
    files: Vec<Arc<Memory>>,
}

impl Chain {
    fn of(states: &[&Image]) -> Self {
        let bytes = |image: &Image| fs::read(&image.path).unwrap();
        let mut new = Self { files: vec![Arc::new(Memory::from_bytes(&bytes(states[0])))] };
        for pair in states.windows(2) {
            let (before, after) = (bytes(pair[0]), bytes(pair[1]));
            let file = Arc::new(Memory::new());
            qcow2::create(&*file, &CreateOptions::new(SIZE)).unwrap();
            new.files.push(file);
            let disk = new.disk(new.files.len(), true);
            for at in
                (0..before.len()).step_by(4096).filter(|at| before[*at..][..4096] != after[*at..][..4096])
            {
                disk.write(&after[at..][..4096], GuestOffset(at as u64)).unwrap();
            }
            disk.close().unwrap();
        }
        new
    }

    /// The disk of the first `states` states.
    fn disk(&self, states: usize, writable: bool) -> Disk {
        let mut layers = Vec::new();
        for (at, file) in self.files[..states].iter().enumerate().rev() {
            layers.push(match at {
                0 => Layer::Raw(RawLayer::new(file.clone(), false).unwrap()),
                _ => {
                    let writable = writable && at + 1 == states;
                    let options = OpenOptions { writable, metadata_cache: 1 << 20 };
                    Layer::qcow2(qcow2::Image::open(file.clone(), options).unwrap())
                }
            });
        }
        Disk::new(layers).unwrap()
    }
}

fn volume(disk: &Disk) -> cowshed::Result<Volume<'_>> {
    Volume::open(disk, &places(disk).unwrap()[0])
}

fn content(volume: &Volume<'_>, ino: u32) -> Vec<u8> {
    let inode = volume.filesystem.inode(Ino(ino)).unwrap();
    let mut bytes = vec![0; inode.size as usize];
    volume.filesystem.read(&inode, 0, &mut bytes).unwrap();
    bytes
}

fn assert_trees(narrow: &Tree, whole: &Tree, context: &str) {
    assert_eq!(narrow.root, whole.root, "{context}");
    for (ino, file) in &whole.files {
        assert_eq!(narrow.files.get(ino), Some(file), "{context}: inode {ino}");
    }
    assert_eq!(narrow.files.len(), whole.files.len(), "{context}");
}

/// Reads the later state both ways; how many of its inodes may be others.
fn compare(
    old: &Volume<'_>,
    known: (&Tree, &Owners),
    new: &Volume<'_>,
    shared: usize,
    context: &str,
) -> usize {
    let whole = new.tree().unwrap();
    let (narrow, touched) = new.tree_after(old, known, shared).unwrap();
    assert_trees(&narrow, &whole, context);
    assert!(!touched.has(u32::MAX), "{context}: all of it was read");
    for (ino, file) in &whole.files {
        if touched.has(*ino) {
            continue;
        }
        assert!(Arc::ptr_eq(&narrow.files[ino], &known.0.files[ino]), "{context}: inode {ino}");
        if file.kind == FileKind::Regular {
            assert!(content(old, *ino) == content(new, *ino), "{context}: the bytes of inode {ino}");
        }
    }
    whole.files.keys().filter(|ino| touched.has(**ino)).count()
}

#[test]
fn the_tree_of_what_differs_is_the_tree_of_all() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let (mut files, mut read) = (0, 0);
    for (round, kind) in (0..).zip(KINDS.iter().chain(&KINDS)) {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let dir = tempfile::tempdir().unwrap();
        let made = Image::make(&dir.path().join("made"), SIZE, kind, None);
        let dirty = rng.chance(30);
        let first = later(&made, dir.path(), &mut rng, 150, dirty);
        let (some, more) = (rng.below(12), rng.below(60));
        let (second_dirty, third_dirty) = (rng.chance(50), rng.chance(50));
        let second = later(&first, dir.path(), &mut rng, some, second_dirty);
        let third = later(&second, dir.path(), &mut rng, more, third_dirty);
        let chain = Chain::of(&[&first, &second, &third]);
        let disks = [1, 2, 3].map(|states| chain.disk(states, false));
        let volumes = disks.each_ref().map(|disk| volume(disk).unwrap());
        let known = [0, 1].map(|at| volumes[at].tree_with_owners().unwrap());
        for (from, to, shared) in [(0, 1, 1), (0, 2, 1), (1, 2, 2)] {
            let context = format!("seed {seed} round {round} {kind:?}: {from} to {to}");
            let (tree, owners) = &known[from];
            assert_trees(tree, &volumes[from].tree().unwrap(), &context);
            read += compare(&volumes[from], (tree, owners), &volumes[to], shared, &context);
            files += tree.files.len();
        }
    }
    println!("{read} of {files} inodes were looked at again");
    assert!(files > 3000 && read * 3 < files * 2, "{read} of {files} inodes were looked at again");
}

/// What reading both ways gives, in words, where it is no tree.
fn outcome(result: cowshed::Result<Tree>) -> Result<Tree, String> {
    result.map_err(|error| error.to_string())
}

#[test]
fn damage_is_told_as_reading_all_of_it_tells_it() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut ends = [0, 0];
    // Without checksums damage comes further.
    for (round, kind) in (0..).zip([KINDS[2], KINDS[3], KINDS[5]]) {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let dir = tempfile::tempdir().unwrap();
        let made = Image::make(&dir.path().join("made"), SIZE, kind, None);
        let first = later(&made, dir.path(), &mut rng, 150, false);
        let second = later(&first, dir.path(), &mut rng, 20, false);
        let bytes = fs::read(&second.path).unwrap();
        let chain = Chain::of(&[&first, &second]);
        let old_disk = chain.disk(1, false);
        let old = volume(&old_disk).unwrap();
        let (tree, owners) = old.tree_with_owners().unwrap();
        let folders: Vec<u32> =
            tree.files.iter().filter(|(_, f)| f.kind == FileKind::Directory).map(|(ino, _)| *ino).collect();
        let blocks: Vec<u64> = (0..SIZE / 1024)
            .filter(|block| bytes[*block as usize * 1024..][..1024].iter().any(|byte| *byte != 0))
            .collect();
        for turn in 0..250 {
            let block = match rng.below(3) {
                // A folder of the later state.
                0 => {
                    let inode = old.filesystem.inode(Ino(*rng.pick(&folders))).unwrap();
                    old.filesystem.extents(&inode).unwrap().first().map_or(1, |extent| extent.physical.0)
                }
                // The first tables of inodes lie in the front.
                1 => rng.below(600),
                _ => *rng.pick(&blocks),
            };
            let mut piece = bytes[block as usize * 1024..][..1024].to_vec();
            let disk = chain.disk(2, true);
            for _ in 0..rng.between(1, 3) {
                // Small numbers are likely to be numbers of something.
                piece[rng.below(1024) as usize] =
                    if rng.chance(60) { rng.below(64) as u8 } else { rng.bits() as u8 };
            }
            disk.write(&piece, GuestOffset(block * 1024)).unwrap();
            if let Ok(new) = volume(&disk) {
                let whole = outcome(new.tree());
                let narrow =
                    outcome(new.tree_after(&old, (&tree, &owners), 1).map(|(tree, _): (_, Touched)| tree));
                let context = format!("seed {seed} round {round} turn {turn}: block {block}");
                ends[usize::from(whole.is_ok())] += 1;
                match (narrow, whole) {
                    (Ok(narrow), Ok(whole)) => assert_trees(&narrow, &whole, &context),
                    (narrow, whole) => assert_eq!(narrow.err(), whole.err(), "{context}"),
                }
            }
            disk.write(&bytes[block as usize * 1024..][..1024], GuestOffset(block * 1024)).unwrap();
            disk.close().unwrap();
        }
    }
    println!("{} damaged, {} whole", ends[0], ends[1]);
    assert!(ends.iter().all(|count| *count > 20), "{ends:?}");
}
