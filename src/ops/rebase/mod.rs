//! Rebase: a clone is put on another version of its base.

mod fleet;

use super::Progress;
use super::scan::{Against, Sink, difference};
use super::version::Delta;
use crate::error::{Error, Result};
use crate::store::{Access, BaseId, BaseRef, Name, OpenDisk, Rebase, Store};
use crate::units::length;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

pub use fleet::{Ending, rebase_all};

/// What becomes of what a clone changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The disk stays what it is, byte for byte; what differs from the new base is the clone's own.
    Keep,
    /// The disk starts anew from the new base.
    Replace,
}

/// Which clone to put where.
#[derive(Clone, Debug)]
pub struct RebaseRequest {
    /// The clone.
    pub clone: Name,
    /// The base version; the newest when it says none.
    pub onto: BaseRef,
    /// What becomes of the clone's own changes.
    pub strategy: Strategy,
}

/// What a rebase did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rebased {
    /// The clone.
    pub clone: Name,
    /// What it stood on.
    pub from: BaseId,
    /// What it stands on now.
    pub onto: BaseId,
    /// What became of its own changes.
    pub strategy: Strategy,
    /// Bytes that are the clone's own now.
    pub own_bytes: u64,
    /// The checkpoint that holds the state from before; none in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u32>,
}

/// Puts a clone on another base version. The state from before becomes a checkpoint: `undo` goes back to it.
///
/// `None` when it stands on that version already.
///
/// # Errors
/// `NotFound`, `Busy` while somebody has the clone open, `Changed` (a base), `NoSpace`, `Interrupted`, the host's. The
/// clone is then as it was.
pub fn rebase(store: &Store, request: &RebaseRequest, progress: &dyn Progress) -> Result<Option<Rebased>> {
    let Some((from, onto)) = ends(store, request)? else { return Ok(None) };
    let exact = BaseRef::exact(onto.name.clone(), onto.version);
    let size = match request.strategy {
        Strategy::Keep => None,
        Strategy::Replace => Some(store.base(&exact)?.size),
    };
    let work = store.begin_rebase(&request.clone, &exact, size)?;
    let own_bytes = fill(&work, request.strategy, progress)
        .map_err(|error| error.at(format!("clone {}", request.clone)))?;
    let checkpoint = Some(work.publish()?.number);
    let RebaseRequest { clone, strategy, .. } = request.clone();
    Ok(Some(Rebased { clone, from, onto, strategy, own_bytes, checkpoint }))
}

/// What [`rebase`] would do; nothing is changed.
///
/// # Errors
/// As [`rebase`].
pub fn plan(store: &Store, request: &RebaseRequest, progress: &dyn Progress) -> Result<Option<Rebased>> {
    let Some((from, onto)) = ends(store, request)? else { return Ok(None) };
    let old = store.open_clone(&request.clone, Access::Read)?;
    let new = store.open_base(&BaseRef::exact(onto.name.clone(), onto.version))?;
    let own_bytes = match request.strategy {
        Strategy::Keep => {
            let count = Count::default();
            difference(&old.disk, Against { disk: &new.disk, shared: shared(&old, &new) }, &count, progress)?;
            count.0.into_inner()
        }
        Strategy::Replace => 0,
    };
    let RebaseRequest { clone, strategy, .. } = request.clone();
    Ok(Some(Rebased { clone, from, onto, strategy, own_bytes, checkpoint: None }))
}

/// What the clone stands on and what it shall stand on; `None` when that is the same.
fn ends(store: &Store, request: &RebaseRequest) -> Result<Option<(BaseId, BaseId)>> {
    let from = store.clone_named(&request.clone)?.base;
    let onto = store.base(&request.onto)?.id();
    Ok((from != onto).then_some((from, onto)))
}

/// Writes the new layer; returns the bytes that it holds.
fn fill(work: &Rebase, strategy: Strategy, progress: &dyn Progress) -> Result<u64> {
    match strategy {
        Strategy::Keep => {
            let delta = Delta::new(work.new());
            difference(work.old(), Against { disk: work.new(), shared: work.shared() }, &delta, progress)?;
            Ok(delta.bytes())
        }
        Strategy::Replace => Ok(0),
    }
}

/// Layers at the bottom of both that are the same files.
fn shared(one: &OpenDisk, other: &OpenDisk) -> usize {
    let pairs = one.files().iter().rev().zip(other.files().iter().rev());
    pairs.take_while(|(one, other)| one == other).count()
}

/// Counts what would be put.
#[derive(Default)]
struct Count(AtomicU64);

impl Sink for Count {
    fn put(&self, data: &[u8], _: u64) -> Result<()> {
        if !crate::zero::is_zero(data) {
            self.0.fetch_add(length(data.len()), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl std::str::FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "keep" => Ok(Self::Keep),
            "replace" => Ok(Self::Replace),
            _ => Err(Error::invalid("a strategy is one of keep, replace")),
        }
    }
}
