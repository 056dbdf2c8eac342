//! Size and partitions of clones, remembered while their files stay as they are, so that listing many clones is quick.

use super::shared::Shared;
use crate::error::Result;
use crate::guestfs::{Partition, partitions};
use crate::store::{Access, Name, Store};
use crate::sync::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A file that changed more recently is read again next time: the host's clock for file times is this coarse, so it
/// may change once more without showing it.
const CLOCK_GRAIN: Duration = Duration::from_millis(50);

/// What is known of a clone's disk.
#[derive(Debug)]
pub(super) struct Facts {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// Its partitions, by number.
    pub(super) partitions: Vec<Partition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { inode: metadata.ino(), size: metadata.size(), modified }
    }
}

/// Facts by clone.
#[derive(Debug, Default)]
pub(super) struct FactsCache {
    known: Mutex<HashMap<Name, (Stamp, Arc<Facts>)>>,
}

impl FactsCache {
    /// The facts of `name`, whose file has `metadata`; read from `open` when the clone is open already.
    ///
    /// A disk that cannot be opened has the size it was made with, and no partitions.
    pub(super) fn of(
        &self,
        store: &Store,
        name: &Name,
        metadata: &Metadata,
        open: Option<&Shared>,
    ) -> Result<Arc<Facts>> {
        let stamp = Stamp::of(metadata);
        if let Some((known, facts)) = self.known.lock().get(name)
            && *known == stamp
        {
            return Ok(facts.clone());
        }
        let read = open.and_then(Shared::facts).unwrap_or_else(|| {
            let opened = store.open_clone(name, Access::Inspect)?;
            Facts::read(&opened.disk)
        });
        let Ok(facts) = read.map(Arc::new) else {
            let size = store.clone_named(name)?.size;
            return Ok(Arc::new(Facts { size, partitions: Vec::new() }));
        };
        if is_settled(metadata) {
            self.known.lock().insert(name.clone(), (stamp, facts.clone()));
        }
        Ok(facts)
    }

    /// Forgets clones that are gone.
    pub(super) fn forget_all_but(&self, names: &BTreeSet<&Name>) {
        self.known.lock().retain(|name, _| names.contains(name));
    }
}

impl Facts {
    pub(super) fn read(disk: &crate::disk::Disk) -> Result<Self> {
        Ok(Self { size: disk.size(), partitions: partitions(disk)? })
    }
}

fn is_settled(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age > CLOCK_GRAIN)
}
