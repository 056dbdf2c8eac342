//! Where the log of a clone's active layer is kept: beside it, as long as a process has the clone open for writing.

use super::layout::{CLONE_DISK, CLONE_LOG};
use super::{Access, Name, Store};
use crate::error::{Kind, Result};
use crate::qcow2::LogPlace;
use crate::storage::{FileAccess, Folder, Session, Storage};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// The log in a clone's folder.
#[derive(Debug)]
pub(super) struct CloneLog {
    folder: Folder,
    /// The active layer, as it was opened.
    disk: File,
}

impl CloneLog {
    pub(super) fn new(folder: Folder, disk: File) -> Self {
        Self { folder, disk }
    }
}

impl LogPlace for CloneLog {
    fn session(&self) -> io::Result<Session> {
        Session::of(&self.disk)
    }

    fn open(&self, writable: bool) -> io::Result<Option<Arc<dyn Storage>>> {
        match self.folder.file(CLONE_LOG, if writable { FileAccess::Write } else { FileAccess::Read }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(Arc::new(other?))),
        }
    }

    fn create(&self) -> io::Result<Arc<dyn Storage>> {
        self.remove()?;
        Ok(Arc::new(self.folder.create(CLONE_LOG)?))
    }

    fn remove(&self) -> io::Result<()> {
        self.folder.unlink_if_there(CLONE_LOG)
    }
}

impl Store {
    /// Puts what a killed process left in the log of a clone into its active layer, for those who use that file by
    /// itself. Nothing happens while somebody has the clone open for writing, or when there is no log.
    ///
    /// # Errors
    /// As [`Store::open_clone`].
    pub fn settle_log(&self, name: &Name) -> Result<()> {
        let folder = self.clone_folder(name)?;
        if !folder.has(CLONE_LOG).unwrap_or(false) || !folder.has(CLONE_DISK).unwrap_or(false) {
            return Ok(());
        }
        match self.open_clone(name, Access::Write) {
            Err(error) if error.kind() == Kind::Busy => Ok(()),
            opened => opened?.close(),
        }
    }
}
