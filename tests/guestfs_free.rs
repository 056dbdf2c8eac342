//! What of ext2, ext3 and ext4 is free, beside e2fsprogs and the kernel. Needs root, for loop devices.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/ext4/mod.rs"]
mod ext4;
#[path = "common/free.rs"]
mod free;
#[path = "common/rng.rs"]
mod rng;

use cowshed::guestfs::ext4::{Ext4, Replayed};
use cowshed::guestfs::free::{Free, survey};
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use ext4::content::{Limits, fill};
use ext4::facts::{assert_same, by_reader};
use ext4::feature_sets::{BY_MKE2FS, FeatureSet, MOUNTED};
use ext4::{Image, Mount, debugfs, is_clean, ran};
use free::{Memory, by_dumpe2fs, is_within, on_the_disk, reason, spoil, surveyed, whole};
use rayon::prelude::*;
use rng::{Rng, seed_from_environment};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

const EXT: &str = "ext4 on the disk";

const fn set(name: &'static str, size: u64, arguments: &'static [&'static str]) -> FeatureSet {
    FeatureSet { name, arguments, size, block: 0 }
}

/// More layouts than those that are filled.
const MORE: [FeatureSet; 12] = [
    set("many groups", 64, &["-t", "ext4", "-b", "1024", "-g", "1024"]),
    set("4 GiB", 4096, &["-t", "ext4"]),
    set("4 GiB, group checksums", 4096, &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"]),
    set("2 GiB, bigalloc", 2048, &["-t", "ext4", "-C", "65536", "-O", "bigalloc"]),
    set("2 GiB, meta_bg", 2048, &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"]),
    set(
        "meta_bg, 64bit, no flex_bg",
        1024,
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^flex_bg"],
    ),
    set("odd end", 77, &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"]),
    set("2 KiB, sparse_super2", 700, &["-t", "ext4", "-b", "2048", "-O", "sparse_super2,^resize_inode"]),
    set("one backup", 300, &["-t", "ext4", "-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=1"]),
    set(
        "bigalloc, meta_bg",
        1024,
        &["-t", "ext4", "-b", "1024", "-C", "16384", "-O", "bigalloc,meta_bg,^resize_inode"],
    ),
    set("room to grow", 300, &["-t", "ext4", "-b", "1024", "-E", "resize=100000000"]),
    set("packed", 1500, &["-t", "ext4", "-G", "64", "-E", "packed_meta_blocks=1"]),
];

#[test]
fn what_is_free_of_a_fresh_filesystem_is_what_dumpe2fs_lists() {
    [MOUNTED, BY_MKE2FS, &MORE].concat().par_iter().for_each(|set| {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::make(&dir.path().join("image"), set.size << 20, set.arguments, None);
        let free = whole(&surveyed(&image), set.name);
        assert_eq!(free, by_dumpe2fs(&image), "{}", set.name);
        assert!(!free.is_empty(), "{}", set.name);
    });
}

#[test]
fn a_used_filesystem_keeps_its_files_when_what_is_free_is_garbage() {
    MOUNTED.par_iter().for_each(|set| {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::make(&dir.path().join("image"), set.size << 20, set.arguments, None);
        let mount = Mount::new(&image.path, dir.path().join("live"), "rw");
        let value = set.block.min(4096) * 2 / 3;
        fill(&mount.0, &Limits { block: set.block, names: 800, value, live: true });
        drop(mount);
        let free = whole(&surveyed(&image), set.name);
        assert_eq!(free, by_dumpe2fs(&image), "{}", set.name);
        let before = by_reader(&Ext4::open(&image).unwrap());
        spoil(&image, &free);
        is_clean(&image);
        assert_same(&by_reader(&Ext4::open(&image).unwrap()), &before, set.name);
        assert_eq!(whole(&surveyed(&image), set.name), free, "{}", set.name);
    });
}

#[test]
fn a_filesystem_that_grew_or_shrank_is_read_as_well() {
    let sets: [(&str, &[&str]); 5] = [
        ("1 KiB", &["-t", "ext4", "-b", "1024"]),
        ("no room to grow", &["-t", "ext4", "-b", "1024", "-O", "^resize_inode"]),
        ("no flex_bg", &["-t", "ext4", "-b", "1024", "-O", "^flex_bg,^64bit"]),
        ("ext3", &["-t", "ext3", "-b", "1024"]),
        ("meta_bg", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"]),
    ];
    sets.par_iter().for_each(|(name, arguments)| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        Image::make(
            &path,
            40 << 20,
            arguments,
            Some(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs"))),
        );
        for size in [300_u64, 700, 130] {
            ran(Command::new("e2fsck").args(["-fp"]).arg(&path));
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(file.metadata().unwrap().len().max(size << 20)).unwrap();
            ran(Command::new("resize2fs").arg(&path).arg(format!("{size}M")));
            file.set_len(size << 20).unwrap();
            let image = Image::open(&path);
            let place = format!("{name}, {size} MiB");
            let free = whole(&surveyed(&image), &place);
            assert_eq!(free, by_dumpe2fs(&image), "{place}");
            spoil(&image, &free);
            is_clean(&image);
        }
    });
}

/// Ways to make the small filesystems that are aged.
const AGED: [&[&str]; 12] = [
    &["-t", "ext2", "-b", "1024"],
    &["-t", "ext2", "-b", "4096"],
    &["-t", "ext3", "-b", "1024", "-J", "size=1"],
    &["-t", "ext4", "-b", "1024", "-J", "size=1"],
    &["-t", "ext4", "-b", "1024", "-J", "size=1", "-g", "512"],
    &["-t", "ext4", "-b", "2048", "-O", "^has_journal,^64bit"],
    &["-t", "ext4", "-b", "4096", "-O", "^has_journal,^flex_bg"],
    &["-t", "ext4", "-b", "1024", "-O", "^has_journal,^metadata_csum,uninit_bg", "-g", "1024"],
    &["-t", "ext4", "-b", "1024", "-O", "^has_journal,meta_bg,^resize_inode", "-g", "256"],
    &["-t", "ext4", "-b", "1024", "-O", "^has_journal,sparse_super2,^resize_inode", "-g", "2048"],
    &["-t", "ext4", "-b", "1024", "-C", "4096", "-O", "^has_journal,bigalloc,^resize_inode"],
    &[
        "-t",
        "ext4",
        "-b",
        "1024",
        "-O",
        "^has_journal,^extent,^64bit,^metadata_csum",
        "-G",
        "4",
        "-g",
        "1024",
    ],
];

/// Files that come and go, as requests to debugfs.
fn history(rng: &mut Rng, data: &Path) -> String {
    let (mut script, mut files, mut folders) = (String::new(), Vec::new(), vec![String::new()]);
    for number in 0..rng.between(5, 60) {
        match rng.below(10) {
            0 => {
                let folder = format!("{}/folder{number}", rng.pick(&folders));
                script += &format!("mkdir {folder}\n");
                folders.push(folder);
            }
            1..=3 if !files.is_empty() => {
                let file: String = files.swap_remove(rng.below(files.len() as u64) as usize);
                script += &format!("rm {file}\n");
            }
            _ => {
                let file = format!("{}/file{number}", rng.pick(&folders));
                script += &format!("write {}{} {file}\n", data.display(), rng.below(6));
                files.push(file);
            }
        }
    }
    script
}

#[test]
fn aged_filesystems_keep_their_files_when_what_is_free_is_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (number, len) in [1, 1000, 9000, 40_000, 150_000, 400_000].into_iter().enumerate() {
        fs::write(format!("{}{number}", data.display()), Rng::new(number as u64).bytes(len)).unwrap();
    }
    let first = seed_from_environment().unwrap_or(1);
    println!("seeds {first} to {}", first + 199);
    (first..first + 200).into_par_iter().for_each(|seed| {
        let (mut rng, dir) = (Rng::new(seed), tempfile::tempdir().unwrap());
        let place = format!("seed {seed}");
        let size = rng.between(3000, 24_000) << 10;
        let image = Image::make(&dir.path().join("image"), size, rng.pick::<&[&str]>(&AGED), None);
        let requests = dir.path().join("requests");
        fs::write(&requests, history(&mut rng, &data)).unwrap();
        ran(Command::new("debugfs").args(["-w", "-f"]).arg(&requests).arg(&image.path));
        let free = whole(&surveyed(&image), &place);
        assert_eq!(free, by_dumpe2fs(&image), "{place}");
        let before = by_reader(&Ext4::open(&image).unwrap());
        spoil(&image, &free);
        is_clean(&image);
        assert_same(&by_reader(&Ext4::open(&image).unwrap()), &before, &place);
    });
}

/// Filesystems and how they are mounted.
const JOURNALS: [(&str, &[&str], &str); 6] = [
    ("ext4", &["-t", "ext4"], "rw"),
    ("ext3", &["-t", "ext3", "-b", "1024"], "rw"),
    ("data in the journal", &["-t", "ext4"], "rw,data=journal"),
    ("no checksums", &["-t", "ext4", "-O", "^metadata_csum,^64bit"], "rw"),
    ("bigalloc", &["-t", "ext4", "-C", "16384", "-O", "bigalloc"], "rw"),
    ("orphan_file", &["-t", "ext4", "-O", "orphan_file"], "rw,data=writeback"),
];

const FILES: u64 = 60;

/// Files that are durable, and removals between them, as they stand on the disk while the kernel has it mounted.
fn dirty(arguments: &[&str], options: &str, dir: &Path) -> Image {
    // Room for all that is written, so that nothing has to go where it belongs.
    let arguments = [arguments, &["-J", "size=32"]].concat();
    let image = Image::make(&dir.join("image"), 192 << 20, &arguments, None);
    let mount = Mount::new(&image.path, dir.join("live"), options);
    let open = work(&mount.0);
    let copy = image.copy(&dir.join("dirty"));
    drop(open);
    drop(mount);
    copy
}

/// What a guest does before its host dies; what it has open.
fn work(dir: &Path) -> Vec<File> {
    let mut open = Vec::new();
    for number in 0..FILES {
        let mut file = File::create(dir.join(format!("file {number}"))).unwrap();
        file.write_all(&content(number)).unwrap();
        file.sync_all().unwrap();
        let (old, gone) = (dir.join(format!("old {number}")), dir.join("gone"));
        fs::create_dir(&old).unwrap();
        fs::write(old.join("some"), vec![7; 90_000]).unwrap();
        if number % 3 == 2 {
            fs::remove_dir_all(dir.join(format!("old {}", number - 1))).unwrap();
        }
        if number % 10 == 0 {
            // Orphans, whole and cut.
            let mut file = File::create(&gone).unwrap();
            file.write_all(&vec![9; 300_000]).unwrap();
            file.sync_all().unwrap();
            fs::remove_file(&gone).unwrap();
            open.push(file);
        }
        File::open(dir).unwrap().sync_all().unwrap();
    }
    open
}

fn content(number: u64) -> Vec<u8> {
    let mut content = Rng::new(number).bytes(1 << 20);
    // What the journal's own blocks start with has to be disguised in it.
    content[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
    content
}

/// How many of the files are there with their content, after e2fsck has replayed the journal and mended the rest.
fn kept(image: &Image, dir: &Path) -> u64 {
    let done = Command::new("e2fsck").args(["-fy", image.text()]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(matches!(done.status.code(), Some(0..=3)), "{said}");
    let mount = Mount::new(&image.path, dir.join("seen"), "ro");
    let is_there = |number: &u64| {
        fs::read(mount.0.join(format!("file {number}"))).is_ok_and(|found| found == content(*number))
    };
    (0..FILES).filter(is_there).count() as u64
}

#[test]
fn a_dirty_journal_keeps_all_files_and_the_bitmaps_on_the_disk_would_not() {
    let noticed = JOURNALS.par_iter().filter(|(name, arguments, options)| {
        let dir = tempfile::tempdir().unwrap();
        let image = dirty(arguments, options, dir.path());
        let stale = on_the_disk(&image);
        let before = fs::read(&image.path).unwrap();
        let free = whole(&surveyed(&image), name);
        assert!(fs::read(&image.path).unwrap() == before, "{name}: the disk was written");
        let bytes: u64 = free.iter().map(|range| range.end - range.start).sum();
        assert!(bytes > 20 << 20, "{name}: {bytes} bytes are free");
        // What a guest's own replay leaves.
        let replayed = Replayed::open(&image).unwrap();
        assert!(replayed.transactions() > 3, "{name}");
        let tree = by_reader(&Ext4::open(&replayed).unwrap());
        let control = image.copy(&dir.path().join("control"));
        spoil(&control, &stale);
        let left = kept(&control, dir.path());
        println!("{name}: by the bitmaps on the disk {left} of {FILES} files are left");
        spoil(&image, &free);
        let after = Replayed::open(&image).unwrap();
        assert_same(&by_reader(&Ext4::open(&after).unwrap()), &tree, name);
        assert_eq!(whole(&surveyed(&image), name), free, "{name}");
        let mounted = image.copy(&dir.path().join("mounted"));
        assert_eq!(kept(&image, dir.path()), FILES, "{name}");
        is_clean(&image);
        // The kernel's own replay, and its work on the orphans.
        drop(Mount::new(&mounted.path, dir.path().join("replayed"), "rw"));
        is_clean(&mounted);
        assert_eq!(kept(&mounted, dir.path()), FILES, "{name}");
        left < FILES
    });
    // On a slow host the kernel may have written the bitmaps in the meantime, of one kind or another.
    assert!(noticed.count() > JOURNALS.len() / 2, "the test does not see what it is for");
}

#[test]
fn what_is_cut_by_an_orphan_list_is_used_until_the_guest_has_done_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::write(&data, Rng::new(5).bytes(900_000)).unwrap();
    for options in ["^has_journal", "^has_journal,^extent,^64bit", "^orphan_file"] {
        let arguments = ["-t", "ext4", "-b", "1024", "-O", options];
        let image = Image::make(&dir.path().join("image"), 16 << 20, &arguments, None);
        let write = |request: &str| ran(Command::new("debugfs").args(["-w", "-R", request]).arg(&image.path));
        write(&format!("write {} file", data.display()));
        let before = whole(&surveyed(&image), options);
        write("set_inode_field file size 70000");
        write("set_super_value last_orphan 12");
        assert!(Ext4::open(&image).unwrap().state().orphans);
        let free = whole(&surveyed(&image), options);
        assert_eq!(free, before);
        spoil(&image, &free);
        let done = Command::new("e2fsck").args(["-fy", image.text()]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(said.contains("Truncating orphaned inode 12") && !said.contains("llegal"), "{said}");
        is_clean(&image);
        let out = dir.path().join("out");
        debugfs(&image, &format!("dump file {}", out.display()));
        assert!(fs::read(&out).unwrap() == fs::read(&data).unwrap()[..70_000]);
        assert!(is_within(&free, &whole(&surveyed(&image), options)));
    }
}

#[test]
fn a_filesystem_that_was_not_left_in_order_is_left_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let plain = ["-t", "ext4", "-O", "^metadata_csum"];
    let no_journal = ["-t", "ext4", "-O", "^metadata_csum,^has_journal"];
    let cases: [(&[&str], &str, &str); 9] = [
        (&no_journal, "set_super_value state 0", "was not unmounted"),
        (&plain, "set_super_value state 0", "was not unmounted"),
        (&plain, "set_super_value state 3", "noted errors"),
        (&plain, "feature +encrypt", "the feature encrypt"),
        (&plain, "feature +journal_dev", "the feature journal_dev"),
        (&plain, "set_super_value feature_incompat 0x8000242", "incompat 0x8000000"),
        (&plain, "set_super_value journal_inum 0", "journal on another disk"),
        (&plain, "set_super_value last_orphan 3", "list of orphans"),
        (&plain, "set_super_value last_orphan 13", "no known type"),
    ];
    for (arguments, request, expected) in cases {
        let image = Image::make(&path, 16 << 20, arguments, None);
        whole(&surveyed(&image), request);
        ran(Command::new("debugfs").args(["-w", "-R", request]).arg(&path));
        let said = reason(&surveyed(&image), EXT);
        assert!(said.contains(expected), "{request}: {said}");
    }
}

#[test]
fn a_journal_that_nobody_asks_for_or_that_noted_an_error_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::make(&dir.path().join("image"), 16 << 20, &["-t", "ext3", "-b", "1024"], None);
    let first = debugfs(&image, "blocks <8>");
    let at = first.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024;
    for (field, expected) in [(0x1c, "needs no recovery"), (0x20, "notes an error"), (0, "no superblock")] {
        let mut old = [0; 4];
        image.read(&mut old, GuestOffset(at + field)).unwrap();
        image.write(at + field, &1_u32.to_be_bytes());
        let said = reason(&surveyed(&image), EXT);
        assert!(said.contains(expected), "{said}");
        image.write(at + field, &old);
    }
    whole(&surveyed(&image), "as before");
}

#[test]
fn metadata_that_a_bitmap_calls_free_makes_all_of_it_be_left() {
    let dir = tempfile::tempdir().unwrap();
    let arguments =
        ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg,^resize_inode", "-J", "size=1"];
    let image = Image::make(&dir.path().join("image"), 7 << 20, &arguments, None);
    let text = ran(Command::new("dumpe2fs").arg(&image.path));
    let place = |key: &str| -> u64 {
        let rest = text.split_once(key).unwrap().1;
        rest.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()).unwrap().parse().unwrap()
    };
    let journal: u64 = debugfs(&image, "blocks <8>").split_whitespace().nth(5).unwrap().parse().unwrap();
    let bitmap = place("Block bitmap at ") * 1024;
    let whole_before = whole(&surveyed(&image), "sound");
    for (block, expected) in [
        (1, "calls free what holds the superblock"),
        (2, "calls free what holds the superblock"),
        (place("Block bitmap at "), "calls free what holds the superblock"),
        (place("Inode bitmap at "), "calls free what holds the superblock"),
        (place("Inode table at ") + 7, "calls free what holds the superblock"),
        (journal, "which a mount needs"),
    ] {
        assert!(block < 8193, "{block} is in another group");
        let bit = block - 1;
        let (at, mut old, mut count) = (bitmap + bit / 8, [0], [0; 2]);
        image.read(&mut old, GuestOffset(at)).unwrap();
        image.read(&mut count, GuestOffset(2048 + 12)).unwrap();
        image.write(at, &[old[0] & !(1 << (bit % 8))]);
        let said = reason(&surveyed(&image), EXT);
        assert!(said.contains(if block == journal { "by its bitmap" } else { expected }), "{block}: {said}");
        // With the count that fits.
        image.write(2048 + 12, &(u16::from_le_bytes(count) + 1).to_le_bytes());
        let said = reason(&surveyed(&image), EXT);
        assert!(said.contains(expected), "{block}: {said}");
        image.write(at, &old);
        image.write(2048 + 12, &count);
    }
    assert_eq!(whole(&surveyed(&image), "sound again"), whole_before);
}

#[test]
fn a_guest_that_sleeps_in_a_swap_file_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::make(&dir.path().join("image"), 64 << 20, &["-t", "ext4"], None);
    let mount = Mount::new(&image.path, dir.path().join("live"), "rw");
    let swap = mount.0.join("swapfile");
    fs::write(&swap, vec![1; 1 << 20]).unwrap();
    ran(Command::new("mkswap").arg(&swap));
    let mut work = File::create(mount.0.join("work")).unwrap();
    work.write_all(&[3; 5000]).unwrap();
    nix::unistd::sync();
    work.sync_all().unwrap();
    let awake = image.copy(&dir.path().join("awake"));
    let mut bytes = fs::read(&swap).unwrap();
    bytes[4086..4096].copy_from_slice(b"S1SUSPEND\0");
    fs::write(&swap, bytes).unwrap();
    File::open(&swap).unwrap().sync_all().unwrap();
    let asleep = image.copy(&dir.path().join("asleep"));
    drop((work, mount));
    whole(&surveyed(&awake), "awake");
    let said = reason(&surveyed(&asleep), EXT);
    assert!(said.contains("the guest sleeps"), "{said}");
}

#[test]
fn no_flipped_byte_of_a_filesystem_with_checksums_makes_a_used_block_free() {
    let dir = tempfile::tempdir().unwrap();
    let dirty_dir = dir.path().join("dirty");
    fs::create_dir(&dirty_dir).unwrap();
    let clean =
        Image::make(&dir.path().join("image"), 8 << 20, &["-t", "ext4", "-b", "1024", "-J", "size=1"], None);
    let mount = Mount::new(&clean.path, dir.path().join("live"), "rw");
    for number in 0..40 {
        fs::write(mount.0.join(format!("{number}")), vec![number; 20_000]).unwrap();
    }
    drop(mount);
    let first = seed_from_environment().unwrap_or(1);
    println!("seeds from {first} on");
    let (mut left, mut same) = (0, 0);
    let mut disk = Memory(fs::read(&clean.path).unwrap());
    let sound = whole(&surveyed(&disk), "sound");
    // What is not zero is what matters, and the first of it most.
    let full: Vec<usize> = (0..disk.0.len()).filter(|at| disk.0[*at] != 0).collect();
    for seed in first..first + 6000 {
        let mut rng = Rng::new(seed);
        let early = if rng.chance(70) { 2000 } else { full.len() as u64 };
        let at = full[rng.below(early) as usize];
        let old = disk.0[at];
        disk.0[at] ^= 1 << rng.below(8);
        let areas = surveyed(&disk);
        match &areas[..] {
            [one] => match &one.free {
                Free::Known(ranges) => {
                    assert!(is_within(ranges, &sound), "seed {seed}: byte {at}");
                    same += 1;
                }
                Free::Left(_) => left += 1,
            },
            _ => panic!("seed {seed}: byte {at}: {areas:?}"),
        }
        disk.0[at] = old;
    }
    println!("{left} were left, {same} were as before");
    assert!(left > 500 && same > 500);
}

#[test]
fn a_disk_that_cannot_be_read_is_an_error() {
    struct Broken(Image, u64);
    impl Bytes for Broken {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&self, buf: &mut [u8], at: GuestOffset) -> cowshed::Result<()> {
            if (at.0..at.0 + buf.len() as u64).contains(&self.1) {
                return Err(cowshed::Error::corrupt("the image of the disk is damaged"));
            }
            self.0.read(buf, at)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let image = Image::make(&dir.path().join("image"), 16 << 20, &["-t", "ext4"], None);
    let bitmap = ran(Command::new("dumpe2fs").arg(&image.path));
    let block: u64 =
        bitmap.split_once("Block bitmap at ").unwrap().1.split([' ', '\n']).next().unwrap().parse().unwrap();
    for at in [0, 1100, 0x1_0040, block * 1024] {
        let error = survey(&Broken(Image::open(&image.path), at)).map(|areas| areas.len()).unwrap_err();
        assert_eq!(error.to_string(), "the image of the disk is damaged", "{at}");
    }
    let far = Broken(Image::open(&image.path), 15 << 20);
    assert!(survey(&far).is_ok(), "what is not needed is not read");
}

#[test]
fn a_large_fresh_filesystem_is_surveyed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for (gib, most) in [(2, 200), (100, 500)] {
        let image = Image::make(&dir.path().join("image"), gib << 30, &["-t", "ext4", "-m", "0"], None);
        let times: BTreeMap<_, _> = (0..5)
            .map(|_| {
                let start = std::time::Instant::now();
                let areas = survey(&image).unwrap();
                (start.elapsed(), areas[0].free.bytes())
            })
            .collect();
        let (time, bytes) = times.first_key_value().unwrap();
        println!("{gib} GiB: {time:?}");
        assert!(*bytes > (gib << 30) * 9 / 10 && time.as_millis() < most, "{time:?}");
    }
}

/// `cargo test --release --test guestfs_free -- --ignored --nocapture measure`
#[test]
#[ignore = "figures for docs/benchmarks.md"]
fn measure_how_long_fresh_filesystems_take() {
    let dir = tempfile::tempdir().unwrap();
    for gib in [2, 100, 1024] {
        let image = Image::make(&dir.path().join("image"), gib << 30, &["-t", "ext4", "-m", "0"], None);
        let mut times: Vec<_> = (0..9)
            .map(|_| {
                let start = std::time::Instant::now();
                assert!(survey(&image).unwrap()[0].free.bytes() > 0);
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("{gib} GiB: median {:?}, from {:?} to {:?}", times[4], times[0], times[8]);
    }
}
