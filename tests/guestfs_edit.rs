//! Edits of ext filesystems: what stays right, what is refused, and what a broken or hostile child cannot do.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod ext;
}

use common::ext::{Image, PROGRAM, run, set_xattr, tool, xattrs};
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::guestfs::Window;
use cowshed::guestfs::edit::{Attributes, Edit, Editor, Kind, Limits, Node, Report, Volume};
use cowshed::guestfs::{Time, Verdict, fsck};
use cowshed::storage::HostFile;
use cowshed::units::GuestOffset;
use cowshed::{Kind as ErrorKind, Result};
use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const ROOT: Node = Node::Old(2);

fn attributes(mode: u16) -> Attributes {
    let time = Time { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
    Attributes { mode, atime: time, ctime: time, mtime: time, crtime: time, ..Attributes::default() }
}

fn start(volume: &dyn Volume) -> Editor<'_> {
    Editor::start(Path::new(PROGRAM), volume).unwrap()
}

fn apply(volume: &dyn Volume, edits: impl IntoIterator<Item = Edit>) -> Result<Report> {
    let mut editor = start(volume);
    for edit in edits {
        editor.send(edit)?;
    }
    editor.finish()
}

fn make(id: u32, kind: Kind) -> Edit {
    Edit::Make { id, kind, attributes: attributes(0o755) }
}

fn link(folder: Node, name: impl AsRef<[u8]>, to: u32) -> Edit {
    Edit::Link { folder, name: name.as_ref().to_vec(), to: Node::New(to) }
}

fn unlink(folder: Node, name: impl AsRef<[u8]>) -> Edit {
    Edit::Unlink { folder, name: name.as_ref().to_vec() }
}

#[test]
fn flags_birth_and_project_are_as_given() {
    let image = Image::new(16, &["-t", "ext4", "-O", "project"]);
    let of = Attributes { flags: 0x40 | 0x10 | 0x8_0000, project: Some(77), ..attributes(0o600) };
    let edits = [Edit::Make { id: 1, kind: Kind::File, attributes: of }, link(ROOT, "file", 1)];
    apply(&image, edits).unwrap();
    image.assert_clean("flags");
    let said = image.debugfs("stat /file");
    let project = said.split("Project:").nth(1).unwrap().split_whitespace().next();
    assert_eq!(project, Some("77"), "{said}");
    assert!(said.contains("Flags: 0x80050"), "{said}");
    assert!(said.contains("crtime: 0x6553f100:1d6f3454"), "{said}");
}

