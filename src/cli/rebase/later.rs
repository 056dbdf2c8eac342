//! Clones that are put on another version when they are next started.

use super::Rebase;
use super::asked::Asked;
use crate::cli::only::Only;
use crate::cli::{Outcome, output};
use crate::error::Result;
use crate::ops::rebase::{Ending, RebaseRequest, rebase_at_next_start};
use crate::store::{self, Name, Store, Survey};
use clap::ValueEnum;
use serde_json::json;
use std::process::ExitCode;

/// Which clones wait for their next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    /// All that are meant.
    All,
    /// Those that are in use.
    InUse,
}

/// Writes down that a clone waits.
pub(super) fn wait(store: &Store, asked: &Asked, request: &RebaseRequest) -> Ending {
    match rebase_at_next_start(store, request, &asked.rules) {
        Ok(Some(waiting)) => Ending::Deferred(waiting),
        Ok(None) => Ending::UpToDate,
        Err(error) => Ending::Failed(error),
    }
}

/// Takes back what waits.
pub(super) fn cancel(store: &Store, rebase: &Rebase) -> Outcome {
    let names: Vec<Name> = match rebase.all {
        true => {
            let Survey { clones, broken, .. } = store.survey()?;
            let meant =
                |clone: &store::Clone| clone.waiting.is_some() && Only::means(&rebase.fleet.only, clone);
            let waiting = clones.into_iter().filter(meant).map(|clone| clone.name);
            // What cannot be read is taken back as well; its clone is broken as long as it is there.
            let named = broken.iter().filter(|broken| broken.kind == "clone" && rebase.fleet.only.is_empty());
            let unread = named.filter_map(|broken| broken.name.parse().ok());
            waiting.chain(unread.filter(|name| store.waiting(name).is_err())).collect()
        }
        false => rebase.clones.clone(),
    };
    let stopped: Vec<(Name, bool)> = names
        .into_iter()
        .map(|name| Ok((name.clone(), store.stop_waiting(&name)?)))
        .collect::<Result<_>>()?;
    if rebase.json.json {
        let report = |(name, waited): &(Name, bool)| json!({ "clone": name, "cancelled": waited });
        output::json(&stopped.iter().map(report).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, waited) in stopped {
        match waited {
            true => output::line(format!("{name}: its next start leaves it as it is"))?,
            false => output::line(format!("{name}: nothing waited for its next start"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
