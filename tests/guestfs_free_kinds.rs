//! What is free of a disk that is not ext4: tables, gaps, swap space, FAT, NTFS, LVM2; and what is left whole. Needs
//! root, for loop devices and FUSE.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]
#![allow(clippy::single_range_in_vec_init)]

#[path = "common/ext4/mod.rs"]
mod ext4;
#[path = "common/free.rs"]
mod free;
#[path = "common/rng.rs"]
mod rng;

use cowshed::guestfs::free::{Area, Free};
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use ext4::{Image, is_clean, ran};
use free::{Memory, is_within, known, reason, spoil, surveyed, whole};
use rayon::prelude::*;
use rng::{Rng, seed_from_environment};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

fn empty(path: &Path, size: u64) -> Image {
    File::create(path).unwrap().set_len(size).unwrap();
    Image::open(path)
}

fn tool(name: &str, arguments: &[&str], path: &Path) -> String {
    ran(Command::new(name).args(arguments).arg(path))
}

fn words(areas: &[Area]) -> Vec<String> {
    areas.iter().map(|area| area.what.to_string()).collect()
}

fn bytes_at(image: &Image, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    image.read(&mut bytes, GuestOffset(at)).unwrap();
    bytes
}

/// Copies one image into a place of another.
fn put(disk: &Image, at: u64, content: &Path) {
    for (number, piece) in (0..).zip(fs::read(content).unwrap().chunks(1 << 20)) {
        if piece.iter().any(|byte| *byte != 0) {
            disk.write(at + number * (1 << 20), piece);
        }
    }
}

#[test]
fn swap_space_is_free_but_for_its_first_page() {
    let dir = tempfile::tempdir().unwrap();
    let image = empty(&dir.path().join("image"), (20 << 20) + 700);
    for page in [4096, 8192, 16384, 65536] {
        image.write(0, &vec![0; 1 << 17]);
        tool("mkswap", &["-f", "-p", &page.to_string()], &image.path);
        let free = whole(&surveyed(&image), "swap");
        let end = image.size() / page * page;
        assert_eq!(free, [page..end]);
        let head = bytes_at(&image, 0, page as usize);
        spoil(&image, &free);
        assert!(bytes_at(&image, 0, page as usize) == head);
        let said = ran(Command::new("blkid").args(["-p", image.text()]));
        assert!(said.contains("TYPE=\"swap\""), "{said}");
    }
    image.write(0, &vec![0; 1 << 17]);
    tool("mkswap", &["-f"], &image.path);
    let sound = bytes_at(&image, 0, 4096);
    for (at, value, expected) in [
        (1024, &[2, 0, 0, 0][..], "contradicts itself"),
        (1028, &[0xff, 0xff, 0, 0], "contradicts itself"),
        (1028, &[0, 0, 0, 0], "contradicts itself"),
        (1032, &[0xff, 0xff, 0, 0], "contradicts itself"),
        (4086, b"SWAP-SPACE", "an old kind"),
        (8182, b"SWAPSPACE2", "several times"),
        (4086, b"S1SUSPEND\0", "the guest sleeps"),
        (4086, b"ULSUSPEND\0", "the guest sleeps"),
        (4086, b"LINHIB0001", "the guest sleeps"),
    ] {
        image.write(at, value);
        let said = reason(&surveyed(&image), "swap on the disk");
        assert!(said.contains(expected), "{expected}: {said}");
        image.write(4096, &[0; 8192]);
        image.write(0, &sound);
    }
}

/// A GPT with ext4, swap, a gap, FAT and something unknown.
fn gpt(dir: &Path) -> Image {
    let image = empty(&dir.join("disk"), 160 << 20);
    let parts = ["-n1:1M:+64M", "-n2:0:+8M", "-n3:80M:+32M", "-n4:0:+4M"];
    ran(Command::new("sgdisk").args(parts).arg(&image.path));
    let part = dir.join("part");
    Image::make(&part, 64 << 20, &["-t", "ext4"], None);
    put(&image, 1 << 20, &part);
    empty(&part, 8 << 20);
    tool("mkswap", &[], &part);
    put(&image, 65 << 20, &part);
    empty(&part, 32 << 20);
    tool("mkfs.vfat", &[], &part);
    put(&image, 80 << 20, &part);
    image
}

const GPT: [&str; 9] = [
    "partition table",
    "before the first partition",
    "ext4 on partition 1",
    "swap on partition 2",
    "between partitions",
    "FAT on partition 3",
    "unknown content on partition 4",
    "behind the last partition",
    "partition table",
];

#[test]
fn a_gpt_keeps_its_tables_and_what_is_known_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let image = gpt(dir.path());
    let areas = surveyed(&image);
    assert_eq!(words(&areas), GPT);
    assert_eq!(areas[4].free, Free::Known(vec![73 << 20..80 << 20]));
    let last = image.size() - 33 * 512;
    assert_eq!(areas[7].free, Free::Known(vec![116 << 20..last]));
    assert_eq!((areas[0].len, areas[8].start.0, areas[8].len), (34 * 512, last, 33 * 512));
    assert!(reason(&areas, GPT[1]).contains("boot loaders"));
    assert!(reason(&areas, GPT[6]).contains("nothing on it is known"));
    let table = tool("sgdisk", &["-p"], &image.path);
    spoil(&image, &known(&areas));
    assert_eq!(tool("sgdisk", &["-p"], &image.path), table);
    assert!(tool("sgdisk", &["-v"], &image.path).contains("No problems found"));
    assert_eq!(surveyed(&image), areas);
    let part = dir.path().join("part");
    fs::write(&part, bytes_at(&image, 1 << 20, 64 << 20)).unwrap();
    is_clean(&Image::open(&part));
    fs::write(&part, bytes_at(&image, 80 << 20, 32 << 20)).unwrap();
    tool("fsck.vfat", &["-n"], &part);
}

