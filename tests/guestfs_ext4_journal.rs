//! The journal of an ext4 filesystem, replayed by us, by the kernel and by e2fsck. Needs root, for loop devices.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/ext4/mod.rs"]
mod ext4;
#[path = "common/rng.rs"]
mod rng;

use cowshed::Kind;
use cowshed::guestfs::ext4::{Ext4, Ino, Replayed};
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use ext4::facts::{Tree, assert_same, by_kernel, by_reader};
use ext4::{Image, Mount, is_clean, ran};
use rng::Rng;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// Filesystems and how they are mounted, for each kind of journal.
const JOURNALS: [(&str, &[&str], &str); 9] = [
    ("checksums", &["-t", "ext4"], "rw"),
    ("1 KiB", &["-t", "ext4", "-b", "1024"], "rw"),
    ("32 bits", &["-t", "ext4", "-O", "^64bit"], "rw"),
    ("ext3", &["-t", "ext3", "-b", "1024"], "rw"),
    ("no checksums", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"], "rw"),
    ("data in the journal", &["-t", "ext4"], "rw,data=journal"),
    (
        "data in a journal without checksums",
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
        "rw,data=journal",
    ),
    ("checksums over transactions", &["-t", "ext4", "-O", "^metadata_csum"], "rw,journal_checksum"),
    ("asynchronous", &["-t", "ext4", "-b", "1024"], "rw,data=writeback,journal_async_commit"),
];

/// What a guest does before its host dies: files made durable one by one, and removals between them.
fn work(dir: &Path) {
    let mut rng = Rng::new(3);
    for number in 0..60 {
        let mut content = rng.bytes(20_000 + number * 37);
        // What the journal's own blocks start with has to be disguised in it.
        content[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        let mut file = File::create(dir.join(format!("file {number}"))).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        let old = dir.join(format!("old {}", number % 4));
        if number % 4 == 0 {
            // Blocks of folders and of their indexes are taken back from the journal.
            for number in 0..4 {
                let _ = fs::remove_dir_all(dir.join(format!("old {number}")));
            }
        }
        fs::create_dir_all(&old).unwrap();
        for name in 0..30 {
            fs::write(old.join(format!("{name} with some more letters in its name")), b"x").unwrap();
        }
        File::open(dir).unwrap().sync_all().unwrap();
    }
}

/// The filesystem as it stands on the disk while the kernel has it mounted.
/// What `work` returns is kept as long as it is.
fn dirty<K>(arguments: &[&str], options: &str, dir: &Path, work: impl Fn(&Path) -> K) -> Image {
    let image = Image::make(&dir.join("image"), 64 << 20, arguments, None);
    let mount = Mount::new(&image.path, dir.join("live"), options);
    let kept = work(&mount.0);
    let copy = image.copy(&dir.join("dirty"));
    drop(kept);
    drop(mount);
    copy
}

fn after_a_mount(image: &Image, dir: &Path) -> Tree {
    let copy = image.copy(&dir.join("mounted"));
    let mount = Mount::new(&copy.path, dir.join("seen"), "rw,noatime");
    by_kernel(&mount.0)
}

#[test]
fn a_replayed_journal_shows_what_a_mount_shows() {
    use rayon::prelude::*;
    JOURNALS.par_iter().for_each(|(name, arguments, options)| {
        let dir = tempfile::tempdir().unwrap();
        let image = dirty(arguments, options, dir.path(), work);
        let before = fs::read(&image.path).unwrap();
        let stale = Ext4::open(&image).unwrap();
        assert!(stale.state().needs_recovery && !stale.state().is_clean(), "{name}");
        assert_eq!(stale.free(|_| Ok(())).unwrap_err().kind(), Kind::Busy);
        let replayed = Replayed::open(&image).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(replayed.transactions() > 3, "{name}: {}", replayed.transactions());
        let filesystem = Ext4::open(&replayed).unwrap();
        assert!(filesystem.state().is_clean(), "{name}: {:?}", filesystem.state());
        let (ours, theirs) = (by_reader(&filesystem), after_a_mount(&image, dir.path()));
        assert_eq!(ours.keys().filter(|name| name.starts_with(b"file ")).count(), 60, "{name}");
        assert_same(&ours, &theirs, name);
        filesystem.free(|_| Ok(())).unwrap();
        // Who writes the blocks has a sound filesystem.
        let copy = image.copy(&dir.path().join("written"));
        for (block, data) in replayed.written() {
            copy.write(block.0 * replayed.block_size(), data);
        }
        is_clean(&copy);
        let again = Replayed::open(&copy).unwrap();
        assert_eq!((again.written().len(), again.transactions()), (0, 0));
        assert_same(&by_reader(&Ext4::open(&copy).unwrap()), &theirs, name);
        assert!(fs::read(&image.path).unwrap() == before, "{name}: the disk was written");
    });
}

/// A file that has lost its only name while it is open.
fn removed(path: &Path) -> File {
    let mut file = File::create(path).unwrap();
    file.write_all(&[5; 9000]).unwrap();
    file.sync_all().unwrap();
    fs::remove_file(path).unwrap();
    file
}

#[test]
fn orphans_are_reported_wherever_they_are_listed() {
    for options in ["^orphan_file", "orphan_file"] {
        let dir = tempfile::tempdir().unwrap();
        let gone = RefCell::new(BTreeSet::new());
        let image = dirty(&["-t", "ext4", "-O", options], "rw", dir.path(), |dir| {
            let files: Vec<File> =
                (0..5).map(|number| removed(&dir.join(format!("gone {number}")))).collect();
            let numbers =
                files.iter().map(|file| Ino(u32::try_from(file.metadata().unwrap().ino()).unwrap()));
            gone.borrow_mut().extend(numbers);
            File::open(dir).unwrap().sync_all().unwrap();
            files
        });
        let replayed = Replayed::open(&image).unwrap();
        let filesystem = Ext4::open(&replayed).unwrap();
        assert!(filesystem.state().orphans && !filesystem.state().is_clean());
        assert_eq!(filesystem.orphans().unwrap(), *gone.borrow(), "{options}");
    }
}

/// Logs that debugfs writes, one request a line, and how many blocks a replay writes.
const LOGS: [(&str, &[&str], u32); 8] = [
    ("one", &["jw -b 5000-5003 DATA"], 4),
    ("two", &["jw -b 5000-5003 DATA", "jw -b 5002,6000 MAGIC"], 5),
    ("without an end", &["jw -b 5000-5003 DATA", "jw -b 6000-6001 -c DATA"], 4),
    ("revoked later", &["jw -b 5000-5003 DATA", "jw -b 6000 -r 5001 DATA"], 4),
    ("revoked and written again", &["jw -b 5000-5003 DATA", "jw -r 5001,5002", "jw -b 5002 MAGIC"], 3),
    ("revoked without an end", &["jw -b 5000-5003 DATA", "jw -c -r 5001"], 4),
    ("revoked in the same", &["jw -b 5000-5003 -r 5001 DATA"], 3),
    ("disguised", &["jw -b 5000-5007 MAGIC"], 8),
];

#[test]
fn logs_are_replayed_as_e2fsck_replays_them() {
    let journals: [(&[&str], &str); 5] = [
        (&["-t", "ext4", "-b", "1024"], "jo -c"),
        (&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], "jo"),
        (&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], "jo -c -v 2"),
        (&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"], "jo -c -v 2"),
        (&["-t", "ext3", "-b", "1024"], "jo -c -v 3"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (data, magic) = (dir.path().join("data"), dir.path().join("magic"));
    fs::write(&data, Rng::new(1).bytes(16 << 10)).unwrap();
    let block = [&[0xc0, 0x3b, 0x39, 0x98][..], &Rng::new(2).bytes(1020)].concat();
    fs::write(&magic, block.repeat(16)).unwrap();
    let mut refused = 0;
    for (arguments, open) in journals {
        for (name, log, expected) in LOGS {
            let image = Image::make(&dir.path().join("image"), 16 << 20, arguments, None);
            let requests: String =
                [&[open], log, &["jc"]].concat().iter().map(|line| format!("{line}\n")).collect();
            let requests =
                requests.replace("DATA", data.to_str().unwrap()).replace("MAGIC", magic.to_str().unwrap());
            let file = dir.path().join("requests");
            fs::write(&file, requests).unwrap();
            ran(Command::new("debugfs").args(["-w", "-f"]).arg(&file).arg(&image.path));
            let place = format!("{open}: {name}");
            let copy = image.copy(&dir.path().join("copy"));
            let done = Command::new("e2fsck").args(["-fy", copy.text()]).output().unwrap();
            assert!(matches!(done.status.code(), Some(0 | 1)), "{place}: {done:?}");
            let is_refused =
                String::from_utf8_lossy(&done.stdout).contains("was corrupt, replay was aborted");
            let replayed = match Replayed::open(&image) {
                Ok(replayed) => replayed,
                Err(error) => {
                    // The checksum that debugfs gives to a transaction leaves out what it revokes.
                    assert!(is_refused && error.to_string().contains("checksum"), "{place}: {error}");
                    println!("{place}: refused by both");
                    refused += 1;
                    continue;
                }
            };
            assert!(!is_refused, "{place}");
            let copy = Image::open(&copy.path);
            let (mut ours, mut theirs) = ([0; 1024], [0; 1024]);
            let mut written = 0_u32;
            for block in (4990..5020).chain(5990..6010) {
                replayed.read(&mut ours, GuestOffset(block * 1024)).unwrap();
                copy.read(&mut theirs, GuestOffset(block * 1024)).unwrap();
                assert!(ours == theirs, "{place}: block {block}");
                written += u32::from(ours != [0; 1024]);
            }
            assert_eq!(written, expected, "{place}");
        }
    }
    assert!(refused <= 9, "{refused} logs were refused");
}

#[test]
fn a_committed_transaction_that_does_not_match_is_damage_and_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let image = dirty(&["-t", "ext4"], "rw", dir.path(), work);
    let filesystem = Ext4::open(&image).unwrap();
    let journal = filesystem.inode(Ino(8)).and_then(|inode| filesystem.extents(&inode)).unwrap();
    let size = filesystem.superblock().block_size;
    let mut start = [0; 4];
    image.read(&mut start, GuestOffset(journal[0].physical.0 * size + 0x1c)).unwrap();
    let start = u64::from(u32::from_be_bytes(start));
    assert!(start < journal[0].blocks);
    let at = (journal[0].physical.0 + start) * size;
    for inside in [20, size + 50] {
        let mut byte = [0];
        image.read(&mut byte, GuestOffset(at + inside)).unwrap();
        image.write(at + inside, &[byte[0] ^ 1]);
        let error = Replayed::open(&image).map(drop).unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains("checksum"), "{error}");
        image.write(at + inside, &byte);
    }
    // A log whose first block is none of it is empty.
    image.write(at, &[0; 4]);
    assert_eq!(Replayed::open(&image).unwrap().transactions(), 0);
}

#[test]
fn fast_commits_are_refused_and_an_unused_area_for_them_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["-t", "ext4", "-O", "fast_commit"];
    let image = dirty(&arguments, "rw", dir.path(), |dir| {
        for number in 0..8 {
            let mut file = File::create(dir.join(format!("file {number}"))).unwrap();
            file.write_all(&[1; 5000]).unwrap();
            file.sync_all().unwrap();
        }
    });
    let error = Replayed::open(&image).map(drop).unwrap_err();
    assert!(error.kind() == Kind::Unsupported && error.to_string().contains("fast commits"), "{error}");
    let image = dirty(&arguments, "rw", dir.path(), |dir| {
        fs::write(dir.join("file"), [1; 5000]).unwrap();
        // Everything is committed in full.
        nix::unistd::sync();
        fs::create_dir(dir.join("folder")).unwrap();
        nix::unistd::sync();
    });
    let replayed = Replayed::open(&image).unwrap();
    let tree = by_reader(&Ext4::open(&replayed).unwrap());
    assert_same(&tree, &after_a_mount(&image, dir.path()), "fast_commit");
}

