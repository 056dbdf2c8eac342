//! A clone is put on another base version: the new layer is built beside the old one, and one rename publishes it.

use super::checkpoint::{A_CHECKPOINT, Held, top_size};
use super::create::NewLayer;
use super::gate::{Chain, Way};
use super::layout::backing_of_clone;
use super::staging::Staging;
use super::{Access, BaseId, BaseRef, Checkpoint, Name, OpenDisk, Operation, Store};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::qcow2::BackingName;
use crate::storage::{HostFile, Storage};
use std::path::{Path, PathBuf};

/// A clone that nobody else has open, with an empty layer over another base version; nothing is changed before
/// [`Rebase::publish`], and nothing is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Rebase {
    store: Store,
    base: BaseId,
    size: u64,
    /// The clone as it is.
    old: Disk,
    new: OpenDisk,
    /// The file of the new layer.
    file: HostFile,
    held: Held,
    staging: Staging,
}

impl Store {
    /// Begins to put a clone on the base version `onto`, with a disk of `size` bytes (as large as it is, when `None`).
    ///
    /// # Errors
    /// `NotFound`, `Busy` while somebody has the clone open, `Changed` (a base), the host's.
    pub(crate) fn begin_rebase(&self, name: &Name, onto: &BaseRef, size: Option<u64>) -> Result<Rebase> {
        let lock = self.lock()?;
        let mut held = self.hold(name)?;
        let base = self.base(onto)?;
        let size = match size {
            Some(size) => size,
            None => top_size(&held.chain)?,
        };
        let layer = NewLayer {
            size,
            compat: held.manifest.compat,
            backing: BackingName {
                file: backing_of_clone(base.name.as_str(), base.version, base.format),
                format: Some(base.format.as_str().to_owned()),
            },
            base: base.id(),
        };
        let staging = lock.stage()?;
        drop(lock);
        let place = format!("clone {name}");
        let mut chain = Chain::default();
        self.push_base(&mut chain, &base.name, base.version, Way::of(Access::Read))?;
        let (chain, file) = layer.over(chain, staging.folder(), self.metadata_cache, &place)?;
        let old = Disk::new(std::mem::take(&mut held.chain.layers))?;
        let new = OpenDisk::new(chain, place, true)?;
        Ok(Rebase { store: self.clone(), base: base.id(), size, old, new, file, held, staging })
    }
}

impl Store {
    /// Refuses a base version that is not what it was when the work on it began.
    pub(super) fn refuse_changed_base(&self, place: &str, id: &BaseId) -> Result<()> {
        self.base_of_clone(place, id)?;
        self.push_base(&mut Chain::default(), &id.name, id.version, Way::of(Access::Inspect))
    }
}

impl Rebase {
    /// What the clone stands on: nobody changes that any more.
    pub(crate) fn from(&self) -> &BaseId {
        &self.held.manifest.base
    }

    /// The clone as it is, for reading.
    pub(crate) fn old(&self) -> &Disk {
        &self.old
    }

    /// The clone as it will be.
    pub(crate) fn fresh(&self) -> &Disk {
        &self.new.disk
    }

    /// The file of the new layer.
    pub(crate) fn file(&self) -> &dyn Storage {
        &self.file
    }

    /// The files of the clone as it is, the top first.
    pub(crate) fn old_files(&self) -> &[PathBuf] {
        &self.held.chain.files
    }

    /// Layers at the bottom of both that are the same files.
    pub(crate) fn shared(&self) -> usize {
        self.new.shared_with(self.old_files())
    }

    /// A folder that goes with it, with room for files of the work.
    pub(crate) fn folder(&self) -> &Path {
        self.staging.folder().path()
    }

    /// Puts the new layer in the clone's place; the state from before becomes a checkpoint that `undo` goes back to.
    ///
    /// # Errors
    /// `Changed` when a base was meddled with meanwhile, the host's: the clone is then as it was, unless the error says that
    /// the change is done.
    pub(crate) fn publish(self) -> Result<Checkpoint> {
        let Self { store, base, size, new, file, held, staging, .. } = self;
        new.close()?;
        // Closing makes durable what was written through it, which may be nothing.
        file.sync().map_err(|error| Error::io(format!("cannot write the new layer over {base}"), error))?;
        let _lock = store.lock()?;
        for id in [&held.manifest.base, &base] {
            store.refuse_changed_base("the rebase", id)?;
        }
        let number = held.next_number()?;
        let note = Some(format!("before the rebase onto {base}"));
        let frozen = held.freeze(number, note, Some(Operation::Rebase))?;
        held.put_active(staging.folder(), &base, size).inspect_err(|_| held.tidy())?;
        held.protect(number);
        held.outlast_late_openers(A_CHECKPOINT)?;
        Ok(frozen)
    }
}
