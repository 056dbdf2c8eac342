mod asked;
mod later;
mod report;
mod told;

use super::Outcome;
use super::context::Context;
use super::only::{Fleet, Only};
use super::output::{self, Json};
use super::plan::Plan;
use super::progress::Clones;
use crate::error::Error;
use crate::ops::Progress;
use crate::ops::rebase::{Ending, Strategy, rebase_all};
use crate::store::{BaseRef, Name, Store};
use asked::Asked;
use clap::Args;
use later::When;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use told::Told;
pub(super) use told::{conflicts, line};

/// Put clones on another version of their base.
///
/// What each clone was before becomes a checkpoint, and `cowshed undo CLONE` goes back to it. A clone that is in use is
/// left as it is. Run again, clones that are done are left alone: an interrupted run is continued by the same command.
#[derive(Args, Debug)]
pub(super) struct Rebase {
    /// Clones.
    #[arg(value_name = "CLONE", required_unless_present_any = ["all", "go_on"], conflicts_with_all = ["all", "only"])]
    clones: Vec<Name>,
    /// All clones of the base.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    fleet: Fleet,
    /// The base version: NAME@V, or NAME for its newest.
    #[arg(long, value_name = "BASE", required_unless_present_any = ["go_on", "cancel"])]
    onto: Option<BaseRef>,
    /// What becomes of a clone's own changes. merge: file by file, the new base with what the clone changed. keep: the
    /// disk stays what it is, byte for byte. replace: it starts anew from the new base. [default: merge]
    #[arg(long)]
    strategy: Option<Strategy>,
    /// Rules for what both sides changed, after the built-in ones: a file with lines `POLICY GLOB`.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Write all that was, or would be, done into a file: JSON when its name ends with .json, else a page of text.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Clones named so are data disks: they are kept, whatever the strategy (a pattern; may be given several times).
    #[arg(long, value_name = "PATTERN")]
    keep_disk: Vec<Only>,
    /// Take only the first N of the clones that are not done yet, to see whether all goes well; --continue goes on.
    #[arg(long, value_name = "N", requires = "all")]
    canary: Option<usize>,
    /// Go on with the rest of the clones after a canary run, as that one was told to. --onto BASE says which base's, when
    /// there is more than one.
    #[arg(
        id = "go_on",
        long = "continue",
        conflicts_with_all = ["clones", "only", "strategy", "rules", "keep_disk", "canary", "at_next_start"]
    )]
    go_on: bool,
    /// Go on although a clone of the canary run is not on the new version.
    #[arg(long, requires = "go_on")]
    force: bool,
    /// Leave the clones as they are, and put each on the version when `cowshed run` next starts it; with =in-use only
    /// those that are in use, the others now.
    #[arg(
        long,
        value_name = "WHICH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all",
        conflicts_with_all = ["plan", "canary"]
    )]
    at_next_start: Option<When>,
    /// Take back what waits for the next start of the clones.
    #[arg(
        long,
        requires = "at_next_start",
        conflicts_with_all = ["onto", "strategy", "rules", "report", "keep_disk", "jobs"]
    )]
    cancel: bool,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

impl Rebase {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        if self.cancel {
            return later::cancel(&store, &self);
        }
        let progress = Clones::new("rebasing")?;
        let asked = if self.go_on { self.after_canary(&store)? } else { self.asked(&store)? };
        // Before anything is changed: a report that cannot be written is noticed now.
        let report = self.report.as_deref().map(Report::create).transpose()?;
        let begins = self.canary.is_some() && !self.plan.plan && !asked.clones.is_empty();
        if begins {
            store.note_canary(&asked.canary(&store)?)?;
        }
        progress.bar.set_length(asked.clones.len() as u64);
        let mut told = Told::new(self.json.json, self.plan.plan, asked.onto.to_string());
        self.carry_out(&store, &asked, &progress, &mut told)?;
        progress.bar.finish_and_clear();
        if let Some(report) = report {
            report.write(&told.reports)?;
        }
        if self.go_on && !self.plan.plan && told.sum.is_whole(asked.clones.len()) {
            store.forget_canary(&asked.onto.name)?;
        }
        if self.json.json {
            output::json(&told.reports)?;
        } else if asked.clones.len() > 1 {
            output::line(told.sum.text(self.plan.plan))?;
        }
        if progress.cancelled() {
            let hint = "the clones that were not reached are as they were; run it again to go on";
            return Err(Error::new(crate::Kind::Interrupted, format!("stopped; {hint}")).into());
        }
        if begins && !self.json.json {
            let base = &asked.onto.name;
            output::line(format!("go on with the rest: cowshed rebase --continue --onto {base}"))?;
        }
        Ok(if told.sum.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Does what is asked for, and tells what came of each clone.
    fn carry_out(
        &self,
        store: &Store,
        asked: &Asked,
        progress: &Clones,
        told: &mut Told,
    ) -> anyhow::Result<()> {
        let requests = asked.requests()?;
        let mut failure = None;
        let mut each = |name: &Name, ending: Ending| {
            progress.bar.inc(1);
            let result = progress.bar.suspend(|| told.tell(name, ending));
            failure = failure.take().or(result.err());
        };
        if self.at_next_start == Some(When::All) {
            for request in &requests {
                each(&request.clone, later::wait(store, asked, request));
            }
        } else {
            rebase_all(store, &requests, self.fleet.jobs(), self.plan.plan, progress, &mut |name, ending| {
                let request = requests.iter().find(|request| request.clone == *name);
                let waits = matches!(ending, Ending::Running(_)) && self.at_next_start.is_some();
                each(
                    name,
                    match request.filter(|_| waits) {
                        Some(request) => later::wait(store, asked, request),
                        None => ending,
                    },
                );
            });
        }
        failure.map_or(Ok(()), Err)
    }
}
