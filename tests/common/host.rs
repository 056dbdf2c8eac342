//! Host filesystems of a test's own, in loop devices. Needs root.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

use crate::common::is_mounted;
use crate::common::store::{must, unseal_all};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A mounted filesystem; taken away when dropped.
pub struct Host {
    pub dir: PathBuf,
    image: PathBuf,
    kind: &'static str,
}

impl Host {
    /// A new filesystem of `kind` (ext4, xfs or btrfs) in the file `image` of `size` bytes, seen at `dir`.
    pub fn new(kind: &'static str, image: PathBuf, size: u64, dir: PathBuf) -> Self {
        File::create_new(&image).unwrap().set_len(size).unwrap();
        make(kind, &image);
        fs::create_dir_all(&dir).unwrap();
        let host = Self { dir, image, kind };
        host.mount();
        host
    }

    pub fn mount(&self) {
        let (image, dir) = (self.image.to_str().unwrap(), self.dir.to_str().unwrap());
        must("mount", &["-t", self.kind, "-o", "loop", image, dir]);
    }

    /// Nothing of it is cached any more after this.
    pub fn unmount(&self) {
        must("umount", &[self.dir.to_str().unwrap()]);
    }

    /// From here on it is what a power cut at this moment leaves, if its medium keeps what it was given. Nobody may use it.
    pub fn cut(&self) {
        let copy = self.image.with_extension("cut");
        must("cp", &["--sparse=always", self.image.to_str().unwrap(), copy.to_str().unwrap()]);
        self.unmount();
        fs::rename(copy, &self.image).unwrap();
        self.mount();
    }

    /// Whether the filesystem still takes changes.
    pub fn is_writable(&self) -> bool {
        let probe = self.dir.join("probe");
        let made = File::create(&probe).and_then(|file| file.sync_all()).is_ok();
        made && fs::remove_file(&probe).is_ok()
    }

    /// Replays the journal and checks.
    pub fn check(&self) {
        assert_eq!(self.kind, "ext4");
        let image = self.image.to_str().unwrap();
        let mended = Command::new("e2fsck").args(["-fp", image]).stdout(Stdio::null()).status().unwrap();
        assert!(matches!(mended.code(), Some(0 | 1)), "e2fsck -fp: {mended}");
        must("e2fsck", &["-fn", image]);
    }

    pub fn free(&self) -> u64 {
        free(&self.dir)
    }

    /// Takes all room but about `left` bytes.
    pub fn fill(&self, left: u64) -> Filler {
        fill(&self.dir, left)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            unseal_all(&self.dir);
            let _ = Command::new("umount").arg("-l").arg(&self.dir).stderr(Stdio::null()).status();
        }
    }
}

/// A small filesystem in memory; taken away when dropped.
pub struct Memory(pub PathBuf);

impl Memory {
    pub fn new(dir: PathBuf, size: u64) -> Self {
        fs::create_dir(&dir).unwrap();
        must("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", dir.to_str().unwrap()]);
        Self(dir)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// What takes the room; gives it back when dropped.
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub fn make(kind: &str, image: &Path) {
    let image = image.to_str().unwrap();
    match kind {
        // No blocks that only root may take: tests run as root.
        "ext4" => {
            must("mke2fs", &["-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", image])
        }
        "xfs" => must("mkfs.xfs", &["-q", image]),
        "btrfs" => must("mkfs.btrfs", &["-q", image]),
        _ => panic!("no recipe for {kind}"),
    };
}

fn free(dir: &Path) -> u64 {
    let free = nix::sys::statvfs::statvfs(dir).unwrap();
    free.blocks_available() * free.fragment_size()
}

/// Takes all room of the filesystem at `dir` but about `left` bytes; with 0, the last block too.
pub fn fill(dir: &Path, left: u64) -> Filler {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let path = dir.join(format!("filler-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let file = File::create_new(&path).unwrap();
    // Chunks that shrink: what a filesystem calls free it does not always give in one piece.
    let (mut taken, mut chunk) = (0, 16 << 20);
    while chunk >= 4096 {
        let wanted = chunk.min(free(dir).saturating_sub(left)) / 4096 * 4096;
        let tried = if left == 0 { chunk } else { wanted };
        let place = i64::try_from(taken).unwrap();
        let length = i64::try_from(tried).unwrap();
        if tried > 0 && fallocate(&file, FallocateFlags::empty(), place, length).is_ok() {
            taken += tried;
        } else {
            chunk /= 2;
        }
    }
    Filler(path)
}
