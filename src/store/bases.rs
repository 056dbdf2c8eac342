//! How a base comes into the store.

use super::layout::{BASE_FILE, BASES, CRC_FILE, base_disk};
use super::list::base_of;
use super::manifest::{self, BaseManifest, FORMAT};
use super::staging::Staging;
use super::{Base, BlockSum, DiskFormat, Name, Store, Sums, time};
use crate::error::{Error, Result};
use crate::storage::{FileAccess, Fingerprint, Folder, HostFile, Storage, seal};
use crate::units::{HostOffset, length};
use std::io;

/// The version that an import makes.
const FIRST: &str = "1";

/// A base that is being made in `tmp`; gone again when dropped.
#[derive(Debug)]
pub(crate) struct NewBase {
    store: Store,
    name: Name,
    staging: Staging,
}

impl Store {
    /// Begins a base, version 1.
    pub(crate) fn new_base(&self, name: &Name) -> Result<NewBase> {
        let lock = self.lock()?;
        self.refuse_taken(name)?;
        let staging = lock.stage()?;
        let make = || {
            staging
                .folder()
                .make_folder(name.as_str())
                .and_then(|()| staging.folder().folder(name.as_str())?.make_folder(FIRST))
        };
        make().map_err(|error| Error::io(format!("cannot make a folder for base {name}"), error))?;
        Ok(NewBase { store: self.clone(), name: name.clone(), staging })
    }
}

impl NewBase {
    /// The folder that becomes the base's.
    pub(crate) fn folder(&self) -> Result<Folder> {
        self.versions().and_then(|versions| versions.folder(FIRST)).map_err(|error| self.cannot(error))
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

    /// The base's disk, written by somebody else.
    pub(crate) fn open_disk(&self, format: DiskFormat) -> Result<HostFile> {
        self.folder()?.file(base_disk(format), FileAccess::Write).map_err(|error| self.cannot(error))
    }

    /// The empty list of the disk's block sums.
    pub(crate) fn create_sums(&self) -> Result<SumFile> {
        Ok(SumFile { folder: self.folder()?, file: None, written: 0, rest: Vec::new() })
    }

    /// Seals the raw disk, whose content has `sums`, and puts the base in its place.
    pub(crate) fn commit(mut self, size: u64, sums: &Sums, list: SumFile, source: &str) -> Result<Base> {
        let manifest = self.seal(size, sums, list, source)?;
        let _lock = self.store.lock()?;
        self.store.refuse_taken(&self.name)?;
        let bases = self.store.part(BASES)?;
        // An empty folder has no name.
        let _ = bases.remove_folder(self.name.as_str());
        self.staging.put(self.name.as_str(), &bases).map_err(|error| self.cannot(error))?;
        Ok(base_of(&self.name, 1, manifest))
    }

    fn seal(&self, size: u64, sums: &Sums, list: SumFile, source: &str) -> Result<BaseManifest> {
        let folder = self.folder()?;
        let write = move || -> Result<BaseManifest> {
            let cannot = |error| self.cannot(error);
            list.finish().map_err(cannot)?;
            let disk = folder.file(base_disk(DiskFormat::Raw), FileAccess::Read).map_err(cannot)?;
            seal(&disk).map_err(cannot)?;
            // After the sealing, so that the times which the fingerprint has are durable too.
            disk.sync_all().map_err(cannot)?;
            let manifest = BaseManifest {
                manifest: FORMAT,
                format: DiskFormat::Raw,
                digest: sums.digest,
                size,
                parent: None,
                source: manifest::tame(source),
                created: time::now(),
                fingerprint: Fingerprint::of(disk.file()).map_err(cannot)?,
                crc_digest: sums.crc_digest,
            };
            folder.create_small(BASE_FILE, &manifest::bytes(&manifest)?, true).map_err(cannot)?;
            folder.sync().map_err(cannot)?;
            self.versions().and_then(|versions| versions.sync()).map_err(cannot)?;
            Ok(manifest)
        };
        write()
    }

    /// Where the base's disk is while it is made, for a child that writes it.
    pub(crate) fn disk_path(&self, format: DiskFormat) -> std::path::PathBuf {
        self.staging.folder().path().join(self.name.as_str()).join(FIRST).join(base_disk(format))
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
