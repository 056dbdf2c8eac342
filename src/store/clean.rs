//! Debris in a clone's folder: what a command that died between two renames left.

use super::folded;
use super::layout::{CLONE_DISK, checkpoint_disk, checkpoint_file, checkpoint_of_disk};
use crate::qcow2::{Image, OpenOptions};
use crate::storage::{FileAccess, Folder};
use std::io;
use std::sync::Arc;

/// Ends folds that were cut short. Removes unfinished checkpoints, and files without their manifest that nothing stands on. A manifest without its file
/// stays: no command leaves one, so somebody is putting a backup back file by file. The caller holds the store's lock.
pub(super) fn clone_folder(folder: &Folder) -> io::Result<()> {
    folded::settle(folder)?;
    let active = folder.stat(CLONE_DISK)?.st_ino;
    let names = folder.names()?;
    for number in names.iter().filter_map(|name| checkpoint_of_disk(name)) {
        let (disk, manifest) = (checkpoint_disk(number), checkpoint_file(number));
        let unfinished = folder.stat(&disk)?.st_ino == active;
        if unfinished || (!folder.has(&manifest)? && !is_named(folder, &names, &disk)) {
            folder.unlink_if_there(&manifest)?;
            // The manifest's end is durable first, also where a dead process removed it.
            folder.sync()?;
            folder.unlink_if_there(&disk)?;
        }
    }
    for name in names.iter().filter(|name| name.starts_with('.') && name.ends_with(".new")) {
        folder.unlink_if_there(name)?;
    }
    Ok(())
}

/// Whether a layer in the folder names `disk` as its backing file; also when that cannot be told.
fn is_named(folder: &Folder, names: &[String], disk: &str) -> bool {
    let layers = names.iter().filter(|name| name.ends_with(".qcow2") && *name != disk);
    layers.into_iter().any(|name| {
        let Ok(file) = folder.file(name, FileAccess::Read) else { return true };
        match Image::open(Arc::new(file), OpenOptions::default()) {
            Ok(image) => image.backing().is_some_and(|backing| backing.file == disk),
            Err(_) => true,
        }
    })
}
