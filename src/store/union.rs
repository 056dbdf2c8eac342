//! A new layer in the making that shows what layers of a clone show together.

use super::create::NewLayer;
use super::fold::named;
use super::gate::{Chain, Way};
use super::{Access, BaseId, Name, OpenDisk, Store};
use crate::disk::{Disk, Layer};
use crate::error::{Error, Result};
use crate::qcow2::BackingName;
use crate::storage::{Folder, HostFile, Storage};

/// A clone's disk as it is, and an empty layer that shall show the same and stands on less.
#[derive(Debug)]
pub(crate) struct Union {
    old: OpenDisk,
    new: OpenDisk,
    file: HostFile,
}

/// What the new layer stands on, and what it is like.
pub(super) struct Under<'a> {
    pub(super) clone: &'a Name,
    /// The checkpoint below it; `None` for the base itself.
    pub(super) checkpoint: Option<u32>,
    pub(super) base: &'a BaseId,
    pub(super) size: u64,
    pub(super) compat: bool,
}

impl Store {
    /// Makes the empty layer in `staged`; it shall show what `old` shows.
    pub(super) fn begin_union(&self, old: OpenDisk, under: &Under<'_>, staged: &Folder) -> Result<Union> {
        let way = Way::of(Access::Read);
        let (backing, chain) = match under.checkpoint {
            Some(number) => {
                let (chain, _) = self.checkpoint_chain(under.clone, number, way)?;
                (super::checkpoint::checkpoint_backing(number), chain)
            }
            None => self.base_below(under.base, way)?,
        };
        let place = format!("clone {}", under.clone);
        let layer = NewLayer { size: under.size, compat: under.compat, backing, base: under.base.clone() };
        let (chain, file) = layer.over(chain, staged, self.metadata_cache, &place)?;
        Ok(Union { old, new: OpenDisk::new(chain, place, true)?, file })
    }

    fn base_below(&self, id: &BaseId, way: Way) -> Result<(BackingName, Chain)> {
        let format = self.base_of_clone("its base", id)?.format;
        let mut chain = Chain::default();
        self.push_base(&mut chain, &id.name, id.version, way)?;
        Ok((super::checkpoint::base_backing(&id.name, id.version, format), chain))
    }
}

impl Union {
    /// The disk as it is, for reading. What lies behind the end of the new layer is of no use.
    pub(crate) fn old(&self) -> &Disk {
        &self.old.disk
    }

    /// The new layer over what it stands on.
    pub(crate) fn fresh(&self) -> &Disk {
        &self.new.disk
    }

    /// Layers at the bottom of both that are the same files.
    pub(crate) fn shared(&self) -> usize {
        self.new.shared_with(self.old.files())
    }

    /// The file of the new layer.
    pub(crate) fn file(&self) -> &dyn Storage {
        &self.file
    }

    /// The file of the new layer, durable with its times: they are part of a checkpoint's fingerprint.
    pub(super) fn close(self) -> Result<HostFile> {
        let Self { new, file, .. } = self;
        new.close()?;
        file.sync_all().map_err(|error| Error::io("cannot write the new layer", error))?;
        Ok(file)
    }
}

/// Refuses upper layers of a disk, the top first, of which one holds what a copy of the disk has not: `layers` are checkpoints,
/// and `None` the active one.
pub(crate) fn refuse_more(disk: &Disk, layers: &[Option<u32>]) -> Result<()> {
    for (layer, number) in disk.layers().iter().zip(layers) {
        let Layer::Qcow2(image) = layer else { continue };
        if let Some((what, remedy)) = image.header().beside_the_disk() {
            let place = named(*number);
            return Err(Error::unsupported(format!(
                "the file of {place} holds {what}, which would be lost; `{remedy}` removes them"
            )));
        }
    }
    Ok(())
}
