//! Making a mount, serving it from threads, ending it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::Source;
use crate::attach::detach;
use crate::connect::{Connection, connect, queues};
use crate::errno::guarded;
use crate::error::{Error, Result};
use crate::mount_table::{self, check_option};
use crate::transport::Transport;
use crate::view::{View, is_file_name, look_of_mounter};

/// How long [`mount`] waits for an unmounted server to be done with the same directory.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How to mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// Serving threads, at least 1. Over `/dev/fuse`, more than one read the kernel's queue through descriptors of their own.
    /// Over `io_uring` they are shared out among the queues, of which each has at least one.
    pub threads: usize,
    /// How the requests come.
    pub transport: Transport,
    /// Let other users in, as far as modes allow. A plain user needs `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// Refuse writing through this mount.
    pub read_only: bool,
    /// Mount over a directory that has something in it, which is then hidden.
    pub nonempty: bool,
    /// What the table of mounts shows as the source. No commas, backslashes or control characters.
    pub fs_name: String,
}

impl Default for Options {
    /// Between 4 and 16 threads, by the number of CPUs; the mounting user only; writable.
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(4, |n| n.get().clamp(4, 16));
        Options {
            threads,
            transport: Transport::default(),
            allow_other: false,
            read_only: false,
            nonempty: false,
            fs_name: "cowshed".to_owned(),
        }
    }
}

/// A mount that is being served by threads of this process.
///
/// Dropping it unmounts as [`Mount::unmount`] does; if the mount is in use, its threads go on serving it.
#[must_use = "dropping it unmounts"]
pub struct Mount {
    stopper: Stopper,
}

/// Ends a mount from another place, for instance a thread that waits for signals.
#[derive(Clone)]
pub struct Stopper {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    /// Number of our mount in the kernel's table.
    id: u64,
    state: Mutex<State>,
    changed: Condvar,
}

enum State {
    Serving,
    Ended(Option<Error>),
}

/// Shows `source` at the directory `dir`, and serves it from threads of this process until it is unmounted.
///
/// A mount of ours at `dir` whose server died is taken away first. Threads do not survive `fork`: a daemon forks first.
///
/// # Errors
/// [`Error::Directory`], [`Error::NotEmpty`], [`Error::AlreadyMounted`], [`Error::StillServing`], [`Error::Option`], and what the kernel or
/// `fusermount3` refuse.
pub fn mount(source: impl Source, dir: &Path, options: Options) -> Result<Mount> {
    check_option(&options.fs_name).map_err(|reason| Error::Option { option: "fs_name", reason })?;
    if options.threads == 0 {
        return Err(Error::Option { option: "threads", reason: "at least 1 is needed".to_owned() });
    }
    let folders = source.folders();
    if let Some(bad) = folders.iter().find(|name| !is_file_name(name)) {
        return Err(Error::Option { option: "folders", reason: format!("{bad:?} is no file name") });
    }
    let queues = queues(options.transport)?;
    let (dir, lock) = claim(dir, options.nonempty)?;
    let view = Arc::new(View::new(source, folders, look_of_mounter(options.read_only)));
    let connection = match connect(&dir, &view, &options, queues) {
        Err(_) if queues.is_some() && options.transport == Transport::Auto => {
            connect(&dir, &view, &options, None)?
        }
        result => result?,
    };
    Ok(Mount { stopper: Stopper { shared: start(&dir, connection, lock, view)? } })
}

/// Claims the directory for this server: whoever unmounts can wait for the claim to end.
///
/// The claim is a lock on the directory under the mount. It ends with this process at the latest, and needs no file.
fn claim(dir: &Path, nonempty: bool) -> Result<(PathBuf, Option<Flock<File>>)> {
    let failed = |cause| Error::Directory { dir: dir.to_owned(), cause };
    let path = mount_table::resolve(dir).map_err(failed)?;
    make_free(&path)?;
    let folder = File::open(&path).map_err(failed)?;
    if !folder.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let lock = lock_within(folder, TAKEOVER_TIMEOUT, &path)?;
    // Another server may have come between the look at the table and the lock.
    make_free(&path)?;
    if !nonempty && std::fs::read_dir(&path).map_err(failed)?.next().is_some() {
        return Err(Error::NotEmpty { dir: dir.to_owned() });
    }
    Ok((path, lock))
}

/// Takes dead mounts of ours away; refuses a live one.
fn make_free(dir: &Path) -> Result<()> {
    while let Some(entry) = mount_table::top_at(dir)?.filter(mount_table::Entry::is_ours) {
        if !entry.is_dead() {
            return Err(Error::AlreadyMounted { dir: dir.to_owned() });
        }
        detach(dir, true)?;
    }
    Ok(())
}

