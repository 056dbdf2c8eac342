//! The files beside a server in the background: what it says, and its process id. They are for people to look at: a view
//! works without them, as on a full or read-only host.

use crate::storage::{FileAccess, Folder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// `mount-X.log` and `mount-X.pid`, X from the directory's path, in `$XDG_RUNTIME_DIR/cowshed` if that is a
/// folder of this user, else in the store's folder `run`. No link is followed.
pub(super) struct MountLog {
    /// `None` when there is no such folder, or it cannot be entered.
    folder: Option<Folder>,
    log: String,
    pid: String,
}

impl MountLog {
    /// The files for a view at `dir`, in a folder that is made when it is missing.
    pub(super) fn new(store: &Path, dir: &Path) -> Self {
        Self::within(folder(store, true).ok(), dir)
    }

    fn within(folder: Option<Folder>, dir: &Path) -> Self {
        let digest = blake3::hash(dir.as_os_str().as_bytes()).to_hex();
        let name = digest.get(..16).unwrap_or_default();
        Self { folder, log: format!("mount-{name}.log"), pid: format!("mount-{name}.pid") }
    }

    /// The log, to be added to: another server of the same directory may still be writing to it.
    pub(super) fn file(&self) -> Stdio {
        let file = self.folder.as_ref().map(|folder| folder.file(&self.log, FileAccess::Append));
        file.and_then(Result::ok)
            .map_or_else(Stdio::null, |file| file.to_file().map_or_else(|_| Stdio::null(), Stdio::from))
    }

    pub(super) fn write_pid(&self, pid: u32) {
        if let Some(folder) = &self.folder {
            let _ = folder.replace_small(&self.pid, format!("{pid}\n").as_bytes());
        }
    }

    /// Takes the log of a server that failed away, unless an earlier one is there.
    pub(super) fn remove_unless_in_use(&self) {
        if self.folder.as_ref().is_some_and(|folder| !folder.has(&self.pid).unwrap_or(true)) {
            self.remove(&self.log);
        }
    }

    /// The files are only for people to look at, so it is no matter when this fails.
    fn remove(&self, file: &str) {
        if let Some(folder) = &self.folder {
            let _ = folder.unlink_if_there(file);
        }
    }
}

/// Takes the process id of the server of `dir` away when it ends; an empty log too.
pub(super) fn end(store: &Path, dir: &Path) {
    let files = MountLog::within(folder(store, false).ok(), dir);
    let log = files.folder.as_ref().and_then(|folder| folder.stat(&files.log).ok());
    if log.is_some_and(|log| log.st_size == 0) {
        files.remove(&files.log);
    }
    files.remove(&files.pid);
}

/// `$XDG_RUNTIME_DIR` if it is a folder of this user: `su` keeps the variable of the user before.
pub(super) fn runtime_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    let metadata = dir.metadata().ok()?;
    let is_ours = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
    is_ours.then_some(dir)
}

/// The folder of the files. A view of a store that cannot be written works without them.
fn folder(store: &Path, make: bool) -> io::Result<Folder> {
    let (parent, name) = match runtime_dir() {
        Some(dir) => (Folder::open(&dir)?, "cowshed"),
        None => (Folder::open(store)?, "run"),
    };
    if make && !parent.has(name)? {
        parent.make_folder(name)?;
    }
    parent.folder(name)
}
