//! Our reader of ext2, ext3 and ext4 beside the kernel and e2fsprogs. Needs root, for loop devices.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/ext4/mod.rs"]
mod ext4;
#[path = "common/rng.rs"]
mod rng;

use cowshed::Kind;
use cowshed::guestfs::ext4::{Ext4, Feature, FileKind, Ino, Inode, Run, flags};
use cowshed::guestfs::partitions::Bytes;
use cowshed::guestfs::{Partition, Time, Window, partitions};
use cowshed::units::GuestOffset;
use ext4::content::{Limits, fill};
use ext4::facts::{Tree, assert_same, by_kernel, by_reader, kernel_data};
use ext4::feature_sets::{BY_MKE2FS, FeatureSet, MOUNTED};
use ext4::{Image, Mount, debugfs, is_clean, ran};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

fn limits(set: &FeatureSet, live: bool) -> Limits {
    let value = if set.name.starts_with("ea_inode") && live { 20_000 } else { set.block.min(4096) * 2 / 3 };
    Limits { block: set.block, names: 4000, value, live }
}

/// A filesystem of that make, filled by the kernel.
fn live(set: &FeatureSet, dir: &Path) -> Image {
    let image = Image::make(&dir.join("image"), set.size << 20, set.arguments, None);
    if set.name == "metadata_csum_seed" {
        // From now on the seed does not follow from the UUID.
        ran(Command::new("tune2fs").args(["-U", "random"]).arg(&image.path));
    }
    let mount = Mount::new(&image.path, dir.join("live"), "rw");
    fill(&mount.0, &limits(set, true));
    drop(mount);
    image
}

/// `compare` for each of `sets`, two at a time.
fn for_each(sets: &[FeatureSet], compare: impl Fn(&FeatureSet, &Path) + Sync) {
    use rayon::prelude::*;
    sets.par_iter().for_each(|set| {
        let dir = tempfile::tempdir().unwrap();
        println!("{}", set.name);
        compare(set, dir.path());
    });
}

#[test]
fn what_the_kernel_wrote_reads_as_the_kernel_and_e2fsprogs_read_it() {
    for_each(MOUNTED, |set, dir| {
        let image = live(set, dir);
        is_clean(&image);
        let filesystem = Ext4::open(&image).unwrap_or_else(|error| panic!("{}: {error}", set.name));
        let tree = by_reader(&filesystem);
        same_tree(&filesystem, &tree, &image, set, dir);
        same_inodes(&filesystem, &tree, &image, set, dir);
        same_free(&image, set.name);
    });
}

fn same_tree(filesystem: &Ext4<&Image>, tree: &Tree, image: &Image, set: &FeatureSet, dir: &Path) {
    let mount = Mount::new(&image.path, dir.join("seen"), "ro,noload,noatime");
    // Holes and unwritten blocks are where the kernel has them, as long as it holds no pages of the files.
    for name in ["sparse", "hole", "torn", "room", "room behind", "len-1048576", "len-0"] {
        let path = mount.0.join(name);
        let ino = Ino(u32::try_from(fs::metadata(&path).unwrap().ino()).unwrap());
        let data = filesystem.inode(ino).and_then(|inode| Ok(filesystem.content(&inode)?.data()));
        assert_eq!(data.unwrap(), kernel_data(&path), "{}: {name}", set.name);
    }
    assert_same(tree, &by_kernel(&mount.0), set.name);
}

