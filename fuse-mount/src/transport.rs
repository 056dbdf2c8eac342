//! The ways by which the kernel's requests come.

/// How the kernel's requests reach the threads that serve a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// [`Transport::Uring`] where the kernel offers it, else [`Transport::Dev`].
    #[default]
    Auto,
    /// Read from and written to `/dev/fuse`, by any kernel.
    Dev,
    /// Over `io_uring`, with a queue for each processor: Linux 6.14 and later, where it is switched on.
    Uring,
}
