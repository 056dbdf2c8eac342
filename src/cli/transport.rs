//! The transport of a mount by its name.

use fuse_mount::Transport;

/// How the kernel's requests come.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(super) enum Way {
    Auto,
    Dev,
    Uring,
}

impl From<Way> for Transport {
    fn from(way: Way) -> Self {
        match way {
            Way::Auto => Self::Auto,
            Way::Dev => Self::Dev,
            Way::Uring => Self::Uring,
        }
    }
}
