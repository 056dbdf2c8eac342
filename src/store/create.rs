//! Making clones.

use super::gate::{Chain, Way};
use super::layout::{CLONE_DISK, CLONE_FILE, CLONES, backing_of_clone};
use super::list::clone_of;
use super::manifest::{self, CloneManifest, FORMAT, text_fault};
use super::types::Clone;
use super::{Access, Base, BaseId, BaseRef, CloneOptions, Name, Store, time};
use crate::disk::Layer;
use crate::error::{Error, Kind, Result};
use crate::qcow2::{self, BackingName, CreateOptions, Identity, Image, OpenOptions};
use crate::storage::{Folder, HostFile, Storage};
use std::collections::HashSet;
use std::sync::Arc;

/// From this many clones on the whole filesystem is synced once instead of each file by itself.
const SYNC_ALL_FROM: usize = 8;

/// What a clone's empty layer is made like.
#[derive(Clone, Debug)]
pub(super) struct NewLayer {
    pub(super) size: u64,
    pub(super) compat: bool,
    pub(super) backing: BackingName,
    pub(super) base: BaseId,
}

impl NewLayer {
    /// Makes the file `name` in `folder`, not yet durable.
    pub(super) fn create(&self, folder: &Folder, name: &str) -> Result<HostFile> {
        let file = folder.create(name).map_err(|error| {
            Error::io(format!("cannot make {}", folder.path().join(name).display()), error)
        })?;
        let mut options = CreateOptions::new(self.size);
        if self.compat {
            options.cluster_bits = 16;
            options.extended_l2 = false;
        }
        options.backing = Some(self.backing.clone());
        options.identity = Some(Identity {
            name: self.base.name.to_string(),
            version: self.base.version,
            digest: self.base.digest.0,
        });
        qcow2::create(&file, &options)?;
        Ok(file)
    }

    /// Makes it in `staged`, not yet durable, and puts it on top of `chain`, to be written to; its file as well.
    pub(super) fn over(
        &self,
        mut chain: Chain,
        staged: &Folder,
        metadata_cache: u64,
        place: &str,
    ) -> Result<(Chain, HostFile)> {
        let file = self.create(staged, CLONE_DISK).map_err(|error| error.at(place))?;
        let twin = file.try_clone().map_err(|error| Error::io(format!("cannot change {place}"), error))?;
        let options = OpenOptions { writable: true, metadata_cache };
        let image = Image::open(Arc::new(twin), options).map_err(|error| error.at(place))?;
        chain.layers.insert(0, Layer::qcow2(image));
        chain.files.insert(0, staged.path().join(CLONE_DISK));
        Ok((chain, file))
    }
}

impl Store {
    /// Makes clones of a base, all of them or none.
    ///
    /// # Errors
    /// `NotFound`, `Changed` (the base), `Exists` (a name is taken by a clone or base), `NoSpace`, the host's.
    pub fn create_clones(
        &self,
        base: &BaseRef,
        names: &[Name],
        options: &CloneOptions,
    ) -> Result<Vec<Clone>> {
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
            return Err(Error::new(Kind::Exists, format!("the name {twice} is given twice")));
        }
        if let Some(fault) = text_fault(options.labels.iter().flat_map(|(key, value)| [key, value])) {
            return Err(Error::invalid(format!("a label cannot be kept: {fault}")));
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let lock = self.lock()?;
        for name in names {
            self.refuse_taken(name)?;
        }
        let base = self.base(base)?;
        // The gate: a clone of a changed base could never be opened. Nobody's lock matters for that.
        self.push_base(&mut Chain::default(), &base.name, base.version, Way::of(Access::Inspect))?;
        let manifest = clone_manifest(&base, options);
        let staging = lock.stage()?;
        self.stage_clones(staging.folder(), &base, &manifest, names)?;
        staging
            .commit_clones(&self.part(CLONES)?)
            .map_err(|error| Error::io(format!("cannot put clone {} in place", names[0]), error))?;
        Ok(names.iter().map(|name| clone_of(name, manifest.clone())).collect())
    }

    fn stage_clones(
        &self,
        staged: &Folder,
        base: &Base,
        manifest: &CloneManifest,
        names: &[Name],
    ) -> Result<()> {
        let layer = NewLayer {
            size: base.size,
            compat: manifest.compat,
            backing: BackingName {
                file: backing_of_clone(base.name.as_str(), base.version, base.format),
                format: Some(base.format.as_str().to_owned()),
            },
            base: manifest.base.clone(),
        };
        let bytes = manifest::bytes(manifest)?;
        let all = names.len() >= SYNC_ALL_FROM;
        for name in names {
            stage_clone(staged, name, &layer, &bytes, !all)
                .map_err(|error| error.at(format!("clone {name}")))?;
        }
        // The names of several are durable before the file that says that all of them count.
        let synced = match names.len() {
            _ if all => staged.sync_filesystem(),
            0 | 1 => Ok(()),
            _ => staged.sync(),
        };
        synced.map_err(|error| Error::io(format!("cannot sync {}", self.root().display()), error))
    }
}

fn clone_manifest(base: &Base, options: &CloneOptions) -> CloneManifest {
    CloneManifest {
        manifest: FORMAT,
        base: base.id(),
        next: None,
        size: base.size,
        compat: options.compat,
        created: time::now(),
        labels: options.labels.clone(),
    }
}

fn stage_clone(staged: &Folder, name: &Name, layer: &NewLayer, manifest: &[u8], durable: bool) -> Result<()> {
    let cannot = |error| Error::io("cannot write its files", error);
    staged.make_folder(name.as_str()).map_err(cannot)?;
    let folder = staged.folder(name.as_str()).map_err(cannot)?;
    let disk = layer.create(&folder, CLONE_DISK)?;
    folder.create_small(CLONE_FILE, manifest, durable).map_err(cannot)?;
    if durable {
        disk.sync().map_err(cannot)?;
        folder.sync().map_err(cannot)?;
    }
    Ok(())
}
