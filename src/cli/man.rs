use super::{Outcome, command_line};
use anyhow::Context as _;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write the manual pages into a folder.
///
/// One page for cowshed and one for each command, as cowshed.1, cowshed-import.1 and so on.
#[derive(Args, Debug)]
pub(super) struct Man {
    /// The folder; it is made when it is missing.
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Outcome {
        let wrote = std::fs::create_dir_all(&self.dir)
            .and_then(|()| clap_mangen::generate_to(command_line(), &self.dir));
        wrote.with_context(|| format!("the manual pages cannot be written into {}", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
