//! Small ext filesystems in a file, made by `mke2fs` and looked at by the kernel, `debugfs` and `e2fsck`.
#![allow(dead_code)]

use cowshed::Result;
use cowshed::guestfs::edit::Volume;
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use cowshed::{Error, Kind};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cowshed");

/// An image file; writes fail after `budget` bytes.
pub struct Image {
    pub folder: tempfile::TempDir,
    file: File,
    size: u64,
    pub budget: AtomicU64,
}

pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", path + ":/usr/local/sbin:/usr/sbin:/sbin").env("LC_ALL", "C");
    command
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
    output
}

impl Image {
    /// A filesystem of `mib` MiB, as `mke2fs` makes it with `options`.
    pub fn new(mib: u64, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(mib << 20).unwrap();
        run(tool("mke2fs").args(["-q", "-F"]).args(options).arg(&path));
        Self { folder, file, size: mib << 20, budget: AtomicU64::new(u64::MAX) }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub fn assert_clean(&self, context: &str) {
        let output = tool("e2fsck").arg("-fn").arg(self.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{context}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn debugfs(&self, request: &str) -> String {
        let output = run(tool("debugfs").args(["-R", request]).arg(self.path()));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Mounts it, read-only unless `write`.
    pub fn mount(&self, write: bool) -> Mount {
        let at = self.folder.path().join("mount");
        std::fs::create_dir_all(&at).unwrap();
        let options = if write { "loop" } else { "loop,ro" };
        run(tool("mount").args(["-o", options]).arg(self.path()).arg(&at));
        Mount { at }
    }
}

impl Bytes for Image {
    fn size(&self) -> u64 {
        self.size
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        self.file.read_exact_at(buf, at.0).map_err(|error| Error::io("the image cannot be read", error))
    }
}

impl Volume for Image {
    fn write(&self, data: &[u8], at: GuestOffset) -> Result<()> {
        let len = data.len() as u64;
        let left =
            self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(len));
        left.map_err(|_| Error::new(Kind::Io, "the disk is broken here"))?;
        self.file.write_all_at(data, at.0).map_err(|error| Error::io("the image cannot be written", error))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// Sets an extended attribute, through the kernel.
pub fn set_xattr(at: &Path, name: &str, value: &[u8]) {
    let (path, name) = (CString::new(at.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: the strings end with a NUL, and the value has the length that is given.
    let code =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(code, 0, "{}: {}", at.display(), std::io::Error::last_os_error());
}

/// All extended attributes as `getxattr` gives them.
pub fn xattrs(at: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = CString::new(at.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 1 << 16];
    // SAFETY: the buffer has the length that is given.
    let len = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let names = &names[..usize::try_from(len).unwrap()];
    let mut all = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let (text, mut value) = (CString::new(name).unwrap(), vec![0_u8; 1 << 17]);
        // SAFETY: the buffer has the length that is given.
        let len =
            unsafe { libc::lgetxattr(path.as_ptr(), text.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(usize::try_from(len).unwrap());
        all.insert(name.to_vec(), value);
    }
    all
}

/// A mounted image; unmounted when dropped.
pub struct Mount {
    pub at: PathBuf,
}

impl Mount {
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.at.join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A process that another test is just starting may hold it for a moment.
        for _ in 0..100 {
            if tool("umount").arg(&self.at).output().unwrap().status.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(std::thread::panicking(), "{} cannot be unmounted", self.at.display());
    }
}
