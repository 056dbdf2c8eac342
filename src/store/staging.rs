//! How the store is changed: under one lock, beside the living, put in place by one rename.
//!
//! A staging folder `tmp/S` belongs to the process that holds a `flock` on it. One that nobody holds is debris, or,
//! when it has a file `.commit`, a batch whose decision was made and whose renames are finished by whoever comes next.
//! A folder `tmp/removed-S` was a clone or a base version; a `.commit` in it says nothing.

use super::Store;
use super::layout::{BASES, CLONES, STORE_FILE, TMP};
use crate::error::{Error, Kind, Result};
use crate::storage::{FileAccess, Folder};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The file that says that the folders beside it are clones to be put in place.
/// No clone has such a name.
const COMMIT: &str = ".commit";
/// How the names of what is being removed begin; no other staging folder's name does.
const REMOVED: &str = "removed-";
/// The folder within a staging folder where a disk can be mounted. No clone has such a name.
const MOUNT: &str = ".mount";
/// How long a command waits for another one to finish its change.
const PATIENCE: Duration = Duration::from_secs(60);

/// The right to change the store's names: one holder among all processes and threads.
#[derive(Debug)]
pub(super) struct StoreLock {
    store: Store,
    _file: Flock<File>,
}

impl Store {
    /// Waits for the lock, then finishes what dead processes decided and removes what they left.
    ///
    /// # Errors
    /// `Busy` after a minute; the host's, also when a decided batch cannot be finished. Debris that cannot be removed
    /// is no error.
    pub(super) fn lock(&self) -> Result<StoreLock> {
        let lock = self.wait_for_lock()?;
        lock.collect().map_err(|error| {
            let tmp = self.root().join(TMP);
            Error::io(format!("cannot finish what was cut short in {}", tmp.display()), error)
        })?;
        Ok(lock)
    }

    /// The lock for a removal, which may be what makes room for the rest of a batch.
    pub(super) fn lock_for_removal(&self) -> Result<StoreLock> {
        let lock = self.wait_for_lock()?;
        // The next command that is no removal reports it.
        let _ = lock.collect();
        Ok(lock)
    }

    fn wait_for_lock(&self) -> Result<StoreLock> {
        let place = || format!("cannot lock the store {}", self.root().display());
        let file = self.folder().file(STORE_FILE, FileAccess::Read);
        let mut file = file.and_then(|file| file.to_file()).map_err(|error| Error::io(place(), error))?;
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
        Ok(StoreLock { store: self.clone(), _file: file })
    }

