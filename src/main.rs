//! The `cowshed` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    cowshed::cli::main(std::env::args_os())
}
