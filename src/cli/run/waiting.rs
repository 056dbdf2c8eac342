//! The rebase that waited for this start of a clone.

use super::disk;
use crate::cli::context::Context;
use crate::cli::{failure, progress, rebase};
use crate::error::{Error, Kind};
use crate::ops::Progress;
use crate::ops::rebase::{Outcome, rebase_waiting};
use crate::store::{Name, Store, Waiting};
use crate::vm::SignalWatch;

/// A request to end the run ends the rebase.
struct Signals<'a>(&'a SignalWatch);

impl Progress for Signals<'_> {
    fn total(&self, _: u64) {}

    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.is_pending()
    }
}

/// Does it, if one waits. When it cannot be done the clone starts as it is, and a sentence says why.
pub(super) fn put_on_version(store: &Store, name: &Name, signals: &SignalWatch) -> anyhow::Result<()> {
    let waiting = match store.waiting(name) {
        Ok(Some(waiting)) => waiting,
        Ok(None) => return Ok(()),
        Err(error) => {
            failure::write_line(&format!("{name} starts as it is: {}", failure::sentence(&error.into())));
            return Ok(());
        }
    };
    let program = Context::program()?;
    let spinner = progress::spinner(format!("putting {name} on {}", waiting.onto));
    let ended = rebase_waiting(store, name, program, &Signals(signals));
    spinner.finish_and_clear();
    if signals.is_pending() && !matches!(ended, Ok(Some(Outcome::Done(_)))) {
        // The programs that do a part of the work have got the signal, too.
        return Err(Error::new(Kind::Interrupted, format!("stopped; {name} is as it was")).into());
    }
    let why = match ended {
        Ok(None | Some(Outcome::UpToDate)) => return Ok(()),
        Ok(Some(Outcome::Done(done))) => {
            failure::write_line(&rebase::line(&done, false));
            return Ok(());
        }
        Ok(Some(Outcome::Conflict(open))) => rebase::conflicts(&open),
        // Somebody has it open: the start itself says so.
        Err(error) if error.kind() == Kind::Busy && disk::try_writing(store, name).is_err() => return Ok(()),
        Err(error) => failure::sentence(&error.into()),
    };
    failure::write_line(&warning(name, &waiting, &why));
    Ok(())
}

fn warning(name: &Name, waiting: &Waiting, why: &str) -> String {
    let Waiting { onto, strategy, rules, .. } = waiting;
    let rules = if rules.is_empty() { "" } else { " --rules FILE" };
    format!(
        "{name} starts as it is, and not on {onto} as it should: {why}; see all of it with `cowshed rebase {name} \
         --onto {onto} --strategy {strategy}{rules} --plan --report FILE`, or give it up with `cowshed rebase {name} \
         --at-next-start --cancel`"
    )
}
