//! Open files and open folders, by the number that the kernel hands back with each request.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::Device;
use crate::errno::guarded;

/// One open file of the view.
pub(crate) struct OpenFile {
    pub(crate) ino: u64,
    /// `folder/name` at the time of opening, for messages.
    pub(crate) label: String,
    pub(crate) write: bool,
    pub(crate) device: Arc<dyn Device>,
    /// A descriptor was closed and nothing was read or written since: its release is probably under way.
    closing: AtomicBool,
    /// Size when last asked for, in bytes.
    size: AtomicU64,
}

impl OpenFile {
    pub(crate) fn new(ino: u64, label: String, write: bool, device: Arc<dyn Device>) -> Self {
        OpenFile { ino, label, write, device, closing: AtomicBool::new(false), size: AtomicU64::new(0) }
    }

    pub(crate) fn last_size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    pub(crate) fn refresh_size(&self) -> io::Result<u64> {
        let size = self.device.stat()?.size;
        self.size.store(size, Ordering::Relaxed);
        Ok(size)
    }

    /// Marks the file as closed by one of its descriptors.
    pub(crate) fn set_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Marks the file as used; cheap when it is marked so already.
    pub(crate) fn set_used(&self) {
        if self.closing.load(Ordering::Relaxed) {
            self.closing.store(false, Ordering::Release);
        }
    }
}

/// The names shown to one program that lists a folder: fixed while it reads on, fresh when it starts again.
pub(crate) type Listing = Arc<Vec<(u64, String)>>;

/// All open files and folders of a mount. No lock here is held while a device works.
#[derive(Default)]
pub(crate) struct Handles {
    last: AtomicU64,
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    listings: Mutex<HashMap<u64, Listing>>,
    /// Files taken out of `files` whose devices are being dropped.
    dropping: AtomicUsize,
    released: (Mutex<()>, Condvar),
}

impl Handles {
    pub(crate) fn insert(&self, file: Arc<OpenFile>) -> u64 {
        let handle = self.fresh();
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(handle, file);
        handle
    }

    /// A number for an open folder.
    pub(crate) fn fresh(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()
    }

    /// Any open file of inode `ino`.
    pub(crate) fn of_inode(&self, ino: u64) -> Option<Arc<OpenFile>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().find(|file| file.ino == ino).cloned()
    }

    /// The files of inode `ino` that are open for writing.
    pub(crate) fn writers_of(&self, ino: u64) -> Vec<Arc<OpenFile>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().filter(|file| file.write && file.ino == ino).cloned().collect()
    }

    /// Ends an open file: its device is dropped when this returns, unless a request on it is still running.
    pub(crate) fn release(&self, handle: u64) {
        // `dropping` rises before the file leaves the table, so `is_closing` never misses it in between.
        self.dropping.fetch_add(1, Ordering::AcqRel);
        let file = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        // A panic while dropping must reach nobody; the device is gone either way.
        let _ = guarded(|| {
            drop(file);
            Ok(())
        });
        self.dropping.fetch_sub(1, Ordering::AcqRel);
        drop(self.lock_released());
        self.released.1.notify_all();
    }

    /// True while a writer that was closed is still to be released.
    ///
    /// The kernel answers close(2) before it sends the release, so the next opener can come before the last one has gone.
    pub(crate) fn is_closing(&self) -> bool {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let closed = |file: &Arc<OpenFile>| file.write && file.closing.load(Ordering::Acquire);
        files.values().any(closed) || self.dropping.load(Ordering::Acquire) > 0
    }

    /// Waits until [`Handles::is_closing`] is false; false when that takes longer than `deadline`.
    pub(crate) fn wait_for_closing(&self, deadline: Instant) -> bool {
        let mut guard = self.lock_released();
        while self.is_closing() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            let result = self.released.1.wait_timeout(guard, left);
            guard = result.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock_released(&self) -> MutexGuard<'_, ()> {
        self.released.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out every file that is still open.
    pub(crate) fn drain(&self) -> Vec<Arc<OpenFile>> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.drain().map(|(_, file)| file).collect()
    }

    /// The listing of an open folder; made by `list` when the program starts at the top, or has none yet.
    pub(crate) fn listing<E>(
        &self,
        handle: u64,
        from_start: bool,
        list: impl FnOnce() -> Result<Listing, E>,
    ) -> Result<Listing, E> {
        if !from_start {
            let listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(listing) = listings.get(&handle) {
                return Ok(listing.clone());
            }
        }
        let listing = list()?;
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        listings.insert(handle, listing.clone());
        Ok(listing)
    }

    pub(crate) fn release_folder(&self, handle: u64) {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }
}
