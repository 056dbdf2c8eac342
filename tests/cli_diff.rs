//! `cowshed diff` beside plain mounts of both disks. Needs root, for loop devices.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/ext4/mod.rs"]
mod ext4;
#[path = "common/rng.rs"]
mod rng;

use common::store::{file_digest, must, name};
use common::{Shed, noise};
use cowshed::store::{Access, Store};
use cowshed::units::GuestOffset;
use ext4::content::{Limits, acl, fill, get_flags, set_flags, set_xattr};
use ext4::facts::{Facts, Tree, by_kernel};
use ext4::{Image, Mount, ran};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK: usize = 4096;
const SIZE: u64 = 48 << 20;

/// An image file with one ext4 filesystem, filled through the kernel.
fn image(shed: &Shed, file: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let image = Image::make(&shed.path(file), SIZE, &["-t", "ext4", "-b", "4096"], None);
    change(shed, &image.path, fill);
    image.path
}

/// Changes an image through the kernel.
fn change(shed: &Shed, image: &Path, change: impl FnOnce(&Path)) {
    let mount = Mount::new(image, shed.path("hand"), "rw");
    change(&mount.0);
}

/// Changes a clone through the kernel; a raw file with what it is now, under `file`.
fn change_clone(shed: &Shed, clone: &str, file: &str, how: impl FnOnce(&Path)) -> PathBuf {
    let raw = shed.path(file);
    shed.ok(&["export", clone, raw.to_str().unwrap(), "--format", "raw"]);
    change(shed, &raw, how);
    bring(shed, clone, &raw);
    raw
}

/// Writes into a clone what differs from `raw`.
fn bring(shed: &Shed, clone: &str, raw: &Path) {
    let open = Store::open(&shed.root()).unwrap().open_clone(&name(clone), Access::Write).unwrap();
    let file = File::open(raw).unwrap();
    let (mut now, mut new) = (vec![0; BLOCK], vec![0; BLOCK]);
    for at in (0..open.disk.size()).step_by(BLOCK) {
        open.disk.read(&mut now, GuestOffset(at)).unwrap();
        file.read_exact_at(&mut new, at).unwrap();
        if now != new {
            open.disk.write(&new, GuestOffset(at)).unwrap();
        }
    }
    open.close().unwrap();
}

/// What one line of a difference says.
type Said = (char, Option<Vec<u8>>, Vec<u8>, BTreeSet<String>);

fn said(changes: &Value) -> BTreeSet<Said> {
    let path = |change: &Value, text: &str, hex: &str| {
        let bytes = change[text].as_str().map(|text| text.as_bytes().to_vec());
        let unhex = |hex: &str| {
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        };
        change[hex].as_str().map(unhex).or(bytes)
    };
    let one = |change: &Value| {
        let changed = change["changed"].as_array().into_iter().flatten();
        let changed = changed.map(|word| word.as_str().unwrap().to_owned()).collect();
        let mark = change["mark"].as_str().unwrap().chars().next().unwrap();
        (mark, path(change, "from", "from_hex"), path(change, "path", "path_hex").unwrap(), changed)
    };
    let all = changes.as_array().unwrap();
    let found: BTreeSet<Said> = all.iter().map(one).collect();
    assert_eq!(found.len(), all.len(), "a line stands twice");
    found
}

/// A tree as the kernel shows it, with what `chattr` set.
struct Seen {
    tree: Tree,
    flags: BTreeMap<Vec<u8>, libc::c_long>,
}

impl Seen {
    fn of(shed: &Shed, image: &Path) -> Self {
        let mount = Mount::new(image, shed.path("eye"), "ro,noload");
        let tree = by_kernel(&mount.0);
        let mut flags = BTreeMap::new();
        for (path, facts) in &tree {
            if matches!(facts.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
                let file = File::open(mount.0.join(OsStr::from_bytes(path))).unwrap();
                let mut word = 0;
                // SAFETY: the number is that of this call, which fills one word that outlives it.
                unsafe { get_flags(file.as_raw_fd(), &raw mut word).unwrap() };
                flags.insert(path.clone(), word & 0x2000_00f9);
            }
        }
        Self { tree, flags }
    }

