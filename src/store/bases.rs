//! How a base version comes into the store.

use super::gate::{Chain, Way};
use super::layout::{BASE_FILE, BASES, CRC_FILE, backing_of_base, base_disk};
use super::list::base_of;
use super::manifest::{self, BaseManifest, FORMAT};
use super::staging::Staging;
use super::{Access, Base, BaseRef, BlockSum, DiskFormat, Name, OpenDisk, Store, Sums, time};
use crate::disk::Layer;
use crate::error::{Error, Result};
use crate::qcow2::{self, BackingName, CreateOptions, Image, OpenOptions};
use crate::storage::{FileAccess, Fingerprint, Folder, HostFile, Storage, seal};
use crate::units::{HostOffset, length};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The number of the first version.
const FIRST: u32 = 1;
/// A version is stored whole when so many stand below it: each costs every reader of the ones above.
const VERSIONS_DEEP: usize = 16;

/// A base version that is being made in `tmp`; gone again when dropped.
#[derive(Debug)]
pub(crate) struct NewBase {
    store: Store,
    name: Name,
    /// The version before it.
    before: Option<Base>,
    /// Whether it must be the very next one.
    next: bool,
    staging: Staging,
}

/// What a base version becomes, when its disk is written.
pub(crate) struct Finished {
    /// How its disk is stored.
    pub(crate) format: DiskFormat,
    /// Whether it is a delta over the version before it.
    pub(crate) is_delta: bool,
    /// Size of the disk in bytes.
    pub(crate) size: u64,
    /// The sums of its content.
    pub(crate) sums: Sums,
    /// The list of them.
    pub(crate) list: SumFile,
}

impl Store {
    /// Begins a base, version 1.
    pub(crate) fn new_base(&self, name: &Name) -> Result<NewBase> {
        let lock = self.lock()?;
        self.refuse_taken(name)?;
        let staging = stage(&lock, name)?;
        Ok(NewBase { store: self.clone(), name: name.clone(), before: None, next: false, staging })
    }

    /// Begins the next version of a base.
    pub(crate) fn new_version(&self, name: &Name) -> Result<NewBase> {
        let lock = self.lock()?;
        let before = Some(self.base(&BaseRef { name: name.clone(), version: None })?);
        let staging = stage(&lock, name)?;
        Ok(NewBase { store: self.clone(), name: name.clone(), before, next: false, staging })
    }

    /// Begins the version that follows `before`: no other one comes between them.
    ///
    /// # Errors
    /// `NotFound`, `Changed` when `before` is not the newest any more, the host's.
    pub(crate) fn next_version(&self, before: &Base) -> Result<NewBase> {
        let new = self.new_version(&before.name)?;
        match &new.before {
            Some(newest) if newest.id() == before.id() => Ok(NewBase { next: true, ..new }),
            _ => Err(overtaken(before)),
        }
    }

    /// The empty `file` at `path` as a delta of `size` bytes over a version (over nothing, when `None`), open for
    /// writing, in a folder beside that version's.
    pub(super) fn chain_over(
        &self,
        below: Option<&Base>,
        file: HostFile,
        path: PathBuf,
        size: u64,
    ) -> Result<Chain> {
        let mut options = CreateOptions::new(size);
        options.backing = below.map(|below| BackingName {
            file: backing_of_base(below.version, below.format),
            format: Some(below.format.as_str().to_owned()),
        });
        qcow2::create(&file, &options)?;
        let mut chain = Chain::default();
        if let Some(below) = below {
            self.push_base(&mut chain, &below.name, below.version, Way::of(Access::Read))?;
        }
        let options = OpenOptions { writable: true, metadata_cache: self.metadata_cache };
        chain.layers.insert(0, Layer::qcow2(Image::open(Arc::new(file), options)?));
        chain.files.insert(0, path);
        Ok(chain)
    }
}

fn overtaken(before: &Base) -> Error {
    let message = format!("another version came after {} meanwhile; run it again", before.id());
    Error::new(crate::error::Kind::Changed, message)
}

