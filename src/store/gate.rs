//! The gate: what may be opened, and as what.
//!
//! A chain is opened from the manifests. What the headers of its files say is compared with what the manifests make
//! expected, and never followed: no name in an image leads anywhere that the store does not know. Formats are given,
//! nothing is probed. Each base's fingerprint is compared in O(1).

use super::layout::{
    BASES, CLONE_DISK, DEPTH_MAX, backing_of_base, backing_of_clone, base_disk, checkpoint_disk,
    checkpoint_of_disk,
};
use super::log::CloneLog;
use super::manifest::{BaseManifest, CloneManifest};
use super::{Access, BaseId, DiskFormat, Name, Store, folded};
use crate::disk::{Layer, RawLayer, check_memory};
use crate::error::{Error, Kind, Result};
use crate::qcow2::{BackingName, Image, OpenOptions};
use crate::storage::{FileAccess, Fingerprint, Folder, HostFile, ImageLock, Role};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The layers of a disk, top first, with their files and the locks on them.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) layers: Vec<Layer>,
    pub(super) files: Vec<PathBuf>,
    pub(super) locks: Vec<ImageLock>,
}

/// What the active layer of a clone stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StandsOn {
    Base,
    Checkpoint(u32),
}

/// Whether a base's fingerprint is compared. Only what reads the whole content anyway may do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    Fingerprint,
    Nothing,
}

/// How the layers of a chain are opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The active layer's lock.
    pub(super) top: Option<Role>,
    /// Whether the active layer is written to.
    pub(super) writable: bool,
    pub(super) trust: Trust,
}

impl Way {
    pub(super) fn of(access: Access) -> Self {
        let (top, writable) = match access {
            Access::Inspect => (None, false),
            Access::Read => (Some(Role::Reader), false),
            Access::Write => (Some(Role::Writer), true),
        };
        Self { top, writable, trust: Trust::Fingerprint }
    }

    /// The layers below the active one are read under the same rule as it is.
    fn below(self) -> Self {
        Self { top: self.top.map(|_| Role::Reader), writable: false, ..self }
    }
}

fn too_deep(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the chain of {what} has more than {DEPTH_MAX} layers"))
}

impl Chain {
    fn push(&mut self, layer: Layer, file: PathBuf, lock: Option<ImageLock>) {
        self.layers.push(layer);
        self.files.push(file);
        self.locks.extend(lock);
    }
}

impl Store {
    /// Opens a clone's chain; also tells what its active layer stands on.
    pub(super) fn clone_chain(&self, name: &Name, way: Way) -> Result<(Chain, StandsOn, CloneManifest)> {
        // Who takes no lock may read some files before a step of a fold and some after it.
        let mut tries = if way.top.is_none() { 4 } else { 1 };
        loop {
            tries -= 1;
            match self.clone_chain_once(name, way) {
                Err(_) if tries > 0 => {}
                other => return other,
            }
        }
    }

    fn clone_chain_once(&self, name: &Name, way: Way) -> Result<(Chain, StandsOn, CloneManifest)> {
        let place = format!("clone {name}");
        let folder = self.clone_folder(name)?;
        let mut chain = Chain::default();
        let (image, manifest) = self.active_layer(name, &folder, way, &mut chain.locks)?;
        let base = self.base_of_clone(&place, &manifest.base)?;
        let stands_on =
            stands_on(image.backing(), &manifest.base, base.format).map_err(|error| error.at(&place))?;
        chain.push(Layer::qcow2(image), folder.path().join(CLONE_DISK), None);
        if let StandsOn::Checkpoint(number) = stands_on {
            self.push_checkpoints(
                &mut chain,
                &folder,
                (name, number),
                (&manifest.base, base.format),
                way.below(),
            )?;
        }
        self.push_base(&mut chain, &manifest.base.name, manifest.base.version, way.below())
            .map_err(|error| error.at(&place))?;
        Ok((chain, stands_on, manifest))
    }