    /// Names in a folder with the inodes that they lead to.
    fn names(&self, folder: &[u8]) -> BTreeMap<&[u8], u64> {
        let inside = self.tree.iter().filter(|(path, _)| !path.is_empty() && parent(path) == folder);
        inside.map(|(path, facts)| (&path[cut(path)..], facts.ino)).collect()
    }
}

fn cut(path: &[u8]) -> usize {
    path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1)
}

fn parent(path: &[u8]) -> &[u8] {
    &path[..cut(path).saturating_sub(1)]
}

fn absolute(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

/// What differs, from two plain walks and the moves that were made, folders before what is below them.
fn expected(old: &Seen, new: &Seen, moves: &[(&str, &str)]) -> BTreeSet<Said> {
    let there = |path: &[u8]| {
        let mut path = path.to_vec();
        for (from, to) in moves {
            let rest = path.strip_prefix(from.as_bytes()).filter(|rest| rest.is_empty() || rest[0] == b'/');
            path = rest.map(|rest| [to.as_bytes(), rest].concat()).unwrap_or(path);
        }
        path
    };
    let mut found = BTreeSet::new();
    let mut met = BTreeSet::new();
    for (path, was) in &old.tree {
        let place = there(path);
        let Some(is) = new.tree.get(&place).filter(|is| (is.mode ^ was.mode) & libc::S_IFMT == 0) else {
            found.insert(('D', None, absolute(path), BTreeSet::new()));
            continue;
        };
        met.insert(place.clone());
        let changed = aspects((old, path.as_slice(), was), (new, place.as_slice(), is));
        let moved = parent(&place) != there(parent(path)) || place[cut(&place)..] != path[cut(path)..];
        let from = moved.then(|| absolute(path));
        match changed.contains("content") {
            _ if moved => found.insert(('R', from, absolute(&place), changed)),
            _ if changed.is_empty() => false,
            true => found.insert(('M', None, absolute(&place), changed)),
            false => found.insert(('m', None, absolute(&place), changed)),
        };
    }
    for path in new.tree.keys().filter(|path| !met.contains(*path)) {
        found.insert(('A', None, absolute(path), BTreeSet::new()));
    }
    found
}

fn aspects(one: (&Seen, &[u8], &Facts), other: (&Seen, &[u8], &Facts)) -> BTreeSet<String> {
    let ((old, path, was), (new, place, is)) = (one, other);
    let folder = was.mode & libc::S_IFMT == libc::S_IFDIR;
    let of =
        |facts: &Facts| (facts.content, facts.link.clone(), facts.device, (!folder).then_some(facts.size));
    let content = of(was) != of(is);
    let touched = folder && old.names(path) != new.names(place);
    let all = [
        ("content", content),
        ("mode", was.mode != is.mode),
        ("owner", was.owner != is.owner),
        ("xattrs", was.xattrs != is.xattrs),
        ("flags", old.flags.get(path) != new.flags.get(place)),
        ("times", was.modified != is.modified && !content && !touched),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(word, _)| word.to_owned()).collect()
}

fn assert_same(ours: &BTreeSet<Said>, theirs: &BTreeSet<Said>) {
    let only = |a: &BTreeSet<Said>, b: &BTreeSet<Said>| {
        let lines = a.difference(b).map(|(mark, from, path, changed)| {
            let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
            format!("{mark} {:?} {:?} {changed:?}", from.as_deref().map(text), text(path))
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    assert!(ours == theirs, "only ours:\n{}\nnot ours:\n{}", only(ours, theirs), only(theirs, ours));
}

/// A tree of one of everything, and folders to move.
fn first(dir: &Path) {
    fill(dir, &Limits { block: BLOCK, names: 300, value: 2000, live: true });
    fs::create_dir_all(dir.join("app/lib/deep")).unwrap();
    for number in 0..500 {
        fs::write(dir.join(format!("app/lib/{number}")), noise(100 + number, number as u64)).unwrap();
    }
    fs::create_dir(dir.join("spare")).unwrap();
    fs::write(dir.join("spare/inside"), "inside\n").unwrap();
    fs::write(dir.join("large"), noise(6 << 20, 7)).unwrap();
    for number in 0..4 {
        fs::write(dir.join(format!("log.{number}")), noise(5000, 100 + number)).unwrap();
    }
}

/// One of every kind of change; the moves are [`MOVES`].
fn second(dir: &Path) {
    let at = |name: &str| dir.join(name);
    let mode = |name: &str, mode| fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    // Content: longer, in place with the same length and time, another file of the same name, emptied.
    flag(&at("len-100"), 0);
    fs::write(at("len-100"), "short").unwrap();
    let time = fs::metadata(at("large")).unwrap().modified().unwrap();
    let large = File::options().write(true).open(at("large")).unwrap();
    large.write_all_at(b"!", 4 << 20).unwrap();
    large.set_modified(time).unwrap();
    fs::write(at("fresh"), "fresh").unwrap();
    fs::rename(at("fresh"), at("len-200")).unwrap();
    fs::write(at("len-4097"), "").unwrap();
    let sparse = File::options().write(true).open(at("sparse")).unwrap();
    sparse.write_all_at(b"in a hole", 500 << 20).unwrap();
    // The same content written again is another time only.
    let same = fs::read(at("len-1023")).unwrap();
    fs::write(at("len-1023"), same).unwrap();
    // Links and special files.
    fs::remove_file(at("link-60")).unwrap();
    symlink("elsewhere", at("link-60")).unwrap();
    fs::remove_file(at("null")).unwrap();
    mknod(&at("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o640), makedev(1, 5)).unwrap();
    fs::remove_file(at("pipe")).unwrap();
    fs::write(at("pipe"), "no pipe any more").unwrap();
    fs::remove_file(at("len-61")).unwrap();
    fs::create_dir(at("len-61")).unwrap();
    mknod(&at("new pipe"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    fs::hard_link(at("len-70000"), at("a/second name")).unwrap();
    fs::remove_file(at("a/b/c/d/other name")).unwrap();
    // Everything else about a file.
    mode("len-1", 0o600);
    mode("a/0", 0o700);
    lchown(at("link-100"), Some(7), Some(8)).unwrap();
    lchown(at("len-1024"), Some(70_000), None).unwrap();
    set_xattr(&at("len-150"), b"user.small", b"other value");
    set_xattr(&at("len-160"), b"user.new", b"");
    set_xattr(&at("a/2"), b"system.posix_acl_access", &acl());
    flag(&at("len-59"), 0x40);
    flag(&at("time-1"), 0x10);
    File::options().write(true).open(at("time-2")).unwrap().set_modified(time).unwrap();
    // Moves, and changes below and of what was moved.
    fs::create_dir(at("srv")).unwrap();
    fs::rename(at("app"), at("srv/app")).unwrap();
    fs::write(at("srv/app/lib/3"), "changed below a moved folder").unwrap();
    fs::remove_file(at("srv/app/lib/4")).unwrap();
    fs::write(at("srv/app/lib/new"), "new below a moved folder").unwrap();
    mode("srv/app/lib/5", 0o755);
    fs::rename(at("srv/app/lib/6"), at("srv/app/six")).unwrap();
    fs::rename(at("spare"), at("spare.old")).unwrap();
    fs::create_dir(at("spare")).unwrap();
    fs::write(at("spare/inside"), "another one\n").unwrap();
    fs::rename(at("len-4096"), at("a/moved and changed")).unwrap();
    fs::write(at("a/moved and changed"), "changed").unwrap();
    fs::rename(at("len-1048576"), at("len-1M")).unwrap();
    // What has its path is the same file: a log that was turned has another content.
    fs::rename(at("log.3"), at("log.4")).unwrap();
    fs::rename(at("log.2"), at("log.3")).unwrap();
    fs::write(at("log.2"), "a new log\n").unwrap();
    fs::remove_dir_all(at("a/b")).unwrap();
    fs::create_dir_all(at("x/y/z")).unwrap();
    fs::write(at("x/y/z/file"), "file").unwrap();
}

const MOVES: [(&str, &str); 5] = [
    ("app/lib/6", "app/six"),
    ("app", "srv/app"),
    ("spare", "spare.old"),
    ("len-4096", "a/moved and changed"),
    ("len-1048576", "len-1M"),
];

fn flag(path: &Path, flags: libc::c_long) {
    let file = File::open(path).unwrap();
    let mut now = 0;
    // SAFETY: the numbers are those of these two calls, which take and fill one word that outlives them.
    unsafe {
        get_flags(file.as_raw_fd(), &raw mut now).unwrap();
        now = (now & !0xf9) | flags;
        set_flags(file.as_raw_fd(), &raw const now).unwrap();
    }
}

fn changes(value: &Value) -> &Value {
    &value["places"][0]["changes"]
}

#[test]
fn every_kind_of_change_is_told_as_plain_mounts_show_it() {
    let shed = Shed::new();
    let old = image(&shed, "old", first);
    shed.ok(&["import", old.to_str().unwrap(), "--name", "deb"]);
    shed.ok(&["clone", "deb", "web"]);
    assert_eq!(shed.ok(&["diff", "web"]), "");
    let new = change_clone(&shed, "web", "new", second);
    let base = file_digest(&shed.base_disk());

    let found = shed.json(&["diff", "web"]);
    let (was, is) = (Seen::of(&shed, &old), Seen::of(&shed, &new));
    assert_same(&said(changes(&found)), &expected(&was, &is, &MOVES));

    // The lines are in order, a moved folder is one of them, and the sums are theirs.
    let text = shed.ok(&["diff", "web"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), changes(&found).as_array().unwrap().len());
    let below: Vec<&&str> = lines.iter().filter(|line| line.contains("/app")).collect();
    let told = [
        "R /app -> /srv/app",
        "D /app/lib/4",
        "R /app/lib/6 -> /srv/app/six",
        "M /srv/app/lib/3",
        "m /srv/app/lib/5 (mode)",
        "A /srv/app/lib/new",
    ];
    assert_eq!(below, told.iter().collect::<Vec<_>>());
    for line in [
        "M /large",
        "R /spare -> /spare.old",
        "A /spare",
        "R /len-4096 -> /a/moved and changed (content)",
        "D /pipe",
        "A /pipe",
        "M /null",
        "m /len-59 (flags)",
        "m /len-1023 (times)",
        "m /len-1024 (owner)",
    ] {
        assert!(lines.contains(&line), "{line}\n{text}");
    }
    let sums = &found["sums"];
    for (mark, sum) in
        [('A', "added"), ('M', "modified"), ('D', "deleted"), ('R', "moved"), ('m', "metadata")]
    {
        let count = lines.iter().filter(|line| line.starts_with(mark)).count();
        assert!(count > 0 && sums[sum] == count as u64, "{sum}: {count} {sums}");
    }
    let stat = shed.ok(&["diff", "web", "--stat"]);
    assert!(stat.starts_with(&format!("{} added (", sums["added"])) && stat.lines().count() == 1, "{stat}");

    // The other way round, everything is the other way round.
    let back = said(changes(&shed.json(&["diff", "deb", "web"])));
    let turned = |(mark, from, path, changed): Said| match (mark, from) {
        ('A', _) => ('D', None, path, changed),
        ('D', _) => ('A', None, path, changed),
        (mark, Some(from)) => (mark, Some(path), from, changed),
        (mark, None) => (mark, None, path, changed),
    };
    let forth: BTreeSet<Said> = said(changes(&found)).into_iter().map(turned).collect();
    // What is below a moved folder has another path on the other disk.
    let moved = |said: &Said| said.2.starts_with(b"/app/") || said.2.starts_with(b"/srv/app/");
    let rest =
        |all: &BTreeSet<Said>| all.iter().filter(|said| !moved(said)).cloned().collect::<BTreeSet<_>>();
    assert_same(&rest(&back), &rest(&forth));
    assert_eq!(back.len(), forth.len());
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn hostile_names_are_shown_harmless_and_told_exactly() {
    let shed = Shed::new();
    let names: [&[u8]; 6] = [
        b"new\nline",
        b"\x1b[31mred",
        b"not \xff utf-8",
        b"a -> b",
        b"quote\"\\",
        "\u{202e}turned".as_bytes(),
    ];
    let old = image(&shed, "old", |_| {});
    shed.ok(&["import", old.to_str().unwrap(), "--name", "deb"]);
    shed.ok(&["clone", "deb", "web"]);
    change_clone(&shed, "web", "new", |dir| {
        names.iter().for_each(|name| fs::write(dir.join(OsStr::from_bytes(name)), "x").unwrap());
    });
    let text = shed.ok(&["diff", "web"]);
    let lines: BTreeSet<&str> = text.lines().collect();
    let shown = [
        r#"A "/new\nline""#,
        r#"A "/\u{1b}[31mred""#,
        r#"A "/not \xff utf-8""#,
        r#"A "/a -> b""#,
        r#"A "/quote\"\\""#,
        r#"A "/\u{202e}turned""#,
    ];
    assert_eq!(lines, shown.into_iter().collect());
    let told: BTreeSet<Vec<u8>> =
        said(changes(&shed.json(&["diff", "web"]))).into_iter().map(|said| said.2).collect();
    assert_eq!(told, names.iter().map(|name| absolute(name)).collect());
}

#[test]
fn a_file_is_shown_line_by_line_or_by_its_digests() {
    let shed = Shed::new();
    let old = image(&shed, "old", |dir| {
        fs::write(dir.join("text"), "one\ntwo\nthree\n").unwrap();
        fs::write(dir.join("moves"), "here\n").unwrap();
        fs::write(dir.join("binary"), noise(10_000, 1)).unwrap();
        fs::write(dir.join("goes"), "gone\n").unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
    });
    shed.ok(&["import", old.to_str().unwrap(), "--name", "deb"]);
    shed.ok(&["clone", "deb", "web"]);
    let mut binary = noise(10_000, 1);
    binary[9_999] ^= 1;
    change_clone(&shed, "web", "new", |dir| {
        fs::write(dir.join("text"), "one\n2\x1b\nthree\n").unwrap();
        fs::rename(dir.join("moves"), dir.join("folder/moved")).unwrap();
        fs::write(dir.join("folder/moved"), "there\n").unwrap();
        fs::write(dir.join("binary"), &binary).unwrap();
        fs::remove_file(dir.join("goes")).unwrap();
    });
    let shown = |path: &str| shed.ok(&["diff", "web", "--content", path]);
    assert_eq!(
        shown("/text"),
        "--- deb@1:/text\n+++ web:/text\n@@ -1,3 +1,3 @@\n one\n-two\n+2\x1b\n three\n"
    );
    let moved = "--- deb@1:/moves\n+++ web:/folder/moved\n@@ -1 +1 @@\n-here\n+there\n";
    assert_eq!([shown("/moves"), shown("/folder/moved")], [moved, moved]);
    assert_eq!(shown("/goes"), "--- deb@1:/goes\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n");
    let digests = [noise(10_000, 1), binary]
        .map(|bytes| format!("file of 10000 bytes, blake3 {}", blake3::hash(&bytes)));
    assert_eq!(shown("/binary"), format!("no text: {} -> {}\n", digests[0], digests[1]));
    assert!(shed.fails(1, &["diff", "web", "--content", "/folder/../text"]).contains("/text"));
    assert!(shed.fails(1, &["diff", "web", "--content", "/folder"]).contains("is a folder"));
    assert!(shed.fails(1, &["diff", "web", "--content", "/nothing"]).contains("/nothing"));
    assert!(shed.fails(1, &["diff", "deb"]).contains("say what base deb@1 is compared with"));
    let told = shed.json(&["diff", "web", "--content", "/text"]);
    assert!(told["same"] == false && told["diff"].as_str().unwrap().contains("\n-two\n"), "{told}");
}

/// The runs of two files that differ, as they are after grains of 4 KiB.
fn runs(old: &[u8], new: &[u8]) -> Vec<(u64, u64, bool)> {
    let mut runs: Vec<(u64, u64, bool)> = Vec::new();
    for (number, (old, new)) in old.chunks(BLOCK).zip(new.chunks(BLOCK)).enumerate() {
        let (at, zero) = ((number * BLOCK) as u64, new.iter().all(|byte| *byte == 0));
        match runs.last_mut() {
            _ if old == new => {}
            Some((start, len, kind)) if *start + *len == at && *kind == zero => *len += BLOCK as u64,
            _ => runs.push((at, BLOCK as u64, zero)),
        }
    }
    runs
}

#[test]
fn a_disk_without_a_filesystem_is_compared_as_blocks() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let delta = shed.delta("web");
    let write = |command: &str| must("qemu-io", &["-f", "qcow2", "-c", command, delta.to_str().unwrap()]);
    write("write -P 5 2M 12k");
    write("write -P 6 10M 4k");
    write("write -z 12M 64k");
    write("write -P 7 17k 512");
    let text = shed.ok(&["diff", "web"]);
    let raw = shed.path("web.raw");
    shed.ok(&["export", "web", raw.to_str().unwrap(), "--format", "raw"]);
    let differing = runs(&fs::read(shed.path("deb.raw")).unwrap(), &fs::read(&raw).unwrap());
    let sum = |from: u64, to: u64| {
        let bytes: u64 = differing.iter().filter(|run| (from..to).contains(&run.0)).map(|run| run.1).sum();
        format!("{}.{} KiB", bytes / 1024, 0)
    };
    let expected = format!(
        "p1: unknown, {} differ\np2: unknown, {} differ\noutside of the partitions: 4.0 KiB differ\n",
        sum(1 << 20, 9 << 20),
        sum(9 << 20, 32 << 20)
    );
    assert_eq!(text.replace("empty or unknown", "unknown"), expected);

    let told = shed.json(&["diff", "web", "--blocks"]);
    let field = |run: &Value, name: &str| run[name].as_u64().unwrap();
    let told: Vec<(u64, u64, bool)> = told["extents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| (field(run, "start"), field(run, "length"), run["zero"].as_bool().unwrap()))
        .collect();
    assert_eq!(told, differing);
    assert!(told.iter().any(|run| run.2) && told.iter().any(|run| !run.2));
    let lines = shed.ok(&["diff", "web", "--blocks"]);
    assert_eq!(lines.lines().count(), 1 + differing.len());
    assert!(lines.contains(&format!("{:>16} {:>16} data\n", 2 << 20, 12 << 10)), "{lines}");
    let stat = shed.ok(&["diff", "web", "--blocks", "--stat"]);
    assert!(stat.starts_with(&format!("{} extents: ", differing.len())), "{stat}");
}

/// A disk with the filesystems at 1 MiB and 51 MiB, and a FAT between.
fn partitioned(shed: &Shed, file: &str, filesystems: [&Path; 2], fat: &[u8]) -> PathBuf {
    let disk = File::create(shed.path(file)).unwrap();
    disk.set_len(102 << 20).unwrap();
    for (image, at) in filesystems.into_iter().zip([1 << 20, 51 << 20]) {
        disk.write_all_at(&fs::read(image).unwrap(), at).unwrap();
    }
    disk.write_all_at(b"FAT16   ", (50 << 20) + 54).unwrap();
    disk.write_all_at(fat, (50 << 20) + 8192).unwrap();
    let path = shed.path(file);
    must(
        "sgdisk",
        &[
            "-U",
            "11111111-2222-3333-4444-555555555555",
            "-n1:2048:100351",
            "-n15:102400:104447",
            "-n3:104448:202751",
            path.to_str().unwrap(),
        ],
    );
    path
}

#[test]
fn partitions_are_told_apart_and_what_is_no_ext_is_one_line() {
    let shed = Shed::new();
    let root = image(&shed, "root", |dir| fs::write(dir.join("same"), "same").unwrap());
    let home = image(&shed, "home", |dir| fs::write(dir.join("same"), "same").unwrap());
    let disk = partitioned(&shed, "disk", [&root, &home], &[]);
    shed.ok(&["import", disk.to_str().unwrap(), "--name", "deb"]);
    shed.ok(&["clone", "deb", "web"]);
    change(&shed, &root, |dir| fs::write(dir.join("a"), "a").unwrap());
    change(&shed, &home, |dir| fs::write(dir.join("same"), "other").unwrap());
    let raw = partitioned(&shed, "changed", [&root, &home], &[9; 12 << 10]);
    // The tables have random numbers: that of the base is kept.
    let table = fs::read(&disk).unwrap();
    let changed = File::options().write(true).open(&raw).unwrap();
    changed.write_all_at(&table[..1 << 20], 0).unwrap();
    changed.write_all_at(&table[101 << 20..], 101 << 20).unwrap();
    bring(&shed, "web", &raw);
    assert_eq!(shed.ok(&["diff", "web"]), "A p1:/a\nM p3:/same\np15: FAT, 12.0 KiB differ\n");
    let same = shed.fails(1, &["diff", "web", "--content", "/same"]);
    assert!(same.contains("p1:/") && same.contains("p3:/"), "{same}");
    let text = shed.ok(&["diff", "web", "--content", "p3:/same"]);
    assert!(text.contains("-same\n") && text.contains("+other\n"), "{text}");

    // Another layout: by number.
    let disk = fs::read(&raw).unwrap();
    let moved = shed.path("moved");
    let file = File::create(&moved).unwrap();
    file.set_len(110 << 20).unwrap();
    file.write_all_at(&disk[1 << 20..49 << 20], 5 << 20).unwrap();
    must("sgdisk", &["-n1:10240:108543", "-n4:110592:112639", moved.to_str().unwrap()]);
    shed.ok(&["import", moved.to_str().unwrap(), "--name", "other"]);
    let text = shed.ok(&["diff", "other", "web"]);
    let expected = "the disk's size: 102.0 MiB -> 110.0 MiB\n\
                    the partitions lie elsewhere: those with the same number are compared\n\
                    p3: ext4, only on web\np4: empty or unknown, only on other@1\np15: FAT, only on web\n";
    assert_eq!(text, expected);
    assert_eq!(shed.json(&["diff", "other", "deb"])["layout_differs"], true);
    assert!(shed.ok(&["diff", "other", "deb"]).contains("\nA /a\n"));
}

#[test]
fn bases_and_clones_of_different_versions_are_compared_too() {
    let shed = Shed::new();
    let one = image(&shed, "one", first);
    shed.ok(&["import", one.to_str().unwrap(), "--name", "deb"]);
    let two = Image::open(&one).copy(&shed.path("two")).path;
    change(&shed, &two, second);
    shed.ok(&["clone", "deb", "old"]);
    shed.ok(&["import", two.to_str().unwrap(), "--update", "deb"]);
    shed.ok(&["clone", "deb", "new"]);
    let seen = |image: &Path| Seen::of(&shed, image);
    let told = |a: &str, b: &str| said(changes(&shed.json(&["diff", a, b])));
    assert_same(&told("deb@2", "deb@1"), &expected(&seen(&one), &seen(&two), &MOVES));
    let was = change_clone(&shed, "old", "was", |dir| fs::write(dir.join("mine"), "mine").unwrap());
    let is = change_clone(&shed, "new", "is", |dir| fs::write(dir.join("yours"), "yours").unwrap());
    assert_same(&told("new", "old"), &expected(&seen(&was), &seen(&is), &MOVES));
    assert_eq!(told("new", "deb").len(), 1);

    // Two filesystems that have nothing to do with one another: by path, and nothing is a move.
    let other = image(&shed, "other", |dir| fs::write(dir.join("large"), noise(6 << 20, 7)).unwrap());
    shed.ok(&["import", other.to_str().unwrap(), "--name", "other"]);
    let found = told("other", "deb@1");
    assert!(found.iter().all(|said| said.0 != 'R'));
    let large: Vec<&Said> = found.iter().filter(|said| said.2 == b"/large").collect();
    assert!(matches!(large[..], [('m', ..)]), "{large:?}");
}

#[test]
fn a_journal_is_replayed_and_damage_is_told_with_the_blocks_that_differ() {
    let shed = Shed::new();
    let old = image(&shed, "old", |_| {});
    shed.ok(&["import", old.to_str().unwrap(), "--name", "deb"]);
    shed.ok(&["clone", "deb", "web"]);
    let live = Image::open(&old).copy(&shed.path("live")).path;
    change(&shed, &live, |dir| {
        let file = File::create(dir.join("durable")).unwrap();
        file.write_all_at(b"durable\n", 0).unwrap();
        file.sync_all().unwrap();
        ran(Command::new("cp").arg(&live).arg(shed.path("torn")));
    });
    bring(&shed, "web", &shed.path("torn"));
    assert_eq!(shed.ok(&["diff", "web"]), "A /durable\n");
    assert!(shed.ok(&["diff", "web", "--content", "/durable"]).ends_with("+durable\n"));

    ran(Command::new("debugfs").args(["-w", "-R", "set_inode_field / mode 0170000"]).arg(&live));
    bring(&shed, "web", &live);
    let output = shed.output(&["diff", "web"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("the disk: ext4, ") && text.contains("differ; files not compared: web: "),
        "{text}"
    );
}
