//! The view: a store's bases and clones as raw disk files.
//!
//! `bases/NAME@V.raw` is read-only. `clones/NAME.raw` is read-write, and so is `clones/NAME.pN.raw` for each partition of
//! the clone, over the same open disk. One process at a time writes a clone; see [`shared`].

mod facts;
mod names;
mod shared;
mod single;
mod window;

use crate::idle::Flusher;
use crate::store::{BaseRef, Name, Store, Target};
use crate::sync::Mutex;
use facts::FactsCache;
use fuse_mount::{Device, Opener, Source, Stat};
use names::CloneFile;
use rayon::prelude::*;
use shared::{Origin, Shared};
use std::collections::{BTreeSet, HashMap};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use window::Window;

pub use single::Single;

/// Folder of the bases.
pub const BASES: &str = "bases";
/// Folder of the clones.
pub const CLONES: &str = "clones";

/// A store as the disks of a mount.
#[derive(Debug)]
pub struct View {
    store: Store,
    open: Mutex<HashMap<Target, Weak<Shared>>>,
    facts: FactsCache,
    flusher: Flusher,
}

impl View {
    /// All bases and clones of `store`, as they come and go.
    ///
    /// # Errors
    /// When the thread that flushes idle disks cannot be started.
    pub fn new(store: Store) -> io::Result<Self> {
        let flusher = Flusher::start()?;
        Ok(Self { store, open: Mutex::default(), facts: FactsCache::default(), flusher })
    }

    /// The disk that all openers of `target` share.
    fn shared(&self, target: Target, path: PathBuf) -> Arc<Shared> {
        let mut open = self.open.lock();
        if let Some(shared) = open.get(&target).and_then(Weak::upgrade)
            && shared.path() == path
        {
            return shared;
        }
        open.retain(|_, shared| shared.strong_count() > 0);
        let origin = Origin::Stored(self.store.clone(), target.clone());
        let shared = Arc::new(Shared::new(origin, path, self.flusher.queue()));
        open.insert(target, Arc::downgrade(&shared));
        shared
    }

    fn shared_if_open(&self, target: &Target) -> Option<Arc<Shared>> {
        self.open.lock().get(target).and_then(Weak::upgrade)
    }

    /// Path and metadata of a clone's file.
    fn clone_file(&self, name: &Name) -> io::Result<(PathBuf, Metadata)> {
        let path = self.store.path(&Target::Clone(name.clone()))?;
        let metadata = path.metadata()?;
        Ok((path, metadata))
    }

    fn clone_facts(&self, name: &Name, metadata: &Metadata) -> io::Result<Arc<facts::Facts>> {
        let shared = self.shared_if_open(&Target::Clone(name.clone()));
        Ok(self.facts.of(&self.store, name, metadata, shared.as_deref())?)
    }

    /// What a file name in `clones` means: the clone that is called so, else a partition of another one.
    fn clone_file_named(&self, file: &str) -> io::Result<(CloneFile, PathBuf, Metadata)> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for meaning in names::meanings(file) {
            match self.clone_file(&meaning.clone) {
                Ok((path, metadata)) => return Ok((meaning, path, metadata)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// First byte and length of what a file of a clone shows.
    fn extent_of(&self, file: &CloneFile, metadata: &Metadata) -> io::Result<(u64, u64)> {
        let facts = self.clone_facts(&file.clone, metadata)?;
        let Some(number) = file.partition else { return Ok((0, facts.size)) };
        let partition = facts.partitions.iter().find(|partition| partition.number == number);
        let partition = partition.ok_or(io::ErrorKind::NotFound)?;
        Ok((partition.start.0, partition.len))
    }

    fn list_clones(&self) -> io::Result<Vec<String>> {
        let clones = self.store.survey()?.clones;
        let known: BTreeSet<&Name> = clones.iter().map(|clone| &clone.name).collect();
        self.facts.forget_all_but(&known);
        let partitions = |name: &Name| -> Vec<String> {
            let Ok((_, metadata)) = self.clone_file(name) else { return Vec::new() };
            let Ok(facts) = self.clone_facts(name, &metadata) else { return Vec::new() };
            let files = facts.partitions.iter().map(|p| names::partition_file(name, p.number));
            // A clone that is really called NAME.pN hides the partition file of that name.
            files.filter(|file| !names::is_clone(file, &known)).collect()
        };
        let mut files: Vec<String> =
            clones.par_iter().map(|clone| partitions(&clone.name)).flatten_iter().collect();
        files.extend(clones.iter().map(|clone| names::clone_file(&clone.name)));
        Ok(files)
    }

    fn base_named(&self, file: &str) -> io::Result<(BaseRef, PathBuf, u64)> {
        let base = names::base(file).ok_or(io::ErrorKind::NotFound)?;
        let size = self.store.base(&base)?.size;
        let path = self.store.path(&Target::Base(base.clone()))?;
        Ok((base, path, size))
    }
}

impl Source for View {
    fn folders(&self) -> Vec<String> {
        vec![BASES.to_owned(), CLONES.to_owned()]
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        match folder {
            BASES => {
                Ok(self.store.survey()?.bases.iter().map(|b| names::base_file(&b.name, b.version)).collect())
            }
            CLONES => self.list_clones(),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn stat(&self, folder: &str, name: &str) -> io::Result<Stat> {
        match folder {
            BASES => {
                let (_, path, size) = self.base_named(name)?;
                stat_of(&path.metadata()?, size, None)
            }
            CLONES => {
                let (file, _, metadata) = self.clone_file_named(name)?;
                let (_, len) = self.extent_of(&file, &metadata)?;
                stat_of(&metadata, len, Some(file.partition.is_some()))
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn open(&self, folder: &str, name: &str, opener: Opener) -> io::Result<Arc<dyn Device>> {
        match folder {
            BASES if opener.write => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            BASES => {
                let (base, path, _) = self.base_named(name)?;
                Ok(Arc::new(Window::whole(self.shared(Target::Base(base), path), opener)?))
            }
            CLONES => {
                let (file, path, metadata) = self.clone_file_named(name)?;
                let shared = self.shared(Target::Clone(file.clone.clone()), path);
                match file.partition {
                    None => Ok(Arc::new(Window::whole(shared, opener)?)),
                    Some(_) => {
                        let (start, len) = self.extent_of(&file, &metadata)?;
                        Ok(Arc::new(Window::part(shared, opener, start, len)?))
                    }
                }
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn identity(&self, folder: &str, name: &str) -> io::Result<u64> {
        match folder {
            BASES => Ok(self.base_named(name)?.1.metadata()?.ino()),
            CLONES => Ok(self.clone_file_named(name)?.2.ino()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// What `stat` shows of a disk of `size` bytes in a host file; `clone` is `None` for a base, and tells whether only a
/// part of a clone is shown.
fn stat_of(metadata: &Metadata, size: u64, clone: Option<bool>) -> io::Result<Stat> {
    let blocks = match clone {
        // Programs that copy sparse files take 0 blocks for "no data at all".
        Some(true) => metadata.blocks().min(size.div_ceil(512)).max(1),
        _ => metadata.blocks(),
    };
    let modified = metadata.modified()?;
    Ok(Stat { size, blocks, modified, writable: clone.is_some(), immutable: clone.is_none() })
}
