//! The merge of three trees, file by file. Nothing is read but what both sides changed, and nothing is written.

use super::beside::Beside;
use super::fate::{Clash, Conflict, Facts, Fate, Live, Source, differ, facts, provisional};
use super::packages::Keyed;
use super::pair::{Object, Objects, Pairs};
use super::rules::{Decision, Policy, Rules, Winner};
use super::tree::{Contents, File, Tree};
use super::{Side, Three, Version, dpkg};
use crate::error::Result;
use crate::guestfs::ext4::FileKind;
use std::collections::{BTreeSet, HashMap, HashSet};

/// What is known about a path from a database that was merged as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forced {
    /// The content of the file.
    Bytes(Vec<u8>),
    /// Where the link leads.
    Target(Vec<u8>),
    /// It is not there.
    Gone,
}

/// What a merge starts from.
pub struct Input<'a> {
    /// The trees.
    pub trees: Three<&'a Tree>,
    /// Which files of the old base are which of the new one.
    pub bases: &'a Pairs,
    /// What the files hold.
    pub contents: &'a dyn Contents,
    /// Who wins.
    pub rules: &'a Rules,
    /// Packages whose files come from one side.
    pub units: Option<&'a dpkg::Units>,
    /// Paths that the databases decide.
    pub forced: &'a HashMap<Vec<u8>, Forced>,
}

/// A merge in the making.
pub(super) struct Merge<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) objects: Objects,
    pub(super) fates: Vec<Fate>,
    pub(super) conflicts: Vec<Conflict>,
    /// Those of files that running alone changes.
    pub(super) volatile: Vec<Conflict>,
    /// What both sides changed and a database settled, in sentences.
    pub(super) settled: Vec<String>,
    /// Derived files that are not merged.
    pub(super) derived: BTreeSet<Vec<u8>>,
    /// Objects whose version of the base lies beside the clone's.
    pub(super) siblings: Vec<usize>,
    pub(super) beside: Beside,
    /// Objects at paths that the databases decide.
    forced: HashSet<usize>,
    told: HashSet<(Vec<u8>, Clash, String)>,
}

/// How an object is treated.
enum Way {
    Merged(Policy),
    Whole(Side),
    Derived { drop: bool },
}

impl<'a> Merge<'a> {
    /// `label` ends the names of what lies beside the clone's.
    pub(super) fn of(input: &'a Input<'a>, label: &str) -> Result<Self> {
        let objects = Objects::of(input.trees, input.bases);
        let mut merge = Self {
            input,
            objects,
            fates: Vec::new(),
            conflicts: Vec::new(),
            volatile: Vec::new(),
            settled: Vec::new(),
            derived: BTreeSet::new(),
            siblings: Vec::new(),
            beside: Beside::new(label),
            forced: HashSet::new(),
            told: HashSet::new(),
        };
        for path in input.forced.keys() {
            for version in [Version::Base, Version::Clone] {
                let found = input.trees.of_version(version).find(path);
                merge.forced.extend(found.map(|ino| merge.objects.object(version, ino)));
            }
        }
        for at in 0..merge.objects.all.len() {
            let mut fate = merge.fate(at)?;
            merge.spare(at, &mut fate)?;
            merge.fates.push(fate);
        }
        merge.settle_names();
        Ok(merge)
    }

