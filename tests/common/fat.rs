//! FAT filesystems in a file, made by `mkfs.vfat`, filled and read by mtools, and judged by `fsck.vfat`.
#![allow(dead_code)]

use super::ext::{run, tool};
use cowshed::guestfs::edit::Volume;
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use cowshed::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files by path without a leading slash; nothing for a folder.
pub type Files = BTreeMap<String, Option<Vec<u8>>>;

/// A FAT filesystem.
pub struct Fat {
    folder: tempfile::TempDir,
    file: File,
}

impl Fat {
    /// One of `kib` KiB, as `mkfs.vfat` makes it with `options`.
    pub fn new(kib: u64, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fat");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(kib << 10).unwrap();
        run(tool("mkfs.vfat").args(["-i", "c0ffee00"]).args(options).arg(&path));
        Self { folder, file }
    }

    /// A copy that changes apart from it.
    pub fn copy(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fat");
        fs::copy(self.path(), &path).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { folder, file }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("fat")
    }

    /// A command of mtools on it.
    pub fn mtools(&self, name: &str) -> Command {
        let mut command = tool(name);
        command.env("LC_ALL", "C.UTF-8").env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(self.path());
        command
    }

    /// Puts a file there, in place of what has its name.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let from = self.folder.path().join("content");
        fs::write(&from, bytes).unwrap();
        run(self.mtools("mcopy").args(["-o", "-Q"]).arg(from).arg(format!("::/{path}")));
    }

    pub fn make_folder(&self, path: &str) {
        run(self.mtools("mmd").arg(format!("::/{path}")));
    }

    pub fn remove(&self, path: &str) {
        run(self.mtools("mdel").arg(format!("::/{path}")));
    }

    pub fn fill(&self, files: &Files) {
        for (path, content) in files {
            match content {
                Some(bytes) => self.put(path, bytes),
                None => self.make_folder(path),
            }
        }
    }

    /// All that mtools reads.
    pub fn files(&self) -> Files {
        let out = tempfile::tempdir().unwrap();
        let listed = self.mtools("mdir").args(["-b", "-a", "::/"]).output().unwrap();
        if !listed.stdout.is_empty() {
            run(self.mtools("mcopy").args(["-s", "-n", "-Q", "::/*"]).arg(out.path()));
        }
        let mut files = Files::new();
        walk(out.path(), out.path(), &mut files);
        files
    }

    pub fn assert_clean(&self, context: &str) {
        let output = tool("fsck.vfat").arg("-n").arg(self.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{context}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Changes the byte at `at`.
    pub fn poke(&self, at: u64, change: impl FnOnce(u8) -> u8) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at).unwrap();
        self.file.write_all_at(&[change(byte[0])], at).unwrap();
    }
}

fn walk(root: &Path, folder: &Path, files: &mut Files) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files.insert(name, None);
            walk(root, &path, files);
        } else {
            files.insert(name, Some(fs::read(&path).unwrap()));
        }
    }
}

impl Bytes for Fat {
    fn size(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        self.file.read_exact_at(buf, at.0).map_err(|error| Error::io("the image cannot be read", error))
    }
}

impl Volume for Fat {
    fn write(&self, data: &[u8], at: GuestOffset) -> Result<()> {
        self.file.write_all_at(data, at.0).map_err(|error| Error::io("the image cannot be written", error))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
