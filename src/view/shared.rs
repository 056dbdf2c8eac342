//! One open disk, shared by all who have it open through the view.
//!
//! A disk is opened for reading by its first user and for writing by its first writer; the readers move over to that
//! instance, so that they see what is written. When the last writer goes, it is flushed and closed, the locks on its
//! file go, and readers that stay get a fresh instance. One process at a time writes: two would tear each other's
//! filesystem. The threads and further descriptors of that process are welcome.

use super::facts::Facts;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result, report};
use crate::idle::{Changes, Lazy, Queue};
use crate::store::{Access, OpenDisk, Scratch, Store, Target};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, RwLock};
use fuse_mount::Opener;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most failed requests of one disk that are said on standard error.
const REPORTED: u32 = 20;

/// Where a disk comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A clone or base, opened when it is used.
    Stored(Store, Target),
    /// A throw-away layer, open all the time.
    Scratch(Arc<Scratch>),
}

impl Origin {
    fn open(&self, access: Access) -> Result<Held> {
        match self {
            Self::Stored(store, target) => Ok(Held::Stored(store.open_target(target, access)?)),
            Self::Scratch(scratch) => Ok(Held::Scratch(scratch.clone())),
        }
    }

    pub(super) fn is_base(&self) -> bool {
        matches!(self, Self::Stored(_, Target::Base(_)))
    }
}

#[derive(Debug)]
enum Held {
    Stored(OpenDisk),
    Scratch(Arc<Scratch>),
}

impl Held {
    fn disk(&self) -> &Disk {
        match self {
            Self::Stored(open) => &open.disk,
            Self::Scratch(scratch) => &scratch.disk.disk,
        }
    }

    fn close(self) -> Result<()> {
        match self {
            Self::Stored(open) => open.close(),
            Self::Scratch(scratch) => scratch.disk.disk.flush(),
        }
    }
}

#[derive(Debug, Default)]
struct Users {
    readers: u64,
    writers: u64,
    /// Process id of the writers, while there is one; 0 for a process that cannot be seen from here.
    writer: u32,
}

/// An open disk with its users.
///
/// Lock order: `users`, then `slot`. Requests take `slot` alone, shared.
#[derive(Debug)]
pub(super) struct Shared {
    origin: Origin,
    path: PathBuf,
    users: Mutex<Users>,
    /// `None` without users, and when a reader's fresh instance could not be opened.
    slot: RwLock<Option<Held>>,
    changes: Changes,
    queue: Arc<Queue>,
    failures: AtomicU32,
}

impl Lazy for Shared {
    fn changes(&self) -> &Changes {
        &self.changes
    }

    fn flush_idle(&self) {
        // It is on standard error already.
        let _ = self.flush();
    }
}

impl Shared {
    /// The disk of `origin`, closed, whose newest layer is the file `path`.
    pub(super) fn new(origin: Origin, path: PathBuf, queue: Arc<Queue>) -> Self {
        Self {
            origin,
            path,
            users: Mutex::default(),
            slot: RwLock::default(),
            changes: Changes::default(),
            queue,
            failures: AtomicU32::new(0),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_base(&self) -> bool {
        self.origin.is_base()
    }

    /// Adds a user; [`Shared::leave`] takes it away.
    ///
    /// # Errors
    /// `Busy` for a writer while another process writes, here or elsewhere; what opening gives.
    pub(super) fn join(self: &Arc<Self>, opener: Opener) -> Result<()> {
        let mut users = self.users.lock();
        let joined = if opener.write {
            self.join_writer(&mut users, opener.pid)
        } else {
            self.join_reader(&mut users)
        };
        joined.inspect_err(report)
    }

    fn join_reader(&self, users: &mut Users) -> Result<()> {
        let mut slot = self.slot.write();
        if slot.is_none() {
            *slot = Some(self.origin.open(Access::Read)?);
        }
        users.readers += 1;
        Ok(())
    }

    fn join_writer(self: &Arc<Self>, users: &mut Users, process: u32) -> Result<()> {
        if users.writers == 0 {
            self.upgrade(users.readers > 0)?;
            // It may hold what a killed server left unflushed.
            self.mark_changed();
            users.writer = process;
        } else if users.writer != process || process == 0 {
            let message = format!("{} is open for writing by process {}", self.path.display(), users.writer);
            return Err(Error::new(Kind::Busy, message));
        }
        users.writers += 1;
        Ok(())
    }

    /// Changes to an instance that may write. Requests wait meanwhile.
    fn upgrade(&self, has_readers: bool) -> Result<()> {
        let mut slot = self.slot.write();
        // The reading instance's own locks would keep the writing one out.
        drop(slot.take());
        match self.origin.open(Access::Write) {
            Ok(held) => *slot = Some(held),
            Err(error) => {
                *slot = if has_readers { self.reopen() } else { None };
                return Err(error);
            }
        }
        Ok(())
    }

    fn reopen(&self) -> Option<Held> {
        self.origin.open(Access::Read).inspect_err(report).ok()
    }

    /// Takes a user away. The last writer's going flushes and closes the disk and lets its locks go.
    pub(super) fn leave(&self, write: bool) {
        let mut users = self.users.lock();
        let count = if write { &mut users.writers } else { &mut users.readers };
        *count = count.saturating_sub(1);
        let (last_writer, last) = (write && users.writers == 0, users.readers + users.writers == 0);
        if !last_writer && !last {
            return;
        }
        let mut slot = self.slot.write();
        self.changes.clear();
        if let Some(Err(error)) = slot.take().map(Held::close) {
            report(&error.at(self.path.display()));
        }
        if !last {
            *slot = self.reopen();
        }
    }

    /// Does something with the open disk.
    ///
    /// # Errors
    /// What `request` gives, as an error number; `EIO` when the disk could not be opened again.
    pub(super) fn with<T>(&self, request: impl FnOnce(&Disk) -> Result<T>) -> io::Result<T> {
        let slot = self.slot.read();
        let Some(held) = &*slot else { return Err(io::Error::from_raw_os_error(libc::EIO)) };
        request(held.disk()).map_err(|error| {
            let error = error.at(self.path.display());
            self.report_some(&error);
            error.into()
        })
    }

    fn report_some(&self, error: &Error) {
        if self.failures.fetch_add(1, Ordering::Relaxed) < REPORTED {
            report(error);
        }
    }

    /// Size and partitions as the users of the open disk see them; `None` when it is not open.
    pub(super) fn facts(&self) -> Option<Result<Facts>> {
        self.slot.read().as_ref().map(|held| Facts::read(held.disk()))
    }

    /// As [`Shared::with`], and remembers that there is something to flush.
    pub(super) fn change<T>(self: &Arc<Self>, request: impl FnOnce(&Disk) -> Result<T>) -> io::Result<T> {
        let done = self.with(request);
        // Marked after the change, so that a flush that clears the mark has seen it; also when it failed half-way.
        self.mark_changed();
        done
    }

    fn mark_changed(self: &Arc<Self>) {
        self.queue.mark(self);
    }

    /// Makes all changes durable that returned before.
    ///
    /// # Errors
    /// As [`Shared::with`].
    pub(super) fn flush(&self) -> io::Result<()> {
        self.changes.clear();
        self.with(Disk::flush)
    }
}