/// Castagnoli's polynomial, bit by bit: no code of ours, nor a library.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 },
        )
    })
}

fn be(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Makes a journal whose blocks have checksums of the third kind one that has them of the second, as kernels before 3.18
/// wrote them: half of each sum, in smaller tags. How many tags it has.
fn second_kind(image: &Image) -> usize {
    let filesystem = Ext4::open(image).unwrap();
    let extents = filesystem.inode(Ino(8)).and_then(|inode| filesystem.extents(&inode)).unwrap();
    let size = filesystem.superblock().block_size;
    let place = |number: u64| {
        let extent = extents.iter().find(|extent| (extent.logical..extent.logical_end()).contains(&number));
        extent.map(|extent| (extent.physical.0 + number - extent.logical) * size).unwrap()
    };
    let read = |number: u64| {
        let mut block = vec![0; size as usize];
        image.read(&mut block, GuestOffset(place(number))).unwrap();
        block
    };
    let mut head = read(0);
    let (first, end, start) = (be(&head, 0x14), be(&head, 0x10), be(&head, 0x1c));
    let (mut sequence, features) = (be(&head, 0x18), be(&head, 0x28));
    assert_eq!(features & 0x18, 0x10, "{features:#x}");
    assert!(start != 0);
    let (wide, seed) = (features & 2 != 0, crc32c(!0, &head[0x30..0x40]));
    head[0x28..0x2c].copy_from_slice(&(features ^ 0x18).to_be_bytes());
    head[0xfc..0x100].fill(0);
    let sum = crc32c(!0, &head[..1024]);
    head[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
    image.write(place(0), &head);
    let next = |number: u32| if number + 1 == end { first } else { number + 1 };
    let (mut number, mut count) = (start, 0);
    loop {
        let old = read(u64::from(number));
        if be(&old, 0) != 0xc03b_3998 || be(&old, 8) != sequence {
            return count;
        }
        let (here, kind) = (number, be(&old, 4));
        number = next(number);
        if kind == 2 {
            sequence += 1;
        }
        if kind != 1 {
            continue;
        }
        // The header stays, tags follow, and the sum over all of it is the end.
        let mut new = old[..12].to_vec();
        let mut at = 12;
        loop {
            let (flags, sum) = (be(&old, at + 4), be(&old, at + 12));
            new.extend_from_slice(&old[at..at + 4]);
            new.extend_from_slice(&(sum as u16).to_be_bytes());
            new.extend_from_slice(&(flags as u16).to_be_bytes());
            if wide {
                new.extend_from_slice(&old[at + 8..at + 12]);
            }
            // The tag has two bytes more that mean nothing.
            new.extend_from_slice(&[0; 2]);
            at += 16;
            if flags & 2 == 0 {
                new.extend_from_slice(&old[at..at + 16]);
                at += 16;
            }
            let mut data = read(u64::from(number));
            // Both kinds of sums are over the block as it stands in the log.
            assert_eq!(crc32c(crc32c(seed, &sequence.to_be_bytes()), &data), sum);
            data.clear();
            number = next(number);
            count += 1;
            if flags & 8 != 0 {
                break;
            }
        }
        new.resize(old.len(), 0);
        let end = new.len() - 4;
        let sum = crc32c(seed, &new);
        new[end..].copy_from_slice(&sum.to_be_bytes());
        image.write(place(u64::from(here)), &new);
    }
}

#[test]
fn a_journal_with_checksums_of_the_second_kind_is_replayed_as_the_kernel_and_e2fsck_do() {
    for arguments in [&["-t", "ext4"][..], &["-t", "ext4", "-b", "1024", "-O", "^64bit"]] {
        let dir = tempfile::tempdir().unwrap();
        let image = dirty(arguments, "rw", dir.path(), work);
        let third = by_reader(&Ext4::open(Replayed::open(&image).unwrap()).unwrap());
        let tags = second_kind(&image);
        assert!(tags > 100, "{tags}");
        let context = format!("{arguments:?}");
        let replayed = Replayed::open(&image).unwrap();
        assert!(replayed.transactions() > 3);
        let ours = by_reader(&Ext4::open(&replayed).unwrap());
        assert_same(&ours, &third, &context);
        assert_same(&ours, &after_a_mount(&image, dir.path()), &context);
        let mended = image.copy(&dir.path().join("mended"));
        let done = Command::new("e2fsck").args(["-fy", mended.text()]).output().unwrap();
        assert!(matches!(done.status.code(), Some(0 | 1)), "{done:?}");
        assert!(!String::from_utf8_lossy(&done.stdout).contains("corrupt"), "{done:?}");
        assert_same(&ours, &by_reader(&Ext4::open(&mended).unwrap()), &context);
        // Who writes the blocks has a sound filesystem, and an empty journal whose own sum is right.
        let copy = image.copy(&dir.path().join("written"));
        for (block, data) in replayed.written() {
            copy.write(block.0 * replayed.block_size(), data);
        }
        is_clean(&copy);
        // One bit of a block in the log, and it is damage for both.
        let filesystem = Ext4::open(&image).unwrap();
        let journal = filesystem.inode(Ino(8)).and_then(|inode| filesystem.extents(&inode)).unwrap();
        let size = filesystem.superblock().block_size;
        let mut start = [0; 4];
        image.read(&mut start, GuestOffset(journal[0].physical.0 * size + 0x1c)).unwrap();
        let at = (journal[0].physical.0 + u64::from(u32::from_be_bytes(start)) + 1) * size + 77;
        let mut byte = [0];
        image.read(&mut byte, GuestOffset(at)).unwrap();
        image.write(at, &[byte[0] ^ 1]);
        let error = Replayed::open(&image).map(drop).unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains("checksum"), "{error}");
        let broken = image.copy(&dir.path().join("broken"));
        let done = Command::new("e2fsck").args(["-fy", broken.text()]).output().unwrap();
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(said.contains("corrupt") || said.contains("checksum"), "{said}");
    }
}
