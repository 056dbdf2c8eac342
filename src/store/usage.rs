//! What things cost on the host: blocks, as the filesystem counts them.

use super::layout::{BASES, CLONES, base_disk};
use super::{Base, Clone, Name, Overview, Store, Target, Usage};
use crate::error::{Error, Result};
use crate::storage::{Folder, block_bytes, is_file};
use std::collections::HashMap;
use std::io;

/// Blocks of some files, each file once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// All of them.
    pub(super) own: u64,
    /// Those of files that have no name elsewhere.
    pub(super) freed: u64,
}

/// The blocks of the files `names` of a folder; those that are missing have none.
#[allow(clippy::useless_conversion, reason = "the number of links has another width on other processors")]
pub(super) fn of_files(folder: &Folder, names: &[String]) -> io::Result<Blocks> {
    let mut found: HashMap<u64, (u64, u64, u64)> = HashMap::new();
    for name in names {
        match folder.stat(name) {
            Ok(stat) if is_file(&stat) => {
                found
                    .entry(stat.st_ino)
                    .or_insert((block_bytes(stat.st_blocks), 0, u64::from(stat.st_nlink)))
                    .1 += 1;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(found.values().fold(Blocks::default(), |sum, (bytes, names, links)| Blocks {
        own: sum.own + bytes,
        freed: sum.freed + if names >= links { *bytes } else { 0 },
    }))
}

/// The blocks of all files of a folder, and the folder's own.
pub(super) fn of_folder(folder: &Folder) -> io::Result<Blocks> {
    let files = of_files(folder, &folder.names()?)?;
    let own = block_bytes(folder.stat(".")?.st_blocks);
    Ok(Blocks { own: files.own + own, freed: files.freed + own })
}

impl Store {
    /// What a clone or base costs on the host.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, the host's.
    pub fn usage(&self, of: &Target) -> Result<Usage> {
        match of {
            Target::Clone(name) => {
                let clone = self.clone_named(name)?;
                self.clone_usage(&clone, self.bytes_down(&clone.base.name, clone.base.version)?)
            }
            Target::Base(base) => {
                let base = self.base(base)?;
                let exact = super::BaseRef::exact(base.name.clone(), base.version);
                self.base_usage(&base, !self.dependents(&exact)?.is_empty())
            }
        }
    }

    /// Everything in the store with what it costs: one pass, for lists.
    ///
    /// # Errors
    /// As [`Store::bases`] and [`Store::clones`].
    pub fn overview(&self) -> Result<Overview> {
        let (bases, clones) = (self.bases()?, self.clones()?);
        let mut overview = Overview::default();
        for base in &bases {
            let used = clones
                .iter()
                .any(|clone| clone.base.name == base.name && clone.base.version == base.version)
                || bases.iter().any(|other| other.name == base.name && other.parent == Some(base.version));
            overview.bases.push((base.clone(), self.base_usage(base, used)?));
        }
        let mut shared: HashMap<(Name, u32), u64> = HashMap::new();
        for clone in clones {
            let key = (clone.base.name.clone(), clone.base.version);
            let bytes = match shared.get(&key) {
                Some(bytes) => *bytes,
                None => {
                    let bytes = self.bytes_down(&key.0, key.1)?;
                    shared.insert(key, bytes);
                    bytes
                }
            };
            let usage = self.clone_usage(&clone, bytes)?;
            overview.clones.push((clone, usage));
        }
        Ok(overview)
    }

    fn clone_usage(&self, clone: &Clone, shared_bytes: u64) -> Result<Usage> {
        let blocks = self.blocks_of(&format!("{CLONES}/{}", clone.name))?;
        Ok(Usage { own_bytes: blocks.own, shared_bytes, freed_if_deleted: blocks.freed })
    }

    fn base_usage(&self, base: &Base, used: bool) -> Result<Usage> {
        let blocks = self.blocks_of(&format!("{BASES}/{}/{}", base.name, base.version))?;
        let shared_bytes = match base.parent {
            Some(parent) => self.bytes_down(&base.name, parent)?,
            None => 0,
        };
        Ok(Usage {
            own_bytes: blocks.own,
            shared_bytes,
            freed_if_deleted: if used { 0 } else { blocks.freed },
        })
    }

    fn blocks_of(&self, below: &str) -> Result<Blocks> {
        let folder = self.part(below)?;
        of_folder(&folder)
            .map_err(|error| Error::io(format!("cannot read {}", folder.path().display()), error))
    }

    /// Blocks of the disks of a base version and of all below it; a missing one has none.
    fn bytes_down(&self, name: &Name, version: u32) -> Result<u64> {
        let (mut bytes, mut next) = (0, Some(version));
        while let Some(version) = next {
            let Some(manifest) = self.base_manifest(name, version)? else { break };
            let folder = self.part(format!("{BASES}/{name}/{version}"))?;
            let files = of_files(&folder, &[base_disk(manifest.format).to_owned()])
                .map_err(|error| Error::io(format!("cannot read {}", folder.path().display()), error))?;
            bytes += files.own;
            next = manifest.parent;
        }
        Ok(bytes)
    }
}