/// Seals the disk of a version in its staged folder and writes the manifest that `manifest` makes of the fingerprint;
/// all of it is durable then, but for the folder's own name.
pub(super) fn seal_in(
    folder: &Folder,
    format: DiskFormat,
    list: SumFile,
    manifest: impl FnOnce(Fingerprint) -> BaseManifest,
) -> Result<BaseManifest> {
    let cannot = |error| Error::io(format!("cannot write {}", folder.path().display()), error);
    list.finish().map_err(cannot)?;
    let disk = folder.file(base_disk(format), FileAccess::Read).map_err(cannot)?;
    seal(&disk).map_err(cannot)?;
    // After the sealing, so that the times which the fingerprint has are durable too.
    disk.sync_all().map_err(cannot)?;
    let manifest = manifest(Fingerprint::of(disk.file()).map_err(cannot)?);
    folder.create_small(BASE_FILE, &manifest::bytes(&manifest)?, true).map_err(cannot)?;
    folder.sync().map_err(cannot)?;
    Ok(manifest)
}

/// A staging folder with an empty folder for the version in it.
fn stage(lock: &super::staging::StoreLock, name: &Name) -> Result<Staging> {
    let staging = lock.stage()?;
    let make = || {
        staging.folder().make_folder(name.as_str())?;
        staging.folder().folder(name.as_str())?.make_folder(FIRST.to_string())
    };
    make().map_err(|error| Error::io(format!("cannot make a folder for base {name}"), error))?;
    Ok(staging)
}

impl NewBase {
    /// The folder that becomes the version's.
    pub(crate) fn folder(&self) -> Result<Folder> {
        self.versions()
            .and_then(|versions| versions.folder(FIRST.to_string()))
            .map_err(|error| self.cannot(error))
    }

    fn versions(&self) -> io::Result<Folder> {
        self.staging.folder().folder(self.name.as_str())
    }

    fn cannot(&self, error: io::Error) -> Error {
        Error::io(format!("cannot write base {}", self.name), error)
    }

    /// The empty file that becomes the base's disk.
    pub(crate) fn create_disk(&self, format: DiskFormat) -> Result<HostFile> {
        self.folder()?.create(base_disk(format)).map_err(|error| self.cannot(error))
    }

    /// The version before it, open for reading; `None` when there is none, or when too many stand below that one.
    pub(crate) fn open_before(&self) -> Result<Option<OpenDisk>> {
        let Some(before) = &self.before else { return Ok(None) };
        let open = self.store.open_base(&BaseRef::exact(self.name.clone(), before.version))?;
        Ok((open.disk.layers().len() < VERSIONS_DEEP).then_some(open))
    }

    /// An empty delta of `size` bytes over the version before it, open for writing; not durable before it is closed.
    pub(crate) fn create_delta(&self, size: u64) -> Result<OpenDisk> {
        let Some(before) = &self.before else { return Err(Error::invalid("a first version is no delta")) };
        let file = self.create_disk(DiskFormat::Qcow2)?;
        let chain = self.store.chain_over(Some(before), file, self.disk_path(DiskFormat::Qcow2), size)?;
        OpenDisk::new(chain, format!("new version of {}", self.name), true)
    }

    /// Throws a disk away, for a version that is stored in the other format after all.
    pub(crate) fn remove_disk(&self, format: DiskFormat) -> Result<()> {
        self.folder()?.unlink_if_there(base_disk(format)).map_err(|error| self.cannot(error))
    }

    /// Another handle on the base's disk.
    pub(crate) fn open_disk(&self, format: DiskFormat) -> Result<HostFile> {
        self.folder()?.file(base_disk(format), FileAccess::Write).map_err(|error| self.cannot(error))
    }

    /// The empty list of the disk's block sums; a list that was begun is begun anew.
    pub(crate) fn create_sums(&self) -> Result<SumFile> {
        let folder = self.folder()?;
        folder.unlink_if_there(CRC_FILE).map_err(|error| self.cannot(error))?;
        Ok(SumFile::new(folder))
    }

