use super::Outcome;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// End a view that `cowshed mount` made.
///
/// Returns when everything written through it is durable. Refused while a file in it is open.
#[derive(Args, Debug)]
pub(super) struct Umount {
    /// The directory it is mounted at.
    dir: PathBuf,
}

impl Umount {
    pub(super) fn run(self) -> Outcome {
        fuse_mount::unmount(&self.dir)?;
        Ok(ExitCode::SUCCESS)
    }
}
