//! The rebase that waits for a clone's start.

use super::{MergeSettings, Outcome, RebaseRequest, ends, rebase};
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::ops::merge::rules::Rules;
use crate::store::{BaseRef, Name, Store, Waiting};
use std::path::PathBuf;

/// Leaves a clone as it is, and writes down that it is put on another base version when it is next started; `rules` are
/// the user's, as they were written. Nothing waits when it stands on that version already.
///
/// # Errors
/// `NotFound`; `Unsupported` for a merge with another base; as [`Store::wait_for_start`].
pub fn rebase_at_next_start(store: &Store, request: &RebaseRequest, rules: &str) -> Result<Option<Waiting>> {
    ends(store, request)?;
    store.wait_for_start(&request.clone, &request.onto, request.strategy, rules)
}

/// Does the rebase that waits for the start of a clone, if one does. It waits no more when it is done; after a conflict
/// or an error it goes on waiting, and the clone is as it was.
///
/// # Errors
/// As [`rebase`]; `Changed` when the version that was meant is another one by now.
pub fn rebase_waiting(
    store: &Store,
    clone: &Name,
    program: PathBuf,
    progress: &dyn Progress,
) -> Result<Option<Outcome>> {
    let Some(waiting) = store.waiting(clone)? else { return Ok(None) };
    let onto = BaseRef::exact(waiting.onto.name.clone(), waiting.onto.version);
    if store.base(&onto)?.id() != waiting.onto {
        let message = format!("base {onto} is not the one that was meant: another digest");
        return Err(Error::new(Kind::Changed, message));
    }
    let rules = Rules::preset()?.and(&waiting.rules)?;
    let settings = MergeSettings { rules, program }.into();
    let request = RebaseRequest { clone: clone.clone(), onto, strategy: waiting.strategy, settings };
    rebase(store, &request, progress).map(Some)
}
