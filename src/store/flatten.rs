//! A base version is rewritten to stand on an earlier one than it does, or on none: what it stood on may go then.
//!
//! Its content, its digest and the name of its file stay, so that clones and later versions notice nothing. The new
//! folder is staged whole and exchanged with the old one in one step.

use super::bases::{SumFile, seal_in};
use super::layout::{BASES, base_disk};
use super::manifest::BaseManifest;
use super::staging::Staging;
use super::usage;
use super::{Base, BaseRef, DiskFormat, OpenDisk, Store, Sums};
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::storage::Folder;
use std::io;

/// A version that is being rewritten; nothing is changed before [`Flatten::publish`], and nothing is left when it is
/// dropped.
#[derive(Debug)]
pub(crate) struct Flatten {
    store: Store,
    base: BaseRef,
    version: u32,
    /// What it is now.
    manifest: BaseManifest,
    onto: Option<Base>,
    old: OpenDisk,
    below: Option<OpenDisk>,
    new: OpenDisk,
    staged: Folder,
    staging: Staging,
}

/// What a version that was rewritten takes on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flattened {
    /// Bytes of host blocks before.
    pub(crate) before: u64,
    /// And now.
    pub(crate) after: u64,
}

impl Store {
    /// Begins to rewrite a version that stands on another one, to stand on version `onto`, or on none.
    ///
    /// # Errors
    /// `NotFound`, `Changed`, `Invalid` for a version that stands on nothing, the host's.
    pub(crate) fn begin_flatten(&self, base: &Base, onto: Option<u32>) -> Result<Flatten> {
        let exact = |version| BaseRef::exact(base.name.clone(), version);
        let (name, version) = (exact(base.version), base.version);
        let manifest = self.base_manifest(&base.name, version)?.ok_or_else(|| self.no_base(&name))?;
        if manifest.parent.is_none_or(|parent| onto.is_some_and(|onto| onto >= parent)) {
            return Err(Error::invalid(format!("base {name} stands on nothing that could be left out")));
        }
        let old = self.open_base(&name)?;
        let onto = onto.map(|onto| self.base(&exact(onto))).transpose()?;
        let below = onto.as_ref().map(|onto| self.open_base(&exact(onto.version))).transpose()?;
        let staging = self.lock()?.stage()?;
        let make = || -> io::Result<_> {
            staging.folder().make_folder(version.to_string())?;
            let staged = staging.folder().folder(version.to_string())?;
            let file = staged.create(base_disk(DiskFormat::Qcow2))?;
            Ok((staged, file))
        };
        let (staged, file) = make().map_err(|error| cannot(&name, error))?;
        let path = staged.path().join(base_disk(DiskFormat::Qcow2));
        let chain = self.chain_over(onto.as_ref(), file, path, manifest.size)?;
        let new = OpenDisk::new(chain, format!("new file of base {name}"), true)?;
        Ok(Flatten {
            store: self.clone(),
            base: name,
            version,
            manifest,
            onto,
            old,
            below,
            new,
            staged,
            staging,
        })
    }
}

impl Flatten {
    /// The version as it is.
    pub(crate) fn old(&self) -> &Disk {
        &self.old.disk
    }

    /// What it will stand on, whose layers are the lowest of the old disk's, too.
    pub(crate) fn below(&self) -> Option<&Disk> {
        self.below.as_ref().map(|below| &below.disk)
    }

    /// The version as it will be: nothing is in its own layer yet.
    pub(crate) fn new_disk(&self) -> &Disk {
        &self.new.disk
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.manifest.size
    }

    /// The empty list of its block sums.
    pub(crate) fn create_sums(&self) -> Result<SumFile> {
        let staged = self.staged.try_clone().map_err(|error| cannot(&self.base, error))?;
        Ok(SumFile::new(staged))
    }

    /// Puts the new file in the old one's place, if `sums`, those of what was written, are the ones that were sealed.
    ///
    /// # Errors
    /// `Changed` when they are not, or when something was removed or rewritten meanwhile; `Unsupported` where the
    /// filesystem cannot exchange folders; the host's. The version is then as it was.
    pub(crate) fn publish(self, sums: &Sums, list: SumFile) -> Result<Flattened> {
        let Self { store, base, version, manifest, onto, old, below, new, staged, mut staging } = self;
        if (sums.digest, sums.crc_digest) != (manifest.digest, manifest.crc_digest) {
            let hint = format!("`cowshed verify {base}` tells more; it is left as it is");
            return Err(Error::new(
                Kind::Changed,
                format!("base {base} does not hold what was sealed; {hint}"),
            ));
        }
        new.close()?;
        // Their files go, or stay, with others.
        drop((old, below));
        seal_in(&staged, DiskFormat::Qcow2, list, |fingerprint| BaseManifest {
            parent: onto.as_ref().map(|onto| onto.version),
            fingerprint,
            ..manifest.clone()
        })?;
        let lock = store.lock()?;
        store.refuse_changed(&base, &manifest, onto.as_ref())?;
        let versions = store.part(format!("{BASES}/{}", base.name))?;
        let name = version.to_string();
        let blocks = || -> io::Result<Flattened> {
            let before = usage::of_folder(&versions.folder(&name)?)?.own;
            Ok(Flattened { before, after: usage::of_folder(&staged)?.own })
        };
        let flattened = blocks().map_err(|error| cannot(&base, error))?;
        staging.exchange(&name, &versions).map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => Error::unsupported(format!(
                "base {base} cannot be rewritten: the store's filesystem cannot exchange two folders in one step; \
                 nothing is changed"
            )),
            _ => cannot(&base, error),
        })?;
        drop(lock);
        staging.remove().map(|()| flattened).map_err(|error| {
            let message = format!("base {base} is rewritten, but its former blocks could not be given back");
            Error::io(message, error)
        })
    }
}

impl Store {
    /// Refuses when a version is not what it was, or what it shall stand on is not there any more.
    fn refuse_changed(&self, base: &BaseRef, was: &BaseManifest, onto: Option<&Base>) -> Result<()> {
        let now = match base.version {
            Some(version) => self.base_manifest(&base.name, version)?,
            None => None,
        };
        let same = now.is_some_and(|now| now.fingerprint == was.fingerprint && now.parent == was.parent);
        let there = match onto {
            Some(onto) => {
                let now = self.base_manifest(&onto.name, onto.version)?;
                now.is_some_and(|now| now.digest == onto.digest)
            }
            None => true,
        };
        match same && there {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Changed,
                format!("base {base} was changed by another command meanwhile; run this again"),
            )),
        }
    }
}

fn cannot(base: &BaseRef, error: io::Error) -> Error {
    Error::io(format!("cannot rewrite base {base}"), error)
}
