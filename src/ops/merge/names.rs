//! The names of the result: every file is in a folder that is there, no two have one name, no folder is inside itself.

use super::decide::Merge;
use super::fate::{Clash, Fate, Live};
use super::rules::{Decision, Winner};
use super::{Side, Version};
use std::collections::{HashMap, HashSet};

impl Merge<'_> {
    /// Brings the names in order. Each round either takes a name or a file away, or brings a folder back for good.
    pub(super) fn settle_names(&mut self) {
        let mut back = HashSet::new();
        loop {
            let lost = self.lost_names();
            let changed = lost
                .iter()
                .fold(false, |changed, (at, folder)| self.settle_folder(*at, *folder, &mut back) || changed);
            if changed {
                continue;
            }
            if !self.settle_one_name() && !self.settle_circle() {
                return;
            }
        }
    }

    fn root(&self) -> usize {
        self.objects.object(Version::Base, self.input.trees.base.root)
    }

    /// Names in folders that are not there: the object, and the folder's.
    fn lost_names(&self) -> Vec<(usize, usize)> {
        let mut lost = Vec::new();
        for (at, fate) in self.fates.iter().enumerate() {
            let names = fate.live().map_or(&[][..], |live| &live.names);
            lost.extend(
                names
                    .iter()
                    .filter(|(folder, _)| self.fates[*folder].live().is_none())
                    .map(|(folder, _)| (at, *folder)),
            );
        }
        lost
    }

    /// Something is in a folder that one side deleted: the folder comes back, or what is in it goes.
    fn settle_folder(&mut self, at: usize, folder: usize, back: &mut HashSet<usize>) -> bool {
        let Fate::Dead(by) = self.fates[folder] else { return false };
        let Some(live) = self.fates[at].live() else { return false };
        let forced = live.forced;
        let path = self.path(folder);
        let winner = self.winner(&path);
        let keeps = if forced {
            true
        } else {
            let detail = format!("{} is new or changed in it", super::decide::shown(&self.path(at)));
            let winner = self.clash_folder(&path, winner, &detail);
            winner != by
        };
        if keeps && back.insert(folder) {
            let object = self.objects.all[folder];
            let side = if object.clone.is_some() { Side::Clone } else { Side::Base };
            self.fates[folder] = self.whole(object, side, true);
            if self.fates[folder].live().is_some() {
                return true;
            }
        }
        self.drop_names(at, by, |name| name.0 == folder)
    }

    /// One sentence for each folder.
    fn clash_folder(&mut self, path: &[u8], winner: Winner, detail: &str) -> Side {
        let known = self.conflicts.iter().any(|known| known.path == path && known.clash == Clash::Folder);
        if known { super::fate::provisional(winner) } else { self.clash(path, Clash::Folder, winner, detail) }
    }

    fn winner(&self, path: &[u8]) -> Winner {
        match self.input.rules.decide(path) {
            Decision::Merge(policy) => policy.winner,
            Decision::Identity | Decision::Derived { .. } => Winner::Clone,
            Decision::Exclude => Winner::Base,
        }
    }

    /// Takes names away from a file; without any it goes.
    fn drop_names(&mut self, at: usize, by: Side, gone: impl Fn(&(usize, Vec<u8>)) -> bool) -> bool {
        let Fate::Live(live) = &mut self.fates[at] else { return false };
        let before = live.names.len();
        live.names.retain(|name| !gone(name));
        let changed = live.names.len() != before;
        if live.names.is_empty() {
            self.fates[at] = Fate::Dead(by);
        }
        changed
    }

    /// Two files of one name: the loser loses it, or gets another one. False when there are none.
    fn settle_one_name(&mut self) -> bool {
        let mut taken: HashMap<(usize, Vec<u8>), usize> = HashMap::new();
        let mut found = None;
        for (at, fate) in self.fates.iter().enumerate() {
            for name in fate.live().map_or(&[][..], |live: &Live| &live.names) {
                if let Some(other) = taken.insert(name.clone(), at)
                    && other != at
                {
                    found = Some((other, at, name.clone()));
                }
            }
        }
        let Some((one, other, name)) = found else { return false };
        let in_base = |at: usize| {
            let file = self.objects.all[at].base.map(|ino| self.file(Version::Base, ino));
            file.is_some_and(|file| {
                file.names
                    .iter()
                    .any(|(folder, n)| self.objects.object(Version::Base, *folder) == name.0 && *n == name.1)
            })
        };
        let (base, clone) = if in_base(one) { (one, other) } else { (other, one) };
        let path = self.path(clone);
        let winner = self.winner(&path);
        let side = self.clash(&path, Clash::Name, winner, "two different things have the name");
        let loser = if side == Side::Base { clone } else { base };
        self.drop_names(loser, side, |known| *known == name);
        true
    }

    /// Folders that are inside each other because both sides moved them: they stay where the base has them. False when
    /// there are none.
    fn settle_circle(&mut self) -> bool {
        let root = self.root();
        let above = |at: usize| self.fates[at].live().and_then(|live| live.names.first()).map(|name| name.0);
        for at in 0..self.fates.len() {
            let object = self.objects.all[at];
            let Some(ino) = object.base.filter(|ino| self.file(Version::Base, *ino).is_folder()) else {
                continue;
            };
            let (mut here, mut steps) = (Some(at), 0);
            while let Some(next) = here.filter(|next| *next != root && steps <= self.fates.len()) {
                (here, steps) = (above(next), steps + 1);
            }
            if steps <= self.fates.len() || self.fates[at].live().is_none() {
                continue;
            }
            let file = self.file(Version::Base, ino);
            let names: Vec<(usize, Vec<u8>)> = file
                .names
                .iter()
                .map(|(folder, name)| (self.objects.object(Version::Base, *folder), name.clone()))
                .collect();
            if self.fates[at].live().is_some_and(|live| live.names == names) {
                continue;
            }
            let path = self.path(at);
            let winner = self.winner(&path);
            self.clash(&path, Clash::Moved, winner, "folders would be inside each other");
            if let Fate::Live(live) = &mut self.fates[at] {
                live.names = names;
            }
            return true;
        }
        false
    }
}
