use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use crate::store::Name;
use clap::Args;
use std::process::ExitCode;

/// Freeze the present state of a clone, to go back to.
///
/// The clone must not be open for writing anywhere.
#[derive(Args, Debug)]
pub(super) struct Checkpoint {
    /// The clone.
    name: Name,
    /// Words to remember it by.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    #[command(flatten)]
    json: Json,
}

impl Checkpoint {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let made = context.store()?.checkpoint(&self.name, self.note.as_deref())?;
        if self.json.json {
            output::json(&made)?;
        } else {
            output::line(format!("checkpoint {} of {}", made.number, self.name))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
