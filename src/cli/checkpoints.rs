use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use crate::store::{Checkpoint, Name};
use clap::Args;
use serde::Serialize;
use std::process::ExitCode;

/// List the checkpoints of a clone.
#[derive(Args, Debug)]
pub(super) struct Checkpoints {
    /// The clone.
    name: Name,
    #[command(flatten)]
    json: Json,
}

#[derive(Serialize)]
struct Report {
    /// The checkpoint that the present state grew from.
    current: Option<u32>,
    checkpoints: Vec<Checkpoint>,
}

impl Checkpoints {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let checkpoints = store.checkpoints(&self.name)?;
        let current = store.current_checkpoint(&self.name)?;
        if self.json.json {
            output::json(&Report { current, checkpoints })?;
        } else {
            let rows = checkpoints.iter().map(|checkpoint| row(checkpoint, current)).collect();
            output::print_table(&output::table(&["NUMBER", "FROM", "CREATED", "NOTE"], &[0, 1], rows))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(checkpoint: &Checkpoint, current: Option<u32>) -> Vec<String> {
    let mark = if current == Some(checkpoint.number) { "*" } else { "" };
    let note: String =
        checkpoint.note.iter().flat_map(|note| note.chars().filter(|c| !c.is_control())).collect();
    vec![
        format!("{mark}{}", checkpoint.number),
        checkpoint.parent.map_or_else(|| checkpoint.base.to_string(), |parent| parent.to_string()),
        checkpoint.created.clone(),
        note,
    ]
}
