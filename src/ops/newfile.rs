//! A file that appears under its name when it is complete, or not at all.

use crate::error::{Error, Kind, Result};
use crate::storage::{FileAccess, Folder, HostFile, is_file};
use crate::store::Store;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// How the names of files in the making begin.
const BESIDE: &str = ".cowshed-export-";

/// A file in the making, beside the place that it is for.
#[derive(Debug)]
pub(super) struct NewFile {
    folder: Folder,
    file: HostFile,
    /// The name that it has beside its place, if it has one; removed when this is dropped.
    beside: Option<String>,
    /// Says that we live to all who would remove the file beside its place; `None` where the host has no such locks.
    _mine: Option<Flock<File>>,
    name: OsString,
    out: PathBuf,
    replace: bool,
}

impl NewFile {
    /// Begins the file that will be `out`, which must not exist unless it is to be replaced.
    pub(super) fn create(store: &Store, out: &Path, replace: bool) -> Result<Self> {
        let shown = out.display();
        let Some(name) = out.file_name() else {
            return Err(Error::invalid(format!("{shown} does not name a file")));
        };
        let parent = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let cannot = |error| Error::io(format!("cannot make a file in {}", parent.display()), error);
        let folder = store.folder_elsewhere(parent).map_err(cannot)?;
        match folder.stat(name) {
            Ok(stat) if !is_file(&stat) => {
                return Err(Error::invalid(format!("{shown} is not a regular file; name a new file")));
            }
            Ok(_) if !replace => return Err(exists(out)),
            _ => {}
        }
        let (file, beside) = match folder.create_nameless() {
            Ok(file) => (file, None),
            Err(error) if has_names_only(&error) => {
                let beside = name_beside();
                (folder.create(&beside).map_err(cannot)?, Some(beside))
            }
            Err(error) => return Err(cannot(error)),
        };
        let mine = hold(file.try_clone().map_err(cannot)?);
        if replace || beside.is_some() {
            remove_debris(&folder);
        }
        Ok(Self { folder, file, beside, _mine: mine, name: name.to_owned(), out: out.to_owned(), replace })
    }

    /// The file, to write to.
    pub(super) fn file(&self) -> io::Result<HostFile> {
        self.file.try_clone()
    }

    /// Gives the file, which is durable, its name.
    pub(super) fn put(mut self) -> Result<()> {
        self.named().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.out),
            _ => Error::io(format!("cannot make {}", self.out.display()), error),
        })
    }

    fn named(&mut self) -> io::Result<()> {
        if self.beside.is_none() && self.replace {
            // A link never replaces: it gets a name beside the place first, then takes the place.
            let beside = name_beside();
            self.folder.link_file(&self.file, &beside)?;
            self.beside = Some(beside);
        }
        match &self.beside {
            Some(beside) if self.replace => self.folder.move_over(beside, &self.folder, &self.name)?,
            Some(beside) => self.folder.move_new(beside, &self.folder, &self.name)?,
            None => self.folder.link_file(&self.file, &self.name)?,
        }
        self.beside = None;
        self.folder.sync().inspect_err(|_| {
            // What may not be durable is not to be there. What was replaced cannot be put back.
            if !self.replace {
                let _ = self.folder.unlink_if_there(&self.name);
            }
        })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = self.folder.unlink_if_there(beside);
        }
    }
}

fn exists(out: &Path) -> Error {
    Error::new(Kind::Exists, format!("{} exists; --force replaces it", out.display()))
}

/// Removes what exports that were killed left: files beside their places that nobody holds. Durably, or the names of
/// what comes next could outlive a power cut and bring them back.
fn remove_debris(folder: &Folder) {
    let mut removed = false;
    for name in folder.names().unwrap_or_default().iter().filter(|name| name.starts_with(BESIDE)) {
        if folder.file(name, FileAccess::Read).is_ok_and(|file| hold(file).is_some()) {
            removed |= folder.unlink_if_there(name).is_ok();
        }
    }
    if removed {
        let _ = folder.sync();
    }
}

fn hold(file: HostFile) -> Option<Flock<File>> {
    Flock::lock(file.to_file().ok()?, FlockArg::LockExclusiveNonblock).ok()
}

fn name_beside() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("{BESIDE}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

fn has_names_only(error: &io::Error) -> bool {
    let known = [Errno::EOPNOTSUPP, Errno::EISDIR, Errno::EINVAL, Errno::ENOENT];
    error.raw_os_error().is_some_and(|raw| known.contains(&Errno::from_raw(raw)))
}
