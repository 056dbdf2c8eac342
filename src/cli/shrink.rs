mod told;

use super::Outcome;
use super::context::Context;
use super::only::{Fleet, Only};
use super::output::Json;
use super::plan::Plan;
use super::progress::{Bar, Clones};
use crate::error::{Error, Kind};
use crate::ops::Progress;
use crate::ops::shrink::{Settings, shrink_all, shrink_target};
use crate::store::{BaseRef, Store, Target};
use anyhow::Context as _;
use clap::Args;
use std::process::ExitCode;
use told::Told;

/// Give back the host's space that clones take up and do not need.
///
/// Not needed is what the guest's filesystems have free, what is the same as in the base, and zeros. It is dropped, and the clone's
/// file is made as short as what is left. No file of the guest changes. A filesystem that is not understood is left whole, and
/// named. The clone must not be in use; a running guest gives space back by itself with fstrim.
///
/// A base never changes: of BASE a next version is made, without what the guest's filesystems have free. The host gets that back
/// when `cowshed gc BASE` removes the version before, which it does when no clone stands on that any more.
///
/// It can be stopped at any moment, and run again.
#[derive(Args, Debug)]
pub(super) struct Shrink {
    /// Clones, or bases: the newest version of each.
    #[arg(value_name = "CLONE|BASE", required_unless_present = "all", conflicts_with_all = ["all", "only"])]
    names: Vec<BaseRef>,
    /// All clones.
    #[arg(long)]
    all: bool,
    /// Compress what rests: what is left of a clone's own changes, where it gets smaller by a quarter at least. Who writes
    /// there later unpacks it again.
    #[arg(long)]
    recompress: bool,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

impl Shrink {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let targets = self.targets(&store)?;
        let settings = Settings { plan: self.plan.plan, recompress: self.recompress };
        let mut told = Told::new(self.json.json, self.plan.plan);
        if let ([target], false) = (&targets[..], self.all) {
            let bar = Bar::new()?;
            bar.start(format!("{} {target}", if self.plan.plan { "reading" } else { "shrinking" }));
            let done = shrink_target(&store, target, settings, &bar);
            bar.end();
            told.tell(target, Ok(done?))?;
            told.end(false)?;
            return Ok(ExitCode::SUCCESS);
        }
        let progress = Clones::new(if self.plan.plan { "reading" } else { "shrinking" })?;
        progress.bar.set_length(targets.len() as u64);
        let mut failure = None;
        shrink_all(&store, &targets, self.fleet.jobs(), settings, &progress, &mut |target, ending| {
            progress.bar.inc(1);
            let result = progress.bar.suspend(|| told.tell(target, ending));
            failure = failure.take().or(result.err());
        });
        progress.bar.finish_and_clear();
        failure.map_or(Ok(()), Err)?;
        told.end(true)?;
        if progress.cancelled() {
            let hint =
                "what is done stays done, and what was given back stays given back; run it again to go on";
            return Err(Error::new(Kind::Interrupted, format!("stopped; {hint}")).into());
        }
        Ok(if told.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// What is asked for.
    fn targets(&self, store: &Store) -> anyhow::Result<Vec<Target>> {
        if !self.all {
            return Ok(self.names.iter().map(|name| store.find(name)).collect::<Result<_, _>>()?);
        }
        let clones = store.clones()?.into_iter().filter(|clone| Only::means(&self.fleet.only, clone));
        let targets: Vec<Target> = clones.map(|clone| Target::Clone(clone.name)).collect();
        if targets.is_empty() && !self.fleet.only.is_empty() {
            return Err(Error::invalid("no clone is meant; `cowshed list` shows what there is"))
                .context("shrink");
        }
        Ok(targets)
    }
}