#[test]
fn what_mke2fs_wrote_reads_as_the_folder_that_it_was_made_of() {
    for_each(BY_MKE2FS, |set, dir| {
        let source = dir.join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, &limits(set, false));
        let image = Image::make(&dir.join("image"), set.size << 20, set.arguments, Some(&source));
        if set.name == "quota, project" {
            // What mke2fs counted leaves out what it copied.
            let done = Command::new("e2fsck").args(["-fy", image.text()]).output().unwrap();
            assert_eq!(done.status.code(), Some(1), "{done:?}");
        }
        is_clean(&image);
        if set.name == "quota, project" {
            ran(Command::new("debugfs").args(["-w", "-R", "sif /len-60 projid 4711"]).arg(&image.path));
        }
        let filesystem = Ext4::open(&image).unwrap();
        let mut ours = by_reader(&filesystem);
        let projects = same_inodes(&filesystem, &ours, &image, set, dir);
        assert_eq!(
            projects,
            BTreeSet::from_iter([0].into_iter().chain((set.name == "quota, project").then_some(4711)))
        );
        same_free(&image, set.name);
        let mut theirs = by_kernel(&source);
        ours.remove(&b"lost+found"[..]);
        // What a copy does not keep.
        for facts in ours.values_mut().chain(theirs.values_mut()) {
            (facts.ino, facts.sectors, facts.changed, facts.accessed) =
                (0, 0, Time::default(), Time::default());
            facts.modified = Time::default();
            if facts.mode & libc::S_IFMT == libc::S_IFDIR {
                (facts.size, facts.links) = (0, 0);
            }
        }
        // Of the folder itself, and of files that are not regular, mke2fs takes no attributes.
        theirs.get_mut(&b""[..]).unwrap().mode = ours[&b""[..]].mode;
        assert_same(&ours, &theirs, set.name);
    });
}

/// All inodes are found, in order, with what debugfs says of them; their projects.
fn same_inodes(
    filesystem: &Ext4<&Image>,
    tree: &Tree,
    image: &Image,
    set: &FeatureSet,
    dir: &Path,
) -> BTreeSet<u32> {
    let inodes: Vec<Inode> = filesystem.inodes().collect::<Result<_, _>>().unwrap();
    assert!(inodes.windows(2).all(|pair| pair[0].ino < pair[1].ino), "{}", set.name);
    let nameless = nameless(image);
    let own = |inode: &&Inode| inode.ino.0 >= filesystem.superblock().first_inode.0 || inode.ino == Ino::ROOT;
    let is_shown = |inode: &&Inode| inode.flags & flags::EA_INODE == 0 && !nameless.contains(&inode.ino);
    let shown: BTreeSet<u64> =
        inodes.iter().filter(own).filter(is_shown).map(|inode| inode.ino.0.into()).collect();
    assert_eq!(shown, tree.values().map(|facts| facts.ino).collect(), "{}", set.name);
    let has_values = inodes.iter().any(|inode| inode.flags & flags::EA_INODE != 0);
    assert_eq!(has_values, set.name.starts_with("ea_inode"));
    let requests: String = inodes.iter().map(|inode| format!("stat <{}>\n", inode.ino.0)).collect();
    let said = by_debugfs(image, dir, &requests);
    assert_eq!(said.len(), inodes.len());
    for (inode, said) in inodes.iter().zip(said) {
        assert_eq!(Said::of(inode), said, "{}: {}", set.name, inode.ino);
        assert_eq!(filesystem.inode(inode.ino).unwrap(), *inode);
    }
    inodes.iter().map(|inode| inode.project).collect()
}

/// Inodes above the reserved ones that have no name.
fn nameless(image: &Image) -> BTreeSet<Ino> {
    let text = ran(Command::new("dumpe2fs").arg("-h").arg(&image.path));
    let keys = ["Orphan file inode:", "Project quota inode:"];
    let lines = text.lines().filter_map(|line| keys.iter().find_map(|key| line.strip_prefix(key)));
    lines.map(|number| Ino(number.trim().parse().unwrap())).collect()
}

/// What debugfs says of an inode and the kernel does not.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    flags: u32,
    generation: u32,
    project: u32,
    created: Option<Time>,
}

impl Said {
    fn of(inode: &Inode) -> Self {
        let &Inode { flags, generation, project, created, .. } = inode;
        Self { flags, generation, project, created }
    }
}

fn by_debugfs(image: &Image, dir: &Path, requests: &str) -> Vec<Said> {
    let file = dir.join("requests");
    fs::write(&file, requests).unwrap();
    let text = ran(Command::new("debugfs").arg("-f").arg(&file).arg(&image.path));
    text.split("debugfs: stat").skip(1).map(said).collect()
}

