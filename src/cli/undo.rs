use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use crate::store::Name;
use clap::Args;
use std::process::ExitCode;

/// Take back the last rebase or resize of a clone.
///
/// The clone is what it was before, on the base version that it stood on and with the size that it had. What it is now becomes a checkpoint, so that
/// nothing written since is lost. It must not be open anywhere.
#[derive(Args, Debug)]
pub(super) struct Undo {
    /// The clone.
    name: Name,
    #[command(flatten)]
    json: Json,
}

impl Undo {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let undone = context.store()?.undo(&self.name)?;
        if self.json.json {
            output::json(&undone)?;
        } else {
            let name = &self.name;
            output::line(format!(
                "{name} is on {} again, as before the {}; what it was since is checkpoint {}",
                undone.base, undone.operation, undone.kept.number
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