#[test]
fn a_gpt_that_leaves_any_doubt_is_left_whole() {
    let dir = tempfile::tempdir().unwrap();
    let image = gpt(dir.path());
    let sound = bytes_at(&image, 0, 64 << 10);
    let end = image.size() - 512;
    let is_left = |what: &str| {
        let areas = surveyed(&image);
        let [one] = &areas[..] else { panic!("{what}: {areas:?}") };
        assert!(matches!(one.free, Free::Left(_)), "{what}");
        reason(&areas, &one.what.to_string())
    };
    for (at, what) in [
        (512 + 20, "header"),
        (1024 + 40, "entries"),
        (end + 20, "backup"),
        (end - 32 * 512 + 3, "its entries"),
    ] {
        let old = bytes_at(&image, at, 1);
        image.write(at, &[old[0] ^ 1]);
        assert!(is_left(what).contains("contradicts itself"), "{what}");
        image.write(at, &old);
    }
    // Another filesystem's mark for the whole disk.
    image.write(0x8001, b"CD001");
    assert!(is_left("hybrid").contains("ISO 9660"));
    image.write(0, &sound);
    // No protective record: nobody knows that there is a table.
    image.write(446, &[0; 64]);
    assert!(is_left("no record").contains("its free space is not read here"));
    image.write(0, &sound);
    // A record with a partition of its own: no gap is free.
    image.write(446 + 16, &[0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    assert!(reason(&surveyed(&image), "between partitions").contains("boot record"));
    image.write(0, &sound);
    // A partition of a dynamic disk.
    ran(Command::new("sgdisk").arg("-t4:AF9B60A0-1431-4F62-BC68-3311714A69AD").arg(&image.path));
    assert!(is_left("dynamic").contains("dynamic"));
}

#[test]
fn a_disk_that_grew_keeps_the_old_end_of_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = gpt(dir.path()).path;
    File::options().write(true).open(&path).unwrap().set_len(400 << 20).unwrap();
    let image = Image::open(&path);
    let areas = surveyed(&image);
    assert_eq!(words(&areas), [&GPT[..], &["behind the last partition"]].concat());
    assert!(matches!(&areas[9].free, Free::Left(reason) if reason.contains("not the table's")));
    spoil(&image, &known(&areas));
    assert_eq!(surveyed(&image), areas);
}

#[test]
fn an_mbr_keeps_all_that_is_not_in_a_partition() {
    let dir = tempfile::tempdir().unwrap();
    let image = empty(&dir.path().join("disk"), 128 << 20);
    let table = "label: dos\ndisk1 : start=2048, size=65536, type=83\ndisk2 : start=69632, size=180000, type=5\n\
        disk5 : start=71680, size=40960, type=82\ndisk6 : start=120000, size=16384, type=83\n";
    let file = dir.path().join("table");
    fs::write(&file, table).unwrap();
    let input = File::open(&file).unwrap();
    let done = Command::new("sfdisk").arg("--quiet").arg(&image.path).stdin(input).status().unwrap();
    assert!(done.success());
    let part = dir.path().join("part");
    Image::make(&part, 32 << 20, &["-t", "ext4"], None);
    put(&image, 1 << 20, &part);
    empty(&part, 20 << 20);
    tool("mkswap", &[], &part);
    put(&image, 35 << 20, &part);
    let areas = surveyed(&image);
    assert_eq!(
        words(&areas),
        [
            "partition table",
            "before the first partition",
            "ext4 on partition 1",
            "between partitions",
            "swap on partition 5",
            "between partitions",
            "unknown content on partition 6",
            "behind the last partition",
        ]
    );
    for area in [1, 3, 5, 7] {
        assert!(matches!(&areas[area].free, Free::Left(reason) if reason.contains("boot loaders")));
    }
    assert_eq!(areas[4].free, Free::Known(vec![(35 << 20) + 4096..55 << 20]));
    let before = ran(Command::new("sfdisk").arg("-d").arg(&image.path));
    spoil(&image, &known(&areas));
    assert_eq!(ran(Command::new("sfdisk").arg("-d").arg(&image.path)), before);
    assert_eq!(surveyed(&image), areas);
    // Entries that overlap, reach past the end, or lead nowhere.
    let sound = bytes_at(&image, 0, 512);
    for (at, value) in
        [(446 + 12, 70_000_u32), (446 + 16 + 12, 900_000), (446 + 16 + 8, 69_633), (446 + 8, 0)]
    {
        image.write(at, &value.to_le_bytes());
        let areas = surveyed(&image);
        assert!(areas.len() == 1 && matches!(&areas[0].free, Free::Left(_)), "{at}: {areas:?}");
        image.write(0, &sound);
    }
    assert_eq!(surveyed(&image), areas);
}

/// A FAT made by mkfs.vfat, filled and emptied by mtools; what is in it.
fn fat(path: &Path, size: u64, arguments: &[&str], seed: u64) -> (Image, BTreeMap<String, Vec<u8>>) {
    empty(path, size);
    tool("mkfs.vfat", arguments, path);
    let (mut rng, mut files) = (Rng::new(seed), BTreeMap::new());
    let file = path.with_extension("file");
    let mtools = |name: &str, arguments: &[&str]| {
        ran(Command::new(name).env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(path).args(arguments))
    };
    for folder in ["::/a", "::/a/b", "::/a long name for a folder"] {
        mtools("mmd", &[folder]);
    }
    for number in 0..40 {
        let folder = rng.pick(&["", "a/", "a/b/", "a long name for a folder/"]);
        let name = format!("{folder}file with the number {number}");
        let most = size / 100;
        let content = {
            let len = rng.below(most) as usize;
            rng.bytes(len)
        };
        fs::write(&file, &content).unwrap();
        mtools("mcopy", &[file.to_str().unwrap(), &format!("::/{name}")]);
        files.insert(name, content);
        if number % 3 == 0 {
            let gone = rng.pick(&files.keys().cloned().collect::<Vec<_>>()).clone();
            mtools("mdel", &[&format!("::/{gone}")]);
            files.remove(&gone);
        }
    }
    (Image::open(path), files)
}

/// Free clusters as fsck.vfat counts them, and the clusters that there are.
fn by_fsck(image: &Image) -> (u64, u64) {
    let said = tool("fsck.vfat", &["-n"], &image.path);
    let counts = said.rsplit_once(" files, ").unwrap().1.split_once(" clusters").unwrap().0;
    let (used, all) = counts.split_once('/').unwrap();
    let (used, all): (u64, u64) = (used.parse().unwrap(), all.parse().unwrap());
    (all - used, all)
}

const FATS: [(&str, u64, &[&str]); 8] = [
    ("FAT12", 3 << 20, &["-F", "12"]),
    ("FAT12, large clusters", 30 << 20, &["-F", "12", "-s", "32"]),
    ("FAT16", 30 << 20, &["-F", "16"]),
    ("FAT16, small clusters", 20 << 20, &["-F", "16", "-s", "1"]),
    ("FAT16, one table", 40 << 20, &["-F", "16", "-f", "1"]),
    ("FAT32", 64 << 20, &["-F", "32"]),
    ("FAT32, small", 36 << 20, &["-F", "32", "-s", "1"]),
    ("FAT32, 4096 bytes", 300 << 20, &["-F", "32", "-S", "4096"]),
];

#[test]
fn a_fat_keeps_its_files_when_what_is_free_is_garbage() {
    FATS.par_iter().for_each(|(name, size, arguments)| {
        let dir = tempfile::tempdir().unwrap();
        let (image, files) = fat(&dir.path().join("image"), *size, arguments, 3);
        let free = whole(&surveyed(&image), name);
        let (clusters, _) = by_fsck(&image);
        let bytes: u64 = free.iter().map(|range| range.end - range.start).sum();
        assert!(
            bytes.is_multiple_of(clusters) && (bytes / clusters).is_power_of_two(),
            "{name}: {bytes} {clusters}"
        );
        spoil(&image, &free);
        assert_eq!(by_fsck(&image).0, clusters, "{name}");
        for (file, content) in &files {
            let out = dir.path().join("out");
            let from = format!("::/{file}");
            ran(Command::new("mcopy").args(["-n", "-i", image.text(), &from]).arg(&out));
            assert!(fs::read(&out).unwrap() == *content, "{name}: {file}");
            fs::remove_file(&out).unwrap();
        }
        assert!(files.len() > 20);
    });
}

#[test]
fn a_fat_that_was_mounted_or_contradicts_itself_is_left() {
    let dir = tempfile::tempdir().unwrap();
    for (number, (name, size, arguments)) in [FATS[0], FATS[2], FATS[5]].into_iter().enumerate() {
        let (image, _) = fat(&dir.path().join("image"), size, arguments, 3);
        let sound = whole(&surveyed(&image), name);
        let boot = bytes_at(&image, 0, 512);
        let field = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let table = field(14) * 512;
        let len = if field(22) == 0 { field(36) } else { field(22) } * 512;
        let state = if number == 2 { 0x41 } else { 0x25 };
        let mut cases = vec![(vec![state], 1, "was not unmounted"), (vec![state], 2, "was not unmounted")];
        cases.push((vec![table + 9], 1, "copies of its table differ"));
        cases.push((vec![table, table + len], 1, "does not start as one"));
        cases.push((vec![22 + u64::from(number == 2) * 14], 8, ""));
        if number > 0 {
            let high = table + [0, 3, 7][number];
            cases.push((vec![high, high + len], [0, 0x80, 8][number], "was not unmounted"));
            cases.push((vec![high, high + len], [0, 0x40, 4][number], "was not unmounted"));
        }
        for (places, flip, expected) in cases {
            for at in &places {
                image.write(*at, &[bytes_at(&image, *at, 1)[0] ^ flip]);
            }
            let said = reason(&surveyed(&image), "FAT on the disk");
            assert!(said.contains(expected), "{name}: {said}");
            for at in &places {
                image.write(*at, &[bytes_at(&image, *at, 1)[0] ^ flip]);
            }
        }
        // An entry that both copies lose: in the midst of a file, or its start.
        let bytes = bytes_at(&image, table, len as usize);
        for at in (8..len as usize).filter(|at| bytes[*at] != 0).step_by(97) {
            let from = if number == 0 { at - at % 3 } else { at & !3 };
            for copy in [table, table + len] {
                image.write(copy + from as u64, &[0; 4][..if number == 0 { 3 } else { 4 }]);
            }
            let said = reason(&surveyed(&image), "FAT on the disk");
            assert!(said.contains("damaged"), "{name}: {said}");
            for copy in [table, table + len] {
                image.write(copy + from as u64, &bytes[from..from + 4]);
            }
        }
        assert_eq!(whole(&surveyed(&image), name), sound);
    }
}

/// A file that some program has mounted; taken away when dropped.
struct Fuse(PathBuf);

impl Fuse {
    fn ntfs(image: &Path, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        ran(Command::new("ntfs-3g").arg(image).arg(&at));
        Self(at)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        for _ in 0..100 {
            if Command::new("umount").arg(&self.0).output().unwrap().status.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(std::thread::panicking(), "{} cannot be unmounted", self.0.display());
    }
}

/// The program that serves a mount lives on for a moment after it: until the file can be had alone.
fn ntfs_image(path: &Path) -> Image {
    for _ in 0..200 {
        if Command::new("ntfsfix").arg("-n").arg(path).output().unwrap().status.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Image::open(path)
}

/// An NTFS with files that came and went, as ntfs-3g writes it.
fn ntfs(
    dir: &Path,
    size: u64,
    arguments: &[&str],
    more: impl Fn(&Path),
) -> (Image, BTreeMap<String, Vec<u8>>) {
    let path = dir.join("image");
    empty(&path, size);
    ran(Command::new("mkntfs").args(["-F", "-Q", "-q"]).args(arguments).arg(&path));
    let (mut rng, mut files) = (Rng::new(7), BTreeMap::new());
    let mount = Fuse::ntfs(&path, dir.join("live"));
    fs::create_dir(mount.0.join("folder")).unwrap();
    for number in 0..120 {
        let name = format!("{}file with the number {number}", rng.pick(&["", "folder/"]));
        let content = {
            let len = rng.below(size / 400) as usize;
            rng.bytes(len)
        };
        fs::write(mount.0.join(&name), &content).unwrap();
        files.insert(name, content);
        if number % 2 == 0 {
            let gone = rng.pick(&files.keys().cloned().collect::<Vec<_>>()).clone();
            fs::remove_file(mount.0.join(&gone)).unwrap();
            files.remove(&gone);
        }
    }
    more(&mount.0);
    drop(mount);
    (ntfs_image(&path), files)
}

#[test]
fn an_ntfs_keeps_its_files_when_what_is_free_is_garbage() {
    let sets: [(u64, &[&str]); 4] = [
        (48 << 20, &[]),
        (48 << 20, &["-c", "512"]),
        (64 << 20, &["-c", "65536"]),
        (50_000_000, &["-s", "4096"]),
    ];
    sets.par_iter().for_each(|(size, arguments)| {
        let dir = tempfile::tempdir().unwrap();
        let (image, files) = ntfs(dir.path(), *size, arguments, |_| ());
        let place = format!("{arguments:?}");
        let free = whole(&surveyed(&image), &place);
        let said = String::from_utf8_lossy(
            &Command::new("ntfsinfo").arg("-m").arg(&image.path).output().unwrap().stdout,
        )
        .into_owned();
        let number = |key: &str| -> u64 {
            let rest = said.split_once(key).unwrap_or_else(|| panic!("{key}: {said}")).1;
            rest.split_once(": ").unwrap().1.split_whitespace().next().unwrap().parse().unwrap()
        };
        let bytes: u64 = free.iter().map(|range| range.end - range.start).sum();
        assert_eq!(bytes, number("Free Clusters") * number("Cluster Size"), "{place}");
        assert_eq!(free, by_bitmap(&image.path, number("Cluster Size"), number("Volume Size in Clusters")));
        spoil(&image, &free);
        tool("ntfsfix", &["-n"], &image.path);
        for (file, content) in &files {
            let found = Command::new("ntfscat").arg(&image.path).arg(file).output().unwrap();
            assert!(found.status.success() && found.stdout == *content, "{place}: {file}");
        }
        assert!(files.len() > 40);
        assert_eq!(whole(&surveyed(&image), &place), free);
        let mount = Fuse::ntfs(&image.path, dir.path().join("seen"));
        assert!(files.iter().all(|(file, content)| fs::read(mount.0.join(file)).unwrap() == *content));
    });
}

/// What is free by the bitmap that ntfs-3g reads.
fn by_bitmap(path: &Path, cluster: u64, clusters: u64) -> Vec<Range<u64>> {
    let bitmap = Command::new("ntfscat").args(["-i", "6"]).arg(path).output().unwrap();
    assert!(bitmap.status.success(), "{bitmap:?}");
    let mut free: Vec<Range<u64>> = Vec::new();
    for number in 0..clusters {
        if bitmap.stdout[(number / 8) as usize] >> (number % 8) & 1 != 0 {
            continue;
        }
        let range = number * cluster..(number + 1) * cluster;
        match free.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => free.push(range),
        }
    }
    free
}

/// Whether a file has a cluster, as ntfscluster finds it.
fn has_owner(path: &Path, cluster: u64) -> bool {
    let said = Command::new("ntfscluster").args(["-c", &cluster.to_string()]).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("inode found") || said.contains("inodes found"), "{cluster}: {said}");
    !said.contains("no inode found")
}

/// Where record `number` of the file table is, near the start of it.
fn ntfs_record(image: &Image, number: u64) -> u64 {
    let boot = bytes_at(image, 0, 512);
    let cluster = u64::from(boot[13]) * 512;
    u64::from_le_bytes(boot[48..56].try_into().unwrap()) * cluster + number * 1024
}

/// Where the first attribute of `kind` is in the record at `at`.
fn ntfs_attribute(image: &Image, at: u64, kind: u8) -> u64 {
    let record = bytes_at(image, at, 1024);
    let mut place = usize::from(record[20]);
    while record[place] != kind {
        place += u32::from_le_bytes(record[place + 4..place + 8].try_into().unwrap()) as usize;
    }
    at + place as u64
}

#[test]
fn an_ntfs_that_is_in_use_sleeps_or_contradicts_itself_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let hiber = |content: &'static [u8]| {
        move |dir: &Path| {
            let mut bytes = content.to_vec();
            bytes.resize(if content.is_empty() { 0 } else { 8192 }, 0);
            fs::write(dir.join("hiberfil.sys"), bytes).unwrap();
        }
    };
    let what = "NTFS on the disk";
    for content in [&b"hibr"[..], b"HIBR", b"RSTR", b""] {
        let (image, _) = ntfs(dir.path(), 24 << 20, &[], hiber(content));
        let said = reason(&surveyed(&image), what);
        assert!(said.contains("the guest sleeps"), "{content:?}: {said}");
    }
    for content in [&b"wake"[..], b"\0\0\0\0"] {
        let (image, _) = ntfs(dir.path(), 24 << 20, &[], hiber(content));
        whole(&surveyed(&image), "awake");
    }
    let (image, _) = ntfs(dir.path(), 24 << 20, &[], |_| ());
    let sound = whole(&surveyed(&image), what);
    let flags = ntfs_attribute(&image, ntfs_record(&image, 3), 0x70) + 24 + 10;
    let log = {
        let runs = ntfs_attribute(&image, ntfs_record(&image, 2), 0x80) + 64;
        let pairs = bytes_at(&image, runs, 9);
        let (len, offset) = (usize::from(pairs[0] & 15), usize::from(pairs[0] >> 4));
        let number =
            pairs[1 + len..1 + len + offset].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        number * 4096
    };
    assert_eq!(bytes_at(&image, log, 4), [0xff; 4], "ntfs-3g empties the log");
    for (at, value, expected) in [
        (flags, &[1, 0][..], "was not unmounted"),
        (flags, &[0, 0x40], "was not unmounted"),
        (log, b"RSTR", "its log does not say"),
        (ntfs_record(&image, 5) + 510, &[0x55], "is torn"),
        (ntfs_record(&image, 40), b"BAAD", "is torn"),
        (13, &[16], "its file table is not in use"),
        (40, &[0xff, 0xff, 0xff], "contradicts itself or its partition"),
    ] {
        let old = bytes_at(&image, at, value.len());
        image.write(at, value);
        let said = reason(&surveyed(&image), what);
        assert!(said.contains(expected), "{at}: {said}");
        image.write(at, &old);
    }
    // A cluster of some file that the bitmap calls free.
    let bitmap = {
        let runs = ntfs_attribute(&image, ntfs_record(&image, 6), 0x80) + 64;
        let pairs = bytes_at(&image, runs, 9);
        let (len, offset) = (usize::from(pairs[0] & 15), usize::from(pairs[0] >> 4));
        let number =
            pairs[1 + len..1 + len + offset].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        number * 4096
    };
    let full = bytes_at(&image, bitmap, 700).into_iter().zip(0_u64..).filter(|(bits, _)| *bits == 0xff);
    let places: Vec<u64> = full.map(|(_, byte)| byte).collect();
    let owned: Vec<bool> = places.par_iter().map(|byte| has_owner(&image.path, byte * 8 + 3)).collect();
    assert!(owned.iter().filter(|owned| **owned).count() > 50, "{owned:?}");
    for (byte, owned) in places.into_iter().zip(owned) {
        image.write(bitmap + byte, &[0xf7]);
        match &surveyed(&image)[0].free {
            Free::Left(reason) => {
                assert!(owned && reason.contains("calls free what"), "{byte}, {owned}: {reason}");
            }
            Free::Known(_) => assert!(!owned, "cluster {} has an owner", byte * 8 + 3),
        }
        image.write(bitmap + byte, &[0xff]);
    }
    assert_eq!(whole(&surveyed(&image), what), sound);
}

