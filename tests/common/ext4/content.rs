//! A tree with one of everything.

use crate::rng::Rng;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

/// What a filesystem has room for.
pub struct Limits {
    pub block: usize,
    /// Names in the large folder.
    pub names: usize,
    /// The longest value of an attribute.
    pub value: usize,
    /// The kernel writes into the filesystem itself: unwritten extents and flags can be had.
    pub live: bool,
}

/// Fills `dir` with the same tree every time.
pub fn fill(dir: &Path, limits: &Limits) {
    regular(dir, limits);
    names(dir, limits);
    special(dir);
    links(dir, limits);
    owners(dir);
    attributes(dir, limits);
    times(dir);
    if limits.live {
        allocated(dir);
        flags(dir);
    }
}

fn regular(dir: &Path, limits: &Limits) {
    let mut rng = Rng::new(1);
    for len in
        [0, 1, 4, 56, 59, 60, 61, 62, 100, 150, 160, 200, 1023, 1024, 4095, 4096, 4097, 70_000, 1 << 20]
    {
        fs::write(dir.join(format!("len-{len}")), rng.bytes(len)).unwrap();
    }
    let sparse = File::create(dir.join("sparse")).unwrap();
    for at in [0, 5000, 300_000, 1 << 20, 70 << 20, 90 << 20, (1 << 30) + 12345] {
        sparse.write_all_at(&rng.bytes(3000), at).unwrap();
    }
    sparse.set_len((1 << 30) + 500_000).unwrap();
    File::create(dir.join("hole")).unwrap().set_len(100_000).unwrap();
    // Data in every second block.
    let torn = File::create(dir.join("torn")).unwrap();
    for number in 0..1200 {
        torn.write_all_at(&rng.bytes(16), number * 2 * limits.block as u64 + 7).unwrap();
    }
}

