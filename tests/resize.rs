//! A clone's disk becomes smaller and larger with every file kept, or stays as it is.
//!
//! Needs root: filesystems are filled and looked at by the kernel.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

mod common {
    pub mod cli;
    pub mod ext;
    pub mod rng;
}

use common::cli::store::{must, name, qemu_check};
use common::cli::{Shed, noise, one_line};
use common::ext::tool;
use common::rng::Rng;
use cowshed::storage::{HostFile, Storage};
use cowshed::store::{Access, Store};
use cowshed::units::{GuestOffset, HostOffset};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A part of a file, mounted by the kernel.
struct Mounted(PathBuf);

impl Mounted {
    fn new(file: &Path, offset: u64, at: &Path, write: bool) -> Self {
        fs::create_dir_all(at).unwrap();
        let how = format!("loop,offset={offset}{}", if write { "" } else { ",ro" });
        must("mount", &["-o", &how, file.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..100 {
            if tool("umount").arg(&self.0).output().unwrap().status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(std::thread::panicking(), "{} cannot be unmounted", self.0.display());
    }
}

/// What a folder holds: by path the kind and mode, and the digest of a file or the target of a link.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u32, String)> {
    fn walk(top: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, (u32, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_file() {
                format!("{} {} {}", meta.len(), meta.nlink(), blake3::hash(&fs::read(&path).unwrap()))
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                String::new()
            };
            found.insert(path.strip_prefix(top).unwrap().to_owned(), (meta.mode(), content));
            if meta.is_dir() {
                walk(top, &path, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut found);
    found
}

/// How a disk is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    Gpt,
    Mbr,
    /// The last partition is a logical one, the second of two.
    Logical,
    Bare,
}

impl Layout {
    /// The number of the partition with the filesystem.
    fn number(self) -> Option<u32> {
        match self {
            Self::Gpt | Self::Mbr => Some(2),
            Self::Logical => Some(6),
            Self::Bare => None,
        }
    }

    /// The file of a view with the filesystem.
    fn part(self) -> String {
        self.number().map_or_else(|| "web".to_owned(), |number| format!("web.p{number}"))
    }
}

/// Makes a sparse disk of `size` bytes with a filesystem in its last partition, whose files of `data` bytes in all lie all
/// over it, also at its end.
fn make(path: &Path, layout: Layout, size: u64, data: u64, options: &[&str]) -> u64 {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let text = path.to_str().unwrap();
    let (start, end) = match layout {
        Layout::Gpt => {
            must("sgdisk", &["-n1:2048:4095", "-t1:ef02", "-n2:4096:0", text]);
            (2 * MIB, size - MIB)
        }
        Layout::Mbr => {
            sfdisk(path, "2048,2048,c\n4096,,L,*\n");
            (2 * MIB, size)
        }
        Layout::Logical => {
            sfdisk(path, "2048,2048,c\n4096,,E\n6144,2048,L\n10240,,L\n");
            (5 * MIB, size)
        }
        Layout::Bare => (0, size),
    };
    // The kernel spreads folders by a hash of their names, whose seed is drawn: the same one puts the same files in the same places.
    let offset = format!("offset={start},hash_seed=76a1c2c5-4f0c-4d83-9c1e-0d2f6b1f5a11");
    let kib = format!("{}k", (end - start) / 1024);
    let made =
        tool("mke2fs").args(["-q", "-F", "-E", &offset]).args(options).args([text, &kib]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fill(path, start, (end - start) / 10 * 7, data);
    start
}

/// Fills a filesystem: half of the files first, half behind a hole of `gap` bytes that is taken meanwhile.
fn fill(path: &Path, start: u64, gap: u64, data: u64) {
    let at = path.with_extension("fill");
    let mounted = Mounted::new(path, start, &at, true);
    let one = data / 32;
    let write = |half: u64| {
        for number in 0..16 {
            let dir = at.join(format!("dir-{half}-{}", number % 3));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("file-{number}")), noise(one as usize, half * 16 + number)).unwrap();
        }
    };
    write(0);
    let big = at.join("big");
    let taken = must_or("fallocate", &["-l", &gap.to_string(), big.to_str().unwrap()]);
    write(1);
    if taken {
        fs::remove_file(&big).unwrap();
    }
    fs::hard_link(at.join("dir-1-0/file-0"), at.join("hard")).unwrap();
    std::os::unix::fs::symlink("dir-0-0/file-0", at.join("soft")).unwrap();
    let sparse = File::create(at.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 3 * MIB).unwrap();
    drop((sparse, mounted));
    fs::remove_dir(at).unwrap();
}

/// Whether the program succeeded: ext2 and ext3 cannot reserve room without writing it.
fn must_or(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().unwrap().status.success()
}

fn sfdisk(path: &Path, script: &str) {
    use std::io::Write;
    let mut child = tool("sfdisk").arg("-q").arg(path).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// A digest of the bytes of a file that are not zero, and where they are.
fn sparse_digest(path: &Path) -> blake3::Hash {
    let file = HostFile::new(File::open(path).unwrap());
    let (mut hasher, mut at, len) = (blake3::Hasher::new(), 0, file.len().unwrap());
    while at < len {
        let run = file.run_at(HostOffset(at)).unwrap();
        let end = at + run.len.min(len - at);
        while run.data && at < end {
            let mut bytes = vec![0; (end - at).min(4096) as usize];
            file.read_at(&mut bytes, HostOffset(at)).unwrap();
            hash_unless_zero(&mut hasher, at, &bytes);
            at += bytes.len() as u64;
        }
        at = end;
    }
    hasher.update(&len.to_le_bytes()).finalize()
}

fn hash_unless_zero(hasher: &mut blake3::Hasher, at: u64, bytes: &[u8]) {
    if bytes.iter().any(|byte| *byte != 0) {
        hasher.update(&at.to_le_bytes()).update(bytes);
    }
}

/// A store with a base `os` and a clone `web` of it.
struct Case {
    shed: Shed,
    start: u64,
    layout: Layout,
    files: BTreeMap<PathBuf, (u32, String)>,
    base: blake3::Hash,
}

impl Case {
    fn new(layout: Layout, size: u64, data: u64, options: &[&str]) -> Self {
        let shed = Shed::new();
        let image = shed.path("os.raw");
        let start = make(&image, layout, size, data, options);
        Self::of(shed, layout, start)
    }

    /// With the image `os.raw` that is there.
    fn of(shed: Shed, layout: Layout, start: u64) -> Self {
        let image = shed.path("os.raw");
        shed.ok(&["import", image.to_str().unwrap(), "--name", "os", "--format", "raw"]);
        shed.ok(&["clone", "os", "web"]);
        let files = {
            let mounted = Mounted::new(&image, start, &shed.path("look"), false);
            files(&mounted.0)
        };
        fs::remove_file(image).unwrap();
        let base = sparse_digest(&shed.root().join("bases/os/1/disk.raw"));
        Self { shed, start, layout, files, base }
    }

    fn store(&self) -> Store {
        Store::open(&self.shed.root()).unwrap()
    }

    fn size(&self) -> u64 {
        self.store().open_clone(&name("web"), Access::Read).unwrap().disk.size()
    }

    /// A digest of what the guest sees, and the size.
    fn digest(&self) -> blake3::Hash {
        let open = self.store().open_clone(&name("web"), Access::Read).unwrap();
        let (mut hasher, mut at, len) = (blake3::Hasher::new(), 0, open.disk.size());
        while at < len {
            let extent = open.disk.extent(GuestOffset(at)).unwrap();
            let end = at + extent.len.min(len - at);
            while extent.data && at < end {
                // To the next border: the same pieces however the runs are cut.
                let mut bytes = vec![0; ((at / 4096 + 1) * 4096 - at).min(end - at) as usize];
                open.disk.read(&mut bytes, GuestOffset(at)).unwrap();
                hash_unless_zero(&mut hasher, at, &bytes);
                at += bytes.len() as u64;
            }
            at = end;
        }
        hasher.update(&len.to_le_bytes()).finalize()
    }

    /// Everything that must hold of a clone whose disk has `size` bytes.
    fn holds(&self, size: u64) {
        self.is_whole(size);
        let manifest = fs::read(self.shed.delta("web").with_file_name("clone.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["size"], size);
        qemu_check(&self.shed.delta("web"));
        self.shed.ok(&["check", "web"]);
        assert_eq!(sparse_digest(&self.shed.root().join("bases/os/1/disk.raw")), self.base);
        self.nothing_is_left();
    }

    /// Size, table, filesystem and files.
    fn is_whole(&self, size: u64) {
        assert_eq!(self.size(), size);
        assert_eq!(self.shed.json(&["info", "web"])["size"], size);
        let view = self.shed.mount();
        let disk = view.clone_file("web");
        let text = disk.to_str().unwrap();
        assert_eq!(disk.metadata().unwrap().len(), size);
        let part = view.clone_file(&self.layout.part());
        match self.layout {
            Layout::Gpt => {
                let said = must("sgdisk", &["-v", text]);
                assert!(said.contains("No problems found"), "{said}");
            }
            Layout::Mbr | Layout::Logical => drop(must("sfdisk", &["-V", text])),
            Layout::Bare => {}
        }
        must("e2fsck", &["-fn", part.to_str().unwrap()]);
        let look = Mounted::new(&part, 0, &self.shed.path("look"), false);
        assert_eq!(files(&look.0), self.files);
        drop(look);
        view.unmount();
    }

    fn nothing_is_left(&self) {
        let tmp = self.shed.root().join("tmp");
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(tmp.to_str().unwrap()), "{table}");
    }

    /// The command must end with `code` and a line that says all of `why`; nothing is changed.
    fn refused(&self, arguments: &[&str], why: &[&str]) -> String {
        let before = self.digest();
        let said = self.shed.fails(1, &[&["resize", "web"], arguments].concat());
        why.iter().for_each(|why| assert!(said.contains(why), "{said} does not say {why}"));
        assert_eq!(self.digest(), before);
        assert_eq!(self.shed.json(&["checkpoints", "web"])["checkpoints"].as_array().unwrap().len(), 0);
        self.nothing_is_left();
        said
    }

    fn resize(&self, to: &str) -> serde_json::Value {
        self.shed.json(&["resize", "web", to])
    }
}

/// Bytes of a clone that read as zeros, by QEMU and by us.
fn reads_as_zeros(case: &Case, from: u64, to: u64) {
    let open = case.store().open_clone(&name("web"), Access::Read).unwrap();
    let mut at = from;
    while at < to {
        let mut bytes = vec![1; (to - at).min(4 * MIB) as usize];
        open.disk.read(&mut bytes, GuestOffset(at)).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{at}");
        at += bytes.len() as u64;
    }
    drop(open);
    let read = format!("read -P 0 {from} {}", to - from);
    let said = must("qemu-io", &["-r", "-f", "qcow2", "-c", &read, case.shed.delta("web").to_str().unwrap()]);
    assert!(!said.contains("verification failed"), "{said}");
}

#[test]
fn a_gpt_disk_goes_from_20_gib_to_6_and_back_with_every_file() {
    let case = Case::new(Layout::Gpt, 20 * GIB, 192 * MIB, &["-t", "ext4"]);
    case.holds(20 * GIB);
    let before = case.digest();
    let plan = case.shed.json(&["resize", "web", "6G", "--plan"]);
    assert_eq!(plan["minimum"]["bound_by"], "partition 2 (ext4)", "{plan}");
    let used = plan["minimum"]["used"].as_u64().unwrap();
    assert!((192 * MIB..GIB).contains(&used), "{plan}");
    assert_eq!(case.digest(), before);

    let done = case.resize("6G");
    assert_eq!(done["changed"]["partition"], 2, "{done}");
    case.holds(6 * GIB);
    let larger = case.resize("20G");
    assert_eq!(larger["changed"]["to"], 20 * GIB - 3 * MIB, "{larger}");
    case.holds(20 * GIB);

    case.shed.ok(&["undo", "web"]);
    case.holds(6 * GIB);
    case.shed.ok(&["undo", "web"]);
    assert_eq!(case.digest(), before);
    case.holds(20 * GIB);
    let said = case.shed.fails(1, &["undo", "web"]);
    assert!(said.contains("nothing to undo"), "{said}");
}

#[test]
fn the_least_size_is_possible_and_less_is_refused_with_it() {
    let case = Case::new(Layout::Gpt, GIB, 32 * MIB, &["-t", "ext4"]);
    let plan = case.shed.json(&["resize", "web", "--plan"]);
    let least = plan["minimum"]["bytes"].as_u64().unwrap();
    assert!(least < 512 * MIB && least.is_multiple_of(MIB), "{plan}");
    assert_eq!(plan["to"], least);
    let less = (least - 512).to_string();
    case.refused(&[&less], &[&least.to_string(), "partition 2 (ext4)", "in use"]);
    case.refused(&["1M", "--plan"], &[&least.to_string()]);
    let said = case.shed.ok(&["resize", "web", "--minimum"]);
    assert!(said.contains("undo with: cowshed undo web"), "{said}");
    case.holds(least);
    let again = case.shed.json(&["resize", "web", "--minimum"]);
    assert!(again["to"].as_u64().unwrap() <= least, "{again}");
    case.resize("+600M");
}

#[test]
fn an_mbr_disk_goes_there_and_back_and_its_entry_is_the_one_that_sfdisk_writes() {
    let case = Case::new(Layout::Mbr, GIB, 16 * MIB, &["-t", "ext4"]);
    for size in [300 * MIB, 700 * MIB + 512, GIB] {
        case.resize(&size.to_string());
        case.holds(size);
        let mut sector = [0; 512];
        let open = case.store().open_clone(&name("web"), Access::Read).unwrap();
        open.disk.read(&mut sector, GuestOffset(0)).unwrap();
        drop(open);
        let twin = case.shed.path("twin.raw");
        File::create(&twin).unwrap().set_len(size).unwrap();
        let sectors = size / MIB * 2048 - 4096;
        sfdisk(&twin, &format!("2048,2048,c\n4096,{sectors},L,*\n"));
        let theirs = fs::read(&twin).unwrap();
        assert_eq!(sector[446..510], theirs[446..510], "{size}");
        fs::remove_file(&twin).unwrap();
    }
    for _ in 0..3 {
        case.shed.ok(&["undo", "web"]);
    }
    case.holds(GIB);
}

/// The boot records of a disk by their sectors: the first one, and those that lead to logical partitions from the extended one on.
fn boot_records(read: impl Fn(u64) -> [u8; 512]) -> BTreeMap<u64, [u8; 64]> {
    let (mut found, mut at) = (BTreeMap::new(), Some(0));
    let mut extended = 0;
    while let Some(sector) = at {
        let record = read(sector);
        found.insert(sector, record[446..510].try_into().unwrap());
        let link = record[446..510].chunks_exact(16).find(|entry| matches!(entry[4], 5 | 15));
        at = link.map(|entry| extended + u64::from(u32::from_le_bytes(entry[8..12].try_into().unwrap())));
        if sector == 0 {
            extended = at.unwrap();
        }
    }
    found
}

#[test]
fn a_logical_partition_goes_there_and_back_and_all_entries_are_those_that_sfdisk_writes() {
    let case = Case::new(Layout::Logical, GIB, 16 * MIB, &["-t", "ext4"]);
    let plan = case.shed.json(&["resize", "web", "--plan"]);
    assert_eq!(plan["minimum"]["bound_by"], "partition 6 (ext4)", "{plan}");
    let least = plan["minimum"]["bytes"].as_u64().unwrap();
    case.refused(&[&(least - MIB).to_string()], &["partition 6 (ext4)", &least.to_string()]);
    for size in [300 * MIB, 700 * MIB + 512, GIB, 512 * MIB + 512] {
        let done = case.resize(&size.to_string());
        assert_eq!(done["changed"]["partition"], 6, "{done}");
        case.holds(size);
        let twin = case.shed.path("twin.raw");
        File::create(&twin).unwrap().set_len(size).unwrap();
        let end = size / MIB * 2048;
        let script = format!("2048,2048,c\n4096,{},E\n6144,2048,L\n10240,{},L\n", end - 4096, end - 10240);
        sfdisk(&twin, &script);
        let theirs = File::open(&twin).unwrap();
        let open = case.store().open_clone(&name("web"), Access::Read).unwrap();
        let sector = |at: u64, read: &dyn Fn(&mut [u8], u64)| {
            let mut bytes = [0; 512];
            read(&mut bytes, at * 512);
            bytes
        };
        let expected = boot_records(|at| sector(at, &|bytes, at| theirs.read_exact_at(bytes, at).unwrap()));
        let ours =
            boot_records(|at| sector(at, &|bytes, at| open.disk.read(bytes, GuestOffset(at)).unwrap()));
        assert_eq!(expected.len(), 3);
        assert_eq!(ours, expected, "{size}");
        fs::remove_file(&twin).unwrap();
    }
    for _ in 0..4 {
        case.shed.ok(&["undo", "web"]);
    }
    case.holds(GIB);
}

#[test]
fn room_behind_a_logical_partition_is_cut_with_the_end_of_the_extended_one() {
    let shed = Shed::new();
    let image = shed.path("os.raw");
    File::create(&image).unwrap().set_len(600 * MIB).unwrap();
    sfdisk(&image, "2048,2048,c\n4096,1024000,E\n6144,2048,L\n10240,614400,L\n");
    let text = image.to_str().unwrap().to_owned();
    must("mke2fs", &["-q", "-F", "-t", "ext4", "-E", "offset=5242880", &text, "300M"]);
    fill(&image, 5 * MIB, 100 * MIB, 8 * MIB);
    let case = Case::of(shed, Layout::Logical, 5 * MIB);
    for size in [550 * MIB, 400 * MIB, 305 * MIB + 1024] {
        let done = case.resize(&size.to_string());
        assert!(done.get("changed").is_none(), "{done}");
        case.holds(size);
    }
    // From there on the filesystem gives way, and comes back.
    case.resize("200M");
    case.holds(200 * MIB);
    let done = case.resize("600M");
    assert_eq!(done["changed"]["to"], 595 * MIB, "{done}");
    case.holds(600 * MIB);
}

#[test]
fn a_filesystem_without_a_table_goes_there_and_back_whatever_it_is() {
    for options in [
        &["-t", "ext4", "-b", "1024"][..],
        &["-t", "ext3"],
        &["-t", "ext2", "-b", "2048"],
        &["-t", "ext4", "-O", "^resize_inode,^flex_bg,metadata_csum"],
    ] {
        let case = Case::new(Layout::Bare, 256 * MIB, 8 * MIB, options);
        case.resize("-100M");
        case.holds(156 * MIB);
        case.resize("400M");
        case.holds(400 * MIB);
        case.shed.ok(&["undo", "web"]);
        case.shed.ok(&["undo", "web"]);
        case.holds(256 * MIB);
    }
}

#[test]
fn room_that_was_cut_comes_back_as_zeros_and_not_as_what_it_was() {
    let case = Case::new(Layout::Gpt, GIB, 64 * MIB, &["-t", "ext4"]);
    case.resize("400M");
    let done = case.shed.json(&["resize", "web", "1G", "--image-only"]);
    assert!(done["note"].as_str().unwrap().contains("guest") && done.get("changed").is_none(), "{done}");
    assert_eq!(case.size(), GIB);
    reads_as_zeros(&case, 400 * MIB, GIB);
    case.refused_now(&["500M", "--image-only"], "only a larger disk");
    // What a guest does then.
    let view = case.shed.mount();
    let disk = view.clone_file("web");
    let text = disk.to_str().unwrap();
    must("sgdisk", &["-e", "-d2", "-n2:4096:0", text]);
    view.unmount();
    let view = case.shed.mount();
    let part = view.clone_file("web.p2");
    let checked = tool("e2fsck").args(["-fp"]).arg(&part).output().unwrap();
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
    must("resize2fs", &[part.to_str().unwrap()]);
    view.unmount();
    case.is_whole(GIB);
}

impl Case {
    /// As [`Case::refused`], of a clone that has checkpoints.
    fn refused_now(&self, arguments: &[&str], why: &str) {
        let before = self.digest();
        let said = self.shed.fails(1, &[&["resize", "web"], arguments].concat());
        assert!(said.contains(why), "{said}");
        assert_eq!(self.digest(), before);
        self.nothing_is_left();
    }
}

#[test]
fn what_lies_last_and_is_no_ext_filesystem_is_never_cut_and_named() {
    let shed = Shed::new();
    let image = shed.path("os.raw");
    let text = image.to_str().unwrap().to_owned();
    File::create(&image).unwrap().set_len(600 * MIB).unwrap();
    must("sgdisk", &["-n1:2048:4095", "-n2:4096:821247", "-n3:821248:1026047", "-t3:8200", &text]);
    must("mke2fs", &["-q", "-F", "-t", "ext4", "-E", "offset=2097152", &text, "399M"]);
    let file = File::options().write(true).open(&image).unwrap();
    let swap = 401 * MIB;
    file.write_all_at(b"SWAPSPACE2", swap + 4086).unwrap();
    fill(&image, 2 * MIB, 200 * MIB, 8 * MIB);
    let case = Case::of(shed, Layout::Gpt, 2 * MIB);
    case.refused(
        &["450M"],
        &[
            "partition 3 (swap)",
            "only an ext2, ext3 or ext4 filesystem that lies last",
            "526385152",
            "`swapoff`",
            "delete its partition",
        ],
    );
    case.refused(&["300M"], &["partition 2 (ext4), partition 3 (swap)"]);
    case.refused(&["1M"], &["partition"]);
    // Free room behind it may go, and more may come.
    case.resize("502M");
    case.holds(502 * MIB);
    let done = case.resize("700M");
    assert!(done["note"].as_str().unwrap().contains("partition 3 (swap) is left as it is"), "{done}");
    case.holds(700 * MIB);
    // A guest whose memory lies there must be woken first.
    let open = case.store().open_clone(&name("web"), Access::Write).unwrap();
    open.disk.write(b"S1SUSPEND\0", GuestOffset(swap + 4086)).unwrap();
    open.close().unwrap();
    case.refused_now(&["650M"], "hibernates");
}

#[test]
fn tables_that_cannot_be_understood_are_refused() {
    let shed = Shed::new();
    let image = shed.path("logical.raw");
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    sfdisk(&image, "2048,20480,L\n22528,,E\n24576,,L\n");
    shed.ok(&["import", image.to_str().unwrap(), "--name", "logical", "--format", "raw"]);
    shed.ok(&["clone", "logical", "l"]);
    let said = shed.fails(1, &["resize", "l", "40M"]);
    assert!(said.contains("partition 5 (unknown content)"), "{said}");
    // A chain that nobody can follow.
    let store = Store::open(&shed.root()).unwrap();
    let open = store.open_clone(&name("l"), Access::Write).unwrap();
    open.disk.write(&[0; 2], GuestOffset(22528 * 512 + 510)).unwrap();
    open.close().unwrap();
    let said = shed.fails(1, &["resize", "l", "40M"]);
    assert!(said.contains("partition 2 (extended, with logical ones in it)"), "{said}");
    let image = shed.image("broken.raw");
    let bytes = File::options().read(true).write(true).open(&image).unwrap();
    bytes.write_all_at(&[0xff; 8], 1024 + 40).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "broken", "--format", "raw"]);
    shed.ok(&["clone", "broken", "b"]);
    let said = shed.fails(1, &["resize", "b", "20M"]);
    assert!(said.contains("GPT is damaged"), "{said}");
    let image = shed.path("noise.raw");
    fs::write(&image, noise(4 << 20, 1)).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "noise", "--format", "raw"]);
    shed.ok(&["clone", "noise", "n"]);
    let said = shed.fails(1, &["resize", "n", "2M"]);
    assert!(said.contains("its disk (unknown content)"), "{said}");
    shed.ok(&["resize", "n", "8M"]);
    assert_eq!(shed.json(&["info", "n"])["size"], 8 * MIB);
}

#[test]
fn what_waits_in_the_journal_is_kept_and_what_needs_a_person_is_refused() {
    let shed = Shed::new();
    let image = shed.path("os.raw");
    let start = make(&image, Layout::Gpt, 512 * MIB, 8 * MIB, &["-t", "ext4"]);
    let torn = shed.path("torn.raw");
    let synced = {
        let mounted = Mounted::new(&image, start, &shed.path("guest"), true);
        for number in 0..30 {
            let path = mounted.0.join(format!("synced-{number}"));
            fs::write(&path, format!("{number}\n")).unwrap();
            File::open(&path).unwrap().sync_all().unwrap();
        }
        fs::copy(&image, &torn).unwrap();
        files(&mounted.0)
    };
    fs::rename(&torn, &image).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "os", "--format", "raw"]);
    shed.ok(&["clone", "os", "web"]);
    let base = sparse_digest(&shed.root().join("bases/os/1/disk.raw"));
    let case = Case { shed, start, layout: Layout::Gpt, files: synced, base };
    case.resize("256M");
    case.holds(256 * MIB);
    case.resize("512M");
    case.holds(512 * MIB);
    // A folder's block that is no folder's any more.
    case.shed.ok(&["clone", "os", "hurt"]);
    let open = case.store().open_clone(&name("hurt"), Access::Write).unwrap();
    let mut at = start + MIB;
    while at < 64 * MIB {
        open.disk.write(&noise(4096, at), GuestOffset(at)).unwrap();
        at += 8192;
    }
    open.close().unwrap();
    let said = case.shed.fails(1, &["resize", "hurt", "256M"]);
    assert!(said.contains("clone hurt: partition 2 (ext4)") && said.contains("e2fsck"), "{said}");
    case.nothing_is_left();
}

