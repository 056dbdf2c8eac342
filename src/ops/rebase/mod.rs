//! Rebase: a clone is put on another version of its base.

mod bases;
mod fleet;
mod merge;
mod mounts;
mod parts;
mod start;

use super::Progress;
use super::merge::rules::Rules;
use super::merge::{Conflict, Plan, volatile_in_a_sentence};
use super::scan::{Against, Count, Early, difference};
use super::version::Delta;
use crate::error::{Error, Kind, Result};
use crate::store::{Access, BaseId, BaseRef, Name, Rebase, Store};
use bases::Bases;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

pub use crate::store::Strategy;
pub use fleet::{Ending, rebase_all};
pub use start::{rebase_at_next_start, rebase_waiting};

/// How files are merged.
#[derive(Clone, Debug)]
pub struct MergeSettings {
    /// Who wins where both sides changed the same thing.
    pub rules: Rules,
    /// Our own program, which knows [`crate::guestfs::edit::COMMAND`].
    pub program: PathBuf,
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
    /// How files are merged.
    pub settings: Arc<MergeSettings>,
}

/// What a merge did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// What both sides changed, differently; those that are not taken from a side are open.
    pub conflicts: Vec<Conflict>,
    /// The same of files that running alone changes, like logs: all are the clone's.
    pub volatile: Vec<Conflict>,
    /// What was settled without a choice, in sentences.
    pub settled: Vec<String>,
    /// Numbers of the base's new accounts that became others, in sentences.
    pub renumbered: Vec<String>,
    /// Paths that are not as the new base has them.
    pub kept: Vec<String>,
    /// Files that the guest makes again by itself.
    pub derived: Vec<String>,
    /// What became of packages that differ.
    pub packages: Vec<String>,
    /// Dependencies between packages that neither side had broken.
    pub broken: Vec<String>,
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
    /// Bytes that are the clone's own now; not known of a merge that is only planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_bytes: Option<u64>,
    /// The checkpoint that holds the state from before; none in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u32>,
    /// What became of its files, when they were merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merged>,
}

/// How a rebase came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; of a plan: it would be.
    Done(Rebased),
    /// It stands on that version already.
    UpToDate,
    /// Both sides changed the same things, and no rule says who wins: nothing was changed.
    Conflict(Rebased),
}

impl Outcome {
    /// What was done.
    #[must_use]
    pub fn done(self) -> Option<Rebased> {
        match self {
            Self::Done(done) => Some(done),
            Self::UpToDate | Self::Conflict(_) => None,
        }
    }
}

impl Merged {
    fn add(&mut self, plan: &Plan) {
        let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
        self.conflicts.extend(plan.conflicts.iter().cloned());
        self.volatile.extend(plan.volatile.iter().cloned());
        self.settled.extend(plan.settled.iter().cloned());
        self.renumbered.extend(plan.renumbered.iter().cloned());
        self.kept.extend(plan.kept.iter().map(text));
        self.derived.extend(plan.derived.iter().map(text));
        self.packages.extend(plan.packages.iter().map(ToString::to_string));
        self.broken.extend(plan.broken.iter().cloned());
    }

    /// All filesystems are in it.
    fn finish(&mut self) {
        for list in [&mut self.conflicts, &mut self.volatile] {
            list.sort_by(|a, b| (&a.path, a.clash).cmp(&(&b.path, b.clash)));
        }
        self.settled.extend(volatile_in_a_sentence(&self.volatile));
    }

    /// The conflicts that nobody decided.
    pub fn open(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.iter().filter(|conflict| conflict.taken.is_none())
    }
}

/// Puts a clone on another base version. The state from before becomes a checkpoint: `undo` goes back to it.
///
/// # Errors
/// `NotFound`, `Busy` while somebody has the clone open, `Changed` (a base), `Unsupported` (its files cannot be merged,
/// with the reason), `NoSpace`, `Interrupted`, the host's. The clone is then as it was.
pub fn rebase(store: &Store, request: &RebaseRequest, progress: &dyn Progress) -> Result<Outcome> {
    rebase_one(store, request, &Bases::default(), progress)
}

