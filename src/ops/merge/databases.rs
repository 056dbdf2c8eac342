//! dpkg's databases of the three versions: which side each package's files come from, and what is in the databases
//! after the merge; and the accounts' databases where numbers are moved.

use super::decide::Forced;
use super::fate::{Clash, Conflict};
use super::keyed::Merged;
use super::renumber::Moves;
use super::rules::{Decision, Rules, Winner};
use super::tree::{Contents, File, Tree};
use super::{Side, Three, Version, accounts, dpkg};
use crate::error::Result;
use crate::guestfs::ext4::FileKind;
use std::collections::{BTreeSet, HashMap};

const STATUS: &[u8] = b"/var/lib/dpkg/status";
const STATES: &[u8] = b"/var/lib/apt/extended_states";
const INFO: &[u8] = b"/var/lib/dpkg/info";
const ALTERNATIVES: &[u8] = b"/var/lib/dpkg/alternatives";
/// Folders that newer systems have as links below `/usr`.
const ALIASES: [&[u8]; 6] = [b"/bin", b"/sbin", b"/lib", b"/lib32", b"/lib64", b"/libx32"];

/// What dpkg's databases say.
#[derive(Default)]
pub(super) struct Databases {
    pub(super) units: Option<dpkg::Units>,
    pub(super) forced: HashMap<Vec<u8>, Forced>,
    /// What became of packages that differ.
    pub(super) packages: Vec<dpkg::Change>,
    /// Dependencies that the merge breaks, and that neither side had broken.
    pub(super) broken: Vec<String>,
    pub(super) conflicts: Vec<Conflict>,
    pub(super) settled: Vec<String>,
    /// Whether the filesystem has the accounts' databases.
    pub(super) accounts: bool,
}

/// One of the filesystems that a system has its files on.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Its trees; all three are mounted at the same place.
    pub trees: Three<&'a Tree>,
    /// What its files hold.
    pub contents: &'a dyn Contents,
}

/// Files of a system by their paths.
struct Files<'a>(&'a [Part<'a>]);

impl Files<'_> {
    /// The filesystem that a path leads to, and its tree.
    fn part(&self, version: Version, path: &[u8]) -> Option<(&Part<'_>, &Tree)> {
        let all = self.0.iter().map(|part| (part, *part.trees.of_version(version)));
        all.filter(|(_, tree)| tree.has_below(path)).max_by_key(|(_, tree)| tree.above.len())
    }

    /// A file of any kind.
    fn file(&self, version: Version, path: &[u8]) -> Option<&File> {
        let (_, tree) = self.part(version, path)?;
        tree.find(path).map(|ino| tree.file(ino))
    }

    /// A file's content; nothing when there is none.
    fn read(&self, version: Version, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some((part, tree)) = self.part(version, path) else { return Ok(None) };
        match tree.find(path).filter(|ino| tree.file(*ino).kind == FileKind::Regular) {
            Some(ino) => part.contents.read((version, ino)).map(Some),
            None => Ok(None),
        }
    }

    /// A file's content in the three versions, empty where there is none.
    fn three(&self, path: &[u8]) -> Result<Three<Vec<u8>>> {
        let read = |version| self.read(version, path).map(Option::unwrap_or_default);
        Ok(Three { old: read(Version::Old)?, base: read(Version::Base)?, clone: read(Version::Clone)? })
    }

    /// Where links lead.
    fn links(&self, path: &[u8]) -> Three<Option<Vec<u8>>> {
        let link = |version| {
            let file = self.file(version, path).filter(|file| file.kind == FileKind::Symlink);
            file.map(|file| file.target.clone())
        };
        Three { old: link(Version::Old), base: link(Version::Base), clone: link(Version::Clone) }
    }

    /// The names in a folder, of all versions.
    fn names(&self, path: &[u8]) -> BTreeSet<Vec<u8>> {
        let versions = [Version::Old, Version::Base, Version::Clone];
        let folders = versions.into_iter().filter_map(|version| self.file(version, path));
        folders.flat_map(|folder| folder.children.keys().cloned()).collect()
    }
}

