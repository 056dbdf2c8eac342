use super::failure::output_error::Stdout;
use super::{Outcome, command_line};
use clap::Args;
use clap_complete::{Shell, generate};
use std::io::{self, Write};
use std::process::ExitCode;

/// Print a completion script for a shell.
///
/// For bash: cowshed completions bash > ~/.local/share/bash-completion/completions/cowshed
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Outcome {
        let mut script = Vec::new();
        generate(self.shell, &mut command_line(), "cowshed", &mut script);
        let mut out = io::stdout().lock();
        out.write_all(&script).and_then(|()| out.flush()).map_err(Stdout)?;
        Ok(ExitCode::SUCCESS)
    }
}
