//! The store: a folder of plain files with bases and clones, and the gate that decides what may be opened.

mod digest;
mod name;
mod types;

use crate::disk::Disk;
use crate::error::Result;
use std::path::{Path, PathBuf};

pub use digest::{BLOCK, Digest};
pub use name::{BaseRef, NAME_MAX, Name, Target};
pub use types::{Access, Base, BaseId, Checkpoint, Clone, CloneOptions, DiskFormat, Freed, Restored, Usage};

/// An open store; cheap to copy.
#[derive(Clone, Debug)]
pub struct Store {}

/// An open disk of the store with the locks that keep others away from it.
///
/// Dropping it closes it too; a failure is then only written to standard error, so a writer calls [`OpenDisk::close`].
#[derive(Debug)]
pub struct OpenDisk {
    /// The disk.
    pub disk: Disk,
}

/// A throw-away writable layer over a clone or a base, in the store's `tmp`; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    /// The disk, open for writing.
    pub disk: OpenDisk,
}

#[expect(unused_variables, clippy::todo, reason = "signatures first")]
mod pending {
    use super::*;

    impl Store {
        /// `$COWSHED_STORE`, else `$XDG_DATA_HOME/cowshed`, else `~/.local/share/cowshed`.
        ///
        /// # Errors
        /// `Invalid` when none of these variables says anything.
        pub fn default_path() -> Result<PathBuf> {
            todo!()
        }
        /// Opens a store.
        ///
        /// # Errors
        /// `NotFound` when there is no folder, `Invalid` when it is not a store, `Unsupported` for a later format.
        pub fn open(path: &Path) -> Result<Self> {
            todo!()
        }
        /// Opens a store, or makes one (mode 0700) of a folder that is absent or empty.
        ///
        /// # Errors
        /// As [`Store::open`]; a folder that holds anything else is never made a store.
        pub fn open_or_create(path: &Path) -> Result<Self> {
            todo!()
        }
        /// The store's folder.
        #[must_use]
        pub fn root(&self) -> &Path {
            todo!()
        }
        /// Every version of every base, sorted by name and version.
        ///
        /// # Errors
        /// `Corrupt` for a broken manifest; the host's.
        pub fn bases(&self) -> Result<Vec<Base>> {
            todo!()
        }
        /// All clones, sorted by name.
        ///
        /// # Errors
        /// `Corrupt` for a broken manifest; the host's.
        pub fn clones(&self) -> Result<Vec<types::Clone>> {
            todo!()
        }
        /// One base version.
        ///
        /// # Errors
        /// `NotFound`, `Corrupt`, the host's.
        pub fn base(&self, base: &BaseRef) -> Result<Base> {
            todo!()
        }
        /// One clone.
        ///
        /// # Errors
        /// `NotFound`, `Corrupt`, the host's.
        pub fn clone_named(&self, name: &Name) -> Result<types::Clone> {
            todo!()
        }
        /// What `NAME` or `NAME@V` means: a clone and a base never have the same name.
        ///
        /// # Errors
        /// `NotFound`, the host's.
        pub fn find(&self, what: &BaseRef) -> Result<Target> {
            todo!()
        }
        /// The file of a clone or base that QEMU can open, absolute.
        ///
        /// # Errors
        /// `NotFound`, `Corrupt`, the host's.
        pub fn path(&self, target: &Target) -> Result<PathBuf> {
            todo!()
        }
        /// Makes clones of a base, all of them or none.
        ///
        /// # Errors
        /// `NotFound`, `Changed` (the base), `Exists` (a name is taken by a clone or base), `NoSpace`, the host's.
        pub fn create_clones(
            &self,
            base: &BaseRef,
            names: &[Name],
            options: &CloneOptions,
        ) -> Result<Vec<types::Clone>> {
            todo!()
        }
        /// Renames a clone, or a base that no clone stands on.
        ///
        /// # Errors
        /// `NotFound`, `Exists`, `Busy` (open, or a base with clones), the host's.
        pub fn rename(&self, from: &Name, to: &Name) -> Result<()> {
            todo!()
        }
        /// Removes a clone and its checkpoints.
        ///
        /// # Errors
        /// `NotFound`, `Busy` while somebody has it open, the host's.
        pub fn remove_clone(&self, name: &Name) -> Result<Freed> {
            todo!()
        }
        /// Removes a base version.
        ///
        /// # Errors
        /// `NotFound`, `Busy` with the names of what stands on it or while it is open, the host's.
        pub fn remove_base(&self, base: &BaseRef) -> Result<Freed> {
            todo!()
        }
        /// Freezes the present state of a clone.
        ///
        /// # Errors
        /// `NotFound`, `Busy` while somebody has it open, `Invalid` when the chain would get too deep, the host's.
        pub fn checkpoint(&self, name: &Name, note: Option<&str>) -> Result<Checkpoint> {
            todo!()
        }
        /// The checkpoints of a clone, oldest first.
        ///
        /// # Errors
        /// `NotFound`, `Corrupt`, the host's.
        pub fn checkpoints(&self, name: &Name) -> Result<Vec<Checkpoint>> {
            todo!()
        }
        /// The checkpoint that the clone's present state grew from; `None` for the base.
        ///
        /// # Errors
        /// `NotFound`, `Corrupt`, the host's.
        pub fn current_checkpoint(&self, name: &Name) -> Result<Option<u32>> {
            todo!()
        }
        /// Puts a clone back to a checkpoint. With `keep_current` the state from before becomes a checkpoint.
        ///
        /// # Errors
        /// As [`Store::checkpoint`].
        pub fn restore(&self, name: &Name, number: u32, keep_current: bool) -> Result<Restored> {
            todo!()
        }
        /// Removes a checkpoint that nothing stands on.
        ///
        /// # Errors
        /// `NotFound`, `Busy` when the present state or another checkpoint stands on it, the host's.
        pub fn remove_checkpoint(&self, name: &Name, number: u32) -> Result<Freed> {
            todo!()
        }
        /// Opens a clone, after the gate found every base below it unchanged.
        ///
        /// # Errors
        /// `NotFound`, `Busy`, `Changed` (with the base's name), `Corrupt`, `Unsupported`, the host's.
        pub fn open_clone(&self, name: &Name, access: Access) -> Result<OpenDisk> {
            todo!()
        }
        /// Opens a base for reading.
        ///
        /// # Errors
        /// As [`Store::open_clone`].
        pub fn open_base(&self, base: &BaseRef) -> Result<OpenDisk> {
            todo!()
        }
        /// Opens a clone with `access`, or a base for reading.
        ///
        /// # Errors
        /// As [`Store::open_clone`]; `ReadOnly` for writing to a base.
        pub fn open_target(&self, target: &Target, access: Access) -> Result<OpenDisk> {
            todo!()
        }
        /// A throw-away writable layer over a clone or base.
        ///
        /// # Errors
        /// As [`Store::open_clone`] with [`Access::Read`].
        pub fn scratch(&self, of: &Target) -> Result<Scratch> {
            todo!()
        }
        /// What a clone or base costs on the host.
        ///
        /// # Errors
        /// `NotFound`, `Corrupt`, the host's.
        pub fn usage(&self, of: &Target) -> Result<Usage> {
            todo!()
        }
        /// The clones that stand on a base version (on any version, when none is given).
        ///
        /// # Errors
        /// `Corrupt`, the host's.
        pub fn clones_of(&self, base: &BaseRef) -> Result<Vec<Name>> {
            todo!()
        }
    }

    impl OpenDisk {
        /// The layers' files, absolute, the top first: as many as `disk.layers()`.
        #[must_use]
        pub fn files(&self) -> &[PathBuf] {
            todo!()
        }
        /// Flushes, gives reserved clusters back and lets the locks go.
        ///
        /// # Errors
        /// As [`Disk::close`].
        pub fn close(self) -> Result<()> {
            todo!()
        }
    }

    impl Scratch {
        /// The layer's qcow2 file, absolute.
        #[must_use]
        pub fn path(&self) -> &Path {
            todo!()
        }
    }
}
