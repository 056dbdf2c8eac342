//! What can go wrong before and while a virtual machine runs.

use std::io;
use std::path::PathBuf;

/// A failure to start or to supervise a virtual machine. Each message is one sentence for the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The QEMU program is not installed.
    #[error("{program} was not found: install QEMU (on Debian, the package qemu-system-x86)")]
    QemuMissing {
        /// The program that was looked for.
        program: String,
    },
    /// The QEMU program is there and could not be started.
    #[error("{program} could not be started")]
    Spawn {
        /// The program that was tried.
        program: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file that the machine needs cannot be opened.
    #[error("the {what} {} cannot be opened", path.display())]
    File {
        /// Which of the machine's files: disk, kernel or initrd.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A path that has to be passed as JSON is not valid UTF-8.
    #[error("the path {} is not valid UTF-8, which QEMU's block options need", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// KVM was asked for by name and does not work here.
    #[error("KVM was asked for, but {reason}; use --accel auto or --accel tcg")]
    KvmUnavailable {
        /// Why not, as half a sentence.
        reason: String,
    },
    /// QEMU runs and does not answer on its control socket.
    #[error("QEMU did not answer on its control socket within {seconds} s and was stopped")]
    NoAnswer {
        /// How long it was given.
        seconds: u64,
    },
    /// A call to the host failed while the machine was supervised.
    #[error("{doing} failed")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl VmError {
    pub(super) fn host(doing: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Host { doing, source: source.into() }
    }
}
