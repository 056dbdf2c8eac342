//! FAT filesystems: what is read is what mtools wrote, and what is written mtools reads and `fsck.vfat` finds clean.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod ext;
    pub mod fat;
    pub mod rng;
}

use common::ext::run;
use common::fat::{Fat, Files};
use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::guestfs::fat::{
    ATTRIBUTES, Content, Fat as Reader, Stamps, Supply, Target, Tree, Wanted, fold, rewrite,
};
use cowshed::{Kind, Result};
use std::collections::BTreeMap;

/// KiB and options of `mkfs.vfat`: each width, small and large clusters and sectors.
const KINDS: [(u64, &[&str]); 6] = [
    (512, &["-F", "12"]),
    (2048, &["-F", "12", "-s", "8", "-f", "1"]),
    (8192, &["-F", "16", "-s", "2", "-n", "LABEL"]),
    (8192, &["-F", "16", "-S", "1024", "-s", "1"]),
    (40_960, &["-F", "32", "-s", "1", "-n", "ESP"]),
    (40_960, &["-F", "32", "-s", "1", "-f", "1", "-R", "40"]),
];
const NAMES: [&str; 14] = [
    "EFI",
    "BOOT",
    "BOOTX64.EFI",
    "grub.cfg",
    "a long name.txt",
    "a long name 2.txt",
    "a long nap.txt",
    "Mixed.Cfg",
    "ALONGN~1.TXT",
    "zwei Wörter",
    "日本語.bin",
    ".hidden",
    "shimx64.efi",
    "thirteen.char",
];

fn read(fat: &Fat) -> Result<(Files, Tree)> {
    let reader = Reader::open(fat)?;
    let tree = reader.tree()?;
    let mut files = Files::new();
    for (number, item) in tree.items.iter().enumerate().skip(1) {
        let content = (!item.is_folder).then(|| {
            let mut bytes = vec![0; item.size as usize];
            reader.read(item, 0, &mut bytes).unwrap();
            // Pieces say the same as all of it.
            for at in (0..bytes.len()).step_by(777) {
                let mut piece = vec![0; 777.min(bytes.len() - at)];
                reader.read(item, at as u64, &mut piece).unwrap();
                assert_eq!(piece, bytes[at..at + piece.len()]);
            }
            bytes
        });
        files.insert(path(&tree, number), content);
    }
    Ok((files, tree))
}

fn path(tree: &Tree, number: usize) -> String {
    let item = &tree.items[number];
    if item.folder == 0 { item.name.clone() } else { format!("{}/{}", path(tree, item.folder), item.name) }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// Changes a few files and folders.
fn change(files: &mut Files, rng: &mut Rng, largest: u64) {
    for _ in 0..rng.between(1, 6) {
        let folders: Vec<String> = std::iter::once(String::new())
            .chain(files.iter().filter(|(_, content)| content.is_none()).map(|(path, _)| path.clone()))
            .collect();
        let above = rng.pick(&folders).clone();
        let name = *rng.pick(&NAMES);
        let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
        if path.matches('/').count() > 4 {
            continue;
        }
        let known = files.keys().find(|known| fold(known) == fold(&path)).cloned();
        match (known, rng.below(4)) {
            (Some(known), 0) => {
                files.retain(|path, _| *path != known && !path.starts_with(&format!("{known}/")));
            }
            (Some(known), _) => {
                if let Some(Some(content)) = files.get_mut(&known) {
                    let len = rng.below(largest) as usize;
                    *content = rng.bytes(len);
                }
            }
            (None, 0) => drop(files.insert(path, None)),
            (None, _) => {
                let len = if rng.chance(10) { 0 } else { rng.below(largest) };
                files.insert(path, Some(rng.bytes(len as usize)));
            }
        }
    }
}

struct Source(Vec<Vec<u8>>);

impl Supply for Source {
    fn fill(&self, item: usize, at: u64, buf: &mut [u8]) -> Result<()> {
        buf.copy_from_slice(&self.0[item][at as usize..at as usize + buf.len()]);
        Ok(())
    }
}

/// `files` as the target of a change of `tree`, which holds `before`. What is the same stays.
fn target(tree: &Tree, before: &Files, files: &Files, rng: &mut Rng) -> (Target, Source) {
    let known: BTreeMap<String, usize> = (0..tree.items.len()).map(|at| (path(tree, at), at)).collect();
    let root = Wanted {
        name: String::new(),
        folder: 0,
        is_folder: true,
        old: Some(0),
        attributes: 0,
        stamps: Stamps::default(),
        content: Content::Kept,
    };
    let (mut target, mut source) = (Target { items: vec![root] }, Source(vec![Vec::new()]));
    let mut numbers = BTreeMap::from([(String::new(), 0)]);
    // A folder's path is less than those of what is in it.
    for (path, content) in files {
        let folder = numbers[parent(path)];
        let old = known.get(path).copied().filter(|at| {
            tree.items[*at].is_folder == content.is_none()
                && target.items[folder].old == Some(tree.items[*at].folder)
        });
        let same = old.is_some() && before.get(path) == Some(content);
        let fresh = Stamps {
            created: 0x5921_6000,
            hundredths: 7,
            accessed: 0x5921,
            modified: 0x5922_0000 | rng.below(30) as u32,
        };
        let (stamps, attributes) = match old.filter(|_| same && rng.chance(90)) {
            Some(at) => (tree.items[at].stamps, tree.items[at].attributes & ATTRIBUTES),
            None => (fresh, rng.below(8) as u8),
        };
        numbers.insert(path.clone(), target.items.len());
        target.items.push(Wanted {
            name: path.rsplit('/').next().unwrap().to_owned(),
            folder,
            is_folder: content.is_none(),
            old,
            attributes,
            stamps,
            content: match content {
                Some(bytes) if !same => Content::New(bytes.len() as u32),
                _ => Content::Kept,
            },
        });
        source.0.push(content.clone().unwrap_or_default());
    }
    (target, source)
}

#[test]
fn what_mtools_wrote_is_read_and_what_is_written_mtools_reads() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    for (at, (kib, options)) in KINDS.into_iter().enumerate() {
        let mut rng = Rng::new(seed.wrapping_add(at as u64));
        let mut fat = Fat::new(kib, options);
        let mut files = Files::new();
        (0..3).for_each(|_| change(&mut files, &mut rng, kib * 20));
        fat.fill(&files);
        for round in 0..8 {
            let context = format!("seed {seed} {options:?} round {round}");
            let (read, tree) = read(&fat).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(read.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>(), "{context}");
            assert!(read == files, "{context}: other content");
            change(&mut files, &mut rng, kib * 20);
            let (target, source) = target(&tree, &read, &files, &mut rng);
            let new = fat.copy();
            let reader = Reader::open(&fat).unwrap();
            rewrite(&new, &reader, &tree, &target, &source)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            new.assert_clean(&context);
            assert!(new.files() == files, "{context}: mtools reads other files");
            fat = new;
        }
    }
}

