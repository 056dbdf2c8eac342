//! The store: a folder of plain files with bases and clones, and the gate that decides what may be opened.
//!
//! `docs/store.md` draws the layout. The manifests are the truth; a file that none of them speaks of is debris.

mod bases;
mod checkpoint;
mod clean;
mod create;
mod digest;
mod flatten;
mod fold;
mod folded;
mod furnish;
mod gate;
mod gc;
mod layout;
mod list;
mod log;
mod manifest;
mod name;
mod open;
mod rebase;
mod remove;
mod reseal;
mod resize;
mod scratch;
mod sealed;
mod staging;
mod time;
mod types;
mod union;
mod usage;
mod waiting;

use crate::error::{Error, Kind, Result};
use crate::qcow2::OpenOptions;
use crate::storage::{Folder, Watch};
use layout::STORE_FILE;
use manifest::{FORMAT, MANIFEST_MAX, StoreManifest};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use bases::{Finished, NewBase};
pub use digest::{BLOCK, Digest};
pub(crate) use digest::{BlockSum, ContentSums, Sums};
pub(crate) use flatten::Flattened;
pub(crate) use fold::{named, stood_on};
#[cfg(test)]
pub(crate) use gate::gate_tests::{three_versions, unseal};
pub(crate) use gc::Standing;
pub(crate) use manifest::DISK_MAX;
pub use name::{BaseRef, NAME_MAX, Name, Target};
pub use open::OpenDisk;
pub(crate) use rebase::Rebase;
pub(crate) use reseal::Refusals;
pub use scratch::Scratch;
pub(crate) use sealed::{CloneFile, Seal};
pub use types::{
    Access, Base, BaseId, Broken, Canary, Checkpoint, Clone, CloneOptions, DiskFormat, Freed, Operation,
    Overview, Restored, Strategy, Survey, Undone, Usage, Waiting,
};
pub(crate) use union::{Union, refuse_more};

/// An open store; cheap to copy, shared by threads.
#[derive(Clone, Debug)]
pub struct Store {
    root: Arc<Folder>,
    metadata_cache: u64,
}

impl Store {
    /// `$COWSHED_STORE`, else `$XDG_DATA_HOME/cowshed`, else `~/.local/share/cowshed`.
    ///
    /// # Errors
    /// `Invalid` when none of these variables says anything.
    pub fn default_path() -> Result<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        variable("COWSHED_STORE")
            .or_else(|| {
                variable("XDG_DATA_HOME").filter(|path| path.is_absolute()).map(|path| path.join("cowshed"))
            })
            .or_else(|| variable("HOME").map(|home| home.join(".local/share/cowshed")))
            .ok_or_else(|| Error::invalid("no store: give --store DIR, or set COWSHED_STORE or HOME"))
    }

    /// Opens a store.
    ///
    /// # Errors
    /// `NotFound` when there is no folder, `Invalid` when it is not a store, `Unsupported` for a later format.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, None)
    }

    /// The same with somebody who watches every change that is made through it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_watched(path: &Path, watch: Arc<dyn Watch>) -> Result<Self> {
        Self::open_as(path, Some(watch))
    }

    fn open_as(path: &Path, watch: Option<Arc<dyn Watch>>) -> Result<Self> {
        let shown = path.display();
        let root = Folder::open_watched(path, watch).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::new(
                Kind::NotFound,
                format!("there is no store at {shown}; `cowshed import IMAGE --name NAME` makes one"),
            ),
            io::ErrorKind::NotADirectory => {
                Error::invalid(format!("{shown} is not a store: it is not a folder"))
            }
            _ => Error::io(format!("cannot open the store {shown}"), error),
        })?;
        check_store_file(&root)?;
        let store = Self { root: Arc::new(root), metadata_cache: OpenOptions::default().metadata_cache };
        let waiting = store
            .has_unfinished_batch()
            .map_err(|error| Error::io(format!("{shown} is a damaged store: cannot list its tmp"), error))?;
        if waiting {
            // What cannot be finished now (a full host, a store that is read-only) keeps nobody from reading; the
            // next command that changes the store reports it.
            let _ = store.lock();
        }
        Ok(store)
    }

    /// Opens a store, or makes one (mode 0700) of a folder that is absent or empty.
    ///
    /// # Errors
    /// As [`Store::open`]; a folder that holds anything else is never made a store.
    pub fn open_or_create(path: &Path) -> Result<Self> {
        Self::open_or_create_as(path, None)
    }

    /// The same with somebody who watches every change that is made through it.
    ///
    /// # Errors
    /// As [`Store::open_or_create`].
    pub fn open_or_create_watched(path: &Path, watch: Arc<dyn Watch>) -> Result<Self> {
        Self::open_or_create_as(path, Some(watch))
    }

    fn open_or_create_as(path: &Path, watch: Option<Arc<dyn Watch>>) -> Result<Self> {
        let cannot = |error| Error::io(format!("cannot make a store at {}", path.display()), error);
        if !path.join(STORE_FILE).exists() {
            furnish::make(path, watch.clone()).map_err(cannot)?;
            return Self::open_as(path, watch);
        }
        let store = Self::open_as(path, watch)?;
        // Whoever made it may have been killed before it was durable, and what comes next builds on it.
        store.root.sync().map_err(cannot)?;
        Ok(store)
    }

    /// The same store with `bytes` of memory for the tables of each image that it opens.
    #[must_use]
    pub fn with_metadata_cache(mut self, bytes: u64) -> Self {
        self.metadata_cache = bytes;
        self
    }

    /// The store's folder, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    fn folder(&self) -> &Folder {
        &self.root
    }

    /// A folder outside of the store, which a user named.
    pub(crate) fn folder_elsewhere(&self, path: &Path) -> io::Result<Folder> {
        self.root.elsewhere(path)
    }

    /// The folder `below` the root, which the layout says is there.
    fn part(&self, below: impl AsRef<Path>) -> Result<Folder> {
        let below = below.as_ref();
        self.root
            .folder(below)
            .map_err(|error| Error::io(format!("cannot open {}", self.root().join(below).display()), error))
    }
}

fn check_store_file(root: &Folder) -> Result<()> {
    let shown = root.path().display();
    let bytes = root.read_small(STORE_FILE, MANIFEST_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::invalid(format!(
            "{shown} is not a store: it has no {STORE_FILE}; give an empty folder or one that does not exist"
        )),
        _ => Error::io(format!("cannot read {shown}/{STORE_FILE}"), error),
    })?;
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let broken = |_| {
        Error::invalid(format!(
            "{shown} is not a store: its {STORE_FILE} does not say {{\"format\": {FORMAT}}}"
        ))
    };
    let Version { format } = serde_json::from_slice(&bytes).map_err(broken)?;
    if format != FORMAT {
        return Err(Error::unsupported(format!(
            "the store {shown} has format {format}, this cowshed knows {FORMAT}; use a later one"
        )));
    }
    serde_json::from_slice::<StoreManifest>(&bytes).map_err(broken)?;
    Ok(())
}
