//! What a base was when it was sealed, for reading it again.

use super::gate::{Trust, Way, open_locked};
use super::layout::{BASE_FILE, BASES, CLONE_DISK, CLONES, CRC_FILE, base_disk, checkpoint_disk};
use super::list::base_of;
use super::manifest;
use super::{Access, Base, BaseRef, Digest, Name, Store, checkpoint};
use crate::error::{Error, Kind, Result};
use crate::storage::{FileAccess, Fingerprint, Folder, ImageLock, Latch, Storage, seal};
use std::fs::File;
use std::io::{self, Seek};
use std::path::PathBuf;
use std::sync::Arc;

/// A base version as it was sealed.
#[derive(Debug)]
pub(crate) struct Seal {
    pub(crate) base: Base,
    /// The file of the sums of its blocks, at its start; `None` when they are not the ones that were sealed.
    pub(crate) crcs: Option<File>,
    /// Whether its file has the fingerprint of that day.
    pub(crate) untouched: bool,
}

/// One qcow2 file of a clone.
#[derive(Debug)]
pub(crate) struct CloneFile {
    /// Relative to the store.
    pub(crate) file: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
}

/// All qcow2 files of a clone, the active one first, with the locks on them.
#[derive(Debug)]
pub(crate) struct CloneFiles {
    pub(crate) layers: Vec<CloneFile>,
    _locks: Vec<ImageLock>,
}

impl Store {
    /// What is known of a base version without reading its disk.
    pub(crate) fn seal_of(&self, base: &BaseRef) -> Result<Seal> {
        let version = self.resolve(base)?;
        let exact = BaseRef::exact(base.name.clone(), version);
        let mut tries = 8;
        loop {
            let manifest = self.base_manifest(&base.name, version)?.ok_or_else(|| self.no_base(base))?;
            let fingerprint = manifest.fingerprint;
            let seal = self.seal_by(&exact, version, manifest);
            tries -= 1;
            // It may have been rewritten between the readings, to stand on another version.
            let rewritten = || -> Result<bool> {
                let now = self.base_manifest(&base.name, version)?;
                Ok(now.is_some_and(|now| now.fingerprint != fingerprint))
            };
            if tries == 0 || !rewritten()? {
                return seal;
            }
        }
    }

    fn seal_by(&self, base: &BaseRef, version: u32, manifest: manifest::BaseManifest) -> Result<Seal> {
        let folder = self.part(format!("{BASES}/{}/{version}", base.name))?;
        let blocks = manifest.size.div_ceil(super::BLOCK);
        let crcs = sealed_sums(&folder, blocks * 4, manifest.crc_digest).unwrap_or(None);
        let now = self.fingerprint_of(base)?;
        let untouched = manifest.fingerprint.difference(&now).is_none();
        Ok(Seal { base: base_of(&base.name, version, manifest), crcs, untouched })
    }

    /// The present fingerprint of a base version's file.
    pub(crate) fn fingerprint_of(&self, base: &BaseRef) -> Result<Fingerprint> {
        let base = self.base(base)?;
        let folder = self.part(format!("{BASES}/{}/{}", base.name, base.version))?;
        let file = folder.file(base_disk(base.format), FileAccess::Read);
        file.and_then(|file| Fingerprint::of(file.file()))
            .map_err(|error| cannot("read", &base, &folder, error))
    }

    /// Seals a base version anew; its file must still be what it was when `expected` was taken.
    pub(crate) fn reseal_base(&self, base: &BaseRef, expected: &Fingerprint) -> Result<Base> {
        let _lock = self.lock()?;
        let version = self.resolve(base)?;
        let mut manifest = self.base_manifest(&base.name, version)?.ok_or_else(|| self.no_base(base))?;
        let found = base_of(&base.name, version, manifest.clone());
        let folder = self.part(format!("{BASES}/{}/{version}", base.name))?;
        let write = || -> io::Result<Option<Fingerprint>> {
            let disk = folder.file(base_disk(manifest.format), FileAccess::Read)?;
            if expected.difference(&Fingerprint::of(disk.file())?).is_some() {
                return Ok(None);
            }
            seal(&disk)?;
            disk.sync_all()?;
            Fingerprint::of(disk.file()).map(Some)
        };
        let fingerprint = write().map_err(|error| cannot("seal", &found, &folder, error))?;
        let sealed = fingerprint.filter(|now| expected.without_ctime() == now.without_ctime());
        manifest.fingerprint = sealed.ok_or_else(|| {
            Error::new(Kind::Changed, format!("base {base} was changed while it was read; find out by whom"))
        })?;
        folder
            .replace_small(BASE_FILE, &manifest::bytes(&manifest)?)
            .map_err(|error| cannot("seal", &found, &folder, error))?;
        Ok(base_of(&base.name, version, manifest))
    }

    /// The files of a clone, for checking their structure: nothing about them is believed.
    pub(crate) fn clone_files(&self, name: &Name, access: Access) -> Result<CloneFiles> {
        self.clone_manifest(name)?;
        // Of a clone that cannot be opened the files are checked as they are.
        let _ = self.settle_log(name);
        let folder = self.clone_folder(name)?;
        let numbers = checkpoint::finished(&folder)
            .map_err(|error| Error::io(format!("cannot list the checkpoints of clone {name}"), error))?;
        let mut locks = Vec::new();
        let mut layers = Vec::new();
        let names = std::iter::once(CLONE_DISK.to_owned()).chain(numbers.into_iter().map(checkpoint_disk));
        for (number, disk) in names.enumerate() {
            let access = if number == 0 { access } else { Access::Read };
            let way = Way { trust: Trust::Nothing, ..Way::of(access) };
            let file = open_locked(&folder, &disk, way, &format!("clone {name}"), &mut locks)?;
            let mut storage: Arc<dyn Storage> = Arc::new(file);
            if way.writable {
                storage = Arc::new(Latch::new(storage));
            }
            let file = PathBuf::from(format!("{CLONES}/{name}/{disk}"));
            layers.push(CloneFile { file, storage });
        }
        Ok(CloneFiles { layers, _locks: locks })
    }
}

/// The file of the block sums, if it has the length and the digest that were sealed.
fn sealed_sums(folder: &Folder, len: u64, digest: Digest) -> io::Result<Option<File>> {
    let mut file = folder.file(CRC_FILE, FileAccess::Read)?.to_file()?;
    if file.metadata()?.len() != len {
        return Ok(None);
    }
    let found = blake3::Hasher::new().update_reader(&mut file)?.finalize();
    file.rewind()?;
    Ok((Digest(found.into()) == digest).then_some(file))
}

fn cannot(what: &str, base: &Base, folder: &Folder, error: io::Error) -> Error {
    let place = format!("base {}@{}", base.name, base.version);
    Error::io(
        format!("{place}: cannot {what} {}", folder.path().join(base_disk(base.format)).display()),
        error,
    )
}
