use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::plan::Plan;
use super::progress::Bar;
use super::units::size;
use crate::error::{Error, Kind};
use crate::ops::gc::{Event, Fate, Step, gc, plan};
use crate::store::Name;
use clap::Args;
use std::process::ExitCode;

/// Remove base versions that nothing needs.
///
/// Needed are the newest version of each base, those that a clone or one of its checkpoints stands on, and those that
/// are in use. A needed version that stands on one that goes is rewritten first (flattened), with the same content. When
/// that would take more room than it gives back, the other version is kept.
///
/// A removed version cannot be brought back: --plan shows what would be done, what it frees, and what it costs. When it
/// is stopped, what is done stays done, and the same command goes on.
#[derive(Args, Debug)]
pub(super) struct Gc {
    /// Only the versions of this base [default: of all bases].
    base: Option<Name>,
    /// Remove versions also where that costs more room than it gives back.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

impl Gc {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        if self.plan.plan {
            self.report(&plan(&store, self.base.as_ref(), self.force)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut steps = Vec::new();
        let ended = gc(&store, self.base.as_ref(), self.force, &bar, &mut |event| match event {
            Event::Begun(step) if step.fate == Fate::Flatten => {
                bar.start(format!("rewriting {}@{}", step.base, step.version));
            }
            Event::Begun(_) => {}
            Event::Done(step) => steps.push(step.clone()),
        });
        bar.end();
        steps.sort_by(|a, b| (&a.base, a.version).cmp(&(&b.base, b.version)));
        // What is done is told before what is not.
        if ended.is_ok() || !steps.is_empty() {
            self.report(&steps)?;
        }
        match ended {
            Err(error) if error.kind() == Kind::Interrupted => {
                let hint = "what is done stays done; run it again to go on";
                Err(Error::new(Kind::Interrupted, format!("stopped; {hint}")).into())
            }
            ended => Ok(ended.map(|()| ExitCode::SUCCESS)?),
        }
    }

    fn report(&self, steps: &[Step]) -> anyhow::Result<()> {
        if self.json.json {
            return output::json(&steps);
        }
        for step in steps {
            match self.line(step) {
                Some(line) => output::line(line)?,
                None if self.plan.plan => output::line(kept(step))?,
                None => {}
            }
        }
        let sum = |of: fn(&Step) -> u64| size(steps.iter().map(of).sum());
        let (frees, costs) = (sum(|step| step.frees_bytes), sum(|step| step.costs_bytes));
        match (steps.iter().any(|step| step.fate != Fate::Keep), self.plan.plan) {
            (false, _) => output::line("every version is needed")?,
            (true, true) => output::line(format!("in all this would free {frees}, and cost {costs}"))?,
            (true, false) => output::line(format!("freed {frees}, at a cost of {costs}"))?,
        }
        Ok(())
    }

    /// What is, or would be, done; `None` for a version that stays as it is.
    fn line(&self, step: &Step) -> Option<String> {
        let Step { base, version, fate, parent, frees_bytes, costs_bytes, .. } = step;
        let onto = match parent {
            Some(parent) => format!("stands on {base}@{parent}"),
            None => "stands on nothing".to_owned(),
        };
        let (frees, costs) = (size(*frees_bytes), size(*costs_bytes));
        let planned = self.plan.plan;
        Some(match fate {
            Fate::Keep => return None,
            Fate::Remove if planned => format!("{base}@{version} would be removed, which frees {frees}"),
            Fate::Remove => format!("{base}@{version} is removed, which freed {frees}"),
            Fate::Flatten if planned => {
                format!("{base}@{version} would be rewritten so that it {onto}, which costs up to {costs}")
            }
            Fate::Flatten if *frees_bytes > 0 => {
                format!("{base}@{version} is rewritten and {onto}, which freed {frees}")
            }
            Fate::Flatten => format!("{base}@{version} is rewritten and {onto}, which cost {costs}"),
        })
    }
}

fn kept(step: &Step) -> String {
    format!("{}@{} is kept: {}", step.base, step.version, step.why)
}
