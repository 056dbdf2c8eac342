//! Refuses everything that changes a file once its host has failed in a way that cannot be repeated.

use super::{Advice, Run, Storage};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::units::HostOffset;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vm_memory::VolatileSlice;

/// A storage that is latched by the first failed sync, and by the first write that fails for another reason than
/// missing space, or memory of its caller's that is not there.
///
/// After a failed sync the kernel may have dropped the dirty pages and marked them clean, so that a second sync
/// would report a success that never happened. A full filesystem loses nothing: the write was refused, and can be
/// repeated. Reads go on either way.
#[derive(Debug)]
pub struct Latch {
    inner: Arc<dyn Storage>,
    closed: AtomicBool,
    /// What closed it, in the host's words; nothing after a panic.
    cause: Mutex<Option<String>>,
    /// The kernel reports a lost page to one sync only: a second one must see the latch closed.
    syncing: Mutex<()>,
}

impl Latch {
    /// Guards `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, closed: AtomicBool::new(false), cause: Mutex::new(None), syncing: Mutex::new(()) }
    }

    /// Whether an earlier failure closed the latch.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// What to say of the closed latch of `what`.
    #[must_use]
    pub fn sentence(&self, what: &str) -> String {
        let cause = self.cause.lock().as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
        format!(
            "an earlier write or sync of {what} failed{cause}; close it, check the host's disk and open it again"
        )
    }

    /// Runs `work`, and closes the latch when it panics: nobody knows then what it left undone.
    pub fn close_on_panic<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Unfinished<'a>(&'a AtomicBool);
        impl Drop for Unfinished<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let unfinished = Unfinished(&self.closed);
        let result = work();
        std::mem::forget(unfinished);
        result
    }

    /// `again` says whether a refusal may be followed by another attempt.
    fn change(&self, run: impl FnOnce(&dyn Storage) -> io::Result<()>, again: bool) -> io::Result<()> {
        if self.is_closed() {
            return Err(io::Error::other(self.sentence("this file")));
        }
        let result = run(&*self.inner);
        if let Err(error) = &result
            && !(again && (is_out_of_space(error) || error.raw_os_error() == Some(libc::EFAULT)))
        {
            self.cause.lock().get_or_insert_with(|| error.to_string());
            self.closed.store(true, Ordering::Release);
        }
        result
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

impl Storage for Latch {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.inner.read_at(buf, at)
    }

    fn read_volatile(&self, to: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
        self.inner.read_volatile(to, at)
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.change(|inner| inner.write_at(data, at), true)
    }

    fn write_volatile(&self, from: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
        self.change(|inner| inner.write_volatile(from, at), true)
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.change(|inner| inner.punch(at, len), true)
    }

    fn advise(&self, advice: Advice) {
        if !self.is_closed() {
            self.inner.advise(advice);
        }
    }

    fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock();
        // Whatever the reason, data are lost: nobody may take it for a refusal that can be repeated.
        self.change(|inner| inner.sync(), false).map_err(|error| match is_out_of_space(&error) {
            true => io::Error::other(error),
            false => error,
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|inner| inner.set_len(len), true)
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        self.inner.run_at(at)
    }

    fn host_file(&self) -> Option<&File> {
        self.inner.host_file()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::HostFile;
    use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

    #[test]
    fn memory_that_is_not_there_is_refused_and_closes_nothing() {
        let behind = tempfile::tempfile().unwrap();
        behind.set_len(4096).unwrap();
        let region: MmapRegion<()> =
            MmapRegion::from_file(FileOffset::new(behind.try_clone().unwrap(), 0), 4096).unwrap();
        behind.set_len(0).unwrap();
        let latch = Latch::new(Arc::new(HostFile::new(tempfile::tempfile().unwrap())));
        let lost = region.get_slice(0, 4096).unwrap();
        let error = latch.write_volatile(&[lost], HostOffset(0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert!(!latch.is_closed());
        latch.write_at(&[1; 512], HostOffset(0)).unwrap();
        latch.sync().unwrap();
    }
}
