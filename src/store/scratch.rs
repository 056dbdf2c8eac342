//! Throw-away layers.

use super::checkpoint::{base_backing, top_size};
use super::create::NewLayer;
use super::gate::{Chain, Way};
use super::layout::{CLONE_DISK, CLONES};
use super::staging::Staging;
use super::{Access, OpenDisk, Store, Target};
use crate::disk::Disk;
use crate::error::Result;
use crate::qcow2::BackingName;
use std::path::{Path, PathBuf};

/// A throw-away writable layer over a clone or a base, in the store's `tmp`; removed when dropped.
///
/// What it stands on is locked as a reader meanwhile: nobody writes to it.
#[derive(Debug)]
pub struct Scratch {
    /// The disk, open for writing.
    pub disk: OpenDisk,
    path: PathBuf,
    // After the disk, so that the file goes last.
    staging: Staging,
}

impl Scratch {
    /// The layer's qcow2 file, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder that goes with it, where a disk can be mounted.
    pub(crate) fn mount_point(&self) -> Result<PathBuf> {
        self.staging.mount_point()
    }
}

impl AsRef<Disk> for Scratch {
    fn as_ref(&self) -> &Disk {
        &self.disk.disk
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.disk.forget_changes();
    }
}

impl Store {
    /// A throw-away writable layer over a clone or base.
    ///
    /// # Errors
    /// As [`Store::open_clone`] with [`Access::Read`].
    pub fn scratch(&self, of: &Target) -> Result<Scratch> {
        let (chain, layer) = match of {
            Target::Clone(name) => {
                let (chain, _, manifest) = self.clone_chain(name, Way::of(Access::Read))?;
                let backing = BackingName {
                    file: format!("../../{CLONES}/{name}/{CLONE_DISK}"),
                    format: Some("qcow2".to_owned()),
                };
                let size = top_size(&chain)?;
                (chain, NewLayer { size, compat: manifest.compat, backing, base: manifest.base })
            }
            Target::Base(base) => {
                let base = self.base(base)?;
                let mut chain = Chain::default();
                self.push_base(&mut chain, &base.name, base.version, Way::of(Access::Read))?;
                let backing = base_backing(&base.name, base.version, base.format);
                let size = base.size;
                (chain, NewLayer { size, compat: false, backing, base: base.id() })
            }
        };
        self.scratch_over(chain, &layer, format!("throw-away layer over {of}"))
    }

    fn scratch_over(&self, chain: Chain, layer: &NewLayer, name: String) -> Result<Scratch> {
        let staging = self.lock()?.stage()?;
        let (chain, _) = layer.over(chain, staging.folder(), self.metadata_cache, &name)?;
        let path = staging.folder().path().join(CLONE_DISK);
        Ok(Scratch { disk: OpenDisk::new(chain, name, true)?, path, staging })
    }
}
