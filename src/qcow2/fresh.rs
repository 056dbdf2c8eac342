//! A guard for host clusters that nothing points to yet.

use super::allocator::Allocator;
use crate::sync::Mutex;
use crate::units::HostCluster;

/// A host cluster that was just handed out. It goes back when it is dropped before it is kept.
#[must_use = "an unused cluster is given back when this is dropped"]
#[derive(Debug)]
pub(super) struct Fresh<'a> {
    allocator: &'a Mutex<Allocator>,
    cluster: HostCluster,
    kept: bool,
}

impl<'a> Fresh<'a> {
    pub(super) fn new(allocator: &'a Mutex<Allocator>, cluster: HostCluster) -> Self {
        Self { allocator, cluster, kept: false }
    }

    pub(super) fn cluster(&self) -> HostCluster {
        self.cluster
    }

    /// An entry points to it now.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.allocator.lock().give_back(self.cluster);
        }
    }
}