/// A loop device over a file; gone when dropped.
struct Loop(String);

impl Loop {
    fn new(path: &Path) -> Self {
        Self(ran(Command::new("losetup").args(["-f", "--show"]).arg(path)).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        assert!(
            Command::new("losetup").args(["-d", &self.0]).status().unwrap().success()
                || std::thread::panicking()
        );
    }
}

/// Runs tools of LVM2 that see only `devices`; they activate nothing, so no device-mapper is needed. What they say.
fn lvm(devices: &[&Loop], arguments: &[&str]) -> String {
    let filter: String = devices.iter().map(|device| format!("\"a|^{}$|\",", device.0)).collect();
    let config = format!(
        "devices {{ filter=[{filter}\"r|.*|\"] use_devicesfile=0 scan_lvs=0 obtain_device_list_from_udev=0 }} \
        global {{ use_lvmpolld=0 }} activation {{ udev_sync=0 udev_rules=0 monitoring=0 }} \
        backup {{ backup=0 archive=0 }}"
    );
    let (name, rest) = arguments.split_first().unwrap();
    ran(Command::new(name).args(["--config", &config, "--driverloaded", "n"]).args(rest))
}

/// The extents of a physical volume as `pvs` has them, with the volume of each run, and with none where it is free.
fn by_pvs(device: &Loop) -> Vec<(String, Range<u64>)> {
    const START: u64 = 1 << 20;
    const EXTENT: u64 = 4 << 20;
    let said = lvm(
        &[device],
        &[
            "pvs",
            "--segments",
            "--noheadings",
            "--separator",
            ",",
            "--sort",
            "pvseg_start",
            "-o",
            "lv_name,pvseg_start,pvseg_size",
            &device.0,
        ],
    );
    let parse = |line: &str| {
        let mut words = line.trim().split(',');
        let name = words.next().unwrap().to_owned();
        let [start, len] = [(); 2].map(|()| words.next().unwrap().parse::<u64>().unwrap());
        (name, START + start * EXTENT..START + (start + len) * EXTENT)
    };
    said.lines().filter(|line| line.contains(',')).map(parse).collect()
}

const LVCREATE: [&str; 6] = ["lvcreate", "-an", "-Zn", "-Wn", "-y", "-n"];

/// A physical volume with a volume in two pieces, one that is something unknown, and free extents.
fn lvm_disk(dir: &Path) -> Image {
    let path = dir.join("disk");
    empty(&path, 200 << 20);
    {
        let device = Loop::new(&path);
        let run = |arguments: &[&str]| lvm(&[&device], arguments);
        run(&["pvcreate", &device.0]);
        run(&["vgcreate", "vg", &device.0]);
        run(&[&LVCREATE[..], &["root", "-L", "40M", "vg"]].concat());
        run(&[&LVCREATE[..], &["home", "-L", "20M", "vg"]].concat());
        run(&["lvextend", "-L", "+24M", "vg/root"]);
        run(&[&LVCREATE[..], &["gone", "-L", "16M", "vg"]].concat());
        run(&[&LVCREATE[..], &["swap-1", "-L", "12M", "vg"]].concat());
        run(&["lvremove", "-f", "vg/gone"]);
    }
    Image::open(&path)
}

/// The pieces of root, in their order.
const ROOT: [(u64, u64); 2] = [(1, 40), (61, 24)];

#[test]
fn extents_that_no_volume_has_are_free_and_what_is_free_inside_of_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let image = lvm_disk(dir.path());
    let part = dir.path().join("part");
    let root = Image::make(
        &part,
        64 << 20,
        &["-t", "ext4"],
        Some(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs"))),
    );
    let mut at = 0;
    for (start, len) in ROOT {
        image.write(start << 20, &bytes_at(&root, at, (len as usize) << 20));
        at += len << 20;
    }
    let swap = dir.path().join("swap");
    empty(&swap, 12 << 20);
    tool("mkswap", &[], &swap);
    put(&image, 101 << 20, &swap);
    let areas = surveyed(&image);
    let place = |name: &str| format!("{name} on the disk");
    assert_eq!(
        words(&areas),
        [
            place("LVM2"),
            "ext4 on vg/root on the disk".into(),
            "unknown content on vg/home on the disk".into(),
            "ext4 on vg/root on the disk".into(),
            place("LVM2"),
            "swap on vg/swap-1 on the disk".into(),
            place("LVM2"),
        ]
    );
    assert_eq!(areas[0].free, Free::Known(vec![]));
    assert_eq!(areas[4].free, Free::Known(vec![85 << 20..101 << 20]));
    assert_eq!(areas[5].free, Free::Known(vec![(101 << 20) + 4096..113 << 20]));
    assert_eq!(areas[6].free, Free::Known(vec![113 << 20..197 << 20]));
    let inside = whole(&surveyed(&root), "root");
    let free: u64 = inside.iter().map(|range| range.end - range.start).sum();
    assert_eq!(areas[1].free.bytes() + areas[3].free.bytes(), free);
    let before = ext4::facts::by_reader(&cowshed::guestfs::ext4::Ext4::open(&root).unwrap());
    spoil(&image, &known(&areas));
    assert_eq!(surveyed(&image), areas);
    let joined: Vec<u8> =
        ROOT.iter().flat_map(|(start, len)| bytes_at(&image, start << 20, (*len as usize) << 20)).collect();
    fs::write(&part, joined).unwrap();
    let root = Image::open(&part);
    is_clean(&root);
    let after = ext4::facts::by_reader(&cowshed::guestfs::ext4::Ext4::open(&root).unwrap());
    ext4::facts::assert_same(&after, &before, "root");
    let device = Loop::new(&image.path);
    lvm(&[&device], &["vgck", "vg"]);
    lvm(&[&device], &["pvck", &device.0]);
}

/// CRC-32 as LVM2 has it: bit by bit, not inverted.
fn lvm_sum(bytes: &[u8]) -> [u8; 4] {
    let step = |sum: u32| if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0xedb8_8320 };
    let sum = bytes
        .iter()
        .fold(0xf597_a6cf_u32, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)));
    sum.to_le_bytes()
}

