//! `--plan`, for commands that destroy something.

use clap::Args;

/// `--plan` (or `--dry-run`).
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Say what would be done, and change nothing.
    #[arg(long, visible_alias = "dry-run")]
    pub(super) plan: bool,
}
