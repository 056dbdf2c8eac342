//! What is known of each file of a tree: as the kernel shows it, and as our reader does.

use cowshed::guestfs::Time;
use cowshed::guestfs::ext4::{Ext4, FileKind, Ino, Inode, flags};
use cowshed::guestfs::partitions::Bytes;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One file under one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub ino: u64,
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    pub size: u64,
    pub sectors: u64,
    pub device: Option<(u32, u32)>,
    pub modified: Time,
    pub changed: Time,
    pub accessed: Time,
    pub link: Option<Vec<u8>>,
    /// A sum of the content; it is the data that are summed, with the place of each byte.
    pub content: Option<u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub type Tree = BTreeMap<Vec<u8>, Facts>;

/// Sums bytes that are not zero, each with its place: holes and zeros are the same.
#[derive(Default)]
pub struct Sum(u64);

impl Sum {
    pub fn add(&mut self, at: u64, bytes: &[u8]) {
        for (word, place) in bytes.chunks(8).zip((at..).step_by(8)) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            let value = u64::from_le_bytes(padded);
            if value != 0 {
                let mixed =
                    (value ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
                self.0 = self.0.wrapping_add(mixed ^ mixed >> 29);
            }
        }
    }
}

/// The tree below `dir`, as the kernel shows it.
pub fn by_kernel(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(path) = left.pop() {
        let facts = kernel_facts(&path);
        if facts.mode & libc::S_IFMT == libc::S_IFDIR {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let name = path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
        tree.insert(name, facts);
    }
    tree
}

fn kernel_facts(path: &Path) -> Facts {
    let found = fs::symlink_metadata(path).unwrap();
    let time = |seconds, nanoseconds: i64| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap() };
    let is = |kind| found.mode() & libc::S_IFMT == kind;
    let device = found.rdev();
    let is_device = is(libc::S_IFCHR) || is(libc::S_IFBLK);
    Facts {
        ino: found.ino(),
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        links: found.nlink(),
        size: found.size(),
        sectors: found.blocks(),
        device: is_device.then(|| (libc::major(device), libc::minor(device))),
        modified: time(found.mtime(), found.mtime_nsec()),
        changed: time(found.ctime(), found.ctime_nsec()),
        accessed: time(found.atime(), found.atime_nsec()),
        link: is(libc::S_IFLNK).then(|| fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()),
        content: is(libc::S_IFREG).then(|| kernel_content(path)),
        xattrs: kernel_xattrs(path),
    }
}

/// The ranges of a file that the kernel says hold data.
pub fn kernel_data(path: &Path) -> Vec<Range<u64>> {
    use nix::unistd::{Whence, lseek};
    let file = fs::File::open(path).unwrap();
    let (mut ranges, mut at) = (Vec::new(), 0);
    while let Ok(start) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, start, Whence::SeekHole).unwrap();
        ranges.push(start.cast_unsigned()..at.cast_unsigned());
    }
    ranges
}

fn kernel_content(path: &Path) -> u64 {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(path).unwrap();
    let mut sum = Sum::default();
    for range in kernel_data(path) {
        // The sum takes words from the start of the file on.
        let start = range.start - range.start % 8;
        let mut bytes = vec![0; (range.end - start) as usize];
        file.read_exact_at(&mut bytes, start).unwrap();
        sum.add(start, &bytes);
    }
    sum.0
}

fn kernel_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 1 << 16];
    // SAFETY: the path ends in a zero byte, and the buffer is as long as is said.
    let len = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(len).unwrap());
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0_u8; 1 << 16];
        // SAFETY: both strings end in a zero byte, and the buffer is as long as is said.
        let len = unsafe {
            libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        value.truncate(usize::try_from(len).unwrap());
        found.insert(name.to_vec(), value);
    }
    found
}

/// The whole tree of a filesystem, as our reader has it.
pub fn by_reader<B: Bytes>(filesystem: &Ext4<B>) -> Tree {
    let mut tree = Tree::new();
    let mut left = vec![(Vec::new(), Ino::ROOT, None, Ino::ROOT)];
    while let Some((path, ino, kind, parent)) = left.pop() {
        let name = OsStr::from_bytes(&path);
        let inode = filesystem.inode(ino).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert!(kind.is_none_or(|kind| kind == inode.kind), "{name:?} is {kind:?} and {:?}", inode.kind);
        assert!(filesystem.is_used(ino).unwrap());
        if inode.kind == FileKind::Directory {
            let folder = filesystem.directory(&inode).unwrap_or_else(|error| panic!("{name:?}: {error}"));
            assert_eq!(folder.parent, parent, "{name:?}");
            for entry in folder.entries {
                let mut below = path.clone();
                if !path.is_empty() {
                    below.push(b'/');
                }
                below.extend(&entry.name);
                left.push((below, entry.ino, entry.kind, ino));
            }
        }
        let facts = reader_facts(filesystem, &inode).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        tree.insert(path, facts);
    }
    tree
}

/// The kernel shows what stands in an inode as if it took room.
fn inline_sectors(inode: &Inode) -> u64 {
    let is_inline = inode.kind == FileKind::Regular && inode.flags & flags::INLINE_DATA != 0;
    if is_inline { inode.size.div_ceil(512) } else { 0 }
}

fn reader_facts<B: Bytes>(filesystem: &Ext4<B>, inode: &Inode) -> cowshed::Result<Facts> {
    let mode = match inode.kind {
        FileKind::Regular => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
    };
    Ok(Facts {
        ino: inode.ino.0.into(),
        mode: mode | u32::from(inode.mode),
        owner: (inode.uid, inode.gid),
        links: inode.links.into(),
        size: inode.size,
        sectors: inode.sectors + inline_sectors(inode),
        device: inode.device.map(|device| (device.major, device.minor)),
        modified: inode.modified,
        changed: inode.changed,
        accessed: inode.accessed,
        link: (inode.kind == FileKind::Symlink).then(|| filesystem.link(inode)).transpose()?,
        content: (inode.kind == FileKind::Regular).then(|| reader_content(filesystem, inode)).transpose()?,
        xattrs: filesystem.xattrs(inode)?,
    })
}

fn reader_content<B: Bytes>(filesystem: &Ext4<B>, inode: &Inode) -> cowshed::Result<u64> {
    let mut sum = Sum::default();
    let mut buf = vec![0; 8 * 7919];
    filesystem.content(inode)?.stream(&mut buf, |at, bytes| {
        sum.add(at, bytes);
        Ok(())
    })?;
    Ok(sum.0)
}

/// Fails with the first few files that differ.
pub fn assert_same(ours: &Tree, theirs: &Tree, place: &str) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs), "{place}: other names");
    let differing = ours.iter().filter(|(name, facts)| theirs.get(*name) != Some(facts));
    let shown: Vec<String> = differing
        .take(5)
        .map(|(name, facts)| {
            format!("{:?}:\n ours {facts:?}\n not  {:?}", OsStr::from_bytes(name), theirs[name])
        })
        .collect();
    assert!(shown.is_empty(), "{place}:\n{}", shown.join("\n"));
}
