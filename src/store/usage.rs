//! What things cost on the host: blocks, as the filesystem counts them.

use super::layout::{BASES, CLONES, base_disk, checkpoint_disk, checkpoint_file};
use super::list::{bases_in, cannot_list, of_each};
use super::{Base, BaseId, Broken, Clone, Name, Overview, Store, Survey, Target, Usage};
use crate::error::{Error, Kind, Result};
use crate::storage::{Folder, block_bytes, is_file, is_folder};
use std::collections::{HashMap, HashSet};
use std::io;

/// Blocks of some files, each file once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// All of them.
    pub(super) own: u64,
    /// Those of files that have no name elsewhere.
    pub(super) freed: u64,
}

/// What a look at all clones shows.
struct Looked {
    /// The base versions that they stand on.
    used: HashSet<(Name, u32)>,
    /// Each with its blocks.
    clones: Vec<(Clone, Result<Blocks>)>,
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
    of_names(folder, &folder.names()?)
}

fn of_names(folder: &Folder, names: &[String]) -> io::Result<Blocks> {
    let files = of_files(folder, names)?;
    let own = block_bytes(folder.stat(".")?.st_blocks);
    Ok(Blocks { own: files.own + own, freed: files.freed + own })
}

/// Blocks of a folder and of all below it; a file of several names counts with its first one.
fn below(folder: &Folder, seen: &mut HashSet<u64>) -> io::Result<u64> {
    let mut bytes = block_bytes(folder.stat(".")?.st_blocks);
    for name in folder.names()? {
        let found = folder.stat(&name).and_then(|stat| {
            Ok(match () {
                () if is_file(&stat) && !seen.insert(stat.st_ino) => 0,
                () if is_folder(&stat) => below(&folder.folder(&name)?, seen)?,
                () => block_bytes(stat.st_blocks),
            })
        });
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => bytes += found?,
        }
    }
    Ok(bytes)
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
                let shared_bytes = match base.parent {
                    Some(parent) => self.bytes_down(&base.name, parent)?,
                    None => 0,
                };
                self.base_usage(&base, !self.dependents(&exact)?.is_empty(), shared_bytes)
            }
        }
    }

    /// What the host gets back when a clone or base version goes, and all that stands on it before; nothing but its
    /// folder is read, so that it is told of a broken one too.
    ///
    /// # Errors
    /// `NotFound`, the host's.
    pub fn bytes_if_removed(&self, target: &Target) -> Result<u64> {
        let folder = match target {
            Target::Clone(name) => format!("{CLONES}/{name}"),
            Target::Base(base) => format!("{BASES}/{}/{}", base.name, self.resolve(base)?),
        };
        Ok(self.blocks_of(&folder)?.freed)
    }

    /// Blocks of the whole store, each file once.
    ///
    /// # Errors
    /// The host's. What vanishes meanwhile counts nothing.
    pub fn host_bytes(&self) -> Result<u64> {
        let mut seen = HashSet::new();
        let cannot = |error| Error::io(format!("cannot read {}", self.root().display()), error);
        below(self.folder(), &mut seen).map_err(cannot)
    }

    /// What the host gets back when a checkpoint goes.
    ///
    /// # Errors
    /// `NotFound` when there is no such clone, the host's.
    pub fn checkpoint_bytes_if_removed(&self, name: &Name, number: u32) -> Result<u64> {
        let folder = self.clone_folder(name)?;
        of_files(&folder, &[checkpoint_file(number), checkpoint_disk(number)])
            .map(|blocks| blocks.freed)
            .map_err(|error| cannot_read(&folder, error))
    }

    /// Everything in the store with what it costs: one pass, for lists. Below something broken it counts no shared
    /// bytes, and while a clone is broken no base counts as free to go.
    ///
    /// # Errors
    /// As [`Store::survey`].
    pub fn overview(&self) -> Result<Overview> {
        let Survey { bases, clones, broken } = self.survey()?;
        let mut overview = Overview { broken, ..Overview::default() };
        let unsure = overview.broken.iter().any(|broken| broken.kind == "clone");
        let mut shared: HashMap<(Name, u32), u64> = HashMap::new();
        let mut bytes_down = |name: &Name, version: u32| {
            let known = shared.entry((name.clone(), version));
            *known.or_insert_with(|| self.bytes_down(name, version).unwrap_or(0))
        };
        let Looked { used, clones } = self.looked_at(clones)?;
        for base in &bases {
            let used = unsure
                || used.contains(&(base.name.clone(), base.version))
                || bases.iter().any(|other| other.name == base.name && other.parent == Some(base.version));
            let shared_bytes = base.parent.map_or(0, |parent| bytes_down(&base.name, parent));
            match self.base_usage(base, used, shared_bytes) {
                Ok(usage) => overview.bases.push((base.clone(), usage)),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => {
                    let name = format!("{}@{}", base.name, base.version);
                    overview.broken.push(Broken::new("base", name, &error));
                }
            }
        }
        for (clone, blocks) in clones {
            let shared_bytes = bytes_down(&clone.base.name, clone.base.version);
            match blocks {
                Ok(blocks) => overview.clones.push((clone, usage_of(blocks, shared_bytes))),
                Err(error) => overview.broken.push(Broken::new("clone", clone.name.to_string(), &error)),
            }
        }
        Ok(overview)
    }

    /// The base versions that clones stand on, and each clone's blocks; what vanishes meanwhile is left out of those.
    fn looked_at(&self, clones: Vec<Clone>) -> Result<Looked> {
        let (mut used, mut found) = (HashSet::new(), Vec::with_capacity(clones.len()));
        let looks = of_each(&clones, |clone| self.look_at(clone));
        for (clone, look) in clones.into_iter().zip(looks) {
            used.insert((clone.base.name.clone(), clone.base.version));
            match look {
                Ok((below, blocks)) => {
                    used.extend(below.into_iter().map(|id| (id.name, id.version)));
                    found.push((clone, blocks));
                }
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error.at(format!("clone {}", clone.name))),
            }
        }
        Ok(Looked { used, clones: found })
    }

    /// The bases below a clone and its blocks, from one look into its folder.
    fn look_at(&self, clone: &Clone) -> Result<(Vec<BaseId>, Result<Blocks>)> {
        let folder = self.clone_folder(&clone.name)?;
        let names = folder.names().map_err(|error| cannot_list(&folder, error))?;
        let below = bases_in(clone, &folder, &names)?;
        let blocks = of_names(&folder, &names).map_err(|error| cannot_read(&folder, error));
        Ok((below, blocks))
    }

    fn clone_usage(&self, clone: &Clone, shared_bytes: u64) -> Result<Usage> {
        let blocks = self.blocks_of(&format!("{CLONES}/{}", clone.name))?;
        Ok(usage_of(blocks, shared_bytes))
    }

    fn base_usage(&self, base: &Base, used: bool, shared_bytes: u64) -> Result<Usage> {
        let blocks = self.blocks_of(&format!("{BASES}/{}/{}", base.name, base.version))?;
        Ok(Usage {
            own_bytes: blocks.own,
            shared_bytes,
            freed_if_deleted: if used { 0 } else { blocks.freed },
        })
    }

    fn blocks_of(&self, below: &str) -> Result<Blocks> {
        let folder = self.part(below)?;
        of_folder(&folder).map_err(|error| cannot_read(&folder, error))
    }

    /// Blocks of the disks of a base version and of all below it; a missing one has none.
    fn bytes_down(&self, name: &Name, version: u32) -> Result<u64> {
        let (mut bytes, mut next) = (0, Some(version));
        while let Some(version) = next {
            let Some(manifest) = self.base_manifest(name, version)? else { break };
            let folder = self.part(format!("{BASES}/{name}/{version}"))?;
            let files = of_files(&folder, &[base_disk(manifest.format).to_owned()])
                .map_err(|error| cannot_read(&folder, error))?;
            bytes += files.own;
            next = manifest.parent;
        }
        Ok(bytes)
    }
}

fn usage_of(blocks: Blocks, shared_bytes: u64) -> Usage {
    Usage { own_bytes: blocks.own, shared_bytes, freed_if_deleted: blocks.freed }
}

fn cannot_read(folder: &Folder, error: io::Error) -> Error {
    Error::io(format!("cannot read {}", folder.path().display()), error)
}
