//! The `cowshed` command: one file per subcommand.

mod check;
mod checkpoint;
mod checkpoints;
mod clone;
mod completions;
mod context;
mod diff;
mod du;
mod export;
mod failure;
mod gc;
mod help;
mod import;
mod info;
mod interrupt;
mod list;
mod man;
mod map;
mod mount;
mod mount_log;
mod only;
mod output;
mod path;
mod plan;
mod progress;
mod promote;
mod rebase;
mod rename;
mod resize;
mod restore;
mod rm;
mod run;
mod serve;
mod shrink;
mod transport;
mod tree;
mod umount;
mod undo;
mod units;
mod verify;

use crate::guestfs::edit;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use context::Context;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Copy-on-write linked clones of disk images: a base stored once, each clone a small qcow2 delta.
#[derive(Debug, Parser)]
#[command(name = "cowshed", version, max_term_width = 100)]
struct Cli {
    /// The store's folder [default: $COWSHED_STORE, else ~/.local/share/cowshed].
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::Import),
    Export(export::Export),
    Clone(clone::Clone),
    Rename(rename::Rename),
    Rm(rm::Rm),
    List(list::List),
    Tree(tree::Tree),
    Info(info::Info),
    Map(map::Map),
    Diff(diff::Diff),
    Du(du::Du),
    Path(path::Path),
    Checkpoint(checkpoint::Checkpoint),
    Checkpoints(checkpoints::Checkpoints),
    Restore(restore::Restore),
    Promote(promote::Promote),
    Rebase(rebase::Rebase),
    Resize(resize::Resize),
    Undo(undo::Undo),
    Gc(gc::Gc),
    Shrink(shrink::Shrink),
    Check(check::Check),
    Verify(verify::Verify),
    Mount(mount::Mount),
    Umount(umount::Umount),
    Run(run::Run),
    Serve(serve::Serve),
    Completions(completions::Completions),
    Man(man::Man),
}

/// What a command ends with when nothing failed.
type Outcome = anyhow::Result<ExitCode>;

impl Command {
    fn run(self, context: &Context) -> Outcome {
        match self {
            Self::Import(command) => command.run(context),
            Self::Export(command) => command.run(context),
            Self::Clone(command) => command.run(context),
            Self::Rename(command) => command.run(context),
            Self::Rm(command) => command.run(context),
            Self::List(command) => command.run(context),
            Self::Tree(command) => command.run(context),
            Self::Info(command) => command.run(context),
            Self::Map(command) => command.run(context),
            Self::Diff(command) => command.run(context),
            Self::Du(command) => command.run(context),
            Self::Path(command) => command.run(context),
            Self::Checkpoint(command) => command.run(context),
            Self::Checkpoints(command) => command.run(context),
            Self::Restore(command) => command.run(context),
            Self::Promote(command) => command.run(context),
            Self::Rebase(command) => command.run(context),
            Self::Resize(command) => command.run(context),
            Self::Undo(command) => command.run(context),
            Self::Gc(command) => command.run(context),
            Self::Shrink(command) => command.run(context),
            Self::Check(command) => command.run(context),
            Self::Verify(command) => command.run(context),
            Self::Mount(command) => command.run(context),
            Self::Umount(command) => command.run(),
            Self::Run(command) => command.run(context),
            Self::Serve(command) => command.run(context),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
        }
    }
}

/// The whole command line, with the grouped overview as its help.
fn command_line() -> clap::Command {
    help::grouped(Cli::command())
}

/// Runs the command that `arguments` (the program's name first) ask for, and returns its exit code: 0, 1 for an error
/// or damage found, 2 for wrong usage, 3 for leaks found by `check`, 130 when interrupted.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A child of this program, no command of the user: it must be confined before anything else happens.
    if matches!(&arguments[..], [_, command] if command == edit::COMMAND) {
        return edit::serve().unwrap_or(ExitCode::FAILURE);
    }
    let parsed =
        command_line().try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    let context = Context::new(cli.store);
    cli.command.run(&context).unwrap_or_else(|error| failure::say(&error))
}
