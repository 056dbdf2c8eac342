//! What keeps each version of a base.

use super::layout::{BASES, base_disk};
use super::usage;
use super::{Base, BaseRef, Name, Store};
use crate::error::{Error, Kind, Result};
use crate::storage::{FileAccess, ImageLock};
use std::collections::HashMap;
use std::io;

/// A base version with what keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) base: Base,
    /// Bytes of host blocks.
    pub(crate) bytes: u64,
    /// Whether no later version is there.
    pub(crate) newest: bool,
    /// Clones that stand on it, by themselves or by a checkpoint.
    pub(crate) clones: usize,
    /// Whether somebody has its file open.
    pub(crate) in_use: bool,
}

impl Store {
    /// The versions of a base in order.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` for the broken manifest of a version, or of any clone, which may stand on any base; the
    /// host's.
    pub(crate) fn standing(&self, name: &Name) -> Result<Vec<Standing>> {
        let versions = self.versions(name)?;
        let Some(newest) = versions.last().copied() else {
            return Err(self.no_base(&BaseRef { name: name.clone(), version: None }));
        };
        let clones = self.clones_by_version(name)?;
        let mut found = Vec::new();
        for version in versions {
            let base = match self.base(&BaseRef::exact(name.clone(), version)) {
                Err(error) if error.kind() == Kind::NotFound => continue,
                other => other?,
            };
            let look = || self.bytes_and_use(&base);
            let (bytes, in_use) =
                look().map_err(|error| Error::io(format!("cannot look at base {name}@{version}"), error))?;
            let clones = clones.get(&version).copied().unwrap_or(0);
            found.push(Standing { newest: version == newest, base, bytes, clones, in_use });
        }
        Ok(found)
    }

    /// How many clones stand on each version.
    fn clones_by_version(&self, name: &Name) -> Result<HashMap<u32, usize>> {
        let mut found = HashMap::new();
        for clone in self.clones()? {
            let mut versions: Vec<u32> = match self.bases_below(&clone) {
                Err(error) if error.kind() == Kind::NotFound => continue,
                other => other?.into_iter().filter(|id| id.name == *name).map(|id| id.version).collect(),
            };
            versions.sort_unstable();
            versions.dedup();
            versions.into_iter().for_each(|version| *found.entry(version).or_insert(0) += 1);
        }
        Ok(found)
    }

    fn bytes_and_use(&self, base: &Base) -> io::Result<(u64, bool)> {
        let folder = self.folder().folder(format!("{BASES}/{}/{}", base.name, base.version))?;
        let bytes = usage::of_folder(&folder)?.freed;
        match folder.file(base_disk(base.format), FileAccess::Read) {
            Ok(file) => Ok((bytes, !ImageLock::is_unused(file.file())?)),
            // A version without its file is used by nobody.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((bytes, false)),
            Err(error) => Err(error),
        }
    }
}
