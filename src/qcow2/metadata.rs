//! The clusters that guest data must never be written to.

use crate::sync::RwLock;
use crate::units::HostCluster;
use std::collections::HashSet;
use std::sync::Arc;

/// The clusters that hold an image's own structures: header, tables, refcount blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata(Arc<RwLock<HashSet<u64>>>);

impl Metadata {
    pub(super) fn contains(&self, cluster: HostCluster) -> bool {
        self.0.read().contains(&cluster.0)
    }

    /// Adds a cluster. `false`: it was there already.
    pub(super) fn insert(&self, cluster: HostCluster) -> bool {
        self.0.write().insert(cluster.0)
    }

    pub(super) fn remove(&self, cluster: HostCluster) {
        self.0.write().remove(&cluster.0);
    }
}
