//! How the store is changed: under one lock, beside the living, put in place by one rename.
//!
//! A staging folder `tmp/S` belongs to the process that holds a `flock` on it. One that nobody holds is debris, or,
//! when it has a file `.commit`, a batch whose decision was made and whose renames are finished by whoever comes next.

use super::Store;
use super::layout::{CLONES, STORE_FILE, TMP};
use crate::error::{Error, Kind, Result};
use crate::storage::{FileAccess, Folder, is_folder};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The file that says that the folders beside it are clones to be put in place.
/// No clone has such a name.
const COMMIT: &str = ".commit";
/// How long a command waits for another one to finish its change.
const PATIENCE: Duration = Duration::from_secs(60);

/// The right to change the store's names: one holder among all processes and threads.
#[derive(Debug)]
pub(super) struct StoreLock {
    store: Store,
    _file: Flock<File>,
}

impl Store {
    /// Waits for the lock, then removes what dead processes left.
    pub(super) fn lock(&self) -> Result<StoreLock> {
        let place = || format!("cannot lock the store {}", self.root().display());
        let mut file =
            self.folder().file(STORE_FILE, FileAccess::Read).map_err(|error| Error::io(place(), error))?;
        let start = Instant::now();
        let file = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => break locked,
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if start.elapsed() < PATIENCE => file = back,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Error::new(
                        Kind::Busy,
                        format!(
                            "another command has been changing the store {} for a minute",
                            self.root().display()
                        ),
                    ));
                }
                Err((_, errno)) => return Err(Error::io(place(), errno.into())),
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let lock = StoreLock { store: self.clone(), _file: file };
        lock.collect().map_err(|error| {
            Error::io(format!("cannot clean up {}", self.root().join(TMP).display()), error)
        })?;
        Ok(lock)
    }

    /// Whether a batch of a dead process waits to be finished.
    pub(super) fn has_unfinished_batch(&self) -> io::Result<bool> {
        let tmp = self.folder().folder(TMP)?;
        for name in tmp.names()? {
            let committed = match tmp.folder(&name) {
                Ok(staged) => staged.has(COMMIT)?,
                Err(_) => false,
            };
            if committed {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl StoreLock {
    fn collect(&self) -> io::Result<()> {
        let tmp = self.store.folder().folder(TMP)?;
        for name in tmp.names()? {
            if is_folder(&tmp.stat(&name)?) {
                let folder = tmp.folder(&name)?;
                let Ok(_mine) = Flock::lock(own(&folder)?, FlockArg::LockExclusiveNonblock) else { continue };
                if folder.has(COMMIT)? {
                    finish_batch(&folder, &self.store.folder().folder(CLONES)?)?;
                }
            }
            tmp.remove_tree(&name)?;
        }
        Ok(())
    }

    /// A new folder in `tmp`, ours until it is dropped.
    pub(super) fn stage(&self) -> Result<Staging> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let make = || -> io::Result<Staging> {
            let tmp = self.store.folder().folder(TMP)?;
            let name = loop {
                let name = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
                match tmp.make_folder(&name) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    other => break other.map(|()| name)?,
                }
            };
            let folder = tmp.folder(&name)?;
            let mine = Flock::lock(own(&folder)?, FlockArg::LockExclusiveNonblock)
                .map_err(|(_, errno)| io::Error::from(errno))?;
            Ok(Staging { tmp, name, folder, keep: false, _mine: mine })
        };
        make().map_err(|error| {
            Error::io(format!("cannot make a folder in {}", self.store.root().join(TMP).display()), error)
        })
    }
}

fn own(folder: &Folder) -> io::Result<File> {
    Ok(File::from(folder.as_fd().try_clone_to_owned()?))
}

/// A folder in `tmp` of a living process; removed with all that is left in it when dropped.
#[derive(Debug)]
pub(super) struct Staging {
    tmp: Folder,
    name: String,
    folder: Folder,
    keep: bool,
    _mine: Flock<File>,
}

impl Staging {
    /// The folder.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Puts all folders staged here into `clones`, all or none even if the process dies: with several, the file
    /// `.commit` is the decision. Everything staged must be durable already.
    pub(super) fn commit_clones(mut self, clones: &Folder) -> io::Result<()> {
        let names = self.folder.names()?;
        if let [only] = names.as_slice() {
            self.folder.move_new(only, clones, only)?;
            return clones.sync();
        }
        self.folder.create_small(COMMIT, b"", true)?;
        self.folder.sync()?;
        self.tmp.sync()?;
        // From here on the batch is decided: an error must leave it to be finished, not to be removed.
        self.keep = true;
        finish_batch(&self.folder, clones)?;
        self.keep = false;
        Ok(())
    }
}

fn finish_batch(staged: &Folder, clones: &Folder) -> io::Result<()> {
    for name in staged.names()?.iter().filter(|name| *name != COMMIT) {
        staged.move_new(name, clones, name)?;
    }
    clones.sync()
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is debris for the next command.
            let _ = self.tmp.remove_tree(&self.name);
        }
    }
}