    /// A clone's active layer, and its manifest with the base that this layer stands on.
    fn active_layer(
        &self,
        name: &Name,
        folder: &Folder,
        way: Way,
        locks: &mut Vec<ImageLock>,
    ) -> Result<(Image, CloneManifest)> {
        let place = format!("clone {name}");
        let cannot = |error| Error::io(format!("cannot open {place}"), error);
        let mut tries = 8;
        loop {
            let held = locks.len();
            let mut manifest = self.written_manifest(name)?;
            let file = open_locked(folder, CLONE_DISK, way, &place, locks)?;
            let opened = file.file().metadata().map_err(cannot)?.ino();
            let image = self.active_image(folder, file, way).map_err(|error| error.at(&place))?;
            manifest.settle(image.identity(), image.virtual_size());
            let Err(error) = check_identity(&image, &manifest.base) else { return Ok((image, manifest)) };
            // A rebase may have come between the two readings: then one of them shows it by now.
            tries -= 1;
            let now = self.written_manifest(name)?;
            let same = folder.stat(CLONE_DISK).map_err(cannot)?.st_ino == opened && now == manifest;
            if same || tries == 0 {
                return Err(error.at(&place));
            }
            locks.truncate(held);
        }
    }

    /// The chain below a checkpoint's state, that checkpoint on top; the manifest has the checkpoint's base.
    pub(super) fn checkpoint_chain(
        &self,
        name: &Name,
        number: u32,
        way: Way,
    ) -> Result<(Chain, CloneManifest)> {
        let mut manifest = self.clone_manifest(name)?;
        let place = format!("clone {name}");
        let folder = self.clone_folder(name)?;
        if let Some(checkpoint) = folded::checkpoint(&folder, number)? {
            manifest.base = checkpoint.base;
        }
        let base = self.base_of_clone(&place, &manifest.base)?;
        let mut chain = Chain::default();
        self.push_checkpoints(
            &mut chain,
            &folder,
            (name, number),
            (&manifest.base, base.format),
            way.below(),
        )?;
        self.push_base(&mut chain, &manifest.base.name, manifest.base.version, way.below())
            .map_err(|error| error.at(&place))?;
        Ok((chain, manifest))
    }

    /// The base of a clone, with the digest that the clone remembers.
    pub(super) fn base_of_clone(&self, place: &str, id: &BaseId) -> Result<BaseManifest> {
        let base = self.base_manifest(&id.name, id.version)?.ok_or_else(|| missing(id).at(place))?;
        if base.digest != id.digest {
            return Err(Error::new(
                Kind::Changed,
                format!(
                    "{place}: base {id} is not the one that it was made from: another digest; restore that base"
                ),
            ));
        }
        Ok(base)
    }

    fn push_checkpoints(
        &self,
        chain: &mut Chain,
        folder: &Folder,
        (name, number): (&Name, u32),
        (id, format): (&BaseId, DiskFormat),
        way: Way,
    ) -> Result<()> {
        let mut next = Some(number);
        while let Some(number) = next {
            let place = format!("checkpoint {number} of clone {name}");
            if chain.layers.len() >= DEPTH_MAX {
                return Err(too_deep(format!("clone {name}")));
            }
            let manifest = folded::checkpoint(folder, number)?
                .ok_or_else(|| Error::new(Kind::NotFound, format!("{place} is missing")))?;
            // Numbers only fall on the way down, so that no chain of them is a circle.
            if manifest.parent.is_some_and(|parent| parent >= number) {
                return Err(Error::corrupt(format!("{place} names a parent that is not before it")));
            }
            if manifest.base != *id {
                let message = format!("{place} stands on {}, what is above it on {id}", manifest.base);
                return Err(Error::corrupt(message));
            }
            let disk = checkpoint_disk(number);
            let file = open_locked(folder, &disk, way, &place, &mut chain.locks)?;
            compare(&manifest.fingerprint, &file, &place).map_err(|error| {
                let hint = format!("`cowshed check {name} --reseal` accepts it if its structure is right");
                Error::new(error.kind(), format!("{error}; {hint}"))
            })?;
            let image = self.image(file, way).map_err(|error| error.at(&place))?;
            check_checkpoint(&image, manifest.parent, (id, format)).map_err(|error| error.at(&place))?;
            chain.push(Layer::qcow2(image), folder.path().join(&disk), None);
            check_memory(&chain.layers).map_err(|error| error.at(&place))?;
            next = manifest.parent;
        }
        Ok(())
    }

    /// Opens a base version and the versions below it.
    ///
    /// A version may be rewritten to stand on another one meanwhile, and what it stood on may go: then what was read
    /// before and what was read after do not fit each other, and it is done again.
    pub(super) fn push_base(&self, chain: &mut Chain, name: &Name, version: u32, way: Way) -> Result<()> {
        let (layers, locks) = (chain.layers.len(), chain.locks.len());
        let mut tries = 8;
        loop {
            let mut read = Vec::new();
            let Err(error) = self.push_versions(chain, (name, version), way, &mut read) else {
                return Ok(());
            };
            tries -= 1;
            if tries == 0 || !self.were_rewritten(name, &read)? {
                return Err(error);
            }
            chain.layers.truncate(layers);
            chain.files.truncate(layers);
            chain.locks.truncate(locks);
        }
    }

