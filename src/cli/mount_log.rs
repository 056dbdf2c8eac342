//! The files beside a server in the background: what it says, and its process id. They are for people to look at: a view
//! works without them, as on a full or read-only host.

use std::fs::{self, DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// `mount-X.log` and `mount-X.pid`, X from the directory's path, in `$XDG_RUNTIME_DIR/cowshed` if that is a
/// folder of this user, else in the store's folder `run`.
pub(super) struct MountLog {
    log: PathBuf,
    pid: PathBuf,
}

impl MountLog {
    /// The files for a view at `dir`, in a folder that is made when it is missing.
    pub(super) fn new(store: &Path, dir: &Path) -> Self {
        let folder = folder(store);
        // A view of a store that cannot be written works without them.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        Self::within(&folder, dir)
    }

    fn within(folder: &Path, dir: &Path) -> Self {
        let digest = blake3::hash(dir.as_os_str().as_bytes()).to_hex();
        let name = digest.get(..16).unwrap_or_default();
        Self { log: folder.join(format!("mount-{name}.log")), pid: folder.join(format!("mount-{name}.pid")) }
    }

    /// The log, to be added to: another server of the same directory may still be writing to it.
    pub(super) fn file(&self) -> Stdio {
        File::options().create(true).append(true).open(&self.log).map_or_else(|_| Stdio::null(), Stdio::from)
    }

    pub(super) fn write_pid(&self, pid: u32) {
        let _ = fs::write(&self.pid, format!("{pid}\n"));
    }

    /// Takes the log of a server that failed away, unless an earlier one is there.
    pub(super) fn remove_unless_in_use(&self) {
        if !self.pid.exists() {
            remove(&self.log);
        }
    }
}

/// Takes the process id of the server of `dir` away when it ends; an empty log too.
pub(super) fn end(store: &Path, dir: &Path) {
    let files = MountLog::within(&folder(store), dir);
    if files.log.metadata().is_ok_and(|log| log.len() == 0) {
        remove(&files.log);
    }
    remove(&files.pid);
}

/// The files are only for people to look at, so it is no matter when this fails.
fn remove(file: &Path) {
    let _ = fs::remove_file(file);
}

/// `$XDG_RUNTIME_DIR` if it is a folder of this user: `su` keeps the variable of the user before.
pub(super) fn runtime_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    let metadata = dir.metadata().ok()?;
    let is_ours = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
    is_ours.then_some(dir)
}

fn folder(store: &Path) -> PathBuf {
    match runtime_dir() {
        Some(dir) => dir.join("cowshed"),
        None => store.join("run"),
    }
}
