//! Whether a file was written since the last sync began.

use crate::sync::atomic::{AtomicBool, Ordering};

/// Set after a write of any thread has returned, and taken before a sync.
#[derive(Debug, Default)]
pub(super) struct Written(AtomicBool);

impl Written {
    /// A write has returned.
    ///
    /// A swap and not a store: whoever takes the flag must see the writes of all who set it, not only of the last.
    pub(super) fn set(&self) {
        self.0.swap(true, Ordering::AcqRel);
    }

    /// Whether there is something to sync. What was written before is seen by a sync that follows.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}