#[test]
fn attributes_and_times_are_those_of_mtools_and_stay_with_what_is_not_changed() {
    let fat = Fat::new(512, &["-F", "12", "-n", "NAME"]);
    fat.make_folder("EFI");
    fat.put("EFI/Some File.txt", b"text");
    run(fat.mtools("mattrib").args(["+r", "+h", "::/EFI/Some File.txt"]));
    let (before, tree) = read(&fat).unwrap();
    let item = tree.items.iter().find(|item| item.name == "Some File.txt").unwrap();
    assert_eq!(item.attributes & ATTRIBUTES, 3);
    assert_eq!(item.attributes & 0x20, 0x20);
    assert!(item.stamps.modified >> 25 >= 40, "after 2020");
    let mut files = before.clone();
    files.insert("EFI/added".to_owned(), Some(b"more".to_vec()));
    let new = fat.copy();
    let (mut target, source) = target(&tree, &before, &files, &mut Rng::new(1));
    for wanted in target.items.iter_mut().skip(1) {
        if let Some(old) = wanted.old {
            (wanted.stamps, wanted.attributes) =
                (tree.items[old].stamps, tree.items[old].attributes & ATTRIBUTES);
        }
    }
    rewrite(&new, &Reader::open(&fat).unwrap(), &tree, &target, &source).unwrap();
    let (_, after) = read(&new).unwrap();
    let found = after.items.iter().find(|item| item.name == "Some File.txt").unwrap();
    assert_eq!((found.attributes, found.stamps), (item.attributes, item.stamps));
    let label = run(new.mtools("mlabel").arg("-s").arg("::"));
    assert!(String::from_utf8_lossy(&label.stdout).contains("NAME"), "{label:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let fat = Fat::new(512, &["-F", "12", "-r", "32"]);
    let (before, tree) = read(&fat).unwrap();
    let refused = |files: Files, why: &str| {
        let (target, source) = target(&tree, &before, &files, &mut Rng::new(1));
        let error = rewrite(&fat.copy(), &Reader::open(&fat).unwrap(), &tree, &target, &source).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(Files::from([("large".to_owned(), Some(vec![1; 600 << 10]))]), "no room");
    refused((0..40).map(|n| (format!("N{n}"), Some(Vec::new()))).collect(), "no more names");
}

/// A FAT16 with a long name, a folder with a file, and two files in the root.
fn sample() -> Fat {
    let fat = Fat::new(4096, &["-F", "16", "-s", "1"]);
    fat.put("ONE.BIN", &[1; 3000]);
    fat.put("TWO.BIN", &[2; 3000]);
    fat.make_folder("EFI");
    fat.put("EFI/three words.txt", &[3; 700]);
    fat
}

/// Where the tables, the root folder and the data of a sample begin.
fn places(fat: &Fat) -> [u64; 4] {
    let boot = std::fs::read(fat.path()).unwrap();
    let number = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
    let (table, len) = (number(14) * 512, number(22) * 512);
    let root = table + 2 * len;
    [table, table + len, root, root + number(17) * 32]
}

#[test]
fn what_is_not_in_order_is_refused_by_name() {
    type Change = fn(&Fat, [u64; 4]);
    /// Makes entry `entry` of both tables `next`.
    fn link(fat: &Fat, [first, second, ..]: [u64; 4], entry: u64, next: u16) {
        for table in [first, second] {
            fat.poke(table + entry * 2, |_| next as u8);
            fat.poke(table + entry * 2 + 1, |_| (next >> 8) as u8);
        }
    }
    let cases: [(&str, Change); 15] = [
        ("its tables differ", |fat, at| fat.poke(at[1] + 8, |byte| byte ^ 1)),
        ("was not unmounted", |fat, _| fat.poke(37, |byte| byte | 1)),
        ("was not unmounted", |fat, at| {
            fat.poke(at[0] + 3, |byte| byte & 0x7f);
            fat.poke(at[1] + 3, |byte| byte & 0x7f);
        }),
        ("belongs to two files", |fat, at| link(fat, at, 4, 2)),
        ("belongs to two files", |fat, at| link(fat, at, 10, 4)),
        ("leads outside", |fat, at| link(fat, at, 3, 0x7000)),
        ("leads into free or bad ones", |fat, at| link(fat, at, 3, 0)),
        ("leads into free or bad ones", |fat, at| link(fat, at, 3, 0xfff7)),
        ("in use that no file has", |fat, at| link(fat, at, 4000, 0xffff)),
        ("more bytes than clusters", |fat, at| fat.poke(at[2] + 29, |byte| byte + 2)),
        ("more clusters than bytes", |fat, at| fat.poke(at[2] + 29, |byte| byte - 2)),
        ("two files have one name", |fat, at| {
            for (place, byte) in (at[2] + 32..).zip(*b"ONE") {
                fat.poke(place, |_| byte);
            }
        }),
        ("does not name itself", |fat, at| fat.poke(at[3] + 12 * 512 + 26, |byte| byte + 1)),
        ("does not belong to its short one", |fat, at| {
            fat.poke(at[3] + 12 * 512 + 2 * 32 + 13, |byte| byte ^ 1)
        }),
        ("a short name breaks its format", |fat, at| fat.poke(at[2], |_| b'o')),
    ];
    let sample = sample();
    assert!(read(&sample).is_ok());
    for (why, change) in cases {
        let fat = sample.copy();
        change(&fat, places(&fat));
        let error = read(&fat).map(|(files, _)| files.len()).expect_err(why);
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert_ne!(error.kind(), Kind::Invalid, "{error}");
    }
}

#[test]
fn damage_anywhere_ends_in_an_answer_or_a_sentence() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    for sample in [sample(), Fat::new(40_960, &["-F", "32", "-s", "1"])] {
        let boot = std::fs::read(sample.path()).unwrap();
        let used: Vec<u64> = boot
            .chunks(512)
            .zip(0..)
            .filter(|(sector, _)| sector.iter().any(|byte| *byte != 0))
            .map(|pair| pair.1)
            .collect();
        let mut read_well = 0;
        for _ in 0..400 {
            let at: Vec<(u64, u8)> = (0..rng.between(1, 3))
                .map(|_| (rng.pick(&used) * 512 + rng.below(512), rng.bits() as u8))
                .collect();
            let olds: Vec<u8> = at.iter().map(|(at, _)| boot[*at as usize]).collect();
            at.iter().for_each(|(at, byte)| sample.poke(*at, |_| *byte));
            match read(&sample) {
                Ok(_) => read_well += 1,
                Err(error) => assert!(error.to_string().len() > 10 && error.kind() != Kind::Io, "{error}"),
            }
            at.iter().zip(olds).rev().for_each(|((at, _), old)| sample.poke(*at, |_| old));
        }
        assert!(read_well > 5, "seed {seed}: {read_well}");
        assert!(read(&sample).is_ok());
    }
}

#[test]
fn what_is_no_fat_is_no_fat() {
    let fat = Fat::new(512, &["-F", "12"]);
    for at in [0, 510, 12, 13, 16, 21, 38] {
        let other = fat.copy();
        other.poke(at, |_| 0);
        assert_eq!(Reader::open(&other).map(|_| ()).unwrap_err().kind(), Kind::Invalid, "byte {at}");
    }
}
