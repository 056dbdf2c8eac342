//! Fold: a checkpoint of a clone goes, and the layer that stands on it takes over what is still seen of it.
//!
//! The layer that takes over is built anew beside itself, with what both hold and what they stand on has not. So its file
//! never holds half of that, and a stop or a failure leaves nothing.

mod estimate;

use super::Progress;
use super::scan::{Against, Early, difference_in};
use super::version::Delta;
use crate::error::Result;
use crate::store::{Name, Store, Union, named, stood_on};
use serde::Serialize;

pub use estimate::{Foldable, foldable};
pub(super) use estimate::{cost, tables};

/// What the removal of a checkpoint did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The clone.
    pub clone: Name,
    /// The checkpoint.
    pub checkpoint: u32,
    /// What the host gets back; of a plan at least so much.
    pub freed_bytes: u64,
    /// What took over what is still seen of it, in words: "its present state", "checkpoint 3". `None` when nothing stood on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Room that the host must have meanwhile, at most; only told by a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_bytes: Option<u64>,
}

/// Removes a checkpoint. What stands on it, if that is one layer, shows what it showed.
///
/// # Errors
/// `NotFound`, `Busy` when several layers stand on it, or when one does and somebody has the clone open; `Changed` (the base),
/// `Unsupported` when a layer holds internal snapshots or bitmaps, `NoSpace`, `Interrupted`, the host's. All is then as it was,
/// unless the error says that the checkpoint is removed.
pub fn remove_checkpoint(
    store: &Store,
    clone: &Name,
    number: u32,
    progress: &dyn Progress,
) -> Result<Removed> {
    let mut done = plan(store, clone, number)?;
    done.freed_bytes = match done.into {
        None => store.remove_checkpoint(clone, number)?.bytes,
        Some(_) => {
            let fold = store.begin_fold(clone, number)?;
            copy(fold.union(), progress).map_err(|error| error.at(format!("clone {clone}")))?;
            super::check_cancelled(progress)?;
            fold.publish()?.bytes
        }
    };
    done.needs_bytes = None;
    Ok(done)
}

/// What [`remove_checkpoint`] would do; nothing is changed. Beside a writer of the clone its numbers are those of a moment.
///
/// # Errors
/// As [`remove_checkpoint`].
pub fn plan(store: &Store, clone: &Name, number: u32) -> Result<Removed> {
    let (freed_bytes, into, needs_bytes) = match store.layers_on(clone, number)?.as_slice() {
        [] => (store.checkpoint_bytes_if_removed(clone, number)?, None, None),
        [one] => {
            let Foldable { gives_back_bytes, needs_bytes } = foldable(store, clone, number, *one)?;
            (gives_back_bytes, Some(named(*one)), Some(needs_bytes))
        }
        several => return Err(stood_on(clone, number, several)),
    };
    Ok(Removed { clone: clone.clone(), checkpoint: number, freed_bytes, into, needs_bytes })
}

/// Fills the new layer.
pub(super) fn copy(union: &Union, progress: &dyn Progress) -> Result<()> {
    let against = Against { disk: union.fresh(), shared: union.shared(), exact: false };
    let delta = Delta::new(union.fresh());
    let sink = Early::new(&delta, union.file());
    difference_in(union.old(), against, 0..union.fresh().size(), &sink, progress)
}
