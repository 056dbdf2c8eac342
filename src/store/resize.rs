//! A clone's disk gets another size: a new layer over its present one is built beside it, and one rename publishes it.

use super::checkpoint::{A_CHECKPOINT, Held, cannot_change, checkpoint_backing};
use super::create::NewLayer;
use super::fold::own_bytes;
use super::gate::Chain;
use super::staging::Staging;
use super::union::{Under, Union};
use super::{Checkpoint, Freed, Name, OpenDisk, Operation, Store};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::qcow2;
use crate::storage::{Folder, HostFile, Storage};
use crate::units::GuestOffset;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A clone that nobody else has open, with a new layer over it; nothing is changed before [`Resize::publish`], and
/// nothing is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Resize {
    store: Store,
    new: Arc<OpenDisk>,
    /// The file of the new layer.
    file: HostFile,
    /// The checkpoint that the present layer becomes. Nobody else makes one meanwhile.
    number: u32,
    from: u64,
    held: Held,
    staging: Staging,
}

impl Store {
    /// Begins to give a clone's disk another size. The disk has `size` bytes meanwhile, or those that it has now, if
    /// they are more.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while somebody has the clone open, `Changed` (its base), `Invalid` when the chain would get too
    /// deep, the host's.
    pub(crate) fn begin_resize(&self, name: &Name, size: impl FnOnce(u64) -> Result<u64>) -> Result<Resize> {
        let lock = self.lock()?;
        let mut held = self.hold(name)?;
        held.refuse_depth(held.chain.layers.len())?;
        let (number, from) = (held.next_number()?, held.size()?);
        let layer = NewLayer {
            size: size(from)?.max(from),
            compat: held.manifest.compat,
            backing: checkpoint_backing(number),
            base: held.manifest.base.clone(),
        };
        let staging = lock.stage()?;
        drop(lock);
        let place = format!("clone {name}");
        // The locks stay with what is held: they last until the end of all. What is not published is not saved either.
        let (layers, files) = (std::mem::take(&mut held.chain.layers), held.chain.files.clone());
        let chain = Chain { layers, files, locks: Vec::new() };
        let (chain, file) = layer.over(chain, staging.folder(), self.metadata_cache, &place)?;
        let new = OpenDisk::new(chain, place, false)?;
        Ok(Resize { store: self.clone(), new: Arc::new(new), file, number, from, held, staging })
    }
}

/// A clone whose present layer shall give way to one of another size, without a checkpoint; nothing is changed before
/// [`Replacement::publish`], and nothing is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Replacement {
    store: Store,
    union: Union,
    size: u64,
    held: Held,
    /// Where the new layer is; in `_staging`.
    folder: Folder,
    _staging: Staging,
}

/// The folder for the layer of a [`Replacement`].
const FOLDED: &str = "folded";

impl Resize {
    /// Bytes of the disk as it is.
    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    /// The disk, to be changed; what it was stays what it is below.
    pub(crate) fn disk(&self) -> Arc<OpenDisk> {
        Arc::clone(&self.new)
    }

    /// A folder that goes with it, with room for files of the work.
    pub(crate) fn folder(&self) -> &Path {
        self.staging.folder().path()
    }

    /// A folder that goes with it, where the disk can be mounted.
    pub(crate) fn mount_point(&self) -> Result<PathBuf> {
        self.staging.mount_point()
    }

    /// Puts the new layer in the clone's place, with a disk of `size` bytes; the state from before becomes a checkpoint
    /// that `undo` goes back to. What the new layer has behind them is thrown away.
    ///
    /// # Errors
    /// `Changed` when the base was meddled with meanwhile, the host's: the clone is then as it was, unless the error says
    /// that the change is done.
    pub(crate) fn publish(self, size: u64) -> Result<Checkpoint> {
        let Self { store, new, file, number, from, held, staging } = self;
        let base = held.manifest.base.clone();
        let new = Arc::into_inner(new).ok_or_else(|| Error::invalid("the new disk is still in use"))?;
        let had = new.disk.size();
        discard_own(&new.disk, size)?;
        new.disk.close()?;
        drop(new);
        if size < had {
            qcow2::shrink(&file, size)?;
        }
        file.sync().map_err(|error| Error::io("cannot write the layer with the new size", error))?;
        let _lock = store.lock()?;
        store.refuse_changed_base("the resize", &base)?;
        let note = Some(format!("before the resize from {from} to {size} bytes"));
        let frozen = held.freeze(number, note, Some(Operation::Resize))?;
        held.put_active(staging.folder(), &base, size).inspect_err(|_| held.tidy())?;
        held.protect(number);
        held.outlast_late_openers(A_CHECKPOINT)?;
        Ok(frozen)
    }
}

impl Resize {
    /// Begins a layer of `size` bytes for what the disk shows of them, in the place of the present one and of the one
    /// over it.
    ///
    /// # Errors
    /// As [`Store::begin_fold`].
    pub(crate) fn without_undo(self, size: u64) -> Result<Replacement> {
        let Self { store, new, held, staging, .. } = self;
        let new = Arc::into_inner(new).ok_or_else(|| Error::invalid("the new disk is still in use"))?;
        let make = || {
            staging.folder().make_folder(FOLDED)?;
            staging.folder().folder(FOLDED)
        };
        let folder = make().map_err(|error| cannot_change(&held.name, error))?;
        let under = Under {
            clone: &held.name,
            checkpoint: held.stands_on.checkpoint(),
            base: &held.manifest.base,
            size,
            compat: held.manifest.compat,
        };
        let union = store.begin_union(new, &under, &folder)?;
        Ok(Replacement { store, union, size, held, folder, _staging: staging })
    }
}

impl Replacement {
    /// The two disks of the work.
    pub(crate) fn union(&self) -> &Union {
        &self.union
    }

    /// Puts the new layer in the clone's place; the one that was there is gone.
    ///
    /// # Errors
    /// As [`Resize::publish`].
    pub(crate) fn publish(self) -> Result<Freed> {
        let Self { store, union, size, held, folder, _staging } = self;
        let cannot = |error| cannot_change(&held.name, error);
        let base = held.manifest.base.clone();
        union.close()?;
        let _lock = store.lock()?;
        store.refuse_changed_base("the resize", &base)?;
        let before = own_bytes(&held.folder).map_err(cannot)?;
        held.put_active(&folder, &base, size).inspect_err(|_| held.tidy())?;
        held.outlast_late_openers("gone")?;
        let after = own_bytes(&held.folder).map_err(cannot)?;
        Ok(Freed { bytes: before.saturating_sub(after) })
    }
}

/// Drops what the top layer itself has stored from byte `from` on.
fn discard_own(disk: &Disk, from: u64) -> Result<()> {
    for run in disk.runs(from..disk.size()) {
        let (range, extent) = run?;
        if extent.depth == Some(0) && extent.data {
            disk.discard(GuestOffset(range.start), range.end - range.start)?;
        }
    }
    Ok(())
}