    /// Whether a batch of a dead process waits to be finished.
    pub(super) fn has_unfinished_batch(&self) -> io::Result<bool> {
        let tmp = self.folder().folder(TMP)?;
        for name in tmp.names()? {
            if tmp.folder(&name).is_ok_and(|staged| is_batch(&name, &staged)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl StoreLock {
    fn collect(&self) -> io::Result<()> {
        let tmp = self.store.folder().folder(TMP)?;
        let (mut unfinished, mut settled) = (Ok(()), false);
        for name in tmp.names()? {
            let folder = match tmp.folder(&name) {
                Ok(folder) => folder,
                Err(error) => {
                    // A file or a link; anything else may be a folder that somebody holds, or that is gone by now.
                    if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) {
                        let _ = tmp.unlink_if_there(&name);
                    }
                    continue;
                }
            };
            let Ok(_mine) = hold(&folder) else { continue };
            // What the dead one renamed becomes durable, before what it left goes and others build on what it did.
            folder.sync()?;
            if !settled {
                for part in [BASES, CLONES, TMP] {
                    self.store.folder().folder(part)?.sync()?;
                }
                settled = true;
            }
            if is_batch(&name, &folder) {
                let finished = self.store.folder().folder(CLONES).and_then(|to| finish_batch(&folder, &to));
                if finished.is_err() {
                    unfinished = finished;
                    continue;
                }
            }
            // The mount of a process that was killed in the moment before it hid it.
            let _ = fuse_mount::unmount(&folder.path().join(MOUNT));
            // What cannot be removed (a sealed file, without the right to unseal it) waits for somebody who can.
            let _ = tmp.remove_tree(&name);
        }
        unfinished
    }

    /// Takes the folder `victim` out of `from`: it becomes a staging folder itself, which needs no room on the host.
    pub(super) fn take_out(&self, from: &Folder, victim: &str) -> io::Result<Staging> {
        let tmp = self.store.folder().folder(TMP)?;
        let folder = from.folder(victim)?;
        // Held before it is in `tmp`, so that it is never debris there while we live.
        let mine = hold(&folder)?;
        let name = with_new_name(REMOVED, |name| from.move_new(victim, &tmp, name))?;
        let mut staging = Staging { tmp, name, folder, keep: true, _mine: mine };
        from.sync().inspect_err(|_| {
            // A cut may find it where it was: nothing of it is destroyed before the move is durable.
            let _ = staging.tmp.move_new(&staging.name, from, victim);
        })?;
        staging.keep = false;
        Ok(staging)
    }

    /// A new folder in `tmp`, ours until it is dropped.
    pub(super) fn stage(&self) -> Result<Staging> {
        let make = || -> io::Result<Staging> {
            let tmp = self.store.folder().folder(TMP)?;
            let name = with_new_name("", |name| tmp.make_folder(name))?;
            let folder = tmp.folder(&name)?;
            let mine = hold(&folder)?;
            Ok(Staging { tmp, name, folder, keep: false, _mine: mine })
        };
        make().map_err(|error| {
            Error::io(format!("cannot make a folder in {}", self.store.root().join(TMP).display()), error)
        })
    }
}

/// Does `make` with names that begin so, until one is not taken.
fn with_new_name(prefix: &str, make: impl Fn(&str) -> io::Result<()>) -> io::Result<String> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    loop {
        let name = format!("{prefix}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        match make(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| name),
        }
    }
}

fn hold(folder: &Folder) -> io::Result<Flock<File>> {
    let own = File::from(folder.as_fd().try_clone_to_owned()?);
    Flock::lock(own, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Whether a staging folder is a batch that was decided.
fn is_batch(name: &str, folder: &Folder) -> bool {
    !name.starts_with(REMOVED) && folder.has(COMMIT).unwrap_or(false)
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

    /// A folder within it, empty, where a disk can be mounted.
    pub(super) fn mount_point(&self) -> Result<PathBuf> {
        let path = self.folder.path().join(MOUNT);
        self.folder
            .make_folder(MOUNT)
            .map_err(|error| Error::io(format!("cannot make {}", path.display()), error))?;
        Ok(path)
    }

    /// Removes it with all that is in it now, and tells when that fails; what stays is debris for later commands.
    pub(super) fn remove(mut self) -> io::Result<()> {
        self.keep = true;
        self.tmp.remove_tree(&self.name)
    }

    /// Moves `name`, which is durable, to `to`; when this fails it is not there.
    pub(super) fn put(&mut self, name: &str, to: &Folder) -> io::Result<()> {
        let from = self.folder.try_clone()?;
        self.put_as((&from, name), (to, name))
    }

    /// The same from a folder within the staging folder, and under another name.
    pub(super) fn put_as(
        &mut self,
        (from, name): (&Folder, &str),
        (to, new): (&Folder, &str),
    ) -> io::Result<()> {
        from.move_new(name, to, new)?;
        to.sync().inspect_err(|_| {
            // A cut may find it there all the same: whole, since nothing of it is destroyed now.
            self.keep = true;
            let _ = to.move_new(new, from, name);
        })
    }

    /// Exchanges the folder `name`, which is durable, with the one of that name in `to`; when this fails both are where
    /// they were. Afterwards the former one is here, and goes with the rest.
    pub(super) fn exchange(&mut self, name: &str, to: &Folder) -> io::Result<()> {
        self.folder.exchange(name, to, name)?;
        to.sync().inspect_err(|_| {
            // A cut may find either of them there: nothing of both is destroyed now.
            self.keep = true;
            let _ = self.folder.exchange(name, to, name);
        })
    }

    /// Puts all folders staged here into `clones`, all or none even if the process dies: with several, the file
    /// `.commit` is the decision. Everything staged must be durable already.
    pub(super) fn commit_clones(mut self, clones: &Folder) -> io::Result<()> {
        let names = self.folder.names()?;
        if let [only] = names.as_slice() {
            return self.put(only, clones);
        }
        self.folder.create_small(COMMIT, b"", false)?;
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