/// The text of the metadata with `from` as `to`, of the same length, and its checksums made right.
fn lvm_edit(image: &Image, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut header = bytes_at(image, 4096, 512);
    let field = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
    let (start, len) = (4096 + field(40), field(48) as usize);
    let text = String::from_utf8(bytes_at(image, start, len)).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    let text = text.replace(from, to);
    image.write(start, text.as_bytes());
    header[56..60].copy_from_slice(&lvm_sum(text.as_bytes()));
    let sum = lvm_sum(&header[4..]);
    header[..4].copy_from_slice(&sum);
    image.write(4096, &header);
}

#[test]
fn groups_that_are_not_plain_are_left_whole() {
    let dir = tempfile::tempdir().unwrap();
    let image = lvm_disk(dir.path());
    let sound = bytes_at(&image, 0, 1 << 20);
    let areas = surveyed(&image);
    let what = "LVM2 on the disk";
    lvm_edit(&image, "striped", "striped");
    assert_eq!(surveyed(&image), areas, "the test's own checksums are right");
    for (from, to, expected) in [
        ("\"striped\"", "\"mirror\" ", "of the type mirror"),
        ("\"striped\"", "\"thin\"   ", "of the type thin"),
        ("\"striped\"", "\"vdo\"    ", "of the type vdo"),
        ("\"VISIBLE\"", "\"PVMOVE\" ", "PVMOVE"),
        ("\"RESIZEABLE\"", "\"EXPORTED\"  ", "EXPORTED"),
        ("\"ALLOCATABLE\"", "\"MISSING\"    ", "MISSING"),
        ("start_extent = 10", "start_extent = 11", "contradicts itself"),
        ("\"pv0\", 15", "\"pv0\", 14", "two volumes have the same extent"),
        ("\"pv0\", 15", "\"pv1\", 15", "outside of its physical volume"),
        ("\"pv0\", 15", "\"pv0\", 55", "outside of its physical volume"),
        ("pe_start = 2048", "pe_start = 4096", "another physical volume"),
        ("stripe_count = 1", "mirror_count = 1", "mirror_count"),
        ("format = \"lvm2\"", "format = \"lvm1\"", "not lvm2"),
    ] {
        lvm_edit(&image, from, to);
        let said = reason(&surveyed(&image), what);
        assert!(said.contains(expected), "{from}: {said}");
        image.write(0, &sound);
    }
    let start = u64::from_le_bytes(bytes_at(&image, 4096 + 40, 8).try_into().unwrap());
    for (at, expected) in [
        (512 + 40, "its label does not match"),
        (4096 + 49, "an area of metadata does not match its checksum"),
        (4096 + start + 100, "its text does not match its checksum"),
    ] {
        image.write(at, &[bytes_at(&image, at, 1)[0] ^ 1]);
        let said = reason(&surveyed(&image), what);
        assert!(said.contains(expected), "{at}: {said}");
        image.write(0, &sound);
    }
    // A change that was not finished: a second text is announced.
    let mut header = bytes_at(&image, 4096, 512);
    header[64..72].copy_from_slice(&512_u64.to_le_bytes());
    let sum = lvm_sum(&header[4..]);
    header[..4].copy_from_slice(&sum);
    image.write(4096, &header);
    assert!(reason(&surveyed(&image), what).contains("not finished"));
    image.write(0, &sound);
    assert_eq!(surveyed(&image), areas);
}