impl Databases {
    /// Reads and merges them.
    ///
    /// # Errors
    /// `Corrupt` when one breaks its format; whatever reading them gives.
    pub(super) fn of(parts: &[Part<'_>], rules: &Rules, moves: &Moves) -> Result<Self> {
        let files = Files(parts);
        let mut all = Self::default();
        let status = files.three(STATUS)?;
        if status.clear().is_none() {
            all.packages(&files, &status)?;
        }
        all.alternatives(&files, rules)?;
        all.accounts(&files, rules, moves)?;
        Ok(all)
    }

    /// The accounts' databases in which numbers of the base are moved; the others are merged as they come up.
    fn accounts(&mut self, files: &Files<'_>, rules: &Rules, moves: &Moves) -> Result<()> {
        self.accounts = files.file(Version::Base, accounts::Database::Passwd.path()).is_some();
        for database in accounts::Database::ALL.into_iter().filter(|_| !moves.is_empty()) {
            let path = database.path();
            let three = files.three(path)?;
            let base = moves.text(database, &three.base);
            if base == three.base {
                continue;
            }
            let merged = accounts::merge(
                database,
                Three { old: &three.old, base: &base, clone: &three.clone },
                winner(rules, path),
            )?;
            self.note(path, &merged);
            self.forced.insert(path.to_vec(), Forced::Bytes(merged.bytes));
        }
        Ok(())
    }

    fn packages(&mut self, files: &Files<'_>, status: &Three<Vec<u8>>) -> Result<()> {
        let states = files.three(STATES)?;
        let merged =
            dpkg::merge(status.map(Vec::as_slice), states.map(Vec::as_slice), dpkg::Preference::default())?;
        let (base, clone) = (lists(files, Version::Base)?, lists(files, Version::Clone)?);
        let diversions = files.three(b"/var/lib/dpkg/diversions")?;
        let aliases = aliases(files);
        self.units = Some(dpkg::Units::new(
            &merged,
            [(Side::Base, &slices(&base)), (Side::Clone, &slices(&clone))],
            diversions.map(Vec::as_slice),
            &slices(&aliases),
        )?);
        let known: BTreeSet<String> = [&status.base, &status.clone]
            .into_iter()
            .map(|status| dpkg::check(status))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .map(|broken| broken.to_string())
            .collect();
        let broken = dpkg::check(&merged.status)?.into_iter().map(|broken| broken.to_string());
        self.broken = broken.filter(|broken| !known.contains(broken)).collect();
        self.packages = merged.changes;
        self.forced.insert(STATUS.to_vec(), Forced::Bytes(merged.status));
        if states.clear().is_none() {
            self.forced.insert(STATES.to_vec(), Forced::Bytes(merged.extended_states));
        }
        Ok(())
    }

    fn alternatives(&mut self, files: &Files<'_>, rules: &Rules) -> Result<()> {
        for name in files.names(ALTERNATIVES) {
            let path = [ALTERNATIVES, b"/", &name].concat();
            let three = files.three(&path)?;
            let chosen = files.links(&[b"/etc/alternatives/", &name[..]].concat());
            if three.clear().is_some() && chosen.clear().is_some() {
                continue;
            }
            let result = dpkg::merge_alternatives(
                &name,
                three.map(Vec::as_slice),
                chosen.map(|target| target.as_deref()),
                winner(rules, &path),
            )?;
            self.note(&path, &result.merged);
            let bytes = result.merged.bytes;
            let forced = if bytes.is_empty() { Forced::Gone } else { Forced::Bytes(bytes) };
            self.forced.insert(path, forced);
            for (link, target) in result.links {
                let path = [b"/etc/alternatives/", &link[..]].concat();
                self.forced.insert(path, target.map_or(Forced::Gone, Forced::Target));
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &[u8], merged: &Merged) {
        self.settled.extend(merged.settled.iter().cloned());
        for detail in &merged.conflicts {
            self.conflicts.push(Conflict {
                path: path.to_vec(),
                clash: Clash::Database,
                taken: None,
                detail: detail.clone(),
                diff: String::new(),
            });
        }
    }
}

fn winner(rules: &Rules, path: &[u8]) -> Winner {
    match rules.decide(path) {
        Decision::Merge(policy) => policy.winner,
        _ => Winner::Clone,
    }
}

fn slices(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<(&[u8], &[u8])> {
    pairs.iter().map(|(one, other)| (one.as_slice(), other.as_slice())).collect()
}

/// The lists of the files of packages: names without `.list`, and the lists.
fn lists(files: &Files<'_>, version: Version) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let Some((part, tree)) = files.part(version, INFO) else { return Ok(Vec::new()) };
    let Some(folder) = tree.find(INFO) else { return Ok(Vec::new()) };
    let mut lists = Vec::new();
    for (name, ino) in &tree.file(folder).children {
        if let Some(name) = name.strip_suffix(b".list")
            && tree.file(*ino).kind == FileKind::Regular
        {
            lists.push((name.to_vec(), part.contents.read((version, *ino))?));
        }
    }
    Ok(lists)
}

/// Folders that are links to those of the same names below `/usr`, in the base and in the clone.
fn aliases(files: &Files<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for from in ALIASES {
        let to = [b"/usr", from].concat();
        let leads = |target: &Option<Vec<u8>>| {
            target.as_deref().is_some_and(|target| target == &to[1..] || target == &to[..])
        };
        let links = files.links(from);
        if leads(&links.base) && leads(&links.clone) {
            found.push((from.to_vec(), to));
        }
    }
    found
}
