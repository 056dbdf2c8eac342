//! A checkpoint goes that one layer stands on: a layer with what both hold is built beside that one, and one rename
//! publishes it.

use super::checkpoint::{Held, cannot_change};
use super::folded::{self, layer_disk};
use super::gate::{Chain, Way};
use super::layout::CLONE_DISK;
use super::manifest::Folding;
use super::staging::Staging;
use super::union::{Under, Union, refuse_more};
use super::{Access, BaseId, Freed, Name, OpenDisk, Store, usage};
use crate::error::{Error, Kind, Result};
use crate::storage::{Fingerprint, Folder};
use std::io;

/// A clone that nobody else has open, with an empty layer for what a checkpoint and the layer on it hold; nothing is changed
/// before [`Fold::publish`], and nothing is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Fold {
    store: Store,
    number: u32,
    /// The layer that takes the checkpoint's data; `None` for the active one.
    into: Option<u32>,
    /// What both stand on.
    base: BaseId,
    union: Union,
    held: Held,
    staging: Staging,
}

impl Store {
    /// The layers of a clone that stand on a checkpoint: other checkpoints, and `None` for its present state.
    ///
    /// # Errors
    /// `NotFound`; as [`Store::open_clone`] with [`Access::Inspect`].
    pub(crate) fn layers_on(&self, name: &Name, number: u32) -> Result<Vec<Option<u32>>> {
        let all = self.checkpoints(name)?;
        if !all.iter().any(|checkpoint| checkpoint.number == number) {
            return Err(super::checkpoint::no_checkpoint(name, number));
        }
        let on_it = all.iter().filter(|checkpoint| checkpoint.parent == Some(number));
        let mut above: Vec<Option<u32>> = on_it.map(|checkpoint| Some(checkpoint.number)).collect();
        if self.current_checkpoint(name)? == Some(number) {
            above.push(None);
        }
        Ok(above)
    }

    /// Begins to remove a checkpoint that one other layer stands on.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while somebody has the clone open or when several layers stand on the checkpoint, `Changed` (the
    /// base), `Unsupported` when a layer holds internal snapshots or bitmaps, the host's.
    pub(crate) fn begin_fold(&self, name: &Name, number: u32) -> Result<Fold> {
        let lock = self.lock()?;
        let mut held = self.hold(name)?;
        let into = match self.layers_on(name, number)?.as_slice() {
            [] => return Err(changed(name)),
            [one] => *one,
            others => return Err(stood_on(name, number, others)),
        };
        let manifest = folded::checkpoint(&held.folder, number)?
            .ok_or_else(|| super::checkpoint::no_checkpoint(name, number))?;
        let place = format!("clone {name}");
        let chain = match into {
            // Its locks stay with what is held.
            None => Chain {
                layers: std::mem::take(&mut held.chain.layers),
                files: std::mem::take(&mut held.chain.files),
                locks: Vec::new(),
            },
            Some(above) => self.checkpoint_chain(name, above, Way::of(Access::Read))?.0,
        };
        let old = OpenDisk::new(chain, place, false)?;
        refuse_more(&old.disk, &[into, Some(number)]).map_err(|error| error.at(format!("clone {name}")))?;
        let staging = lock.stage()?;
        drop(lock);
        let under = Under {
            clone: name,
            checkpoint: manifest.parent,
            base: &manifest.base,
            size: old.disk.size(),
            compat: held.manifest.compat,
        };
        let union = self.begin_union(old, &under, staging.folder())?;
        let base = manifest.base.clone();
        Ok(Fold { store: self.clone(), number, into, base, union, held, staging })
    }

    /// The disk of a checkpoint, or for `None` the present one, without any lock.
    pub(crate) fn inspect_layer(&self, name: &Name, layer: Option<u32>) -> Result<OpenDisk> {
        match layer {
            None => self.open_clone(name, Access::Inspect),
            Some(number) => {
                let (chain, _) = self.checkpoint_chain(name, number, Way::of(Access::Inspect))?;
                OpenDisk::new(chain, format!("checkpoint {number} of clone {name}"), false)
            }
        }
    }

    /// Blocks of the file of a checkpoint, or for `None` of the active layer.
    pub(crate) fn layer_bytes(&self, name: &Name, layer: Option<u32>) -> Result<u64> {
        let folder = self.clone_folder(name)?;
        let blocks = usage::of_files(&folder, &[layer_disk(layer)]);
        blocks.map(|blocks| blocks.freed).map_err(|error| cannot_change(name, error))
    }
}

impl Fold {
    /// The two disks of the work.
    pub(crate) fn union(&self) -> &Union {
        &self.union
    }

    /// Puts the new layer in the place of the one that stood on the checkpoint, which goes.
    ///
    /// # Errors
    /// `Changed` when the base or the clone was meddled with meanwhile, the host's: the clone is then as it was, unless the
    /// error says that the checkpoint is removed.
    pub(crate) fn publish(self) -> Result<Freed> {
        let Self { store, number, into, base, union, held, staging } = self;
        let name = held.name.clone();
        let cannot = |error| cannot_change(&name, error);
        let file = union.close()?;
        let fingerprint = Fingerprint::of(file.file()).map_err(cannot)?.without_ctime();
        let _lock = store.lock()?;
        if store.layers_on(&name, number)? != [into] {
            return Err(changed(&name));
        }
        store.refuse_changed_base("the removal", &base)?;
        let before = own_bytes(&held.folder).map_err(cannot)?;
        let put = || -> io::Result<()> {
            folded::mark(&held.folder, number, Folding { into, fingerprint })?;
            staging.folder().move_over(CLONE_DISK, &held.folder, layer_disk(into))?;
            held.folder.sync()
        };
        put().inspect_err(|_| held.tidy()).map_err(cannot)?;
        if let Some(above) = into {
            held.protect(above);
        }
        folded::finish(&held.folder, number, into).map_err(|error| {
            let what = format!("checkpoint {number} of {name} is removed");
            Error::io(format!("{what}, but its blocks could not be given back"), error)
        })?;
        if into.is_none() {
            held.outlast_late_openers("gone")?;
        }
        let after = own_bytes(&held.folder).map_err(cannot)?;
        Ok(Freed { bytes: before.saturating_sub(after) })
    }
}

/// A layer in words.
pub(crate) fn named(layer: Option<u32>) -> String {
    layer.map_or_else(|| "its present state".to_owned(), |number| format!("checkpoint {number}"))
}

/// Why a checkpoint cannot be removed that these layers stand on.
pub(crate) fn stood_on(name: &Name, number: u32, above: &[Option<u32>]) -> Error {
    let names: Vec<String> = above.iter().map(|layer| named(*layer)).collect();
    let verb = if above.len() == 1 { "stands" } else { "stand" };
    let hint = if above.len() > 1 { "; remove all of them but one first" } else { "" };
    let message = format!(
        "checkpoint {number} of {name} cannot be removed: {} {verb} on it{hint}",
        names.join(" and ")
    );
    Error::new(Kind::Busy, message)
}

fn changed(name: &Name) -> Error {
    let message = format!("the checkpoints of clone {name} changed meanwhile; run it again");
    Error::new(Kind::Changed, message)
}

/// What a clone's folder costs the host.
pub(super) fn own_bytes(folder: &Folder) -> io::Result<u64> {
    usage::of_folder(folder).map(|blocks| blocks.own)
}