    /// Seals the disk and puts the version in its place; `source` says where it came from, for people to read.
    pub(crate) fn commit(mut self, finished: Finished, source: &str) -> Result<Base> {
        let manifest = self.seal(finished, source)?;
        let _lock = self.store.lock()?;
        let Some(before) = self.before.clone() else {
            self.store.refuse_taken(&self.name)?;
            let bases = self.store.part(BASES)?;
            // An empty folder has no name.
            let _ = bases.remove_folder(self.name.as_str());
            self.staging.put(self.name.as_str(), &bases).map_err(|error| self.cannot(error))?;
            return Ok(base_of(&self.name, FIRST, manifest));
        };
        let known = self.store.versions(&self.name)?;
        // Somebody may have added a version meanwhile: this one stands on what it was compared with all the same.
        let now = self.store.base_manifest(&self.name, before.version)?.map(|manifest| manifest.digest);
        let (Some(last), Some(digest)) = (known.last(), now) else { return Err(self.lost(&before)) };
        if digest != before.digest {
            return Err(self.lost(&before));
        }
        if self.next && *last != before.version {
            return Err(overtaken(&before));
        }
        let version = last.checked_add(1).ok_or_else(|| Error::invalid("there is no version number left"))?;
        let cannot = |error| Error::io(format!("cannot write base {}", self.name), error);
        let versions = self.store.part(format!("{BASES}/{}", self.name))?;
        let staged = self.staging.folder().folder(self.name.as_str()).map_err(cannot)?;
        self.staging
            .put_as((&staged, &FIRST.to_string()), (&versions, &version.to_string()))
            .map_err(cannot)?;
        Ok(base_of(&self.name, version, manifest))
    }

    fn lost(&self, before: &Base) -> Error {
        let base = BaseRef::exact(self.name.clone(), before.version);
        Error::new(
            crate::error::Kind::Changed,
            format!("base {base} was removed or replaced while its next version was made; import again"),
        )
    }

    fn seal(&self, finished: Finished, source: &str) -> Result<BaseManifest> {
        let Finished { format, is_delta, size, sums, list } = finished;
        let manifest = seal_in(&self.folder()?, format, list, |fingerprint| BaseManifest {
            manifest: FORMAT,
            format,
            digest: sums.digest,
            size,
            parent: self.before.as_ref().filter(|_| is_delta).map(|before| before.version),
            source: manifest::tame(source),
            created: time::now(),
            fingerprint,
            crc_digest: sums.crc_digest,
        })?;
        self.versions().and_then(|versions| versions.sync()).map_err(|error| self.cannot(error))?;
        Ok(manifest)
    }

    /// Where the base's disk is while it is made, for a child that writes it.
    pub(crate) fn disk_path(&self, format: DiskFormat) -> PathBuf {
        let version = self.staging.folder().path().join(self.name.as_str()).join(FIRST.to_string());
        version.join(base_disk(format))
    }
}

/// `blocks.crc` in the making: written as the disk is read, because for the largest disk it is 1 GiB.
#[derive(Debug)]
pub(crate) struct SumFile {
    folder: Folder,
    /// Made when the first piece is complete, or at the end.
    file: Option<HostFile>,
    written: u64,
    rest: Vec<u8>,
}

/// Sums are written in pieces of this many bytes.
const SUM_PIECE: usize = 64 << 10;

impl SumFile {
    pub(super) fn new(folder: Folder) -> Self {
        Self { folder, file: None, written: 0, rest: Vec::new() }
    }

    /// The next block's.
    pub(crate) fn push(&mut self, sum: &BlockSum) -> Result<()> {
        self.rest.extend(sum.crc());
        if self.rest.len() < SUM_PIECE {
            return Ok(());
        }
        self.write().map(drop).map_err(|error| Error::io("cannot write the sums of the blocks", error))
    }

    fn write(&mut self) -> io::Result<&HostFile> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.folder.create(CRC_FILE)?,
        };
        let file = self.file.insert(file);
        file.write_at(&self.rest, HostOffset(self.written))?;
        self.written += length(self.rest.len());
        self.rest.clear();
        Ok(file)
    }

    /// All of it is written, durably but for its name.
    fn finish(mut self) -> io::Result<()> {
        self.write()?.sync_all()
    }
}
