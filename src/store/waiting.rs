//! What waits: a clone for its next start, to be put on another base version then; a base for the rest of its clones, to
//! follow those of a canary run. One small file each, put in place by one rename.

use super::layout::{BASES, CANARY_FILE, CLONES, WAITING_FILE};
use super::manifest::{self, CanaryManifest, FORMAT, WaitingManifest};
use super::staging::StoreLock;
use super::{BaseId, BaseRef, Canary, Name, Store, Strategy, Waiting, time};
use crate::error::{Error, Kind, Result};
use crate::storage::Folder;
use std::io;

impl Store {
    /// Writes down that a clone is put on the base version `onto` when it is next started, in the place of what waited
    /// before. Nothing waits when it stands on that version already. The clone may be in use.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for rules of more than 1 MiB; the host's.
    pub fn wait_for_start(
        &self,
        name: &Name,
        onto: &BaseRef,
        strategy: Strategy,
        rules: &str,
    ) -> Result<Option<Waiting>> {
        let lock = self.lock()?;
        let (from, onto) = (self.clone_manifest(name)?.base, self.base(onto)?.id());
        let (folder, place) = (self.clone_folder(name)?, format!("clone {name}"));
        if from == onto {
            forget(&folder, WAITING_FILE).map_err(|error| cannot(&place, error))?;
            return Ok(None);
        }
        let (rules, created) = (rules.to_owned(), time::now());
        let manifest = WaitingManifest { manifest: FORMAT, from, onto, strategy, rules, created };
        put(&lock, &folder, WAITING_FILE, &manifest, &place)?;
        Ok(Some(waiting_of(manifest)))
    }

    /// The rebase that waits for a clone's next start.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, the host's.
    pub fn waiting(&self, name: &Name) -> Result<Option<Waiting>> {
        let base = self.clone_manifest(name)?.base;
        self.waiting_on(name, &base)
    }

    /// The same of a clone that stands on `base`: what was said when it stood on another one does not count any more.
    pub(super) fn waiting_on(&self, name: &Name, base: &BaseId) -> Result<Option<Waiting>> {
        let file = format!("{CLONES}/{name}/{WAITING_FILE}");
        let found: Option<WaitingManifest> = manifest::load(self.folder(), &file).map_err(|error| {
            let hint = format!("`cowshed rebase {name} --at-next-start --cancel` removes it");
            match error.kind() {
                Kind::Corrupt => Error::corrupt(format!("{error}; {hint}")),
                _ => error,
            }
        })?;
        Ok(found.filter(|found| found.from == *base).map(waiting_of))
    }

    /// Takes back what waits for a clone's next start; whether anything did. What cannot be read is taken back as well.
    ///
    /// # Errors
    /// `NotFound`, the host's.
    pub fn stop_waiting(&self, name: &Name) -> Result<bool> {
        let _lock = self.lock()?;
        let folder = self.clone_folder(name)?;
        let waits = !matches!(self.waiting(name), Ok(None));
        forget(&folder, WAITING_FILE).map_err(|error| cannot(&format!("clone {name}"), error))?;
        Ok(waits)
    }

    /// Writes down what a canary run of a base is told to do, in the place of what the last one was.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it is too long; the host's.
    pub fn note_canary(&self, run: &Canary) -> Result<()> {
        let lock = self.lock()?;
        let name = &run.onto.name;
        let folder = self.base_folder(name)?;
        let manifest = CanaryManifest { manifest: FORMAT, run: run.clone(), created: time::now() };
        put(&lock, &folder, CANARY_FILE, &manifest, &format!("base {name}"))
    }

    /// What the last canary run of a base was told to do, if the rest has not followed yet.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, the host's.
    pub fn canary(&self, base: &Name) -> Result<Option<Canary>> {
        let found: Option<CanaryManifest> = manifest::load(&self.base_folder(base)?, CANARY_FILE)?;
        // A base that was renamed has no clones that a run could go on with.
        Ok(found.map(|found| found.run).filter(|run| run.onto.name == *base))
    }

    /// Forgets the canary run of a base.
    ///
    /// # Errors
    /// `NotFound`, the host's.
    pub fn forget_canary(&self, base: &Name) -> Result<()> {
        let _lock = self.lock()?;
        forget(&self.base_folder(base)?, CANARY_FILE).map_err(|error| cannot(&format!("base {base}"), error))
    }

    /// The folder of all versions of a base.
    fn base_folder(&self, name: &Name) -> Result<Folder> {
        self.part(format!("{BASES}/{name}")).map_err(|error| match error.kind() {
            Kind::NotFound => self.no_base(&BaseRef { name: name.clone(), version: None }),
            _ => error,
        })
    }
}

/// Removes what waits in a clone's folder when it was said of another base than `base`: should a cut bring it back, it
/// means nothing. The caller holds the store's lock.
pub(super) fn forget_of_other(folder: &Folder, base: &BaseId) -> io::Result<()> {
    match manifest::load::<WaitingManifest>(folder, WAITING_FILE) {
        Ok(Some(waiting)) if waiting.from != *base => folder.unlink_if_there(WAITING_FILE),
        // One that cannot be read is told of by who wants to do it.
        _ => Ok(()),
    }
}

fn waiting_of(manifest: WaitingManifest) -> Waiting {
    let WaitingManifest { onto, strategy, created, rules, .. } = manifest;
    Waiting { onto, strategy, created, rules }
}

fn put<T: manifest::Valid>(
    lock: &StoreLock,
    folder: &Folder,
    file: &str,
    manifest: &T,
    place: &str,
) -> Result<()> {
    if let Some(fault) = manifest.fault() {
        return Err(Error::invalid(format!("this cannot be kept for later: {fault}")));
    }
    let (bytes, staging) = (manifest::bytes(manifest)?, lock.stage()?);
    let put = || -> io::Result<()> {
        staging.folder().create_small(file, &bytes, true)?;
        staging.folder().move_over(file, folder, file)?;
        folder.sync()
    };
    put().map_err(|error| cannot(place, error))
}

fn forget(folder: &Folder, file: &str) -> io::Result<()> {
    if folder.has(file)? {
        folder.unlink_if_there(file)?;
        folder.sync()?;
    }
    Ok(())
}

fn cannot(place: &str, error: io::Error) -> Error {
    Error::io(format!("cannot change what waits for {place}"), error)
}