    /// Whether a version is another file by now than its manifest said.
    fn were_rewritten(&self, name: &Name, read: &[(u32, BaseManifest)]) -> Result<bool> {
        for (version, manifest) in read {
            let now = self.base_manifest(name, *version)?;
            if now.is_some_and(|now| now.fingerprint != manifest.fingerprint) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn push_versions(
        &self,
        chain: &mut Chain,
        (name, version): (&Name, u32),
        way: Way,
        read: &mut Vec<(u32, BaseManifest)>,
    ) -> Result<()> {
        let mut next = Some(version);
        while let Some(version) = next {
            let place = format!("base {name}@{version}");
            if chain.layers.len() >= DEPTH_MAX {
                return Err(too_deep(place));
            }
            let missing = || missing_base(&place, &format!("{name}@{version}"));
            let manifest = self.base_manifest(name, version)?.ok_or_else(missing)?;
            read.push((version, manifest.clone()));
            #[cfg(test)]
            gate_tests::after_a_manifest();
            let folder = self.part(format!("{BASES}/{name}/{version}"))?;
            let disk = base_disk(manifest.format);
            let file = match open_locked(&folder, disk, way, &place, &mut chain.locks) {
                Err(error) if error.kind() == Kind::NotFound => return Err(missing()),
                other => other?,
            };
            if way.trust == Trust::Fingerprint {
                compare(&manifest.fingerprint, &file, &place).map_err(|error| {
                    Error::new(
                        error.kind(),
                        format!("{error}; `cowshed verify {name}@{version}` reads what it holds"),
                    )
                })?;
            }
            let layer = self.base_layer(file, name, &manifest).map_err(|error| error.at(&place))?;
            chain.push(layer, folder.path().join(disk), None);
            check_memory(&chain.layers).map_err(|error| error.at(&place))?;
            next = manifest.parent;
        }
        Ok(())
    }

    fn base_layer(&self, file: HostFile, name: &Name, manifest: &BaseManifest) -> Result<Layer> {
        if manifest.format == DiskFormat::Raw {
            return Ok(Layer::Raw(RawLayer::new(Arc::new(file), false)?));
        }
        let options = OpenOptions { writable: false, metadata_cache: self.metadata_cache };
        let image = Image::open(Arc::new(file), options)?;
        let expected = match manifest.parent {
            None => None,
            Some(parent) => {
                let below = self.base_manifest(name, parent)?.ok_or_else(|| {
                    missing_base(&format!("base {name}@{parent}"), &format!("{name}@{parent}"))
                })?;
                Some((backing_of_base(parent, below.format), below.format))
            }
        };
        match (image.backing(), expected) {
            (None, None) => Ok(Layer::qcow2(image)),
            (Some(found), Some((file, format))) if is(found, &file, format) => Ok(Layer::qcow2(image)),
            (found, _) => Err(foreign(found)),
        }
    }

    fn image(&self, file: HostFile, way: Way) -> Result<Image> {
        Image::open(Arc::new(file), self.options(way))
    }

    /// A clone's active layer, with what its log adds to it.
    fn active_image(&self, folder: &Folder, file: HostFile, way: Way) -> Result<Image> {
        let cannot = |error| Error::io("cannot open its log", error);
        let disk = file.file().try_clone().map_err(cannot)?;
        let log = CloneLog::new(folder.try_clone().map_err(cannot)?, disk);
        Image::open_logged(Arc::new(file), self.options(way), Arc::new(log))
    }

    fn options(&self, way: Way) -> OpenOptions {
        OpenOptions { writable: way.writable, metadata_cache: self.metadata_cache }
    }
}

/// What a clone's layer names as its backing file, if that is something of the clone's own chain.
pub(super) fn stands_on(found: Option<&BackingName>, id: &BaseId, format: DiskFormat) -> Result<StandsOn> {
    if let Some(backing) = found {
        if is(backing, &backing_of_clone(id.name.as_str(), id.version, format), format) {
            return Ok(StandsOn::Base);
        }
        if let Some(number) = checkpoint_of_disk(&backing.file)
            && is(backing, &checkpoint_disk(number), DiskFormat::Qcow2)
        {
            return Ok(StandsOn::Checkpoint(number));
        }
    }
    Err(foreign(found))
}

fn is(found: &BackingName, file: &str, format: DiskFormat) -> bool {
    found.file == file && found.format.as_deref() == Some(format.as_str())
}

fn foreign(found: Option<&BackingName>) -> Error {
    let shown = found.map_or("no backing file".to_owned(), |backing| {
        let file: String = backing.file.chars().take(200).flat_map(char::escape_default).collect();
        let format: String = backing
            .format
            .as_deref()
            .unwrap_or("not given")
            .chars()
            .take(20)
            .flat_map(char::escape_default)
            .collect();
        format!("the backing file \"{file}\" (format {format})")
    });
    Error::corrupt(format!(
        "its header names {shown}, which is not what the store put there; it is not opened"
    ))
}

fn check_identity(image: &Image, id: &BaseId) -> Result<()> {
    let Some(found) = image.identity() else {
        return Err(Error::corrupt(format!(
            "its header does not say which base it stands on; {id} is expected"
        )));
    };
    if id.is(found) {
        return Ok(());
    }
    let shown: String = found.name.chars().take(128).flat_map(char::escape_default).collect();
    Err(Error::corrupt(format!(
        "its header says that it stands on {shown}@{}, its manifest says {id} with digest {}",
        found.version, id.digest
    )))
}

/// Compares the header of a checkpoint's file with what its manifest says.
pub(super) fn check_checkpoint(
    image: &Image,
    parent: Option<u32>,
    (id, format): (&BaseId, DiskFormat),
) -> Result<()> {
    check_identity(image, id)?;
    if stands_on(image.backing(), id, format)? == parent.map_or(StandsOn::Base, StandsOn::Checkpoint) {
        return Ok(());
    }
    Err(Error::corrupt("its header and its manifest name different parents"))
}

fn missing(id: &BaseId) -> Error {
    missing_base(&format!("base {id}"), &id.to_string())
}

fn missing_base(place: &str, base: &str) -> Error {
    Error::new(
        Kind::Changed,
        format!(
            "{place} is missing from the store; put its folder back from a backup, then `cowshed verify {base}`"
        ),
    )
}

fn compare(sealed: &Fingerprint, file: &HostFile, place: &str) -> Result<()> {
    let now =
        Fingerprint::of(file.file()).map_err(|error| Error::io(format!("cannot read {place}"), error))?;
    match sealed.difference(&now) {
        None => Ok(()),
        Some(difference) => {
            Err(Error::new(Kind::Changed, format!("{place} was changed since it was sealed: {difference}")))
        }
    }
}

/// Opens a layer's file, locked as `way` says.
///
/// Between the opening and the locking a checkpoint may have put another file in the place: then it is done again.
pub(super) fn open_locked(
    folder: &Folder,
    name: &str,
    way: Way,
    place: &str,
    locks: &mut Vec<ImageLock>,
) -> Result<HostFile> {
    let access = if way.writable { FileAccess::Write } else { FileAccess::Read };
    let open = || -> io::Result<(HostFile, Option<ImageLock>)> {
        let file = folder.file(name, access)?;
        let lock = way.top.map(|role| ImageLock::take(file.file(), role)).transpose()?;
        Ok((file, lock))
    };
    for _ in 0..8 {
        let (file, lock) = open().map_err(|error| cannot_open(error, way, place))?;
        let opened = file.file().metadata().map_err(|error| cannot_open(error, way, place))?;
        let there = folder.stat(name).map_err(|error| cannot_open(error, way, place))?;
        if (opened.dev(), opened.ino()) == (there.st_dev, there.st_ino) {
            locks.extend(lock);
            return Ok(file);
        }
    }
    Err(Error::new(Kind::Busy, format!("{place} is being changed by another command; try again")))
}

fn cannot_open(error: io::Error, way: Way, place: &str) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock if way.top == Some(Role::Writer) => Error::new(
            Kind::Busy,
            format!(
                "{place} is in use by another process (a running VM, a mount, or a tool); stop that first"
            ),
        ),
        io::ErrorKind::WouldBlock => Error::new(
            Kind::Busy,
            format!(
                "{place} is being written by another process (a running VM, a mount, or a tool); stop that first"
            ),
        ),
        io::ErrorKind::InvalidInput => Error::corrupt(format!("{place}: its disk is not a regular file")),
        _ => Error::io(format!("cannot open the disk of {place}"), error),
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
pub(crate) mod gate_tests;
