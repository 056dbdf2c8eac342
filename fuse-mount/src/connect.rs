//! From a directory to a conversation with the kernel, over either transport.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};

use crate::attach::{attach, can_open_device, detach};
use crate::error::{Error, Result};
use crate::filesystem::Front;
use crate::mount_table;
use crate::transport::Transport;
use crate::uring::{self, Rings};
use crate::view::View;
use crate::{Options, Source};

/// For how many queues there are to be rings; none for `/dev/fuse` alone.
pub(crate) fn queues(transport: Transport) -> Result<Option<u16>> {
    match transport {
        Transport::Dev => Ok(None),
        Transport::Auto => Ok(uring::queues().ok()),
        Transport::Uring => uring::queues().map(Some).map_err(|reason| Error::NoUring { reason }),
    }
}

/// A mount that the kernel has been greeted for.
pub(crate) struct Connection<S: Source> {
    pub(crate) session: Session<Front<S>>,
    pub(crate) rings: Option<Rings>,
    /// Number of the mount in the kernel's table.
    pub(crate) id: u64,
}

/// Mounts, greets the kernel, and opens rings for as many queues. After an error nothing is mounted.
pub(crate) fn connect<S: Source>(
    dir: &Path,
    view: &Arc<View<S>>,
    options: &Options,
    queues: Option<u16>,
) -> Result<Connection<S>> {
    let device = attach(dir, options)?;
    let connected = greet(dir, device, view, options, queues);
    if connected.is_err() {
        // Nobody serves it, and the error at hand says more than one about this.
        let _ = detach(dir, true);
    }
    connected
}

fn greet<S: Source>(
    dir: &Path,
    device: OwnedFd,
    view: &Arc<View<S>>,
    options: &Options,
    queues: Option<u16>,
) -> Result<Connection<S>> {
    let failed = |cause| Error::Session { dir: dir.to_owned(), cause };
    let rings = queues.map(|queues| Rings::new(view, &device, queues, options.threads));
    let no_rings = |error| Error::NoUring { reason: no_rings(dir, &error) };
    let rings = rings.transpose().map_err(no_rings)?;
    let mut config = Config::default();
    // Beside rings there is little to do.
    let threads = if rings.is_some() { 1 } else { options.threads };
    config.n_threads = Some(threads);
    config.clone_fd = threads > 1 && can_open_device();
    let front = Front::new(view.clone(), rings.is_some(), threads);
    // Who may come in is the kernel's decision. It also sends requests of programs that changed their user since
    // opening, and those must be served: a refused flush would lose data.
    let session = Session::from_fd(front, device, SessionACL::All, config).map_err(failed)?;
    rings.as_ref().map_or(Ok(()), Rings::open).map_err(no_rings)?;
    let entry = mount_table::top_at(dir)?.filter(mount_table::Entry::is_ours);
    let entry = entry.ok_or_else(|| failed(io::Error::other("it vanished right after mounting")))?;
    Ok(Connection { session, rings, id: entry.id })
}

/// A sentence that says why there are no rings and what to do.
fn no_rings(dir: &Path, error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "io_uring is forbidden here, by kernel.io_uring_disabled or by a filter of system calls"
        }
        Some(libc::ENOSYS) => "the kernel has no io_uring, or a filter of system calls hides it",
        Some(libc::ENOMEM) => {
            "its rings are more than this user may lock in memory (ulimit -l), or than there is"
        }
        Some(libc::EMFILE) => "its rings are more files than this process may open (ulimit -n)",
        _ => &error.to_string(),
    };
    format!("{} cannot be served over io_uring: {why}; mount with --transport dev", dir.display())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::names_only::NamesOnly;

    #[test]
    #[ignore = "tests/tools/uring.sh"]
    fn rings_that_the_kernel_refuses_end_the_mount_and_nobody_who_came_meanwhile_waits() {
        let folder = tempfile::tempdir().expect("folder");
        let dir = folder.path().canonicalize().expect("path");
        let view = Arc::new(NamesOnly::view());
        let options = Options { threads: 1, ..Options::default() };
        let queues = uring::queues().expect("a kernel that has it switched on");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let visitors = [(); 3].map(|()| {
                scope.spawn(|| {
                    let mut visits = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        let _ = std::fs::metadata(dir.join("disks"));
                        visits += 1;
                    }
                    visits
                })
            });
            for _ in 0..20 {
                // One queue more than there is: the kernel has taken the entries of the others when it refuses this one.
                let refused = connect(&dir, &view, &options, Some(queues + 1)).err();
                assert!(matches!(refused, Some(Error::NoUring { .. })), "{refused:?}");
                assert!(mount_table::top_at(&dir).expect("table").is_none());
            }
            stop.store(true, Ordering::Relaxed);
            for visitor in visitors {
                assert!(visitor.join().expect("no panic") > 0);
            }
        });
        // Whoever still had a request in there has got an error by now; the place can be used.
        let connection = connect(&dir, &view, &options, None).expect("mounted");
        detach(&dir, true).expect("unmounted");
        drop(connection);
    }
}
