//! Filesystems in files: made by mke2fs, filled by us, seen by the kernel, by debugfs and by our reader.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

pub mod content;
pub mod facts;
pub mod feature_sets;

use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// A file that holds a filesystem.
#[derive(Debug)]
pub struct Image {
    pub path: PathBuf,
    file: File,
    size: u64,
}

impl Bytes for Image {
    fn size(&self) -> u64 {
        self.size
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> cowshed::Result<()> {
        assert!(at.0 + buf.len() as u64 <= self.size, "a read past the end of the disk");
        self.file.read_exact_at(buf, at.0).map_err(|error| cowshed::Error::io("read", error))
    }
}

impl Image {
    pub fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        Self { path: path.to_path_buf(), file, size }
    }

    /// A new filesystem of `size` bytes; `folder` is put into it by mke2fs.
    pub fn make(path: &Path, size: u64, arguments: &[&str], folder: Option<&Path>) -> Self {
        File::create(path).unwrap().set_len(size).unwrap();
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F"]).args(arguments);
        if let Some(folder) = folder {
            command.arg("-d").arg(folder);
        }
        ran(command.arg(path));
        Self::open(path)
    }

    pub fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The bytes as they are now, in a file of their own.
    pub fn copy(&self, path: &Path) -> Self {
        ran(Command::new("cp").args(["--sparse=always", self.text()]).arg(path));
        Self::open(path)
    }

    pub fn write(&self, at: u64, data: &[u8]) {
        self.file.write_all_at(data, at).unwrap();
    }
}

/// Runs a tool to its success; what it printed.
pub fn ran(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// What `debugfs` answers to `request`.
pub fn debugfs(image: &Image, request: &str) -> String {
    ran(Command::new("debugfs").args(["-R", request]).arg(&image.path))
}

/// `e2fsck` finds nothing wrong.
pub fn is_clean(image: &Image) {
    ran(Command::new("e2fsck").args(["-fn"]).arg(&image.path));
}

/// A filesystem that the kernel has mounted; taken away when dropped.
pub struct Mount(pub PathBuf);

impl Mount {
    pub fn new(image: &Path, dir: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let options = format!("loop,{options}");
        let mount =
            || Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(image).arg(&dir).output();
        // Two that look for a free loop device may find the same one.
        let mut done = mount().unwrap();
        for _ in 0..5 {
            if !done.status.success() {
                thread::sleep(Duration::from_millis(50));
                done = mount().unwrap();
            }
        }
        assert!(done.status.success(), "mount {}: {done:?}", image.display());
        Self(dir)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A process that another thread is just starting may still have files of it.
        for _ in 0..100 {
            if Command::new("umount")
                .arg(&self.0)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|done| done.success())
            {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(thread::panicking(), "{} cannot be unmounted", self.0.display());
    }
}
