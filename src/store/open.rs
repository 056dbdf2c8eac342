//! Open disks of the store.

use super::gate::{Chain, Trust, Way};
use super::layout::{BASES, CLONE_DISK, CLONES, base_disk};
use super::{Access, BaseRef, Name, Store, Target};
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::storage::ImageLock;
use std::path::PathBuf;

/// An open disk of the store with the locks that keep others away from it.
///
/// Dropping it closes it too; a failure is then only written to standard error, so a writer calls [`OpenDisk::close`].
#[derive(Debug)]
pub struct OpenDisk {
    /// The disk.
    pub disk: Disk,
    files: Vec<PathBuf>,
    name: String,
    /// Whether a close has something to save.
    unsaved: bool,
    // After the disk, so that they are given back after its last write.
    _locks: Vec<ImageLock>,
}

impl OpenDisk {
    pub(super) fn new(chain: Chain, name: String, writable: bool) -> Result<Self> {
        let disk = Disk::new(chain.layers).map_err(|error| error.at(&name))?;
        Ok(Self { disk, files: chain.files, name, unsaved: writable, _locks: chain.locks })
    }

    /// The layers' files, absolute, the top first: as many as `disk.layers()`.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// How many layers at its bottom are the same files as those at the bottom of another chain.
    pub(crate) fn shared_with(&self, other: &[PathBuf]) -> usize {
        self.files.iter().rev().zip(other.iter().rev()).take_while(|(one, other)| one == other).count()
    }

    /// Whether it was opened for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.unsaved
    }

    /// Flushes, gives reserved clusters back and lets the locks go.
    ///
    /// # Errors
    /// As [`Disk::close`].
    pub fn close(mut self) -> Result<()> {
        if !std::mem::replace(&mut self.unsaved, false) {
            return Ok(());
        }
        self.disk.close().map_err(|error| error.at(&self.name))
    }

    /// Nothing of it needs to be saved.
    pub(super) fn forget_changes(&mut self) {
        self.unsaved = false;
    }
}

impl AsRef<Disk> for OpenDisk {
    fn as_ref(&self) -> &Disk {
        &self.disk
    }
}

impl Drop for OpenDisk {
    fn drop(&mut self) {
        if self.unsaved
            && let Err(error) = self.disk.close()
        {
            eprintln!("cowshed: {}: {error}", self.name);
        }
    }
}

impl Store {
    /// Opens a clone, after the gate found every base below it unchanged.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Changed` (with the base's name), `Corrupt`, `Unsupported`, the host's.
    pub fn open_clone(&self, name: &Name, access: Access) -> Result<OpenDisk> {
        let (chain, _, _) = self.clone_chain(name, Way::of(access))?;
        OpenDisk::new(chain, format!("clone {name}"), access == Access::Write)
    }

    /// Opens a base for reading, locked as a reader.
    ///
    /// # Errors
    /// As [`Store::open_clone`].
    pub fn open_base(&self, base: &BaseRef) -> Result<OpenDisk> {
        self.open_base_as(base, Way::of(Access::Read))
    }

    /// Opens a base whether its fingerprint is right or not, for reading all of it again.
    pub(crate) fn open_base_untrusted(&self, base: &BaseRef) -> Result<OpenDisk> {
        self.open_base_as(base, Way { trust: Trust::Nothing, ..Way::of(Access::Read) })
    }

    fn open_base_as(&self, base: &BaseRef, way: Way) -> Result<OpenDisk> {
        let found = self.base(base)?;
        let mut chain = Chain::default();
        self.push_base(&mut chain, &found.name, found.version, way)?;
        let name = format!("base {}@{}", found.name, found.version);
        let disk = OpenDisk::new(chain, name, false)?;
        if way.trust == Trust::Fingerprint && disk.disk.size() != found.size {
            return Err(Error::corrupt(format!(
                "{}: its disk has {} bytes, its manifest says {}",
                disk.name,
                disk.disk.size(),
                found.size
            )));
        }
        Ok(disk)
    }

    /// Opens a clone with `access`, or a base for reading.
    ///
    /// # Errors
    /// As [`Store::open_clone`]; `ReadOnly` for writing to a base.
    pub fn open_target(&self, target: &Target, access: Access) -> Result<OpenDisk> {
        match target {
            Target::Clone(name) => self.open_clone(name, access),
            Target::Base(base) if access == Access::Write => Err(Error::new(
                Kind::ReadOnly,
                format!("base {base} is never written to; make a clone: `cowshed clone {base} NAME`"),
            )),
            Target::Base(base) => self.open_base_as(base, Way::of(access)),
        }
    }

    /// The file of a clone or base that QEMU can open, absolute. What a killed process left in a clone's log is
    /// in it only after [`Store::settle_log`].
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, the host's.
    pub fn path(&self, target: &Target) -> Result<PathBuf> {
        match target {
            Target::Clone(name) => {
                self.clone_manifest(name)?;
                Ok(self.root().join(CLONES).join(name.as_str()).join(CLONE_DISK))
            }
            Target::Base(base) => {
                let base = self.base(base)?;
                let folder = self.root().join(BASES).join(base.name.as_str()).join(base.version.to_string());
                Ok(folder.join(base_disk(base.format)))
            }
        }
    }
}
