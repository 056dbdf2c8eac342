use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::progress::Bar;
use super::units::size;
use crate::ops::import::promote;
use crate::store::Name;
use clap::Args;
use std::process::ExitCode;

/// Make a clone's present content the next version of a base.
///
/// The clone stays as it is, on the version that it stands on; nobody may be writing to it meanwhile. Other clones of
/// the base stay where they are too: `cowshed rebase` moves them.
#[derive(Args, Debug)]
pub(super) struct Promote {
    /// The clone.
    clone: Name,
    /// Base that gets a new version.
    #[arg(long, value_name = "BASE")]
    update: Name,
    #[command(flatten)]
    json: Json,
}

impl Promote {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        bar.start(format!("promoting {}", self.clone));
        let base = promote(&store, &self.clone, &self.update, &bar)?;
        bar.end();
        if self.json.json {
            output::json(&base)?;
        } else {
            output::line(format!("{}@{}, {}", base.name, base.version, size(base.size)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