#[test]
fn a_folder_with_an_index_keeps_it_and_stays_right() {
    let image = Image::new(64, &["-t", "ext4", "-b", "1024"]);
    let mut names = BTreeSet::new();
    {
        let mount = image.mount(true);
        std::fs::create_dir(mount.path("big")).unwrap();
        for number in 0..1500 {
            std::fs::write(mount.path(format!("big/old-{number:05}")), b"").unwrap();
            names.insert(format!("old-{number:05}"));
        }
    }
    let big = inode(&image, "big");
    let mut editor = start(&image);
    editor.send(make(0, Kind::File)).unwrap();
    for number in 0..1500 {
        let name = format!("new-{number:05}-{}", "x".repeat(number % 90));
        editor.send(link(big, &name, 0)).unwrap();
        names.insert(name);
        if number % 3 != 0 {
            let old = format!("old-{number:05}");
            editor.send(unlink(big, &old)).unwrap();
            names.remove(&old);
        }
    }
    let report = editor.finish().unwrap();
    assert_eq!((report.made, report.freed), (1, 1000));
    image.assert_clean("an indexed folder");
    assert!(image.debugfs("htree_dump /big").contains("Root node dump"), "the index is gone");
    let mount = image.mount(false);
    let found: BTreeSet<String> = std::fs::read_dir(mount.path("big"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, names);
    // By name, through the index.
    for name in &names {
        assert!(mount.path("big").join(name).symlink_metadata().is_ok(), "{name} is not found");
    }
}

#[test]
fn a_file_with_holes_takes_blocks_for_its_data_alone() {
    for options in [&["-t", "ext4"][..], &["-t", "ext3"], &["-t", "ext4", "-O", "bigalloc", "-C", "65536"]] {
        let image = Image::new(64, options);
        let mut editor = start(&image);
        editor.send(make(1, Kind::File)).unwrap();
        editor.send(link(ROOT, "sparse", 1)).unwrap();
        editor.send(Edit::Content { node: Node::New(1), size: 3 << 30 }).unwrap();
        editor.write(Node::New(1), (2 << 30) + 5, b"in the middle".to_vec()).unwrap();
        editor.write(Node::New(1), 0, vec![7; 5000]).unwrap();
        editor.finish().unwrap();
        image.assert_clean("holes");
        let mount = image.mount(false);
        let meta = mount.path("sparse").metadata().unwrap();
        assert_eq!(meta.len(), 3 << 30);
        assert!(meta.blocks() * 512 <= 3 << 16, "{} blocks", meta.blocks());
        let file = std::fs::File::open(mount.path("sparse")).unwrap();
        let mut buf = [1; 8192];
        file.read_exact_at(&mut buf, 2 << 30).unwrap();
        assert_eq!(&buf[..20], b"\0\0\0\0\0in the middle\0\0");
        assert!(buf[20..].iter().all(|byte| *byte == 0));
        file.read_exact_at(&mut buf, 0).unwrap();
        assert!(buf[..5000].iter().all(|byte| *byte == 7) && buf[5000..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_has_no_name_at_the_end_is_freed() {
    let image = Image::new(16, &["-t", "ext4"]);
    let edits = [
        make(1, Kind::Folder),
        link(ROOT, "folder", 1),
        make(2, Kind::Folder),
        link(Node::New(1), "below", 2),
        make(3, Kind::File),
        link(Node::New(2), "file", 3),
        make(4, Kind::Socket),
    ];
    assert_eq!(apply(&image, edits).unwrap().freed, 1);
    image.assert_clean("made");
    let (folder, below) = (inode(&image, "folder"), inode(&image, "folder/below"));
    // The top first: the order does not matter.
    let edits = [unlink(ROOT, "folder"), unlink(folder, "below"), unlink(below, "file")];
    assert_eq!(apply(&image, edits).unwrap().freed, 3);
    image.assert_clean("removed");
    assert_eq!(std::fs::read_dir(image.mount(false).at.as_path()).unwrap().count(), 1);
}

#[test]
fn a_full_filesystem_is_named_with_the_edit_that_filled_it() {
    let image = Image::new(8, &["-t", "ext4"]);
    let mut editor = start(&image);
    editor.send(make(1, Kind::File)).unwrap();
    editor.send(link(ROOT, "large", 1)).unwrap();
    editor.send(Edit::Content { node: Node::New(1), size: 64 << 20 }).unwrap();
    let result = (0..16).try_for_each(|piece| editor.write(Node::New(1), piece << 22, vec![1; 4 << 20]));
    let error = result.and_then(|()| editor.finish().map(|_| ())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let said = error.to_string();
    assert!(said.contains("write 4194304 bytes at") && said.contains("Could not allocate block"), "{said}");
    let image = Image::new(8, &["-t", "ext4", "-N", "16"]);
    let error = apply(&image, (0..64).map(|id| make(id, Kind::File))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.to_string().contains("Could not allocate inode"), "{error}");
}

#[test]
fn an_error_of_the_disk_is_the_error_of_the_edit() {
    let image = Image::new(32, &["-t", "ext4"]);
    image.budget.store(1 << 20, Ordering::Relaxed);
    let mut editor = start(&image);
    editor.send(make(1, Kind::File)).unwrap();
    editor.send(Edit::Content { node: Node::New(1), size: 8 << 20 }).unwrap();
    let result = (0..2).try_for_each(|piece| editor.write(Node::New(1), piece << 22, vec![1; 4 << 20]));
    let error = result.and_then(|()| editor.finish().map(|_| ())).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Io, "the disk is broken here".to_owned()));
}

#[test]
fn edits_that_make_no_sense_are_refused_by_name() {
    let image = Image::new(16, &["-t", "ext4"]);
    apply(
        &image,
        [make(1, Kind::Folder), link(ROOT, "folder", 1), make(2, Kind::File), link(ROOT, "file", 2)],
    )
    .unwrap();
    let (folder, file) = (inode(&image, "folder"), inode(&image, "file"));
    let before = std::fs::read(image.path()).unwrap();
    let fresh = |name: &[u8]| vec![make(9, Kind::File), link(ROOT, name, 9)];
    let cases: Vec<(Vec<Edit>, ErrorKind, &str)> = vec![
        (fresh(b"a/b"), ErrorKind::Invalid, "no / and no NUL"),
        (fresh(b".."), ErrorKind::Invalid, "neither . nor .."),
        (fresh(&[b'x'; 256]), ErrorKind::Invalid, "1 to 255 bytes"),
        (fresh(b"file"), ErrorKind::Exists, "the name is taken"),
        (vec![unlink(ROOT, "none")], ErrorKind::NotFound, "no such name"),
        (vec![unlink(file, "none")], ErrorKind::Invalid, "another type"),
        (vec![Edit::Content { node: Node::Old(8), size: 0 }], ErrorKind::NotFound, "no such object"),
        (vec![Edit::Content { node: Node::Old(4000), size: 0 }], ErrorKind::NotFound, "no such object"),
        (vec![Edit::Content { node: Node::Old(u32::MAX), size: 0 }], ErrorKind::NotFound, "no such object"),
        (vec![Edit::Content { node: Node::New(7), size: 0 }], ErrorKind::NotFound, "no such object"),
        (vec![Edit::Content { node: folder, size: 0 }], ErrorKind::Invalid, "another type"),
        (vec![Edit::Content { node: file, size: u64::MAX }], ErrorKind::NoSpace, "no file as long"),
        (
            vec![Edit::Link { folder: ROOT, name: b"again".to_vec(), to: folder }],
            ErrorKind::Invalid,
            "has 2 names",
        ),
        (
            vec![Edit::Link { folder, name: b"root".to_vec(), to: ROOT }],
            ErrorKind::Invalid,
            "the root folder",
        ),
        (
            vec![make(1, Kind::File), link(folder, "in", 1), unlink(ROOT, "folder")],
            ErrorKind::Invalid,
            "has no name, but names in it",
        ),
        (vec![make(1, Kind::File), make(1, Kind::File)], ErrorKind::Exists, "the number is taken"),
        (vec![make(1, Kind::Symlink(Vec::new()))], ErrorKind::Invalid, "a target has at least one byte"),
        (vec![make(1, Kind::Symlink(vec![b'x'; 5000]))], ErrorKind::Invalid, "shorter than a block"),
        (vec![make(1, Kind::Char { major: 1 << 20, minor: 0 })], ErrorKind::Invalid, "major number"),
        (
            vec![Edit::SetXattr { node: file, name: b"system.data".to_vec(), value: vec![1] }],
            ErrorKind::Invalid,
            "only attributes of",
        ),
        (
            vec![Edit::SetXattr { node: file, name: b"user.large".to_vec(), value: vec![1; 70_000] }],
            ErrorKind::NoSpace,
            "user.large of inode",
        ),
        (
            vec![Edit::RemoveXattr { node: file, name: b"user.none".to_vec() }],
            ErrorKind::NotFound,
            "user.none",
        ),
    ];
    for (edits, kind, words) in cases {
        let said = format!("{edits:?}");
        let error = apply(&image, edits).expect_err(&said);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        std::fs::write(image.path(), &before).unwrap();
    }
}

#[test]
fn a_filesystem_that_is_not_ready_for_edits_is_refused() {
    let cases = [
        ("feature +needs_recovery", "journal must be replayed"),
        ("ssv last_orphan 12", "orphans"),
        ("ssv state 2", "not unmounted cleanly"),
        ("feature +orphan_present", "orphans"),
    ];
    for (request, words) in cases {
        let image = Image::new(16, &["-t", "ext4", "-O", "orphan_file"]);
        run(tool("debugfs").args(["-w", "-R", request]).arg(image.path()));
        let error = apply(&image, [make(1, Kind::File)]).unwrap_err();
        assert!(error.to_string().contains(words), "{request}: {error}");
        assert!(!error.to_string().contains("edit 1"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    let image = Image::new(16, &["-t", "ext4", "-O", "quota"]);
    let error = apply(&image, []).unwrap_err();
    assert!(error.to_string().contains("quotas"), "{error}");
    let image = Image::new(16, &["-t", "ext4"]);
    std::fs::write(image.path(), vec![0; 16 << 20]).unwrap();
    assert!(apply(&image, []).unwrap_err().to_string().contains("Bad magic number in super-block"));
}

#[test]
fn a_filesystem_inside_a_disk_is_changed_and_nothing_beside_it() {
    let image = Image::new(16, &["-t", "ext4"]);
    let dir = tempfile::tempdir().unwrap();
    let inner = std::fs::read(image.path()).unwrap();
    std::fs::write(dir.path().join("disk"), [&vec![0xaa; 1 << 20][..], &inner, &vec![0xbb; 12345]].concat())
        .unwrap();
    let file = std::fs::File::options().read(true).write(true).open(dir.path().join("disk")).unwrap();
    let raw = RawLayer::new(Arc::new(HostFile::new(file)), true).unwrap();
    let disk = Disk::new(vec![Layer::Raw(raw)]).unwrap();
    let window = Window::at(&disk, GuestOffset(1 << 20), 16 << 20).unwrap();
    let mut editor = start(&window);
    editor.send(make(1, Kind::File)).unwrap();
    editor.send(link(ROOT, "file", 1)).unwrap();
    editor.send(Edit::Content { node: Node::New(1), size: 3 }).unwrap();
    editor.write(Node::New(1), 0, b"abc".to_vec()).unwrap();
    editor.finish().unwrap();
    assert_eq!(fsck(Path::new(PROGRAM), &window, dir.path()).unwrap(), Verdict::Clean);
    let after = std::fs::read(dir.path().join("disk")).unwrap();
    assert!(after[..1 << 20].iter().all(|byte| *byte == 0xaa));
    assert!(after[17 << 20..].iter().all(|byte| *byte == 0xbb));
    std::fs::write(image.path(), &after[1 << 20..17 << 20]).unwrap();
    assert_eq!(image.debugfs("cat /file"), "abc");
    assert!(Window::at(&disk, GuestOffset(2 << 20), 16 << 20).is_err());
}

#[test]
fn the_check_finds_damage_and_says_it_in_the_words_of_e2fsck() {
    let cases = [
        ("clri /file", "deleted/unused inode"),
        ("sif /file links_count 3", "ref count is 3, should be 1"),
        ("freeb 900 1", "Block bitmap differences"),
        ("ssv free_blocks_count 5", ""),
        ("sif / block[0] 0", ""),
    ];
    for (request, words) in cases {
        let image = Image::new(16, &["-t", "ext4"]);
        apply(&image, [make(1, Kind::File), link(ROOT, "file", 1)]).unwrap();
        assert_eq!(fsck(Path::new(PROGRAM), &image, image.folder.path()).unwrap(), Verdict::Clean);
        run(tool("debugfs").args(["-w", "-R", request]).arg(image.path()));
        match fsck(Path::new(PROGRAM), &image, image.folder.path()).unwrap() {
            Verdict::Damaged(said) => assert!(said.contains(words), "{request}: {said}"),
            // What e2fsck puts right without a word, it takes for clean on the whole file as well.
            Verdict::Clean => image.assert_clean(request),
        }
    }
    let image = Image::new(16, &["-t", "ext4"]);
    std::fs::write(image.path(), vec![0; 16 << 20]).unwrap();
    assert!(matches!(fsck(Path::new(PROGRAM), &image, image.folder.path()).unwrap(), Verdict::Damaged(_)));
}

fn inode(image: &Image, path: &str) -> Node {
    Node::Old(image.mount(false).path(path).symlink_metadata().unwrap().ino() as u32)
}

fn set(node: Node, name: &str, value: Vec<u8>) -> Edit {
    Edit::SetXattr { node, name: name.as_bytes().to_vec(), value }
}

#[test]
fn a_block_of_attributes_that_files_share_is_copied_before_it_changes() {
    let image = Image::new(16, &["-t", "ext4", "-b", "4096"]);
    {
        let mount = image.mount(true);
        for name in ["a", "b", "c"] {
            std::fs::write(mount.path(name), name).unwrap();
            set_xattr(&mount.path(name), "user.same", &[5; 600]);
        }
    }
    let block = |name: &str| {
        let said = image.debugfs(&format!("stat /{name}"));
        said.split("File ACL: ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(block("a"), block("c"), "the kernel did not share the block");
    let node = inode(&image, "a");
    apply(&image, [set(node, "user.other", vec![6; 700]), unlink(ROOT, "b")]).unwrap();
    image.assert_clean("shared attributes");
    let mount = image.mount(false);
    let (a, c) = (xattrs(&mount.path("a")), xattrs(&mount.path("c")));
    assert_eq!((a.len(), a[&b"user.same"[..]].len(), a[&b"user.other"[..]].len()), (2, 600, 700));
    assert_eq!((c.len(), c[&b"user.same"[..]].clone()), (1, vec![5; 600]));
}

#[test]
fn large_attributes_have_inodes_of_their_own_and_go_with_their_file() {
    let image = Image::new(16, &["-t", "ext4", "-O", "ea_inode"]);
    let free = || {
        let said = image.debugfs("show_super_stats -h");
        said.lines().filter(|line| line.starts_with("Free ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = free();
    let node = Node::New(1);
    let edits = [
        make(1, Kind::File),
        link(ROOT, "file", 1),
        set(node, "user.large", vec![7; 20_000]),
        set(node, "user.second", vec![8; 9000]),
    ];
    apply(&image, edits).unwrap();
    image.assert_clean("large attributes");
    assert_eq!(xattrs(&image.mount(false).path("file"))[&b"user.large"[..]], vec![7; 20_000]);
    let node = inode(&image, "file");
    apply(&image, [set(node, "user.large", vec![9; 30_000])]).unwrap();
    image.assert_clean("other attributes");
    assert_eq!(xattrs(&image.mount(false).path("file"))[&b"user.large"[..]], vec![9; 30_000]);
    assert_eq!(fsck(Path::new(PROGRAM), &image, image.folder.path()).unwrap(), Verdict::Clean);
    apply(&image, [unlink(ROOT, "file")]).unwrap();
    image.assert_clean("no attributes");
    assert_eq!(free(), before);
}

#[test]
fn files_and_folders_inside_their_inodes_are_changed_like_others() {
    let image = Image::new(16, &["-t", "ext4", "-O", "inline_data"]);
    {
        let mount = image.mount(true);
        std::fs::create_dir_all(mount.path("folder/below")).unwrap();
        std::fs::create_dir(mount.path("gone")).unwrap();
        std::fs::write(mount.path("gone/file"), b"x").unwrap();
        for name in ["folder/file", "folder/kept", "removed"] {
            std::fs::write(mount.path(name), b"a little more than fits into the map of blocks of an inode")
                .unwrap();
        }
        std::os::unix::fs::symlink("y".repeat(80), mount.path("link")).unwrap();
    }
    let [folder, file, below, gone, target] =
        ["folder", "folder/file", "folder/below", "gone", "link"].map(|path| inode(&image, path));
    let mut editor = start(&image);
    editor.send(Edit::Content { node: file, size: 10_000 }).unwrap();
    editor.write(file, 0, vec![3; 10_000]).unwrap();
    let moved = Edit::Link { folder: gone, name: b"moved".to_vec(), to: below };
    let edits = [unlink(folder, "below"), moved, unlink(gone, "file"), unlink(ROOT, "removed")];
    edits.into_iter().for_each(|edit| editor.send(edit).unwrap());
    editor.send(Edit::Target { node: target, target: vec![b'z'; 70] }).unwrap();
    editor.send(set(folder, "user.a", vec![1; 20])).unwrap();
    assert_eq!(editor.finish().unwrap().freed, 2);
    image.assert_clean("inline");
    let mount = image.mount(false);
    assert_eq!(std::fs::read(mount.path("folder/file")).unwrap(), vec![3; 10_000]);
    assert!(std::fs::read(mount.path("folder/kept")).unwrap().starts_with(b"a little more"));
    assert!(mount.path("gone/moved").is_dir() && !mount.path("folder/below").exists());
    assert_eq!(std::fs::read_link(mount.path("link")).unwrap().as_os_str().len(), 70);
    assert_eq!(xattrs(&mount.path("folder")).len(), 1);
}

#[test]
fn a_new_folder_with_many_names_takes_no_longer_for_each_of_them() {
    let image = Image::new(64, &["-t", "ext4", "-b", "1024"]);
    let mut editor = start(&image);
    editor.send(make(0, Kind::Folder)).unwrap();
    editor.send(link(ROOT, "many", 0)).unwrap();
    editor.send(make(1, Kind::File)).unwrap();
    let names: Vec<String> =
        (0..20_000).map(|number| format!("name-{number}-{}", "y".repeat(number % 40))).collect();
    let before = Instant::now();
    for name in &names {
        editor.send(link(Node::New(0), name, 1)).unwrap();
    }
    for name in names.iter().step_by(2) {
        editor.send(unlink(Node::New(0), name)).unwrap();
    }
    editor.finish().unwrap();
    // Each name looked for in all blocks would be 10 million blocks read.
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
    image.assert_clean("many names");
    let mount = image.mount(false);
    let found: BTreeSet<String> = std::fs::read_dir(mount.path("many"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, names.iter().skip(1).step_by(2).cloned().collect());
}

/// How an editor and a check end whose child is the shell script `body`, with its socket as descriptor 0.
fn with_child(body: &str) -> (String, String) {
    let image = Image::new(8, &["-t", "ext4"]);
    let before = std::fs::read(image.path()).unwrap();
    let script = image.folder.path().join("child");
    std::fs::write(&script, format!("#!/bin/sh\nexec >&0\n{body}\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let limits =
        Limits { silence: Duration::from_millis(700), standstill: Duration::from_millis(1500), cpu: 5 };
    let begun = Instant::now();
    let mut editor = Editor::limited(&script, &image, limits).unwrap();
    let edits = editor.send(make(1, Kind::File)).and_then(|()| editor.write(Node::New(1), 0, vec![9; 100]));
    let edited = edits.and_then(|()| editor.finish().map(|_| ())).expect_err(body).to_string();
    assert!(begun.elapsed() < Duration::from_secs(20), "{body}");
    assert!(std::fs::read(image.path()).unwrap() == before, "the disk was changed: {body}");
    let checked = fsck_of(&script, &image);
    (edited, checked)
}

fn fsck_of(script: &Path, image: &Image) -> String {
    // The check waits longer than a test may: children that say nothing are for the editor alone.
    let text = std::fs::read_to_string(script).unwrap();
    if text.contains("sleep") || text.contains("while") {
        return String::new();
    }
    match fsck(script, image, image.folder.path()) {
        Err(error) => error.to_string(),
        Ok(verdict) => format!("{verdict:?}"),
    }
}

#[test]
fn a_child_that_breaks_off_or_hangs_is_an_error_that_says_so() {
    assert!(with_child("exit 3").0.contains("ended before it was done (exit status: 3)"));
    assert!(with_child("kill -9 $$").0.contains("was killed"));
    assert!(with_child("kill -31 $$").0.contains("tried what it may not do"));
    assert!(with_child("kill -11 $$").0.contains("broke the child"));
    assert!(with_child("exec sleep 60").0.contains("said nothing for 0.7 s"));
    assert!(with_child("while :; do :; done").0.contains("said nothing"));
    assert!(with_child("cat <&0 >/dev/null & exec <&- >&-; sleep 60").0.contains("the child"));
    let none = Editor::start(Path::new("/none/there"), &Image::new(8, &["-t", "ext4"])).map(|_| ());
    assert_eq!(none.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_hostile_child_reaches_nothing_and_ends_with_an_error() {
    let nonsense = "makes no sense";
    let outside = "outside of its place";
    let (zeros, ones) = (r"\0\0\0\0\0\0\0\0", r"\377\377\377\377\377\377\377\377");
    let cases = [
        (r"printf '\377\377\377\377'".to_owned(), nonsense),
        (r"printf '\0\0\0\0'".to_owned(), nonsense),
        (r"printf '\1\0\0\0\143'".to_owned(), nonsense),
        // A question that is too short, or too long.
        (r"printf '\2\0\0\0\0\0'".to_owned(), nonsense),
        (format!(r"printf '\16\0\0\0\0{zeros}\1\0\0\0\0'"), nonsense),
        // Read: outside, past the end, too much.
        (format!(r"printf '\15\0\0\0\0{ones}\0\20\0\0'"), outside),
        (r"printf '\15\0\0\0\0\0\0\200\0\0\0\0\0\1\0\0\0'".to_owned(), outside),
        (format!(r"printf '\15\0\0\0\0{zeros}\377\377\377\377'"), outside),
        // Write one byte at the end; and with a length that is none.
        (r"printf '\22\0\0\0\1\0\0\200\0\0\0\0\0\1\0\0\0\0\0\0\0x'".to_owned(), outside),
        (format!(r"printf '\21\0\0\0\1{zeros}{ones}'"), nonsense),
        // Place content that does not exist: another edit, too much of it, outside.
        (format!(r"printf '\31\0\0\0\2{ones}\0\0\0\0\1\0\0\0{zeros}'"), "was not given"),
        (format!(r"printf '\31\0\0\0\2\1\0\0\0\0\0\0\0\0\0\0\0\377\0\0\0{zeros}'"), "was not given"),
        (format!(r"printf '\31\0\0\0\2\1\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0{ones}'"), outside),
        // Done three times, finished at once, a list of metadata.
        (r"printf '\1\0\0\0\3\1\0\0\0\3\1\0\0\0\3'".to_owned(), "was not given"),
        (format!(r"printf '\11\0\0\0\5{zeros}'"), "an answer without a question"),
        (format!(r"printf '\21\0\0\0\6{zeros}{ones}'"), "an answer without a question"),
        // An error with a message that would paint the terminal.
        (r"printf '\16\0\0\0\4\1\0\3\0\0\0\0\0\0\0\33[J'".to_owned(), "\\u{1b}[J"),
    ];
    for (body, words) in cases {
        let (edited, checked) = with_child(&format!("{body}; exec sleep 2"));
        assert!(edited.contains(words) && !edited.contains('\u{1b}'), "{body}: {edited}");
        assert_eq!(checked, "");
        let (_, checked) = with_child(&body);
        assert!(!checked.contains("Clean"), "{body}: {checked}");
    }
    // Without end: questions whose answers nobody reads, and questions that are answered.
    let ask = format!(r"printf '\15\0\0\0\0{zeros}\0\0\20\0'");
    let (edited, _) = with_child(&format!("while {ask}; do :; done"));
    assert!(edited.contains("said nothing") || edited.contains("did not come forward"), "{edited}");
    let (edited, _) = with_child(&format!("cat <&0 >/dev/null & while {ask}; do :; done"));
    assert!(edited.contains("did not come forward") || edited.contains("said nothing"), "{edited}");
}

#[test]
fn an_editor_that_is_dropped_leaves_no_child() {
    let image = Image::new(8, &["-t", "ext4"]);
    let children = || {
        let path = format!("/proc/self/task/{}/children", nix::unistd::gettid());
        std::fs::read_to_string(path).unwrap()
    };
    let editor = start(&image);
    assert!(!children().trim().is_empty());
    drop(editor);
    assert!(children().trim().is_empty(), "{}", children());
}

/// Processor seconds of this process and its children so far.
fn cpu() -> f64 {
    let seconds = |who| {
        let usage = nix::sys::resource::getrusage(who).unwrap();
        let both = [usage.user_time(), usage.system_time()];
        both.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum::<f64>()
    };
    seconds(nix::sys::resource::UsageWho::RUSAGE_SELF)
        + seconds(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)
}

#[test]
#[ignore = "a measurement: run it alone, built with --release"]
fn three_thousand_files_of_159_mb_take_two_seconds() {
    let image = Image::new(2048, &["-t", "ext4"]);
    let mut folders = Vec::new();
    {
        let mount = image.mount(true);
        for folder in 0..1500 {
            let at = mount.path(format!("folder-{folder}"));
            std::fs::create_dir(&at).unwrap();
            folders.push(at.metadata().unwrap().ino() as u32);
            for file in 0..14_u8 {
                std::fs::write(at.join(format!("file-{file}")), vec![file; 20_000]).unwrap();
            }
        }
    }
    let before = cpu();
    let begun = Instant::now();
    let mut editor = start(&image);
    for id in 0..3266_u32 {
        editor.send(make(id, Kind::File)).unwrap();
        let folder = Node::Old(folders[id as usize % folders.len()]);
        editor.send(link(folder, format!("new-{id}"), id)).unwrap();
        editor.send(Edit::Content { node: Node::New(id), size: 48_680 }).unwrap();
        editor.write(Node::New(id), 0, vec![id as u8; 48_680]).unwrap();
    }
    for number in 0..3210 {
        let folder = Node::Old(folders[number % folders.len()]);
        editor.send(unlink(folder, format!("file-{}", number / folders.len()))).unwrap();
    }
    let report = editor.finish().unwrap();
    println!(
        "edits: {:.2} CPU s, {:.2} s of time, {report:?}",
        cpu() - before,
        begun.elapsed().as_secs_f64()
    );
    let spent = cpu() - before;
    let (before, begun) = (cpu(), Instant::now());
    assert_eq!(fsck(Path::new(PROGRAM), &image, image.folder.path()).unwrap(), Verdict::Clean);
    println!("check: {:.2} CPU s, {:.2} s of time", cpu() - before, begun.elapsed().as_secs_f64());
    assert!(spent < 2.0, "{spent} CPU s");
}
