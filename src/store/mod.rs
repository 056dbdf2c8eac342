//! The store: a folder of plain files with bases and clones, and the gate that decides what may be opened.
//!
//! `docs/store.md` draws the layout. The manifests are the truth; a file that none of them speaks of is debris.

mod bases;
mod checkpoint;
mod clean;
mod create;
mod digest;
mod gate;
mod layout;
mod list;
mod log;
mod manifest;
mod name;
mod open;
mod remove;
mod reseal;
mod scratch;
mod sealed;
mod staging;
mod time;
mod types;
mod usage;

use crate::error::{Error, Kind, Result};
use crate::qcow2::OpenOptions;
use crate::storage::Folder;
use layout::{BASES, CLONES, STORE_FILE, TMP};
use manifest::{FORMAT, MANIFEST_MAX, StoreManifest};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use bases::NewBase;
pub use digest::{BLOCK, Digest};
pub(crate) use digest::{BlockSum, ContentSums, SumList};
pub(crate) use manifest::DISK_MAX;
pub use name::{BaseRef, NAME_MAX, Name, Target};
pub use open::OpenDisk;
pub(crate) use reseal::Refusals;
pub use scratch::Scratch;
pub(crate) use sealed::Seal;
pub use types::{
    Access, Base, BaseId, Broken, Checkpoint, Clone, CloneOptions, DiskFormat, Freed, Overview, Restored,
    Survey, Usage,
};

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
        let shown = path.display();
        let root = Folder::open(path).map_err(|error| match error.kind() {
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
        let make = |error| Error::io(format!("cannot make a store at {}", path.display()), error);
        if !path.join(STORE_FILE).exists() {
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).create(parent).map_err(make)?;
            }
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(make(error)),
                Ok(()) => sync_parent(path).map_err(make)?,
            }
            // A file in the place is told by `open`.
            if path.is_dir() && is_vacant(path).map_err(make)? {
                furnish(path).map_err(make)?;
            }
        }
        Self::open(path)
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

/// Whether a folder is empty but for what a making of a store that was cut short leaves.
fn is_vacant(path: &Path) -> io::Result<bool> {
    let folder = Folder::open(path)?;
    for name in folder.names()? {
        let ours = match name.as_str() {
            BASES | CLONES | TMP => folder.folder(&name).and_then(|part| part.names())?.is_empty(),
            other => other.strip_prefix('.').is_some_and(|rest| rest.starts_with(STORE_FILE)),
        };
        if !ours {
            return Ok(false);
        }
    }
    Ok(true)
}

fn furnish(path: &Path) -> io::Result<()> {
    let folder = Folder::open(path)?;
    for part in [BASES, CLONES, TMP] {
        match folder.make_folder(part) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    folder.sync()?;
    let bytes = serde_json::to_vec(&StoreManifest { format: FORMAT })?;
    let staged = format!(".{STORE_FILE}.{}", std::process::id());
    folder.unlink_if_there(&staged)?;
    folder.create_small(&staged, &bytes, true)?;
    // Of two that make the same store at once the second must not replace the file that the first one locks.
    match folder.move_new(&staged, &folder, STORE_FILE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => folder.unlink_if_there(&staged)?,
        other => other?,
    }
    folder.sync()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
