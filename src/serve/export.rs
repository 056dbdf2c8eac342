//! A disk that is served, whatever the protocol.

use crate::disk::Disk;
use crate::error::{Error, Kind, Result, report, tell};
use crate::idle::{Changes, Flusher, Lazy, Queue};
use crate::qcow2::{Put, Reader};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::units::GuestOffset;
use std::fmt::{self, Debug};
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Most failures of one disk that are said on standard error.
const REPORTED: u32 = 20;

/// Where the disk is kept.
type Kept = dyn AsRef<Disk> + Send + Sync;

/// A disk with what its users have to know of it.
pub struct Export {
    disk: Arc<Kept>,
    name: String,
    read_only: bool,
    changes: Changes,
    queue: Arc<Queue>,
    failures: AtomicU32,
}

impl Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Lazy for Export {
    fn changes(&self) -> &Changes {
        &self.changes
    }

    fn flush_idle(&self) {
        // It is on standard error already.
        let _ = self.flush();
    }
}

/// Flushes exports that their users leave alone; ends when it is dropped.
#[derive(Debug)]
pub struct Idle(Flusher);

impl Idle {
    /// Starts it.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start() -> io::Result<Self> {
        Flusher::start().map(Self)
    }
}

impl Export {
    /// `disk` under the name `name`.
    #[must_use]
    pub fn new(disk: Arc<Kept>, name: &str, read_only: bool, idle: &Idle) -> Arc<Self> {
        Arc::new(Self {
            disk,
            name: name.to_owned(),
            read_only,
            changes: Changes::default(),
            queue: idle.0.queue(),
            failures: AtomicU32::new(0),
        })
    }

    fn disk(&self) -> &Disk {
        (*self.disk).as_ref()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether writing is refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.disk().size()
    }

    /// Says what went wrong: the guest only gets to know that something did. A panic of the engine is one request's
    /// failure; it latches the disk.
    fn told<T>(&self, request: impl FnOnce(&Disk) -> Result<T>) -> Result<T> {
        let done = catch_unwind(AssertUnwindSafe(|| request(self.disk())));
        let done = done.unwrap_or_else(|_| Err(Error::new(Kind::Io, "the engine failed; see above")));
        done.map_err(|error| error.at(&self.name)).inspect_err(|error| {
            if self.may_report() {
                report(error);
            }
        })
    }

    /// What a guest can bring about again and again is said a few times only.
    fn may_report(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) < REPORTED
    }

    /// Says on standard error what else went wrong.
    pub(super) fn tell(&self, what: fmt::Arguments<'_>) {
        if self.may_report() {
            tell(format_args!("{}: {what}", self.name));
        }
    }

    fn change<T>(self: &Arc<Self>, request: impl FnOnce(&Disk) -> Result<T>) -> Result<T> {
        if self.read_only {
            return Err(Error::new(Kind::ReadOnly, format!("{} is served for reading only", self.name)));
        }
        let done = self.told(request);
        // Marked after the change, so that a flush that clears the mark has seen it; also when it failed half-way.
        self.queue.mark(self);
        done
    }

    /// Gives `reader` a range, which must lie inside the disk.
    ///
    /// # Errors
    /// As [`Disk::read_to`].
    pub fn read_to(&self, reader: &mut dyn Reader, at: GuestOffset, len: u64) -> Result<()> {
        self.told(|disk| disk.read_to(reader, at, len))
    }

    /// Gives `each` the length of every run of a range, which must lie inside the disk, and whether bytes are stored for it,
    /// until it has enough.
    ///
    /// # Errors
    /// As [`Disk::extent`].
    pub fn runs(&self, range: Range<u64>, mut each: impl FnMut(u64, bool) -> bool) -> Result<()> {
        self.told(|disk| {
            for run in disk.runs(range) {
                let (run, extent) = run?;
                if !each(run.end - run.start, extent.data) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Writes; the range must lie inside the disk.
    ///
    /// # Errors
    /// As [`Disk::write`]; `ReadOnly`.
    pub fn write(self: &Arc<Self>, data: &[u8], at: GuestOffset) -> Result<()> {
        self.change(|disk| disk.write(data, at))
    }

    /// Writes the first part of a range that has a place of its own, by `put`, and returns its length.
    ///
    /// # Errors
    /// As [`Disk::write_owned`]; `ReadOnly`.
    pub fn write_owned(self: &Arc<Self>, at: GuestOffset, len: u64, put: Put<'_>) -> Result<u64> {
        self.change(|disk| disk.write_owned(at, len, put))
    }

    /// Tells that a range is not needed.
    ///
    /// # Errors
    /// As [`Disk::discard`]; `ReadOnly`.
    pub fn discard(self: &Arc<Self>, at: GuestOffset, len: u64) -> Result<()> {
        self.change(|disk| disk.discard(at, len))
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`Disk::write_zeroes`]; `ReadOnly`.
    pub fn write_zeroes(self: &Arc<Self>, at: GuestOffset, len: u64) -> Result<()> {
        self.change(|disk| disk.write_zeroes(at, len))
    }

    /// Makes all writes durable that returned before.
    ///
    /// # Errors
    /// As [`Disk::flush`].
    pub fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.changes.clear();
        self.told(Disk::flush)
    }
}
