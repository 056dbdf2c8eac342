//! Removing and renaming.

use super::layout::{BASES, CANARY_FILE, CLONE_DISK, CLONES, base_disk};
use super::staging::Staging;
use super::usage;
use super::{BaseRef, Freed, Name, Store, Target};
use crate::error::{Error, Kind, Result};
use crate::storage::{FileAccess, Folder, ImageLock, Role};
use std::io;

impl Store {
    /// Removes a clone and its checkpoints. A clone whose files are damaged can be removed too.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while somebody has it open, the host's.
    pub fn remove_clone(&self, name: &Name) -> Result<Freed> {
        let lock = self.lock_for_removal()?;
        let place = format!("clone {name}");
        if !self.is_clone(name)? {
            let hint = "`cowshed list` shows what there is";
            return Err(Error::new(Kind::NotFound, format!("there is no {place}; {hint}")));
        }
        let folder = self.part(format!("{CLONES}/{name}"))?;
        let held = take_alone(&folder, CLONE_DISK, &place)?;
        let bytes = usage::of_folder(&folder).map_err(|error| cannot("remove", &place, error))?.freed;
        let clones = self.part(CLONES)?;
        let taken = lock.take_out(&clones, name.as_str()).map_err(|error| cannot("remove", &place, error))?;
        drop((held, lock));
        give_back(taken, bytes, &place)
    }

    /// Removes a base version.
    ///
    /// # Errors
    /// `NotFound`, `Busy` with the names of what stands on it or while it is open, the host's.
    pub fn remove_base(&self, base: &BaseRef) -> Result<Freed> {
        self.remove_version(base, false)
    }

    /// Removes a base version that is not the newest one.
    pub(crate) fn remove_old_base(&self, base: &BaseRef) -> Result<Freed> {
        self.remove_version(base, true)
    }

    fn remove_version(&self, base: &BaseRef, old: bool) -> Result<Freed> {
        let lock = self.lock_for_removal()?;
        let version = self.resolve(base)?;
        let name = &base.name;
        let exact = BaseRef::exact(name.clone(), version);
        let place = format!("base {exact}");
        let versions = self.versions(name)?;
        if !versions.contains(&version) {
            return Err(self.no_base(base));
        }
        if old && versions.last() == Some(&version) {
            return Err(Error::new(Kind::Busy, format!("{place} is the newest version by now")));
        }
        let above = self.standing_on(&exact)?;
        if !above.is_empty() {
            let error = stood_on(&place, "removed", &named(&above));
            return Err(match above.iter().all(|above| matches!(above, Target::Base(_))) {
                true => Error::new(error.kind(), format!("{error}; `cowshed gc {name}` {REWRITES}")),
                false => error,
            });
        }
        let folder = self.part(format!("{BASES}/{name}/{version}"))?;
        let held = hold_disks(&folder, &place)?;
        let bytes = usage::of_folder(&folder).map_err(|error| cannot("remove", &place, error))?.freed;
        let (bases, versions) = (self.part(BASES)?, self.part(format!("{BASES}/{name}"))?);
        let take_out = || {
            let others = versions.names()?.into_iter().filter(|name| name != CANARY_FILE).count();
            // The last version takes the folder of its name with it.
            match others {
                1 => lock.take_out(&bases, name.as_str()),
                _ => lock.take_out(&versions, &version.to_string()),
            }
        };
        let taken = take_out().map_err(|error| cannot("remove", &place, error))?;
        drop((held, lock));
        give_back(taken, bytes, &place)
    }

    /// Renames a clone that nobody has open, or a base that no clone stands on.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Busy` (open, or a base with clones), the host's.
    pub fn rename(&self, from: &Name, to: &Name) -> Result<()> {
        let _lock = self.lock()?;
        self.refuse_taken(to)?;
        if self.is_clone(from)? {
            let place = format!("clone {from}");
            let held = take_alone(&self.part(format!("{CLONES}/{from}"))?, CLONE_DISK, &place)?;
            let renamed = self.rename_in(CLONES, from, to, &place);
            drop(held);
            return renamed;
        }
        let versions = self.versions(from)?;
        if versions.is_empty() {
            let hint = "`cowshed list` shows what there is";
            return Err(Error::new(Kind::NotFound, format!("there is no clone or base {from}; {hint}")));
        }
        let place = format!("base {from}");
        let clones = self.clones_of(&BaseRef { name: from.clone(), version: None })?;
        if !clones.is_empty() {
            let above: Vec<String> = clones.iter().map(|name| format!("clone {name}")).collect();
            return Err(stood_on(&place, "renamed", &above));
        }
        let mut held = Vec::new();
        for version in versions {
            held.extend(hold_disks(&self.part(format!("{BASES}/{from}/{version}"))?, &place)?);
        }
        let renamed = self.rename_in(BASES, from, to, &place);
        drop(held);
        renamed
    }

