//! Long jobs on the store, each with progress and a way to stop.

pub mod check;
mod convert;
pub mod diff;
pub mod export;
pub mod fold;
pub mod gc;
pub mod import;
mod many;
pub mod map;
pub mod merge;
mod mounted;
mod newfile;
pub mod rebase;
pub mod resize;
mod scan;
mod share;
pub mod shrink;
mod source;
pub mod verify;
mod version;

use crate::error::{Error, Kind, Result};

/// Who is told how far a job is, and who may stop it. Called from several threads.
pub trait Progress: Sync {
    /// The job is `bytes` long in all.
    fn total(&self, bytes: u64);
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);
    /// Whether the job shall stop; it then ends with `Interrupted` and leaves nothing behind.
    fn cancelled(&self) -> bool;
}

/// Ends a job that shall stop and has changed nothing yet that stays.
fn check_cancelled(progress: &dyn Progress) -> Result<()> {
    match progress.cancelled() {
        true => Err(Error::new(Kind::Interrupted, "stopped; nothing was changed")),
        false => Ok(()),
    }
}

/// Who may stop a job, but is not told of this part of it.
struct Untold<'a>(&'a dyn Progress);

impl Progress for Untold<'_> {
    fn total(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Nobody is told, nobody stops it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn total(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}