    pub(super) fn file(&self, version: Version, ino: u32) -> &'a File {
        self.input.trees.of_version(version).file(ino)
    }

    pub(super) fn files(&self, object: Object) -> Three<Option<&'a File>> {
        let file = |version: Version| object.of_version(version).map(|ino| self.file(version, ino));
        Three { old: file(Version::Old), base: file(Version::Base), clone: file(Version::Clone) }
    }

    /// The path that rules and reports know an object by.
    pub(super) fn path(&self, at: usize) -> Vec<u8> {
        let object = self.objects.all[at];
        let order = [Version::Clone, Version::Base, Version::Old];
        let found = order.into_iter().find_map(|version| Some((version, (*object.of_version(version))?)));
        found.map_or_else(Vec::new, |(version, ino)| self.input.trees.of_version(version).path(ino))
    }

    /// Writes a clash down, once for each path, and tells who wins for the time being.
    pub(super) fn clash(&mut self, path: &[u8], clash: Clash, winner: Winner, detail: &str) -> Side {
        if self.told.insert((path.to_vec(), clash, detail.to_owned())) {
            let (taken, detail) = (winner.side(), detail.to_owned());
            let quiet = taken == Some(Side::Clone) && self.is_volatile(path);
            let list = if quiet { &mut self.volatile } else { &mut self.conflicts };
            list.push(Conflict { path: path.to_vec(), clash, taken, detail, diff: String::new() });
        }
        provisional(winner)
    }

    pub(super) fn is_volatile(&self, path: &[u8]) -> bool {
        self.input.rules.decide(path) == Decision::Volatile
    }

    fn way(&mut self, path: &[u8], is_folder: bool) -> Way {
        let policy = match self.input.rules.decide(path) {
            Decision::Identity => return Way::Whole(Side::Clone),
            Decision::Exclude => return Way::Whole(Side::Base),
            Decision::Derived { drop, .. } if !is_folder => return Way::Derived { drop },
            Decision::Derived { .. } | Decision::Volatile => Policy { lines: false, winner: Winner::Clone },
            Decision::Merge(policy) => policy,
        };
        if is_folder {
            return Way::Merged(policy);
        }
        match self.input.units.map(|units| units.side_of(path)) {
            Some(Ok(Some((side, _)))) => return Way::Whole(side),
            Some(Err(contested)) => {
                self.clash(path, Clash::Package, policy.winner, &contested.to_string());
            }
            _ => {}
        }
        match Keyed::of(path) {
            Some(Keyed::Whole(side)) => Way::Whole(side),
            _ => Way::Merged(policy),
        }
    }

    fn fate(&mut self, at: usize) -> Result<Fate> {
        let object = self.objects.all[at];
        let files = self.files(object);
        if object.base.is_none() && object.clone.is_none() {
            return Ok(Fate::Dead(Side::Base));
        }
        if self.is_untouched(at)? {
            return Ok(self.whole(object, Side::Base, false));
        }
        let path = self.path(at);
        let is_folder = files.base.or(files.clone).is_some_and(File::is_folder);
        if let Some(fate) = self.forced(&path, files, object) {
            return Ok(fate);
        }
        match self.way(&path, is_folder) {
            Way::Whole(side) => Ok(self.whole(object, side, true)),
            Way::Derived { drop } => self.derived(&path, object, drop),
            Way::Merged(policy) => self.merged(&path, object, policy),
        }
    }

    /// Whether it is the same everywhere, so that no rule needs to be asked.
    fn is_untouched(&self, at: usize) -> Result<bool> {
        let Three { old: Some(o), base: Some(b), clone: Some(c) } = self.objects.all[at] else {
            return Ok(false);
        };
        let old = self.file(Version::Old, o);
        for (version, ino) in [(Version::Base, b), (Version::Clone, c)] {
            let new = self.file(version, ino);
            let same_names = || {
                old.names.iter().zip(&new.names).all(|(was, is)| {
                    was.1 == is.1
                        && self.objects.object(Version::Old, was.0) == self.objects.object(version, is.0)
                })
            };
            // Most are one record in memory.
            if (!std::ptr::eq(old, new) && (differ(old, new) || old.modified != new.modified))
                || old.names.len() != new.names.len()
                || !same_names()
                || (old.kind == FileKind::Regular
                    && !self.input.contents.same((Version::Old, o), (version, ino))?)
            {
                return Ok(false);
            }
        }
        let contested = || self.input.units.is_some_and(|units| units.side_of(&self.path(at)).is_err());
        Ok(!self.forced.contains(&at) && (old.is_folder() || !contested()))
    }

    /// What the base has already is not copied from the clone.
    fn spare(&self, at: usize, fate: &mut Fate) -> Result<()> {
        let (Fate::Live(live), Three { base: Some(base), clone: Some(clone), .. }) =
            (fate, self.objects.all[at])
        else {
            return Ok(());
        };
        if live.source == Source::Of(Side::Clone)
            && (self.file(Version::Base, base).kind != FileKind::Regular
                || self.input.contents.same((Version::Base, base), (Version::Clone, clone))?)
        {
            live.source = Source::Of(Side::Base);
        }
        Ok(())
    }

    /// All of it as it is on one side.
    pub(super) fn whole(&self, object: Object, side: Side, forced: bool) -> Fate {
        let version = Version::from(side);
        let Some(ino) = *object.of_version(version) else { return Fate::Dead(side) };
        if side == Side::Base && !forced {
            return Fate::Kept;
        }
        Fate::Live(Box::new(self.live((version, ino), side, forced)))
    }

    fn live(&self, (version, ino): (Version, u32), side: Side, forced: bool) -> Live {
        let file = self.file(version, ino);
        Live { names: self.names(version, file), source: Source::Of(side), facts: Facts::of(file), forced }
    }

    /// What is known of a file of the result, to be changed.
    pub(super) fn live_mut(&mut self, at: usize) -> Option<&mut Live> {
        if let (Fate::Kept, Some(ino)) = (&self.fates[at], self.objects.all[at].base) {
            self.fates[at] = Fate::Live(Box::new(self.live((Version::Base, ino), Side::Base, false)));
        }
        match &mut self.fates[at] {
            Fate::Live(live) => Some(live),
            Fate::Kept | Fate::Dead(_) => None,
        }
    }

    /// The names of a file, sorted.
    pub(super) fn names(&self, version: Version, file: &File) -> Vec<(usize, Vec<u8>)> {
        let name = |(folder, name): &(u32, Vec<u8>)| (self.objects.object(version, *folder), name.clone());
        let mut names: Vec<_> = file.names.iter().map(name).collect();
        names.sort_unstable();
        names
    }

    fn forced(&self, path: &[u8], files: Three<Option<&File>>, object: Object) -> Option<Fate> {
        let forced = self.input.forced.get(path)?;
        let kind = files.base.or(files.clone)?.kind;
        let side = if object.base.is_some() { Side::Base } else { Side::Clone };
        let Fate::Live(mut live) = self.whole(object, side, true) else { return None };
        if let Some((facts, _)) = facts(files, Side::Clone) {
            live.facts = facts;
        }
        match forced {
            Forced::Gone => return Some(Fate::Dead(Side::Clone)),
            Forced::Bytes(bytes) if kind == FileKind::Regular => live.source = Source::Bytes(bytes.clone()),
            Forced::Target(target) if kind == FileKind::Symlink => live.facts.target.clone_from(target),
            _ => return None,
        }
        Some(Fate::Live(live))
    }

    /// What is made from other files: where the two sides differ it is dropped, or the base's until it is made again.
    fn derived(&mut self, path: &[u8], object: Object, drop: bool) -> Result<Fate> {
        if self.is_changed(object, Side::Base)? && self.is_changed(object, Side::Clone)? {
            self.derived.insert(path.to_vec());
            return Ok(if drop { Fate::Dead(Side::Clone) } else { self.whole(object, Side::Base, true) });
        }
        let changed = self.is_changed(object, Side::Clone)?;
        Ok(self.whole(object, if changed { Side::Clone } else { Side::Base }, false))
    }

    /// Whether a side changed a file in any way but for its times: also made or deleted it.
    fn is_changed(&self, object: Object, side: Side) -> Result<bool> {
        let version = Version::from(side);
        let (Some(old), Some(new)) = (object.old, *object.of_version(version)) else {
            return Ok(object.old.is_some() != object.of_version(version).is_some());
        };
        let (was, is) = (self.file(Version::Old, old), self.file(version, new));
        if differ(was, is) {
            return Ok(true);
        }
        if was.is_folder() {
            return Ok(false);
        }
        if self.names(Version::Old, was) != self.names(version, is) {
            return Ok(true);
        }
        let same = |contents: &dyn Contents| contents.same((Version::Old, old), (version, new));
        Ok(was.kind == FileKind::Regular && !same(self.input.contents)?)
    }

    fn merged(&mut self, path: &[u8], object: Object, policy: Policy) -> Result<Fate> {
        match (object.old, object.base, object.clone) {
            (None, Some(_), None) => Ok(self.whole(object, Side::Base, false)),
            (None, None, Some(_)) => Ok(self.whole(object, Side::Clone, false)),
            (Some(_), None, _) => self.deleted(path, object, policy, Side::Base),
            (Some(_), _, None) => self.deleted(path, object, policy, Side::Clone),
            _ => self.both(path, object, policy),
        }
    }

    /// One side deleted it. A folder goes too, as long as nothing is found in it.
    fn deleted(&mut self, path: &[u8], object: Object, policy: Policy, by: Side) -> Result<Fate> {
        let (stays, clash) = match by {
            Side::Base => (Side::Clone, Clash::DeletedInBase),
            Side::Clone => (Side::Base, Clash::DeletedInClone),
        };
        let of = object.of_version(stays.into()).map(|ino| self.file(stays.into(), ino));
        if of.is_some_and(File::is_folder) || !self.is_changed(object, stays)? {
            return Ok(Fate::Dead(by));
        }
        let winner = self.clash(path, clash, policy.winner, "");
        Ok(if winner == by { Fate::Dead(by) } else { self.whole(object, stays, true) })
    }

    /// Both have it.
    fn both(&mut self, path: &[u8], object: Object, policy: Policy) -> Result<Fate> {
        let files = self.files(object);
        let Some((mut facts, clashes)) = facts(files, provisional(policy.winner)) else {
            return Ok(Fate::Dead(Side::Base));
        };
        if !clashes.is_empty() {
            self.clash(path, Clash::Metadata, policy.winner, &clashes.join(", "));
        }
        let names = self.merged_names(path, object, policy);
        let (Some(base), Some(clone)) = (files.base, files.clone) else { return Ok(Fate::Dead(Side::Base)) };
        let mut source = Source::Of(Side::Base);
        if base.kind == FileKind::Symlink {
            facts.target = self.merged_target(path, object, policy);
        } else if base.kind == FileKind::Regular {
            source = self.content(path, object, policy)?;
            let was = files.old.map(|old| old.modified);
            if let Source::Of(side) = source
                && was != Some(base.modified)
                && was != Some(clone.modified)
            {
                facts.modified = if side == Side::Base { base.modified } else { clone.modified };
            }
        }
        Ok(Fate::Live(Box::new(Live { names, source, facts, forced: false })))
    }

    /// Names are a set, but what has one name has one name, and what both kept has one.
    fn merged_names(&mut self, path: &[u8], object: Object, policy: Policy) -> Vec<(usize, Vec<u8>)> {
        let names = |version: Version| -> Vec<_> {
            object
                .of_version(version)
                .map(|ino| self.names(version, self.file(version, ino)))
                .unwrap_or_default()
        };
        let three =
            Three { old: names(Version::Old), base: names(Version::Base), clone: names(Version::Clone) };
        if object.old.is_some() {
            if let Some(side) = three.clear() {
                return three.of(side).clone();
            }
            if three.old.len() == 1 && three.base.len() == 1 && three.clone.len() == 1 {
                let side = self.clash(path, Clash::Moved, policy.winner, "");
                return three.of(side).clone();
            }
        }
        let mut names = super::keyed::sets(&three.old, &three.base, &three.clone);
        if names.is_empty() && !three.base.is_empty() {
            let detail = "each side took away the names that the other kept";
            let side = self.clash(path, Clash::Moved, policy.winner, detail);
            return three.of(side).clone();
        }
        names.sort_unstable();
        names
    }
}

/// A path for people: no control characters.
pub(super) fn shown(path: &[u8]) -> String {
    super::unified::printable(&String::from_utf8_lossy(path)).replace('\n', " ")
}