#[test]
fn extents_of_a_striped_volume_are_in_use_as_lvm_itself_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    empty(&path, 200 << 20);
    let expected = {
        let device = Loop::new(&path);
        let run = |arguments: &[&str]| drop(lvm(&[&device], arguments));
        run(&["pvcreate", &device.0]);
        run(&["vgcreate", "vg", &device.0]);
        run(&[&LVCREATE[..], &["gone", "-L", "12M", "vg"]].concat());
        let stripes = ["-i", "2", "-I", "64k", "--alloc", "anywhere", "vg"];
        run(&[&LVCREATE[..], &["both", "-L", "40M"], &stripes].concat());
        run(&[&LVCREATE[..], &["behind", "-L", "8M", "vg"]].concat());
        run(&[&LVCREATE[..], &["more", "-L", "24M"], &stripes].concat());
        run(&["lvremove", "-f", "vg/gone"]);
        run(&["lvremove", "-f", "vg/behind"]);
        by_pvs(&device)
    };
    let striped = |name: &str| expected.iter().filter(|(of, _)| of == name).count();
    assert!(striped("both") >= 2 && striped("more") >= 2 && striped("") >= 2, "{expected:?}");
    let image = Image::open(&path);
    let areas = surveyed(&image);
    for (name, range) in &expected {
        let inside: Vec<&Area> = areas
            .iter()
            .filter(|area| area.start.0 < range.end && range.start < area.start.0 + area.len)
            .collect();
        if name.is_empty() {
            let free: u64 = inside.iter().map(|area| area.free.bytes()).sum();
            assert_eq!(free, range.end - range.start, "{range:?}: {inside:?}");
            continue;
        }
        let what = format!("unknown content on vg/{name} on the disk");
        let whole: u64 = inside.iter().map(|area| area.len).sum();
        assert_eq!(whole, range.end - range.start, "{range:?}: {inside:?}");
        for area in inside {
            assert_eq!(area.what.to_string(), what);
            assert_eq!(area.free, Free::Left("the volume is striped".into()));
        }
    }
    let free: u64 = areas.iter().map(|area| area.free.bytes()).sum();
    let unused = expected.iter().filter(|(name, _)| name.is_empty());
    assert_eq!(free, unused.map(|(_, range)| range.end - range.start).sum::<u64>());
}

