//! One disk as a mount of its own, for a program that shall see nothing else of the store.

use super::CLONES;
use super::names::clone_file;
use super::shared::{Origin, Shared};
use super::stat_of;
use super::window::Window;
use crate::idle::Flusher;
use crate::store::{Access, Name, Scratch, Store, Target};
use fuse_mount::{Device, Opener, Source, Stat};
use std::io;
use std::sync::Arc;

/// A disk as the file `clones/NAME.raw`.
#[derive(Debug)]
pub struct Single {
    file: String,
    size: u64,
    shared: Arc<Shared>,
    _flusher: Flusher,
}

impl Single {
    /// The clone `name`, opened when the file is.
    ///
    /// # Errors
    /// As [`Store::open_clone`]; when the thread that flushes idle disks cannot be started.
    pub fn of_clone(store: &Store, name: &Name) -> io::Result<Self> {
        let target = Target::Clone(name.clone());
        let size = store.open_target(&target, Access::Inspect)?.disk.size();
        let path = store.path(&target)?;
        Self::new(Origin::Stored(store.clone(), target), path, name, size)
    }

    /// A throw-away layer, under the name `name`.
    ///
    /// # Errors
    /// When the thread that flushes idle disks cannot be started.
    pub fn of_scratch(scratch: Arc<Scratch>, name: &Name) -> io::Result<Self> {
        let (path, size) = (scratch.path().to_owned(), scratch.disk.disk.size());
        Self::new(Origin::Scratch(scratch), path, name, size)
    }

    fn new(origin: Origin, path: std::path::PathBuf, name: &Name, size: u64) -> io::Result<Self> {
        let flusher = Flusher::start()?;
        let shared = Arc::new(Shared::new(origin, path, flusher.queue()));
        Ok(Self { file: clone_file(name), size, shared, _flusher: flusher })
    }

    /// Path of the file, relative to the mount.
    #[must_use]
    pub fn file(&self) -> String {
        format!("{CLONES}/{}", self.file)
    }

    fn check(&self, folder: &str, name: &str) -> io::Result<()> {
        if folder == CLONES && name == self.file { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Source for Single {
    fn folders(&self) -> Vec<String> {
        vec![CLONES.to_owned()]
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(vec![self.file.clone()])
    }

    fn stat(&self, folder: &str, name: &str) -> io::Result<Stat> {
        self.check(folder, name)?;
        stat_of(&self.shared.path().metadata()?, self.size, Some(false))
    }

    fn open(&self, folder: &str, name: &str, opener: Opener) -> io::Result<Arc<dyn Device>> {
        self.check(folder, name)?;
        Ok(Arc::new(Window::whole(self.shared.clone(), opener)?))
    }
}
