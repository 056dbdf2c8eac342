//! Making a store of a folder that is absent or empty.

use super::layout::{BASES, CLONES, STORE_FILE, TMP};
use super::manifest::{FORMAT, StoreManifest};
use crate::storage::{Folder, Watch};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

/// Makes a store at `path`; a folder that holds anything else is left as it is, and so is a file in the place.
pub(super) fn make(path: &Path, watch: Option<Arc<dyn Watch>>) -> io::Result<()> {
    make_folders(path, 0o700, &watch)?;
    if path.is_dir() {
        let folder = Folder::open_watched(path, watch)?;
        if is_vacant(&folder)? {
            settle(&folder)?;
            furnish(&folder)?;
        }
    }
    Ok(())
}

/// Makes the folder `path` and those above it that are missing.
fn make_folders(path: &Path, mode: u32, watch: &Option<Arc<dyn Watch>>) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if path.is_dir() {
        return Ok(());
    }
    make_folders(parent, 0o777, watch)?;
    match Folder::open_watched(parent, watch.clone())?.make_folder_for(name, mode) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names of a folder and of those above it durable, also where somebody made them who was killed before they
/// were. It ends at a folder that we may not read, which is not ours, and at the root of the filesystem.
fn settle(folder: &Folder) -> io::Result<()> {
    let device = folder.stat(".")?.st_dev;
    for above in folder.path().ancestors().skip(1) {
        let above = match folder.elsewhere(above) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            above => above?,
        };
        if above.stat(".")?.st_dev != device {
            return Ok(());
        }
        above.sync()?;
    }
    Ok(())
}

/// Whether a folder is empty but for what a making of a store that was cut short leaves.
fn is_vacant(folder: &Folder) -> io::Result<bool> {
    for name in folder.names()? {
        let ours = match name.as_str() {
            BASES | CLONES | TMP => folder.folder(&name).and_then(|part| part.names())?.is_empty(),
            other => other.strip_prefix('.').is_some_and(|rest| rest.starts_with(STORE_FILE)),
        };
        if !ours {
            return Ok(false);
        }
    }
    Ok(true)
}

fn furnish(folder: &Folder) -> io::Result<()> {
    // Of two that make the same store at once the second must not replace the file that the first one locks.
    let _alone = wait_for(folder)?;
    if folder.has(STORE_FILE)? {
        return folder.sync();
    }
    for part in [BASES, CLONES, TMP] {
        match folder.make_folder(part) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    folder.sync()?;
    folder.replace_small(STORE_FILE, &serde_json::to_vec(&StoreManifest { format: FORMAT })?)
}

fn wait_for(folder: &Folder) -> io::Result<Flock<File>> {
    let mut own = File::from(folder.as_fd().try_clone_to_owned()?);
    loop {
        match Flock::lock(own, FlockArg::LockExclusive) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EINTR)) => own = back,
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}