#[test]
fn a_group_on_two_disks_and_a_volume_without_a_group_are_left_whole() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| dir.path().join(name));
    let images = paths.clone().map(|path| empty(&path, 64 << 20));
    let devices = [Loop::new(&paths[0]), Loop::new(&paths[1])];
    let both = [&devices[0], &devices[1]];
    for device in both {
        lvm(&both, &["pvcreate", &device.0]);
    }
    ran(Command::new("sync").args(&paths));
    let said = reason(&surveyed(&images[0]), "LVM2 on the disk");
    assert!(said.contains("outside of its area") || said.contains("no volume group"), "{said}");
    lvm(&both, &["vgcreate", "vg", &devices[0].0, &devices[1].0]);
    for image in &images {
        let said = reason(&surveyed(image), "LVM2 on the disk");
        assert!(said.contains("several physical volumes"), "{said}");
    }
    lvm(&both, &["vgreduce", "vg", &devices[1].0]);
    let free = known(&surveyed(&images[0]));
    assert_eq!(free, [1 << 20..61 << 20]);
    lvm(&both, &["vgextend", "vg", &devices[1].0]);
    lvm(&both, &["vgreduce", "vg", &devices[0].0]);
    assert_eq!(known(&surveyed(&images[1])), [1 << 20..61 << 20]);
}