#[test]
fn a_filesystem_that_was_mounted_by_a_clock_ahead_of_ours_is_no_exception() {
    let shed = Shed::new();
    let image = shed.path("os.raw");
    let start = make(&image, Layout::Bare, 64 * MIB, 2 * MIB, &["-t", "ext4"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for field in ["mtime", "wtime"] {
        let request = format!("set_super_value {field} @{}", now + 7200);
        must("debugfs", &["-w", "-R", &request, image.to_str().unwrap()]);
    }
    let case = Case::of(shed, Layout::Bare, start);
    case.resize("40M");
    case.holds(40 * MIB);
}

#[test]
fn a_clone_in_use_a_base_and_a_host_without_the_programs_are_refused_with_a_sentence() {
    let case = Case::new(Layout::Bare, 64 * MIB, 2 * MIB, &["-t", "ext4"]);
    let open = case.store().open_clone(&name("web"), Access::Write).unwrap();
    let said = case.shed.fails(1, &["resize", "web", "32M"]);
    assert!(said.contains("clone web is in use"), "{said}");
    drop(open);
    let open = case.store().open_clone(&name("web"), Access::Read).unwrap();
    let said = case.shed.fails(1, &["resize", "web", "32M"]);
    assert!(said.contains("in use"), "{said}");
    drop(open);
    let said = case.shed.fails(1, &["resize", "os", "32M"]);
    assert!(said.contains("os@1 is a base") && said.contains("promote CLONE --update os"), "{said}");
    let said = case.shed.fails(1, &["resize", "nobody", "32M"]);
    assert!(said.contains("nobody"), "{said}");
    for size in ["1.5G", "513", "0", "-64M", "17T", "+"] {
        let output = case.shed.output(&["resize", "web", size]);
        let code = output.status.code().unwrap();
        assert!(matches!(code, 1 | 2), "{size}");
        one_line(&output, code, &[size]);
    }
}

#[test]
fn a_host_without_e2fsprogs_or_fuse_says_so() {
    let case = Case::new(Layout::Bare, 64 * MIB, 2 * MIB, &["-t", "ext4"]);
    let before = case.digest();
    let empty = case.shed.path("empty");
    fs::create_dir(&empty).unwrap();
    let program = env!("CARGO_BIN_EXE_cowshed");
    let run = |prepare: &str| {
        let script = format!(
            "set -e; mount --make-rprivate /; {prepare}; exec {program} --store {} resize web 32M",
            case.shed.root().display()
        );
        let output = Command::new("unshare").args(["-m", "bash", "-c", &script]).output().unwrap();
        one_line(&output, 1, &[prepare])
    };
    let hide = format!("mount --bind {} /usr/sbin", empty.display());
    let said = run(&hide);
    assert!(said.contains("install the package e2fsprogs"), "{said}");
    let said = run("mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9");
    assert!(said.contains("/dev/fuse"), "{said}");
    assert_eq!(case.digest(), before);
    case.resize("32M");
    case.holds(32 * MIB);
}

#[test]
fn a_killed_or_interrupted_resize_leaves_the_clone_as_before_or_as_after() {
    let case = Case::new(Layout::Gpt, 512 * MIB, 24 * MIB, &["-t", "ext4"]);
    let before = case.digest();
    let seed = common::rng::seed_from_environment().unwrap_or_else(common::rng::fresh_seed);
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let began = std::time::Instant::now();
    case.resize("200M");
    let lasts = began.elapsed().as_micros() as u64;
    case.shed.ok(&["undo", "web"]);
    let (mut untouched, mut done, mut stopped) = (0, 0, 0);
    for round in 0..16 {
        let after = Duration::from_micros(rng.below(lasts));
        stopped += u32::from(case.shed.cut_short(&["resize", "web", "200M"], after, round % 4 == 3));
        if case.digest() == before {
            untouched += 1;
        } else {
            case.is_whole(200 * MIB);
            done += 1;
            case.shed.ok(&["undo", "web"]);
        }
        // The next command takes away what is left, a mount too.
        case.shed.ok(&["clone", "os", "next"]);
        case.shed.ok(&["rm", "next"]);
        case.nothing_is_left();
    }
    println!("{untouched} as before, {done} as after, {stopped} stopped in the middle; {lasts} us without");
    assert!(untouched > 0 && stopped > 0);
    case.resize("200M");
    case.holds(200 * MIB);
}

#[test]
fn room_behind_a_filesystem_is_cut_without_a_word_of_the_least() {
    let shed = Shed::new();
    let image = shed.path("os.raw");
    let text = image.to_str().unwrap().to_owned();
    File::create(&image).unwrap().set_len(600 * MIB).unwrap();
    must("sgdisk", &["-n1:2048:4095", "-n2:4096:821247", &text]);
    must("mke2fs", &["-q", "-F", "-t", "ext4", "-E", "offset=2097152", &text, "399M"]);
    fill(&image, 2 * MIB, 200 * MIB, 8 * MIB);
    let case = Case::of(shed, Layout::Gpt, 2 * MIB);
    // Less is possible, but nobody asked how much less.
    let plan = case.shed.json(&["resize", "web", "500M", "--plan"]);
    assert!(
        plan["to"] == 500 * MIB && plan.get("minimum").is_none() && plan.get("changed").is_none(),
        "{plan}"
    );
    let done = case.resize("500M");
    assert!(done.get("minimum").is_none(), "{done}");
    case.holds(500 * MIB);
    let plan = case.shed.json(&["resize", "web", "--plan"]);
    assert!(plan["minimum"]["bytes"].as_u64().unwrap() < 200 * MIB, "{plan}");
}

impl Case {
    /// What the host has for the clone's folder.
    fn host_bytes(&self) -> u64 {
        let entries = fs::read_dir(self.shed.delta("web").parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
    }

    fn write(&self, data: &[u8], at: u64) {
        let open = self.store().open_clone(&name("web"), Access::Write).unwrap();
        open.disk.write(data, GuestOffset(at)).unwrap();
        open.close().unwrap();
    }

    /// Plans a resize without undo and does it: the bytes that it says to need, that it promises, and that come back.
    fn without_undo(&self, to: &str) -> (u64, u64, u64) {
        let before = self.host_bytes();
        let plan = self.shed.json(&["resize", "web", to, "--no-undo", "--plan"]);
        let (needs, promised) =
            (plan["needs_bytes"].as_u64().unwrap(), plan["freed_bytes"].as_u64().unwrap());
        let done = self.shed.json(&["resize", "web", to, "--no-undo"]);
        let given = before.saturating_sub(self.host_bytes());
        println!("{to}: {before} before, {given} given back, {promised} promised, {needs} said to be needed");
        assert_eq!(done["freed_bytes"].as_u64().unwrap(), given, "{done}");
        self.has_checkpoints(0);
        (needs, promised, given)
    }

    /// What a guest does: many small files are made, and others were written behind byte `from` and deleted; all of it is the
    /// clone's own then.
    fn work(&mut self, from: u64) {
        let view = self.shed.mount();
        let part = view.clone_file(&self.layout.part());
        let mounted = Mounted::new(&part, 0, &self.shed.path("guest"), true);
        for number in 0..400 {
            let dir = mounted.0.join(format!("small-{}/{}", number % 20, number % 3));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(number.to_string()), noise(700, number)).unwrap();
        }
        self.files = files(&mounted.0);
        drop(mounted);
        view.unmount();
        let open = self.store().open_clone(&name("web"), Access::Write).unwrap();
        let mut left = 96 * MIB;
        for area in cowshed::guestfs::free::survey(&open.disk).unwrap() {
            let cowshed::guestfs::free::Free::Known(ranges) = area.free else { continue };
            for range in ranges.into_iter().filter(|range| range.end > from) {
                let start = range.start.max(from);
                let len = (range.end - start).min(left);
                for at in (0..len).step_by(MIB as usize).map(|at| start + at) {
                    let piece = (start + len - at).min(MIB);
                    open.disk.write(&noise(piece as usize, at), GuestOffset(at)).unwrap();
                }
                left -= len;
            }
        }
        assert_eq!(left, 0);
        open.close().unwrap();
    }

    fn has_checkpoints(&self, count: usize) {
        assert_eq!(self.shed.json(&["checkpoints", "web"])["checkpoints"].as_array().unwrap().len(), count);
    }
}

/// A 20 GiB disk whose guest wrote 96 MiB near its end and deleted them: they are the clone's own all the same.
fn worn() -> Case {
    let case = Case::new(Layout::Gpt, 20 * GIB, 64 * MIB, &["-t", "ext4"]);
    (0..6).for_each(|number| case.write(&noise(16 << 20, 900 + number), 17 * GIB + number * 32 * MIB));
    case
}

#[test]
fn without_undo_a_smaller_disk_gives_the_host_its_room_back_at_once() {
    let case = worn();
    assert!(case.host_bytes() > 96 * MIB, "{}", case.host_bytes());
    let text = case.shed.ok(&["resize", "web", "6G", "--no-undo", "--plan"]);
    assert!(text.contains("would give at least") && text.contains("needs about"), "{text}");
    assert!(text.contains("cannot be undone"), "{text}");
    let (needs, promised, given) = case.without_undo("6G");
    case.holds(6 * GIB);
    assert!(promised <= given && given - promised < MIB && given > 24 * MIB, "{given} of {promised}");
    assert!((128 * MIB..176 * MIB).contains(&needs), "{needs}");
    let said = case.shed.fails(1, &["undo", "web"]);
    assert!(said.contains("nothing to undo"), "{said}");
    let done = case.shed.ok(&["resize", "web", "20G", "--no-undo"]);
    assert!(done.contains("given back: "), "{done}");
    case.holds(20 * GIB);
    case.has_checkpoints(0);
    reads_as_zeros(&case, 17 * GIB + MIB, 17 * GIB + 200 * MIB);
}

#[test]
fn a_plan_without_undo_promises_at_least_most_of_what_comes_back() {
    for (layout, options) in [
        (Layout::Gpt, &["-t", "ext4"][..]),
        (Layout::Gpt, &["-t", "ext4", "-O", "^flex_bg,^resize_inode,^metadata_csum", "-I", "128"]),
        (Layout::Logical, &["-t", "ext3"]),
        (Layout::Bare, &["-t", "ext4", "-b", "1024", "-g", "8192"]),
        (Layout::Bare, &["-t", "ext2", "-O", "^resize_inode"]),
    ] {
        let mut case = Case::new(layout, 1200 * MIB, 48 * MIB, options);
        case.work(1050 * MIB);
        let (_, promised, given) = case.without_undo("400M");
        case.holds(400 * MIB);
        assert!(promised <= given && given - promised < 3 * MIB, "{options:?}: {given} of {promised}");
        assert!(promised > 32 * MIB, "{options:?}: {promised}");
        let (_, promised, given) = case.without_undo("1100M");
        case.holds(1100 * MIB);
        assert!(promised <= given, "{options:?}: {given} of {promised}");
    }
}

#[test]
fn with_undo_the_room_comes_back_when_the_checkpoint_goes() {
    let case = worn();
    case.resize("6G");
    let digest = case.digest();
    let before = case.host_bytes();
    let told = case.shed.ok(&["shrink", "web", "--plan"]);
    assert!(told.contains("cowshed rm web --checkpoint 1 gives back at least"), "{told}");
    let promised =
        case.shed.json(&["rm", "web", "--checkpoint", "1", "--plan"])[0]["freed_bytes"].as_u64().unwrap();
    case.shed.ok(&["rm", "web", "--checkpoint", "1"]);
    let given = before - case.host_bytes();
    assert!(given >= promised && promised > 90 * MIB && given < promised + 8 * MIB, "{given} of {promised}");
    assert_eq!(case.digest(), digest);
    case.holds(6 * GIB);
    case.has_checkpoints(0);
}

#[test]
fn a_filesystem_without_a_free_block_loses_nothing() {
    let shed = Shed::new();
    let image = shed.path("os.raw");
    let start = make(&image, Layout::Gpt, 128 * MIB, 8 * MIB, &["-t", "ext4", "-m", "0"]);
    shed.ok(&["import", image.to_str().unwrap(), "--name", "os", "--format", "raw"]);
    shed.ok(&["clone", "os", "web"]);
    let base = sparse_digest(&shed.root().join("bases/os/1/disk.raw"));
    let view = shed.mount();
    let full = {
        let mounted = Mounted::new(&view.clone_file("web.p2"), 0, &shed.path("guest"), true);
        let mut file = File::create(mounted.0.join("all")).unwrap();
        let wrote = std::io::copy(&mut std::io::Read::take(NoiseFile(0), GIB), &mut file);
        assert_eq!(wrote.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        drop(file);
        files(&mounted.0)
    };
    view.unmount();
    let case = Case { shed, start, layout: Layout::Gpt, files: full, base };
    let before = case.host_bytes();
    case.refused(&["100M", "--no-undo"], &["too few"]);
    case.shed.ok(&["resize", "web", "--minimum", "--no-undo"]);
    let size = case.size();
    assert!((100 * MIB..=128 * MIB).contains(&size), "{size}");
    case.holds(size);
    case.has_checkpoints(0);
    // All that the guest wrote is still its own.
    assert!(case.host_bytes() > before - 8 * MIB && case.host_bytes() < before + 8 * MIB);
}

/// Noise without an end.
struct NoiseFile(u64);

impl std::io::Read for NoiseFile {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0 += 1;
        buf.copy_from_slice(&noise(buf.len(), 7000 + self.0));
        Ok(buf.len())
    }
}

#[test]
fn a_killed_resize_without_undo_leaves_the_clone_as_before_or_as_after() {
    let case = Case::new(Layout::Gpt, 512 * MIB, 16 * MIB, &["-t", "ext4"]);
    case.write(&noise(24 << 20, 3), 450 * MIB);
    let folder = case.shed.delta("web").parent().unwrap().to_owned();
    let kept = case.shed.path("kept");
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        must("cp", &["-a", "--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]);
    };
    copy(&folder, &kept);
    let before = case.digest();
    let seed = common::rng::seed_from_environment().unwrap_or_else(common::rng::fresh_seed);
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let began = std::time::Instant::now();
    case.shed.ok(&["resize", "web", "200M", "--no-undo"]);
    let lasts = began.elapsed().as_micros() as u64;
    let (mut untouched, mut done, mut stopped) = (0, 0, 0);
    for _ in 0..10 {
        copy(&kept, &folder);
        // Most of it is the work of other programs, as with undo: what is new comes late.
        let after = Duration::from_micros(lasts / 2 + rng.below(lasts / 2));
        stopped += u32::from(case.shed.cut_short(&["resize", "web", "200M", "--no-undo"], after, false));
        case.has_checkpoints(0);
        if case.digest() == before {
            untouched += 1;
        } else {
            case.is_whole(200 * MIB);
            done += 1;
        }
        case.shed.ok(&["clone", "os", "next"]);
        case.shed.ok(&["rm", "next"]);
        case.nothing_is_left();
    }
    println!("{untouched} as before, {done} as after, {stopped} stopped in the middle; {lasts} us without");
    assert!(untouched > 0 && stopped > 0);
}

#[test]
fn of_two_resizes_at_once_one_does_it() {
    let case = Case::new(Layout::Bare, 128 * MIB, 4 * MIB, &["-t", "ext4"]);
    let children: Vec<_> = (0..2)
        .map(|_| {
            let mut command = case.shed.command(&["resize", "web", "-32M"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ended: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let done = ended.iter().filter(|output| output.status.success()).count();
    let said: Vec<_> =
        ended.iter().map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).collect();
    assert!(done == 1 && said.iter().any(|said| said.contains("in use")) || done == 2, "{said:?}");
    case.holds((128 - 32 * done as u64) * MIB);
}
