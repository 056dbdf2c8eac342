//! What is in a store.

use super::layout::{BASE_FILE, BASES, CLONE_DISK, CLONE_FILE, CLONES, checkpoint_file, checkpoint_of_file};
use super::manifest::{self, BaseManifest, CheckpointManifest, CloneManifest};
use super::name::parse_version;
use super::types::Clone;
use super::{Base, BaseId, BaseRef, Broken, Name, Store, Survey, Target};
use crate::error::{Error, Kind, Result};
use crate::qcow2;
use crate::storage::{FileAccess, Folder};
use rayon::prelude::*;

impl Store {
    /// Reads all manifests. A broken one keeps nothing else from being found; what vanishes meanwhile is left out.
    ///
    /// # Errors
    /// The host's, for the store's own folders.
    pub fn survey(&self) -> Result<Survey> {
        let (bases, mut broken) = self.survey_bases()?;
        let (clones, broken_clones) = self.survey_clones()?;
        broken.extend(broken_clones);
        Ok(Survey { bases, clones, broken })
    }

    /// Every version of every base, sorted by name and version.
    ///
    /// # Errors
    /// `Corrupt` for a broken manifest; the host's.
    pub fn bases(&self) -> Result<Vec<Base>> {
        whole(self.survey_bases()?)
    }

    /// All clones, sorted by name.
    ///
    /// # Errors
    /// `Corrupt` for a broken manifest (`cowshed rm` removes such a clone); the host's.
    pub fn clones(&self) -> Result<Vec<Clone>> {
        whole(self.survey_clones()?)
    }

    fn survey_bases(&self) -> Result<(Vec<Base>, Vec<Broken>)> {
        let (mut bases, mut broken) = (Vec::new(), Vec::new());
        for name in valid_names(&self.part(BASES)?)? {
            let versions = match self.versions(&name) {
                Ok(versions) => versions,
                Err(error) => {
                    broken.push(Broken::new("base", name.to_string(), &error));
                    continue;
                }
            };
            for version in versions {
                let read = || self.base_manifest(&name, version);
                match self.present(&format!("{BASES}/{name}/{version}"), BASE_FILE, read) {
                    Ok(Some(manifest)) => bases.push(base_of(&name, version, manifest)),
                    Ok(None) => {}
                    Err(error) => broken.push(Broken::new("base", format!("{name}@{version}"), &error)),
                }
            }
        }
        Ok((bases, broken))
    }

    fn survey_clones(&self) -> Result<(Vec<Clone>, Vec<Broken>)> {
        let folder = self.part(CLONES)?;
        let (mut clones, mut broken) = (Vec::new(), Vec::new());
        let names = valid_names(&folder)?;
        for found in of_each(&names, |name| self.survey_clone(&folder, name)) {
            match found {
                Ok(Some(clone)) => clones.push(clone),
                Ok(None) => {}
                Err(found) => broken.push(found),
            }
        }
        Ok((clones, broken))
    }

    fn survey_clone(&self, folder: &Folder, name: &Name) -> std::result::Result<Option<Clone>, Broken> {
        let read = || {
            let manifest = manifest::load(folder, &format!("{name}/{CLONE_FILE}"))?;
            manifest.map(|manifest| self.settled(name, manifest)).transpose()
        };
        let clone = match self.present(&format!("{CLONES}/{name}"), CLONE_FILE, read) {
            Ok(Some(manifest)) => clone_of(name, manifest),
            Ok(None) => return Ok(None),
            Err(error) => return Err(Broken::new("clone", name.to_string(), &error)),
        };
        match self.waiting_on(name, &clone.base) {
            Ok(waiting) => Ok(Some(Clone { waiting, ..clone })),
            Err(error) => Err(Broken::with_hint("clone", name.to_string(), &error)),
        }
    }

    /// What `read` reads; `None` when there is no such folder any more. A folder without its manifest is an error.
    fn present<T>(
        &self,
        folder: &str,
        file: &str,
        read: impl Fn() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        // The second time for one that was removed and made anew between the reading and the look at the folder.
        for _ in 0..2 {
            if let Some(manifest) = read()? {
                return Ok(Some(manifest));
            }
            if !self.folder().has(folder).map_err(|error| cannot_list(self.folder(), error))? {
                return Ok(None);
            }
        }
        Err(Error::corrupt(format!("{} has no {file}", self.root().join(folder).display())))
    }