#[test]
fn what_is_not_read_is_left_by_its_name_and_two_marks_are_no_mark() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    empty(&path, 320 << 20);
    tool("mkfs.xfs", &["-q", "-f"], &path);
    assert!(reason(&surveyed(&Image::open(&path)), "XFS on the disk").contains("not read here"));
    for (at, mark, what) in [
        (0, &b"LUKS\xba\xbe"[..], "LUKS on the disk"),
        (0x1_0040, b"_BHRfS_M", "btrfs on the disk"),
        (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID on the disk"),
        (0, b"nothing", "unknown content on the disk"),
    ] {
        let image = empty(&path, 8 << 20);
        image.write(at, mark);
        assert!(!reason(&surveyed(&image), what).is_empty());
    }
    let image = Image::make(&path, 32 << 20, &["-t", "ext4"], None);
    whole(&surveyed(&image), "ext4");
    image.write((32 << 20) - 8192, b"\xfc\x4e\x2b\xa9");
    assert!(reason(&surveyed(&image), "unknown content on the disk").contains("ext4 and of Linux RAID"));
    for size in [1, 511, 512, 1024, 1080] {
        let areas = surveyed(&Memory(vec![0xee; size]));
        assert!(areas.len() == 1 && areas[0].free.bytes() == 0, "{size}");
    }
    assert!(surveyed(&Memory(Vec::new())).is_empty());
}

