//! Where somebody may stand between the store and its host: every change of names and files passes here, so that
//! tests can write down, refuse and cut short each single one.

use super::Folder;
use crate::units::HostOffset;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A name in a folder.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The folder.
    pub folder: &'a Folder,
    /// The name.
    pub name: &'a Path,
}

/// A change of names or files of the host.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// An empty file comes to be.
    CreateFile(Entry<'a>),
    /// An empty folder comes to be.
    MakeFolder(Entry<'a>),
    /// A file that is there gets this name as well.
    Link(Entry<'a>),
    /// The first name becomes the second one; what had that is gone.
    Rename(Entry<'a>, Entry<'a>),
    /// Two names that are there change what they name, in one step.
    Exchange(Entry<'a>, Entry<'a>),
    /// A file loses this name; it may be missing.
    Unlink(Entry<'a>),
    /// An empty folder goes.
    RemoveFolder(Entry<'a>),
    /// Bytes are written.
    Write(&'a File, HostOffset, &'a [u8]),
    /// A range is made to read as zeros: place and length, which may go past the end.
    Punch(&'a File, HostOffset, u64),
    /// The length is set.
    SetLen(&'a File, u64),
    /// The mode or the immutable attribute is set.
    Protect(&'a File),
    /// Content and length become durable.
    SyncData(&'a File),
    /// Content, length, times and mode become durable.
    SyncFile(&'a File),
    /// The names in a folder become durable.
    SyncFolder(&'a Folder),
    /// Everything on the folder's filesystem becomes durable.
    SyncFilesystem(&'a Folder),
}

/// Somebody who is asked about every change.
pub trait Watch: Send + Sync + fmt::Debug {
    /// Makes `change` by calling `make`, once or not at all.
    ///
    /// # Errors
    /// The host's, or an invented one.
    fn change(&self, change: Change<'_>, make: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

/// Whoever watches; nobody outside of tests.
pub(super) type Watcher = Option<Arc<dyn Watch>>;

pub(super) fn change(
    watcher: &Watcher,
    change: Change<'_>,
    mut make: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    match watcher {
        None => make(),
        Some(watch) => watch.change(change, &mut make),
    }
}
