//! The names of the result: every file is in a folder that is there, no two have one name, no folder is inside itself.
//!
//! A side's tree says who has a name on it, so a name is looked up in both; only what changes is looked at again.

use super::beside::Name;
use super::decide::{Merge, shown};
use super::fate::{Clash, Fate, provisional};
use super::rules::{Decision, Winner};
use super::tree::File;
use super::{Side, Version};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// What is left to look at. It comes to an end: names and files go, and what comes back or falls back does so once.
#[derive(Default)]
struct Work {
    /// Objects in folders that are gone, of those that have to be there.
    forced: Vec<usize>,
    /// Others in folders that are gone, by how deep they are: what comes back brings the folders above it.
    lost: BinaryHeap<(usize, Reverse<usize>)>,
    /// Objects whose names others may have.
    doubled: Vec<usize>,
    /// Folders that came back.
    back: HashSet<usize>,
    /// Objects that went where the winner has them.
    fallen: HashSet<usize>,
    /// Folders that were taken out of a circle.
    circled: HashSet<usize>,
    /// Deleted folders: whether one stays for what is in it.
    stays: HashMap<usize, bool>,
}

impl Merge<'_> {
    /// Brings the names in order.
    pub(super) fn settle_names(&mut self) {
        let mut work = Work::default();
        for at in (0..self.fates.len()).rev() {
            if let Fate::Kept = self.fates[at] {
                self.note_lost(at, &mut work);
                continue;
            }
            let Some(live) = self.fates[at].live() else { continue };
            // Of two that have one name, one does not have it from the base.
            if live.names.iter().any(|name| self.holder(Version::Base, name) != Some(at)) {
                work.doubled.push(at);
            }
            self.note_lost(at, &mut work);
        }
        loop {
            let lost = work.forced.pop().or_else(|| work.lost.pop().map(|(_, Reverse(at))| at));
            if let Some(at) = lost {
                self.settle_lost(at, &mut work);
            } else if let Some(at) = work.doubled.pop() {
                self.settle_doubled(at, &mut work);
            } else if !self.settle_circles(&mut work) {
                return;
            }
        }
    }

    fn note_lost(&self, at: usize, work: &mut Work) {
        let is_gone = |folder: &usize| self.fates[*folder].is_dead();
        let gone = match (&self.fates[at], self.objects.all[at].base) {
            (Fate::Live(live), _) => live.names.iter().map(|name| name.0).find(is_gone),
            (Fate::Kept, Some(ino)) => {
                let names = &self.file(Version::Base, ino).names;
                // The first in the order of objects, as everywhere.
                let folders = names.iter().map(|name| self.objects.object(Version::Base, name.0));
                folders.filter(is_gone).min()
            }
            _ => None,
        };
        match gone {
            None => {}
            Some(_) if self.fates[at].is_forced() => work.forced.push(at),
            Some(folder) => {
                let path = self.path(folder);
                let depth = path.iter().filter(|byte| **byte == b'/').count();
                work.lost.push((depth, Reverse(at)));
            }
        }
    }

    fn look_again(&self, at: usize, work: &mut Work) {
        self.note_lost(at, work);
        work.doubled.push(at);
    }

    /// Something may be in a folder that is gone: the folder comes back, or what is in it goes.
    fn settle_lost(&mut self, at: usize, work: &mut Work) {
        let Some(live) = self.live_mut(at) else { return };
        let mut gone: Vec<usize> = live.names.iter().map(|name| name.0).collect();
        gone.retain(|folder| self.fates[*folder].is_dead());
        gone.dedup();
        for folder in gone {
            let Fate::Dead(by) = self.fates[folder] else { continue };
            if !self.comes_back(folder, by, at, work) {
                self.drop_names(at, by, |name| name.0 == folder, work);
            }
        }
    }

    /// Brings a folder back for what is in it, if that wins. The folder has one conflict, whatever is in it.
    fn comes_back(&mut self, folder: usize, by: Side, inside: usize, work: &mut Work) -> bool {
        let forced = self.fates[inside].is_forced();
        let stays = forced
            || *work.stays.entry(folder).or_insert_with(|| {
                let path = self.path(folder);
                let winner = self.winner(&path);
                let detail = format!("{} is new or changed in it", shown(&self.path(inside)));
                self.clash(&path, Clash::Folder, winner, &detail) != by
            });
        if !stays || !work.back.insert(folder) {
            return false;
        }
        let object = self.objects.all[folder];
        let side = if object.clone.is_some() { Side::Clone } else { Side::Base };
        self.fates[folder] = self.whole(object, side, true);
        self.look_again(folder, work);
        !self.fates[folder].is_dead()
    }

    fn winner(&self, path: &[u8]) -> Winner {
        match self.input.rules.decide(path) {
            Decision::Merge(policy) => policy.winner,
            Decision::Identity | Decision::Volatile | Decision::Derived { .. } => Winner::Clone,
            Decision::Exclude => Winner::Base,
        }
    }

    /// Takes names away from a file, as `by` wants. Without any it has those that it has on that side, or goes.
    fn drop_names(&mut self, at: usize, by: Side, gone: impl Fn(&Name) -> bool, work: &mut Work) {
        let object = self.objects.all[at];
        let elsewhere = object.of_version(by.into()).map(|ino| self.file(by.into(), ino));
        let elsewhere = elsewhere.map(|file| self.names(by.into(), file));
        let Some(live) = self.live_mut(at) else { return };
        live.names.retain(|name| !gone(name));
        if !live.names.is_empty() {
            return;
        }
        if let Some(names) = elsewhere
            && work.fallen.insert(at)
        {
            live.names = names;
            self.look_again(at, work);
            return;
        }
        self.fates[at] = Fate::Dead(by);
        // What is in it goes with it, and needs no word of its own.
        work.stays.insert(at, false);
        for inside in self.inside(at) {
            self.look_again(inside, work);
        }
    }

    /// What may be in a folder.
    fn inside(&self, folder: usize) -> Vec<usize> {
        let mut inside = self.beside.renamed.get(&folder).cloned().unwrap_or_default();
        for version in [Version::Base, Version::Clone] {
            let Some(ino) = *self.objects.all[folder].of_version(version) else { continue };
            let children = self.file(version, ino).children.values();
            inside.extend(children.map(|ino| self.objects.object(version, *ino)));
        }
        inside
    }

    /// Somebody else may have a name of a file.
    fn settle_doubled(&mut self, at: usize, work: &mut Work) {
        let names = self.live_mut(at).map(|live| live.names.clone()).unwrap_or_default();
        for name in names {
            let has = |at: usize| match &self.fates[at] {
                Fate::Kept => self.holder(Version::Base, &name) == Some(at),
                Fate::Live(live) => live.names.binary_search(&name).is_ok(),
                Fate::Dead(_) => false,
            };
            let others = [Version::Base, Version::Clone].map(|version| self.holder(version, &name));
            let other = others.into_iter().flatten().find(|other| *other != at && has(*other));
            if let Some(other) = other.filter(|_| has(at)) {
                let is_base = self.holder(Version::Base, &name) == Some(at);
                let (base, clone) = if is_base { (at, other) } else { (other, at) };
                self.settle_double(base, clone, &name, work);
            }
        }
    }

    /// Two files have one name: the loser loses it, or gets another one. What has to be there wins without a word.
    fn settle_double(&mut self, base: usize, clone: usize, name: &Name, work: &mut Work) {
        let forced = |at: usize| self.fates[at].is_forced();
        let (side, winner) = match (forced(base), forced(clone)) {
            (true, false) => (Side::Base, Winner::Base),
            (false, true) => (Side::Clone, Winner::Clone),
            _ => {
                let path = self.path_of(name);
                let winner = self.winner(&path);
                (self.clash(&path, Clash::Name, winner, "two different things have the name"), winner)
            }
        };
        if winner == Winner::Both {
            let other = self.name_beside(name);
            self.beside.renamed.entry(name.0).or_default().push(base);
            if let Some(live) = self.live_mut(base) {
                live.names.retain(|known| known != name);
                live.names.push(other);
                live.names.sort_unstable();
            }
            return;
        }
        let loser = if side == Side::Base { clone } else { base };
        self.drop_names(loser, side, |known| known == name, work);
    }

    /// The path that a name is known by.
    fn path_of(&self, name: &Name) -> Vec<u8> {
        let mut path = self.path(name.0);
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(&name.1);
        path
    }

    /// Folders that are inside each other because both sides moved them are where one side has them all. False when
    /// there are none.
    fn settle_circles(&mut self, work: &mut Work) -> bool {
        let circles = self.circles();
        for circle in &circles {
            let moved =
                circle.iter().find(|at| self.moved_to(**at, Side::Base) || self.moved_to(**at, Side::Clone));
            let path = self.path(*moved.unwrap_or(&circle[0]));
            let winner = self.winner(&path);
            let fresh = circle.iter().all(|at| !work.circled.contains(at));
            let side = if fresh { provisional(winner) } else { Side::Base };
            work.circled.extend(circle);
            for at in circle {
                if self.moved_to(*at, side) {
                    self.move_to(*at, side, winner, work);
                }
            }
        }
        !circles.is_empty()
    }

    /// Whether a folder of the result is in another folder than it is on `side`, which has it.
    fn moved_to(&self, at: usize, side: Side) -> bool {
        let there = self.objects.all[at].of_version(side.into()).map(|ino| self.file(side.into(), ino));
        let there =
            there.and_then(|file| file.names.first()).map(|name| self.objects.object(side.into(), name.0));
        there.is_some() && there != self.above(at)
    }

    fn move_to(&mut self, at: usize, side: Side, winner: Winner, work: &mut Work) {
        let Some(ino) = *self.objects.all[at].of_version(side.into()) else { return };
        let names = self.names(side.into(), self.file(side.into(), ino));
        self.clash(&self.path(at), Clash::Moved, winner, "folders would be inside each other");
        if let Some(live) = self.live_mut(at) {
            live.names = names;
        }
        self.look_again(at, work);
    }

    /// The folder that a file of the result is in.
    fn above(&self, at: usize) -> Option<usize> {
        self.first_name(at).map(|name| name.0)
    }

    /// The first name of a file of the result: its folder's object, and the name.
    fn first_name(&self, at: usize) -> Option<(usize, &[u8])> {
        match &self.fates[at] {
            Fate::Live(live) => live.names.first().map(|name| (name.0, &name.1[..])),
            Fate::Kept => {
                let names = &self.file(Version::Base, self.objects.all[at].base?).names;
                let named = |name: &'_ (u32, Vec<u8>)| self.objects.object(Version::Base, name.0);
                let first = names.iter().map(|name| (named(name), &name.1[..]));
                first.min()
            }
            Fate::Dead(_) => None,
        }
    }

    /// Circles of folders. Each has one that is not where the base has it; every folder is gone through once.
    fn circles(&self) -> Vec<Vec<usize>> {
        let mut circles = Vec::new();
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for at in 0..self.fates.len() {
            let object = self.objects.all[at];
            let file = object.base.map(|ino| self.file(Version::Base, ino));
            if !file.is_some_and(File::is_folder) || !self.moved_to(at, Side::Base) {
                continue;
            }
            let mut here = Some(at);
            while let Some(next) = here.filter(|next| !seen.contains_key(next)) {
                seen.insert(next, at);
                here = self.above(next);
            }
            let Some(start) = here.filter(|start| seen.get(start) == Some(&at)) else { continue };
            let mut circle = vec![start];
            while let Some(next) =
                circle.last().and_then(|last| self.above(*last)).filter(|next| *next != start)
            {
                circle.push(next);
            }
            circles.push(circle);
        }
        circles
    }

    /// Where a file is in the result; where it was, when it goes.
    pub(super) fn result_path(&self, at: usize) -> Vec<u8> {
        let (mut parts, mut here) = (Vec::new(), at);
        while let Some((folder, name)) = self.first_name(here) {
            parts.push(name);
            here = folder;
        }
        if parts.is_empty() {
            return self.path(at);
        }
        let mut path = self.input.trees.base.above.clone();
        for part in parts.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        path
    }
}