/// `Generation: 5  Version: 0x00000000:00000001`, `crtime: 0x68:extra -- date`.
fn said(text: &str) -> Said {
    let behind = |key: &str| {
        let rest = text.split_once(key).map(|(_, rest)| rest.trim_start());
        rest.map(|rest| rest.split_whitespace().next().unwrap().to_string())
    };
    let hex = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let created = behind("crtime: 0x").map(|time| {
        let (low, high) = time.split_once(':').unwrap();
        let (low, high) = (hex(low).cast_signed(), hex(high));
        Time { seconds: i64::from(low) + (i64::from(high & 3) << 32), nanoseconds: high >> 2 }
    });
    Said {
        flags: hex(&behind("Flags: 0x").unwrap()),
        generation: behind("Generation:").unwrap().parse().unwrap(),
        project: behind("Project:").map_or(0, |number| number.parse().unwrap()),
        created,
    }
}

#[test]
fn free_blocks_are_those_that_dumpe2fs_lists() {
    let more = [
        ("many groups", &["-t", "ext4", "-b", "1024", "-g", "1024"][..], 64),
        ("4 GiB", &["-t", "ext4"][..], 4096),
        ("4 GiB, group checksums", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"][..], 4096),
        ("2 GiB, bigalloc", &["-t", "ext4", "-C", "65536", "-O", "bigalloc"][..], 2048),
        ("2 GiB, meta_bg", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"][..], 2048),
        ("odd end", &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"][..], 77),
    ];
    let more = more.map(|(name, arguments, size)| FeatureSet { name, arguments, size, block: 0 });
    let fresh = [MOUNTED, BY_MKE2FS, &more].concat();
    for_each(&fresh, |set, dir| {
        let image = Image::make(&dir.join("image"), set.size << 20, set.arguments, None);
        same_free(&image, set.name);
    });
}

fn same_free(image: &Image, name: &str) {
    let filesystem = Ext4::open(image).unwrap();
    let mut ours = Vec::new();
    let run = |run: Run| {
        ours.push((run.start.0, run.end().0));
        Ok(())
    };
    filesystem.free(run).unwrap_or_else(|error| panic!("{name}: {error}"));
    let superblock = filesystem.superblock();
    let ratio = superblock.cluster_size / superblock.block_size;
    let text = ran(Command::new("dumpe2fs").arg(&image.path));
    let lists = text.lines().filter_map(|line| line.strip_prefix("  Free blocks: "));
    let mut theirs: Vec<(u64, u64)> = Vec::new();
    for run in lists.flat_map(|list| list.split(", ")).filter(|run| !run.is_empty()) {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        let end = (last + ratio).min(superblock.block_count);
        match theirs.last_mut() {
            Some(before) if before.1 == first => before.1 = end,
            _ => theirs.push((first, end)),
        }
    }
    assert!(!theirs.is_empty());
    assert_eq!(ours, theirs, "{name}");
}

#[test]
fn what_is_not_read_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let fresh = |options: &str| {
        let image = Image::make(&path, 16 << 20, &["-t", "ext4", "-O", options], None);
        Ext4::open(image).map(drop)
    };
    for name in ["encrypt", "casefold", "verity"] {
        let error = fresh(name).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(&format!("the feature {name},")), "{error}");
    }
    // Words of the superblock, and what is said of them.
    for (at, value, kind, text) in [
        (0x60, 0x1_u32, Kind::Unsupported, "the feature compression,"),
        (0x60, 0x1000, Kind::Unsupported, "the feature dirdata,"),
        (0x60, 0x8, Kind::Unsupported, "the feature journal_dev,"),
        (0x60, 0x800_0000, Kind::Unsupported, "incompat 0x8000000"),
        (0x64, 0x4000_0000, Kind::Unsupported, "ro_compat 0x40000000"),
        (0x64, 0x4000, Kind::Unsupported, "the feature shared_blocks,"),
        (0x48, 1, Kind::Unsupported, "not made for Linux"),
        (0x38, 0, Kind::Invalid, "no superblock"),
        (0xe0, 0, Kind::Unsupported, "journal on another disk"),
    ] {
        let image = Image::make(&path, 16 << 20, &["-t", "ext4", "-O", "^metadata_csum"], None);
        let mut word = [0; 4];
        image.read(&mut word, GuestOffset(1024 + at)).unwrap();
        let old = u32::from_le_bytes(word);
        let new = if matches!(at, 0x60 | 0x64) { old | value } else { value };
        image.write(1024 + at, &new.to_le_bytes());
        let error = Ext4::open(&image).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    let image = Image::make(&path, 16 << 20, &["-t", "ext4", "-b", "4096", "-O", "mmp"], None);
    let mmp = debugfs(&image, "dump_mmp");
    let block: u64 =
        mmp.lines().find_map(|l| l.strip_prefix("block_number: ")).unwrap().trim().parse().unwrap();
    image.write(block * 4096 + 4, &7_u32.to_le_bytes());
    assert_eq!(Ext4::open(&image).map(drop).unwrap_err().kind(), Kind::Busy);
}

#[test]
fn one_flipped_bit_in_what_has_a_checksum_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let set = MOUNTED.iter().find(|set| set.name == "ext4, 1 KiB").unwrap();
    let image = live(set, dir.path());
    let sound = by_reader(&Ext4::open(&image).unwrap());
    let all = |image: &Image| -> cowshed::Result<()> {
        let filesystem = Ext4::open(image)?;
        filesystem.free(|_| Ok(()))?;
        for inode in filesystem.inodes() {
            let inode = inode?;
            if inode.kind == FileKind::Directory {
                filesystem.directory(&inode)?;
            }
            filesystem.extents(&inode)?;
            filesystem.xattrs(&inode)?;
        }
        Ok(())
    };
    all(&image).unwrap();
    let ino = |name: &str| sound[name.as_bytes()].ino;
    let first_block = |name: &str, request: &str| -> u64 {
        let said = debugfs(&image, &format!("{request} <{}>", ino(name)));
        said.split_whitespace().next().unwrap().parse().unwrap()
    };
    let stat = debugfs(&image, &format!("stat <{}>", ino("len-4097")));
    let xattrs: u64 =
        stat.split_once("File ACL: ").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    let tree = debugfs(&image, &format!("stat <{}>", ino("torn")));
    let node: u64 =
        tree.split_once("(ETB0):").unwrap().1.split([',', '\n']).next().unwrap().trim().parse().unwrap();
    let group = ran(Command::new("dumpe2fs").arg(&image.path));
    let place = |key: &str| -> u64 {
        let rest = group.split_once(key).unwrap().1;
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    for (what, block, inside) in [
        ("superblock", 1, 0x78),
        ("descriptors", 2, 0xc),
        ("block bitmap", place("Block bitmap at "), 100),
        ("inode bitmap", place("Inode bitmap at "), 0),
        ("inode", place("Inode table at "), 256 + 8),
        ("folder", first_block("a", "blocks"), 40),
        ("index", first_block("big", "blocks"), 44),
        ("attributes", xattrs, 900),
        ("extents", node, 20),
    ] {
        let mut byte = [0];
        image.read(&mut byte, GuestOffset(block * 1024 + inside)).unwrap();
        image.write(block * 1024 + inside, &[byte[0] ^ 4]);
        let error = all(&image).expect_err(what);
        assert_eq!(error.kind(), Kind::Corrupt, "{what}: {error}");
        assert!(error.to_string().contains("checksum"), "{what}: {error}");
        image.write(block * 1024 + inside, &byte);
        all(&image).unwrap();
    }
}

#[test]
fn a_partition_is_read_by_several_threads_as_the_bare_filesystem_is() {
    let dir = tempfile::tempdir().unwrap();
    let image = live(&MOUNTED[5], dir.path());
    let disk = dir.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(image.size() + (4 << 20)).unwrap();
    ran(Command::new("sgdisk").arg(format!("-n1:2048:+{}K", image.size() >> 10)).arg(&disk));
    ran(Command::new("dd")
        .args(["bs=1M", "seek=1", "conv=notrunc,sparse"])
        .arg(format!("if={}", image.text()))
        .arg(format!("of={}", disk.display())));
    let disk = Image::open(&disk);
    let found = partitions(&disk).unwrap();
    let filesystem = Ext4::open(Window::new(&disk, &found[0]).unwrap()).unwrap();
    let alone = by_reader(&Ext4::open(&image).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_same(&by_reader(&filesystem), &alone, "a thread"));
        }
    });
    assert!(Window::new(&image, &Partition { len: u64::MAX, ..found[0] }).is_err());
    assert!(filesystem.has(Feature::MetadataCsum) && filesystem.state().is_clean());
}