fn names(dir: &Path, limits: &Limits) {
    let big = dir.join("big");
    fs::create_dir(&big).unwrap();
    let file = dir.join("len-1");
    for number in 0..limits.names {
        fs::hard_link(&file, big.join(format!("a name that is rather long, for a deep index: {number}")))
            .unwrap();
    }
    for number in (0..limits.names).step_by(3) {
        fs::remove_file(big.join(format!("a name that is rather long, for a deep index: {number}"))).unwrap();
    }
    fs::create_dir_all(dir.join("a/b/c/d")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    for number in 0..6 {
        fs::create_dir(dir.join(format!("a/{number}"))).unwrap();
        fs::write(dir.join(format!("a/{number}/x")), [number]).unwrap();
    }
    for name in [&[b'n'; 255][..], "zwölf Äpfel".as_bytes(), b"\xff\xfe\x01\n\t", b"...", b" "] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::hard_link(dir.join("len-4096"), dir.join("a/b/c/d/other name")).unwrap();
}

fn special(dir: &Path) {
    let node = |name: &str, kind, major, minor| {
        mknod(&dir.join(name), kind, Mode::from_bits_truncate(0o640), makedev(major, minor)).unwrap();
    };
    node("null", SFlag::S_IFCHR, 1, 3);
    node("disk", SFlag::S_IFBLK, 8, 255);
    node("wide", SFlag::S_IFBLK, 259, 70_000);
    node("far", SFlag::S_IFCHR, 4095, 1_048_575);
    node("pipe", SFlag::S_IFIFO, 0, 0);
    node("socket", SFlag::S_IFSOCK, 0, 0);
}

fn links(dir: &Path, limits: &Limits) {
    for len in [1, 10, 58, 59, 60, 61, 100, 255, 1000, 4000] {
        if len < limits.block {
            symlink("t".repeat(len), dir.join(format!("link-{len}"))).unwrap();
        }
    }
}

fn owners(dir: &Path) {
    for (name, uid, gid, mode) in [
        ("len-60", 0x1234_5678, 7, 0o4755),
        ("len-61", 70_000, 0xffff_fff0, 0o2070),
        ("empty", 1, 65_536, 0o1777),
    ] {
        chown(dir.join(name), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(dir.join("len-0"), Permissions::from_mode(0o0)).unwrap();
    lchown(dir.join("link-10"), Some(100_000), Some(1)).unwrap();
}

pub fn set_xattr(path: &Path, name: &[u8], value: &[u8]) {
    let (c_path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: both strings end in a zero byte, and the value is as long as is said.
    let done =
        unsafe { libc::lsetxattr(c_path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(done, 0, "{}: {name:?}: {}", path.display(), Errno::last());
}

/// An access control list as `setxattr` takes it: owner, one user, group, one group, mask, others.
pub fn acl() -> Vec<u8> {
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (8, 7, 70_000),
        (16, 7, u32::MAX),
        (32, 1, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

fn attributes(dir: &Path, limits: &Limits) {
    let mut rng = Rng::new(2);
    let file = dir.join("len-150");
    set_xattr(&file, b"user.small", b"value");
    set_xattr(&file, b"user.none", b"");
    let file = dir.join("len-4095");
    set_xattr(&file, b"user.large", &rng.bytes(limits.value));
    set_xattr(&file, b"user.odd", &rng.bytes(3));
    let file = dir.join("len-4097");
    for number in 0..5 {
        set_xattr(&file, format!("user.number {number}").as_bytes(), &rng.bytes(60 + number));
    }
    set_xattr(&file, "user.Grüße".as_bytes(), &rng.bytes(70));
    set_xattr(&file, b"trusted.x", b"t");
    set_xattr(
        &file,
        b"security.capability",
        &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    set_xattr(&dir.join("len-1024"), b"system.posix_acl_access", &acl());
    set_xattr(&dir.join("a"), b"system.posix_acl_access", &acl());
    set_xattr(&dir.join("a"), b"system.posix_acl_default", &acl());
    set_xattr(&dir.join("link-10"), b"trusted.link", b"on a link");
    set_xattr(&dir.join("link-100"), b"trusted.link", &rng.bytes(200));
    set_xattr(&dir.join("pipe"), b"trusted.pipe", b"on a pipe");
    set_xattr(&dir.join("empty"), b"user.dir", &rng.bytes(100));
}

fn times(dir: &Path) {
    let times = [
        (-2_000_000_000, 1),
        (0, 0),
        (2_000_000_000, 999_999_999),
        (3_000_000_000, 5),
        (12_000_000_000, 123),
    ];
    for (number, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        let path = dir.join(format!("time-{number}"));
        File::create(&path).unwrap();
        let at = TimeSpec::new(seconds, nanoseconds);
        let before = TimeSpec::new(seconds - 77, nanoseconds);
        let at_fd = nix::fcntl::AT_FDCWD;
        utimensat(at_fd, &path, &before, &at, UtimensatFlags::NoFollowSymlink).unwrap();
    }
}

/// Room that was taken before it is written: in the middle of a file, and behind its end.
fn allocated(dir: &Path) {
    for (name, flags, at, len) in [
        ("room", FallocateFlags::empty(), 100_000, 900_000),
        ("room behind", FallocateFlags::FALLOC_FL_KEEP_SIZE, 8192, 300_000),
    ] {
        let file = File::create(dir.join(name)).unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        match fallocate(&file, flags, at, len) {
            // Maps of single blocks have no unwritten ones.
            Ok(()) | Err(Errno::EOPNOTSUPP) => (),
            Err(error) => panic!("{name}: {error}"),
        }
        file.write_all_at(&[9; 5000], 300_000).unwrap();
    }
}

nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);

/// `chattr` of a few.
fn flags(dir: &Path) {
    use std::os::fd::AsRawFd;
    for (name, flags) in [("len-59", 0x10), ("len-62", 0x20), ("len-100", 0xc0), ("a/1", 0x8)] {
        let file = File::open(dir.join(name)).unwrap();
        let mut now = 0;
        // SAFETY: the numbers are those of these two calls, which take and fill one word that outlives them.
        unsafe {
            get_flags(file.as_raw_fd(), &raw mut now).unwrap();
            now |= flags;
            set_flags(file.as_raw_fd(), &raw const now).unwrap();
        }
    }
}
