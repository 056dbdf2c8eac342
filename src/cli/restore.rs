use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::plan::Plan;
use crate::error::{Error, Kind};
use crate::store::Name;
use clap::Args;
use std::process::ExitCode;

/// Put a clone back to a checkpoint.
///
/// The state from before becomes a checkpoint itself, so that this can be undone, unless --discard is given. The clone
/// must not be open anywhere.
#[derive(Args, Debug)]
pub(super) struct Restore {
    /// The clone.
    name: Name,
    /// Number of the checkpoint, as `cowshed checkpoints` lists it.
    #[arg(value_name = "CHECKPOINT")]
    number: u32,
    /// Throw the present state away instead of keeping it as a checkpoint.
    #[arg(long)]
    discard: bool,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

impl Restore {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let Self { name, number, .. } = &self;
        let store = context.store()?;
        if !store.checkpoints(name)?.iter().any(|checkpoint| checkpoint.number == *number) {
            let hint = format!("{name} has no checkpoint {number}; cowshed checkpoints {name} lists them");
            return Err(Error::new(Kind::NotFound, hint).into());
        }
        if self.plan.plan {
            let present = if self.discard { "thrown away" } else { "kept as a new checkpoint" };
            let plan =
                format!("{name} would go back to checkpoint {number}; its present state would be {present}");
            output::line(plan)?;
            return Ok(ExitCode::SUCCESS);
        }
        let restored = store.restore(name, *number, !self.discard)?;
        match restored.kept {
            _ if self.json.json => output::json(&restored)?,
            Some(kept) => {
                let undo = format!("undo with: cowshed restore {name} {}", kept.number);
                output::line(format!("{name} is back at checkpoint {number}; {undo}"))?;
            }
            None => output::line(format!("{name} is back at checkpoint {number}"))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
