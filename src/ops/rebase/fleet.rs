//! Many clones at once.

use super::bases::Bases;
use super::{Outcome, RebaseRequest, Rebased, plan_one, rebase_one};
use crate::error::{Error, Kind};
use crate::ops::Progress;
use crate::ops::many::many;
use crate::store::{Name, Store, Waiting};

/// What came of one clone.
#[derive(Debug)]
pub enum Ending {
    /// It is done, or in a plan: it would be.
    Done(Rebased),
    /// It stands on that version already.
    UpToDate,
    /// It is left as it is until it is next started; see [`super::rebase_at_next_start`].
    Deferred(Waiting),
    /// Both sides changed the same things; it is left as it is.
    Conflict(Rebased),
    /// Somebody has it open; it is left as it is.
    Running(Error),
    /// It is left as it is.
    Failed(Error),
}

/// Puts clones on another base version, `jobs` of them at a time, or only plans it. `each` is told what came of each, in
/// the order in which they end. Those that were not begun when the user stops the work are not told of.
pub fn rebase_all(
    store: &Store,
    requests: &[RebaseRequest],
    jobs: usize,
    only_plan: bool,
    progress: &dyn Progress,
    each: &mut dyn FnMut(&Name, Ending),
) {
    let (bases, requests) = (Bases::default(), by_version(store, requests));
    let work = |request: &&RebaseRequest| one(store, request, &bases, only_plan, progress);
    many(&requests, jobs, progress, work, &mut |request, ending| each(&request.clone, ending));
}

/// Clones that stand on the same version one after the other: what is read of it is needed by all of them, and then by
/// none any more.
fn by_version<'a>(store: &Store, requests: &'a [RebaseRequest]) -> Vec<&'a RebaseRequest> {
    let mut sorted: Vec<&RebaseRequest> = requests.iter().collect();
    sorted.sort_by_cached_key(|request| {
        // What is wrong with one is told when it is its turn.
        store.clone_named(&request.clone).ok().map(|clone| (clone.base.name, clone.base.version))
    });
    sorted
}

fn one(
    store: &Store,
    request: &RebaseRequest,
    bases: &Bases,
    only_plan: bool,
    progress: &dyn Progress,
) -> Ending {
    let run = if only_plan { plan_one } else { rebase_one };
    match run(store, request, bases, progress) {
        Ok(Outcome::Done(done)) => Ending::Done(done),
        Ok(Outcome::UpToDate) => Ending::UpToDate,
        Ok(Outcome::Conflict(open)) => Ending::Conflict(open),
        Err(error) if error.kind() == Kind::Busy => Ending::Running(error),
        Err(error) => Ending::Failed(error),
    }
}