/// Locks `folder`, waiting at most `timeout`. None where the file system has no locks.
pub(crate) fn lock_within(mut folder: File, timeout: Duration, dir: &Path) -> Result<Option<Flock<File>>> {
    let deadline = Instant::now() + timeout;
    loop {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => folder = back,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::StillServing { dir: dir.to_owned(), seconds: timeout.as_secs() });
            }
            Err(_) => return Ok(None),
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Starts the thread that serves to the end.
fn start<S: Source>(
    dir: &Path,
    connection: Connection<S>,
    lock: Option<Flock<File>>,
    view: Arc<View<S>>,
) -> Result<Arc<Shared>> {
    let shared = Arc::new(Shared {
        dir: dir.to_owned(),
        id: connection.id,
        state: Mutex::new(State::Serving),
        changed: Condvar::new(),
    });
    let for_thread = shared.clone();
    let spawned = thread::Builder::new().name("view".to_owned()).spawn(move || {
        let error = serve(connection, &view, &for_thread);
        let _ = guarded(|| {
            drop(view);
            Ok(())
        });
        // All is durable and closed: whoever waits for the directory may go on.
        drop(lock);
        *for_thread.lock() = State::Ended(error);
        for_thread.changed.notify_all();
    });
    match spawned {
        Ok(_) => Ok(shared),
        Err(cause) => {
            let _ = detach(dir, true);
            Err(Error::Session { dir: dir.to_owned(), cause })
        }
    }
}

/// The connection ended while one of the threads was being handed a request, which is how the kernel says it then. All
/// that was handed over before is answered.
fn is_end(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNABORTED)
}

/// Serves until unmounted; then makes durable and drops what is still open.
fn serve<S: Source>(connection: Connection<S>, view: &View<S>, shared: &Shared) -> Option<Error> {
    let mut served = connection.session.run();
    // The connection may have been cut without unmounting; a dead mount helps nobody.
    if matches!(shared.is_mounted(), Ok(true)) {
        let _ = detach(&shared.dir, true);
    }
    if let Some(rings) = connection.rings {
        served = served.and(rings.join());
    }
    let flushed = view.end();
    match (flushed, served) {
        (Err((file, code)), _) => {
            Some(Error::Flush { file, cause: io::Error::from_raw_os_error(code.code()) })
        }
        (Ok(()), Err(cause)) if is_end(&cause) => None,
        (Ok(()), Err(cause)) => Some(Error::Session { dir: shared.dir.clone(), cause }),
        (Ok(()), Ok(())) => None,
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        matches!(*self.lock(), State::Ended(_))
    }

    fn is_mounted(&self) -> Result<bool> {
        Ok(mount_table::mounts_at(&self.dir)?.iter().any(|entry| entry.id == self.id))
    }

    fn stop(&self) -> Result<()> {
        // Only our own mount: by now another one may be there, or lie on top.
        if self.has_ended() || !self.is_mounted()? {
            return Ok(());
        }
        if mount_table::top_at(&self.dir)?.is_none_or(|top| top.id != self.id) {
            return Err(Error::Busy { dir: self.dir.clone() });
        }
        match detach(&self.dir, false) {
            Err(_) if !self.is_mounted()? => Ok(()),
            result => result,
        }
    }

    /// Waits for the end and takes its error, which only the first one to come gets.
    fn wait(&self) -> Result<()> {
        let mut state = self.lock();
        loop {
            if let State::Ended(error) = &mut *state {
                return error.take().map_or(Ok(()), Err);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Mount {
    /// The mount point, without symbolic links.
    pub fn dir(&self) -> &Path {
        &self.stopper.shared.dir
    }

    /// Something to end this mount with from another thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Takes the mount out of its directory, so that nobody else finds it and nothing stays of it when this process is
    /// killed. What is open stays open and is served; [`Mount::wait`] returns when the last of it is closed.
    ///
    /// Who serves a mount and uses it too may never end when it is killed at the wrong moment: another process should be
    /// the user.
    ///
    /// # Errors
    /// [`Error::Detach`] and what the helper says.
    pub fn hide(&self) -> Result<()> {
        detach(self.dir(), true)
    }

    /// Waits until the mount is gone, by [`Stopper::stop`] or from outside, every file is durable and every device
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Flush`] when a disk could not be made durable at the end, [`Error::Session`] when serving failed.
    pub fn wait(self) -> Result<()> {
        self.stopper.shared.wait()
    }

    /// Unmounts, and waits as [`Mount::wait`] does.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is in use: then nothing has happened, and it may be tried again. Else as for
    /// [`Mount::wait`].
    pub fn unmount(&self) -> Result<()> {
        self.stopper.stop()?;
        self.stopper.shared.wait()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.stopper.shared.stop().is_ok() {
            let _ = self.stopper.shared.wait();
        }
    }
}

impl Stopper {
    /// Unmounts. [`Mount::wait`] returns when all is durable.
    ///
    /// # Errors
    /// [`Error::Busy`] when the mount is in use: then nothing has happened, and it may be tried again.
    pub fn stop(&self) -> Result<()> {
        self.shared.stop()
    }
}