    fn rename_in(&self, part: &str, from: &Name, to: &Name, place: &str) -> Result<()> {
        let folder = self.part(part)?;
        let rename = || -> io::Result<()> {
            // An empty folder has no name.
            let _ = folder.remove_folder(to.as_str());
            folder.move_new(from.as_str(), &folder, to.as_str())?;
            folder.sync().inspect_err(|_| {
                let _ = folder.move_new(to.as_str(), &folder, from.as_str());
            })
        };
        rename().map_err(|error| cannot("rename", place, error))
    }

    /// What stands on a base version: clones and later versions. Its own manifest is not read.
    ///
    /// # Errors
    /// `Corrupt` when a manifest of something that may stand on it is broken; the host's.
    pub fn standing_on(&self, base: &BaseRef) -> Result<Vec<Target>> {
        let mut above: Vec<Target> = self.clones_of(base)?.into_iter().map(Target::Clone).collect();
        let later = self.versions(&base.name)?.into_iter().filter(|version| Some(*version) > base.version);
        for version in later {
            let parent = self.base_manifest(&base.name, version)?.and_then(|manifest| manifest.parent);
            if parent.is_some() && parent == base.version {
                above.push(Target::Base(BaseRef::exact(base.name.clone(), version)));
            }
        }
        Ok(above)
    }

    /// The same as a user calls it.
    pub(super) fn dependents(&self, base: &BaseRef) -> Result<Vec<String>> {
        Ok(named(&self.standing_on(base)?))
    }
}

/// What `gc` does with a version that only later versions stand on.
const REWRITES: &str = "rewrites what stands on it, and removes it";

fn named(targets: &[Target]) -> Vec<String> {
    let named = |target: &Target| match target {
        Target::Clone(name) => format!("clone {name}"),
        Target::Base(base) => format!("base {base}"),
    };
    targets.iter().map(named).collect()
}

/// The end of a removal, without the store's lock: the rename was what counts.
fn give_back(taken: Staging, bytes: u64, place: &str) -> Result<Freed> {
    taken.remove().map(|()| Freed { bytes }).map_err(|error| {
        Error::io(format!("{place} is removed, but its blocks could not be given back"), error)
    })
}

fn stood_on(place: &str, done: &str, above: &[String]) -> Error {
    const SHOWN: usize = 12;
    let mut names = above.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if above.len() > SHOWN {
        names.push_str(&format!(" and {} more", above.len() - SHOWN));
    }
    let verb = if above.len() == 1 { "stands" } else { "stand" };
    Error::new(Kind::Busy, format!("{place} cannot be {done}: {names} {verb} on it"))
}

fn hold_disks(folder: &Folder, place: &str) -> Result<Vec<ImageLock>> {
    let mut held = Vec::new();
    for format in [super::DiskFormat::Raw, super::DiskFormat::Qcow2] {
        held.extend(take_alone(folder, base_disk(format), place)?);
    }
    Ok(held)
}

/// The lock that nobody else can have meanwhile; `None` when there is no such file that could be open.
fn take_alone(folder: &Folder, name: &str, place: &str) -> Result<Option<ImageLock>> {
    let file = match folder.file(name, FileAccess::Read) {
        Ok(file) => file,
        Err(error) if cannot_be_open(&error) => return Ok(None),
        Err(error) => return Err(cannot("open", place, error)),
    };
    match ImageLock::take(file.file(), Role::Owner) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::new(
            Kind::Busy,
            format!(
                "{place} is in use by another process (a running VM, a mount, or a tool); stop that first"
            ),
        )),
        Err(error) => Err(cannot("lock", place, error)),
    }
}

/// Missing, or not a regular file: nothing that a chain could have open.
fn cannot_be_open(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(libc::ELOOP)
}

fn cannot(what: &str, place: &str, error: io::Error) -> Error {
    Error::io(format!("cannot {what} {place}"), error)
}