#[test]
fn a_guest_that_sleeps_keeps_all_of_its_filesystems() {
    let dir = tempfile::tempdir().unwrap();
    let image = gpt(dir.path());
    assert!(surveyed(&image).iter().filter(|area| matches!(area.free, Free::Known(_))).count() > 5);
    image.write((65 << 20) + 4086, b"S1SUSPEND\0");
    let areas = surveyed(&image);
    for area in areas.iter().filter(|area| area.what.to_string().contains(" on ")) {
        let Free::Left(reason) = &area.free else { panic!("{area:?}") };
        assert!(reason.contains("memory on partition 2"), "{reason}");
    }
    assert_eq!(areas[4].free, Free::Known(vec![73 << 20..80 << 20]), "no filesystem has it");
}

#[test]
fn flipped_bytes_end_in_an_answer_and_never_free_more_than_there_was() {
    let dir = tempfile::tempdir().unwrap();
    let swap = dir.path().join("swap");
    empty(&swap, 2 << 20);
    tool("mkswap", &[], &swap);
    let mut disks = vec![("swap", swap)];
    for (name, size, arguments) in
        [FATS[0], ("FAT16", 9 << 20, &["-F", "16"][..]), ("FAT32", 36 << 20, &["-F", "32", "-s", "1"])]
    {
        disks.push((name, fat(&dir.path().join(name), size, arguments, 5).0.path));
    }
    let inner = dir.path().join("ntfs");
    fs::create_dir(&inner).unwrap();
    disks.push(("NTFS", ntfs(&inner, 6 << 20, &[], |_| ()).0.path));
    disks.push(("LVM2", lvm_disk(dir.path()).path));
    let first = seed_from_environment().unwrap_or(1);
    println!("seeds from {first} on");
    disks.par_iter().for_each(|(name, path)| {
        let mut disk = Memory(fs::read(path).unwrap());
        let sound = known(&surveyed(&disk));
        let start = disk.0.len().min(1 << 20);
        let full: Vec<usize> = (0..start).filter(|at| disk.0[*at] != 0).collect();
        let (mut left, mut more) = (0, Vec::new());
        for seed in first..first + 1500 {
            let mut rng = Rng::new(seed);
            let early = if rng.chance(60) { 500.min(full.len()) } else { full.len() };
            let at = full[rng.below(early as u64) as usize];
            let old = disk.0[at];
            disk.0[at] ^= 1 << rng.below(8);
            let areas = surveyed(&disk);
            left += u32::from(areas.iter().any(|area| matches!(area.free, Free::Left(_))));
            if !is_within(&known(&areas), &sound) {
                more.push((seed, at));
            }
            disk.0[at] = old;
        }
        println!("{name}: {left} of 1500 were left");
        assert!(more.is_empty(), "{name}: more is free after a flip (seed, byte): {more:?}");
    });
}