    /// One base version; without a version the newest.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, the host's.
    pub fn base(&self, base: &BaseRef) -> Result<Base> {
        let version = self.resolve(base)?;
        match self.base_manifest(&base.name, version)? {
            Some(manifest) => Ok(base_of(&base.name, version, manifest)),
            None => Err(self.no_base(base)),
        }
    }

    /// One clone.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, the host's.
    pub fn clone_named(&self, name: &Name) -> Result<Clone> {
        let clone = clone_of(name, self.clone_manifest(name)?);
        Ok(Clone { waiting: self.waiting_on(name, &clone.base)?, ..clone })
    }

    /// What `NAME` or `NAME@V` means: a clone and a base never have the same name.
    ///
    /// # Errors
    /// `NotFound`, the host's.
    pub fn find(&self, what: &BaseRef) -> Result<Target> {
        if what.version.is_none() && self.is_clone(&what.name)? {
            return Ok(Target::Clone(what.name.clone()));
        }
        if !self.versions(&what.name)?.is_empty() {
            let version = self.resolve(what)?;
            return Ok(Target::Base(BaseRef::exact(what.name.clone(), version)));
        }
        let kind = if what.version.is_none() { "clone or base" } else { "base" };
        Err(Error::new(
            Kind::NotFound,
            format!("there is no {kind} {what}; `cowshed list` shows what there is"),
        ))
    }

