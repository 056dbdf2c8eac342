//! Clones that are put on another version when they are next started.

use super::Rebase;
use super::asked::Asked;
use crate::cli::{Outcome, output};
use crate::error::Result;
use crate::ops::rebase::{Ending, RebaseRequest, rebase_at_next_start};
use crate::store::{Name, Store};
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
            let clones = store.clones()?.into_iter();
            let meant = clones.filter(|clone| {
                clone.waiting.is_some()
                    && (rebase.only.is_empty() || rebase.only.iter().any(|only| only.is(clone)))
            });
            meant.map(|clone| clone.name).collect()
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