fn rebase_one(
    store: &Store,
    request: &RebaseRequest,
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let Some(mut report) = ends(store, request)? else { return Ok(Outcome::UpToDate) };
    let exact = BaseRef::exact(report.onto.name.clone(), report.onto.version);
    let size = match request.strategy {
        Strategy::Keep => None,
        Strategy::Merge | Strategy::Replace => Some(store.base(&exact)?.size),
    };
    let work = store.begin_rebase(&request.clone, &exact, size)?;
    if *work.from() != report.from {
        let message = format!("clone {} was put on another base meanwhile; run it again", request.clone);
        return Err(Error::new(Kind::Changed, message));
    }
    let filled = fill(store, &work, (request, bases), &mut report, progress);
    if !filled.map_err(|error| error.at(format!("clone {}", request.clone)))? {
        return Ok(Outcome::Conflict(report));
    }
    report.checkpoint = Some(work.publish()?.number);
    Ok(Outcome::Done(report))
}

/// What [`rebase`] would do; nothing is changed.
///
/// # Errors
/// As [`rebase`].
pub fn plan(store: &Store, request: &RebaseRequest, progress: &dyn Progress) -> Result<Outcome> {
    plan_one(store, request, &Bases::default(), progress)
}

fn plan_one(
    store: &Store,
    request: &RebaseRequest,
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let Some(mut report) = ends(store, request)? else { return Ok(Outcome::UpToDate) };
    let old = store.open_clone(&request.clone, Access::Read)?;
    match request.strategy {
        Strategy::Keep => {
            let new = store.open_base(&BaseRef::exact(report.onto.name.clone(), report.onto.version))?;
            let count = Count::default();
            let shared = old.shared_with(new.files());
            difference(&old.disk, Against { disk: &new.disk, shared, exact: true }, &count, progress)?;
            report.own_bytes = Some(count.data());
        }
        Strategy::Replace => report.own_bytes = Some(0),
        Strategy::Merge => {
            let pair = bases.pair(store, &report.from, &report.onto)?;
            let work = merge::prepare(&pair, (&old.disk, old.files()), &request.settings, progress)
                .map_err(|error| error.at(format!("clone {}", request.clone)))?;
            report.merge = Some(work.report);
        }
    }
    let open = report.merge.as_ref().is_some_and(|merge| merge.open().next().is_some());
    Ok(if open { Outcome::Conflict(report) } else { Outcome::Done(report) })
}

/// What the clone stands on and what it shall stand on; nothing when that is the same.
fn ends(store: &Store, request: &RebaseRequest) -> Result<Option<Rebased>> {
    let from = store.clone_named(&request.clone)?.base;
    let onto = store.base(&request.onto)?.id();
    if from == onto {
        return Ok(None);
    }
    if request.strategy == Strategy::Merge && from.name != onto.name {
        let message = format!(
            "clone {} stands on {from}: files are merged with another version of that base only, and {onto} is \
             another base",
            request.clone
        );
        return Err(Error::new(Kind::Unsupported, message));
    }
    let (clone, strategy) = (request.clone.clone(), request.strategy);
    Ok(Some(Rebased { clone, from, onto, strategy, own_bytes: None, checkpoint: None, merge: None }))
}

/// Writes the new layer; false when it cannot be, because a conflict is open.
fn fill(
    store: &Store,
    work: &Rebase,
    (request, bases): (&RebaseRequest, &Bases),
    report: &mut Rebased,
    progress: &dyn Progress,
) -> Result<bool> {
    match request.strategy {
        Strategy::Keep => {
            let delta = Delta::new(work.fresh());
            let against = Against { disk: work.fresh(), shared: work.shared(), exact: true };
            difference(work.old(), against, &Early::new(&delta, work.file()), progress)?;
            report.own_bytes = Some(delta.bytes());
        }
        Strategy::Replace => report.own_bytes = Some(0),
        Strategy::Merge => {
            let pair = bases.pair(store, &report.from, &report.onto)?;
            let clone = (work.old(), work.old_files());
            let mut planned = merge::prepare(&pair, clone, &request.settings, progress)?;
            let merged = report.merge.insert(std::mem::take(&mut planned.report));
            if merged.open().next().is_some() {
                return Ok(false);
            }
            planned.carry_out(work.fresh(), (&request.settings.program, work.folder()), progress)?;
            report.own_bytes = work.fresh().stored_by_layer()?.first().copied();
        }
    }
    Ok(true)
}