    /// The clones that stand on a base version (on any version, when none is given), by themselves or by a checkpoint, or
    /// will from their next start on; sorted.
    ///
    /// # Errors
    /// `Corrupt`, the host's.
    pub fn clones_of(&self, base: &BaseRef) -> Result<Vec<Name>> {
        let is =
            |id: &BaseId| id.name == base.name && base.version.is_none_or(|version| id.version == version);
        let mut found = Vec::new();
        for clone in self.clones()? {
            match self.bases_below(&clone) {
                Ok(below) if below.iter().any(is) => found.push(clone.name),
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(found)
    }

    /// The version that `base` means.
    pub(super) fn resolve(&self, base: &BaseRef) -> Result<u32> {
        match base.version {
            Some(version) => Ok(version),
            None => self.versions(&base.name)?.last().copied().ok_or_else(|| self.no_base(base)),
        }
    }

    /// Versions of a base in order; none when there is no such base. No manifest is read.
    ///
    /// # Errors
    /// The host's.
    pub fn versions(&self, name: &Name) -> Result<Vec<u32>> {
        let folder = match self.part(format!("{BASES}/{name}")) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let names = folder.names().map_err(|error| cannot_list(&folder, error))?;
        let mut versions: Vec<u32> = names.iter().filter_map(|name| parse_version(name)).collect();
        versions.sort_unstable();
        Ok(versions)
    }

    pub(super) fn base_manifest(&self, name: &Name, version: u32) -> Result<Option<BaseManifest>> {
        let manifest: Option<BaseManifest> =
            manifest::load(self.folder(), &format!("{BASES}/{name}/{version}/{BASE_FILE}"))?;
        if manifest.as_ref().and_then(|manifest| manifest.parent).is_some_and(|parent| parent >= version) {
            return Err(Error::corrupt(format!(
                "base {name}@{version} names a parent that is not before it"
            )));
        }
        Ok(manifest)
    }

    /// A clone's manifest, with the base that its disk stands on.
    pub(super) fn clone_manifest(&self, name: &Name) -> Result<CloneManifest> {
        let manifest = self.written_manifest(name)?;
        self.settled(name, manifest)
    }

    /// A clone's manifest as it is written, also while the clone is put on another base.
    pub(super) fn written_manifest(&self, name: &Name) -> Result<CloneManifest> {
        let manifest = manifest::load(self.folder(), &format!("{CLONES}/{name}/{CLONE_FILE}"))?;
        manifest.ok_or_else(|| self.no_clone(name))
    }

    fn settled(&self, name: &Name, mut manifest: CloneManifest) -> Result<CloneManifest> {
        if manifest.next.is_some() {
            let file = self.clone_folder(name)?.file(CLONE_DISK, FileAccess::Read);
            let file = file.map_err(|error| Error::io(format!("cannot open clone {name}"), error))?;
            let header = qcow2::Header::read(&file).map_err(|error| error.at(format!("clone {name}")))?;
            manifest.settle(header.identity.as_ref(), header.geometry.virtual_size);
        }
        Ok(manifest)
    }

    /// All base versions that a clone's layers stand on, those of its checkpoints included, and the one that it is put on
    /// at its next start.
    pub(super) fn bases_below(&self, clone: &Clone) -> Result<Vec<BaseId>> {
        let folder = self.clone_folder(&clone.name)?;
        let names = folder.names().map_err(|error| cannot_list(&folder, error))?;
        bases_in(clone, &folder, &names)
    }

    /// A clone's folder.
    pub(super) fn clone_folder(&self, name: &Name) -> Result<Folder> {
        self.part(format!("{CLONES}/{name}")).map_err(|error| match error.kind() {
            Kind::NotFound => self.no_clone(name),
            _ => error,
        })
    }

    fn no_clone(&self, name: &Name) -> Error {
        let is_base = self.versions(name).is_ok_and(|versions| !versions.is_empty());
        let message = match is_base {
            true => format!(
                "{name} is a base, not a clone; `cowshed clone {name} NAME` makes one, `cowshed verify {name}` reads the base"
            ),
            false => format!("there is no clone {name}; `cowshed list` shows what there is"),
        };
        Error::new(Kind::NotFound, message)
    }

    /// Whether a clone has that name; a folder of that name without a manifest counts as well.
    pub(super) fn is_clone(&self, name: &Name) -> Result<bool> {
        let folder = self.part(CLONES)?;
        folder.has(name.as_str()).map_err(|error| cannot_list(&folder, error))
    }

    /// Refuses a name that a clone or a base has.
    pub(super) fn refuse_taken(&self, name: &Name) -> Result<()> {
        let kind = if self.is_clone(name)? {
            "clone"
        } else if !self.versions(name)?.is_empty() {
            "base"
        } else {
            return Ok(());
        };
        let hint = "choose another name, or remove it first";
        Err(Error::new(Kind::Exists, format!("there is a {kind} {name} already; {hint}")))
    }

    pub(crate) fn no_base(&self, base: &BaseRef) -> Error {
        let name = &base.name;
        if self.is_clone(name).unwrap_or(false) {
            let hint = format!("`cowshed check {name}` and `cowshed info {name}` are for clones");
            return Error::new(Kind::NotFound, format!("{name} is a clone, not a base; {hint}"));
        }
        let known = self.versions(&base.name).unwrap_or_default();
        let hint = match (known.first(), known.last()) {
            (Some(first), Some(last)) => format!("{} has versions {first} to {last}", base.name),
            _ => "`cowshed list` shows what there is".to_owned(),
        };
        Error::new(Kind::NotFound, format!("there is no base {base}; {hint}"))
    }
}

pub(super) fn base_of(name: &Name, version: u32, manifest: BaseManifest) -> Base {
    let BaseManifest { format, digest, size, parent, source, created, .. } = manifest;
    Base { name: name.clone(), version, format, digest, size, parent, source, created }
}

pub(super) fn clone_of(name: &Name, manifest: CloneManifest) -> Clone {
    let CloneManifest { base, size, created, labels, .. } = manifest;
    Clone { name: name.clone(), base, size, created, labels, waiting: None }
}

/// As [`Store::bases_below`], of an open folder with these names in it.
pub(super) fn bases_in(clone: &Clone, folder: &Folder, names: &[String]) -> Result<Vec<BaseId>> {
    let mut found = vec![clone.base.clone()];
    found.extend(clone.waiting.as_ref().map(|waiting| waiting.onto.clone()));
    for number in names.iter().filter_map(|name| checkpoint_of_file(name)) {
        if let Some(checkpoint) = manifest::load::<CheckpointManifest>(folder, &checkpoint_file(number))? {
            found.push(checkpoint.base);
        }
    }
    found.dedup();
    Ok(found)
}

/// What `look` finds of each, in their order; many are looked at by all processors.
pub(super) fn of_each<T: Sync, R: Send>(items: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    const MANY: usize = 256;
    if items.len() < MANY { items.iter().map(look).collect() } else { items.par_iter().map(&look).collect() }
}

fn whole<T>((found, broken): (Vec<T>, Vec<Broken>)) -> Result<Vec<T>> {
    broken.first().map_or(Ok(found), |broken| Err(broken.error()))
}

/// Names of bases or clones in a folder, sorted; anything else there is not ours.
fn valid_names(folder: &Folder) -> Result<Vec<Name>> {
    let names = folder.names().map_err(|error| cannot_list(folder, error))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

pub(super) fn cannot_list(folder: &Folder, error: std::io::Error) -> Error {
    Error::io(format!("cannot list {}", folder.path().display()), error)
}
