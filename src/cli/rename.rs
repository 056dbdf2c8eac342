use super::Outcome;
use super::context::Context;
use crate::store::Name;
use clap::Args;
use std::process::ExitCode;

/// Give a clone or a base another name.
///
/// A base keeps its name while clones stand on it, because their files name it.
#[derive(Args, Debug)]
pub(super) struct Rename {
    /// Its present name.
    from: Name,
    /// The new name.
    to: Name,
}

impl Rename {
    pub(super) fn run(self, context: &Context) -> Outcome {
        context.store()?.rename(&self.from, &self.to)?;
        Ok(ExitCode::SUCCESS)
    }
}
