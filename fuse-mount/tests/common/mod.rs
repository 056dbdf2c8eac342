//! A mounted view of disks in memory, and what the tests do with it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

pub mod memory;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuse_mount::{Mount, Options};
use memory::Memory;
use tempfile::TempDir;

/// A mount that goes away with the test, also when the test fails with files open.
pub struct TestView {
    pub mount: Option<Mount>,
    pub memory: Memory,
    dir: TempDir,
}

impl TestView {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::default();
        let mount = Some(fuse_mount::mount(memory.clone(), dir.path(), options).unwrap());
        TestView { mount, memory, dir }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn read_only(&self, path: &str) -> File {
        File::open(self.path(path)).unwrap()
    }

    pub fn writable(&self, path: &str) -> File {
        OpenOptions::new().read(true).write(true).open(self.path(path)).unwrap()
    }

    pub fn direct(&self, path: &str) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        options.open(self.path(path)).unwrap()
    }
}

impl Drop for TestView {
    fn drop(&mut self) {
        drop(self.mount.take());
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The OS error code of a result that must be an error.
pub fn code<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

/// Waits for something that another thread or process brings about.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}
