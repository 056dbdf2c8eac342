//! A checkpoint whose data another layer takes over, at any moment of that.
//!
//! Before the rename that counts, the manifest of the checkpoint says which layer takes its data. From then on the header
//! of that layer decides: while it names the checkpoint all is as before; once it does not, the checkpoint is gone, and
//! the layer stands on what the checkpoint stood on.

use super::layout::{CLONE_DISK, checkpoint_disk, checkpoint_file, checkpoint_of_file};
use super::manifest::{self, CheckpointManifest, Folding};
use crate::error::Result;
use crate::qcow2::Header;
use crate::storage::{FileAccess, Folder};
use std::io;

/// The file of a layer: a checkpoint's, or the active one.
pub(super) fn layer_disk(layer: Option<u32>) -> String {
    layer.map_or_else(|| CLONE_DISK.to_owned(), checkpoint_disk)
}

/// A checkpoint's manifest as it holds now; `None` when there is none.
pub(super) fn checkpoint(folder: &Folder, number: u32) -> Result<Option<CheckpointManifest>> {
    let Some(mut manifest) = written(folder, number)? else { return Ok(None) };
    // What breaks the order is found by who opens the chain.
    if let Some(parent) = manifest.parent.filter(|parent| *parent < number)
        && let Some(below) = written(folder, parent)?
        && let Some(folding) = below.folding.filter(|folding| folding.into == Some(number))
        && is_done(folder, parent, &folding)
    {
        manifest.parent = below.parent;
        manifest.fingerprint = folding.fingerprint;
    }
    Ok(Some(manifest))
}

/// Whether a checkpoint is gone whose manifest is still there. One whose manifest cannot be read is not.
pub(super) fn is_gone(folder: &Folder, number: u32) -> bool {
    let folding = written(folder, number).ok().flatten().and_then(|manifest| manifest.folding);
    folding.is_some_and(|folding| is_done(folder, number, &folding))
}

/// Says that a layer is about to take a checkpoint's data; durable when this returns.
pub(super) fn mark(folder: &Folder, number: u32, folding: Folding) -> io::Result<()> {
    let Some(manifest) = written(folder, number)? else { return Err(io::ErrorKind::NotFound.into()) };
    write(folder, number, &CheckpointManifest { folding: Some(folding), ..manifest })
}

/// Ends what was cut short: a checkpoint that is gone goes, of another one nothing is said any more. The caller holds the
/// store's lock.
pub(super) fn settle(folder: &Folder) -> io::Result<()> {
    for number in folder.names()?.iter().filter_map(|name| checkpoint_of_file(name)) {
        // What is broken is told of by those who open it.
        let Ok(Some(manifest)) = written(folder, number) else { continue };
        let Some(folding) = &manifest.folding else { continue };
        match is_done(folder, number, folding) {
            true => {
                // The rename of a dead process is durable first.
                folder.sync()?;
                finish(folder, number, folding.into)?;
            }
            false => write(folder, number, &CheckpointManifest { folding: None, ..manifest })?,
        }
    }
    Ok(())
}

/// Removes a checkpoint whose data `into` has, durably.
pub(super) fn finish(folder: &Folder, number: u32, into: Option<u32>) -> io::Result<()> {
    if let Some(above) = into
        && let Some(manifest) = checkpoint(folder, above)?
    {
        write(folder, above, &manifest)?;
    }
    remove(folder, number)
}

/// Removes a checkpoint that nothing stands on.
pub(super) fn remove(folder: &Folder, number: u32) -> io::Result<()> {
    // The manifest's end is the checkpoint's end; the file without it is debris.
    folder.unlink_if_there(checkpoint_file(number))?;
    folder.sync()?;
    folder.unlink_if_there(checkpoint_disk(number))
}

fn is_done(folder: &Folder, number: u32, folding: &Folding) -> bool {
    let layer = folder.file(layer_disk(folding.into), FileAccess::Read);
    let header = layer.ok().and_then(|file| Header::read(&file).ok());
    header.is_some_and(|header| header.backing.is_none_or(|backing| backing.file != checkpoint_disk(number)))
}

fn written(folder: &Folder, number: u32) -> Result<Option<CheckpointManifest>> {
    manifest::load(folder, &checkpoint_file(number))
}

fn write(folder: &Folder, number: u32, manifest: &CheckpointManifest) -> io::Result<()> {
    folder.replace_small(&checkpoint_file(number), &manifest::bytes(manifest)?)
}
