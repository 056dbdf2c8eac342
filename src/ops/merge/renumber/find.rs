//! Which numbers of the new base are moved, and where to.

use super::ids::{Ids, Map};
use super::{AccountFiles, Moves};
use crate::ops::merge::Three;
use crate::ops::merge::accounts::{Database, number, numbers, ranges};
use crate::ops::merge::keyed::{lines, shown};
use crate::ops::merge::numbers::{PEOPLE, candidates, is_movable};
use crate::ops::merge::rules::{Decision, Rules};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// More numbers than these are not moved: somebody gave them out twice by intent.
pub(super) const MOST: usize = 1000;

/// Why a number of the base should be another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    /// Who has it in the base.
    names: Vec<Vec<u8>>,
    /// The clone's number of the same name; without one, any that is free.
    to: Option<u32>,
    /// Who has it in the clone.
    taken_by: Option<Vec<u8>>,
}

/// Numbers of one kind: of users, or of groups.
struct Kind<'a> {
    database: Database,
    held: Three<HashMap<&'a [u8], u32>>,
    wishes: BTreeMap<u32, Wish>,
}

impl Moves {
    /// Finds what can be moved. `ids` says what the files of the three versions name, on all filesystems of the disk; it is
    /// only asked when something should be moved. `hidden` is a part of the disk that the base changed and that has files
    /// which cannot be looked at.
    #[must_use]
    pub fn find(
        files: &AccountFiles,
        rules: &Rules,
        hidden: Option<&str>,
        ids: impl FnOnce() -> Three<Ids>,
    ) -> Self {
        let allowed = |database: &Database| match rules.decide(database.path()) {
            Decision::Merge(policy) => policy.winner.side().is_some(),
            _ => false,
        };
        let mut moves = Self::default();
        let mut kinds: Vec<Kind<'_>> = [Database::Passwd, Database::Group]
            .into_iter()
            .map(|database| {
                // A group's number stands in passwd too: it moves in both, or in none.
                let allowed = allowed(&database) && allowed(&Database::Passwd);
                Kind::of(database, files.of(database), allowed)
            })
            .collect();
        let overlaps = super::ranges::overlaps(files, allowed);
        if overlaps.is_empty() && kinds.iter().all(|kind| kind.wishes.is_empty()) {
            return moves;
        }
        let ids = ids();
        for kind in &mut kinds {
            kind.refuse(&mut moves, files, &ids, hidden);
        }
        if let [users, groups] = &kinds[..] {
            moves.number(files, [users, groups], &ids);
        }
        moves.move_ranges(files, &overlaps, &ids, hidden);
        moves
    }

    fn number(&mut self, files: &AccountFiles, kinds: [&Kind<'_>; 2], ids: &Three<Ids>) {
        let mut taken = [taken(kinds[0], files, ids), taken(kinds[1], files, ids)];
        let mut maps = [Map::new(), Map::new()];
        // Numbers whose group gets what its user got.
        let mut kept = BTreeSet::new();
        for at in [0, 1] {
            for (old, wish) in &kinds[at].wishes {
                let other = 1 - at;
                // A person and the group of the same number stay a pair.
                let pair = kinds[other].wishes.get(old).is_some_and(|wish| wish.to.is_none());
                let known = maps[other].get(old).copied().filter(|_| at == 1 && kept.contains(old));
                let free = || {
                    let is_free = |id: &u32| !taken[at].contains(id) && (!pair || !taken[other].contains(id));
                    candidates(*old).find(is_free)
                };
                let Some(new) = wish.to.or(known).or_else(free) else {
                    self.refuse(kinds[at].database, wish, *old, "no number is free");
                    continue;
                };
                taken[at].insert(new);
                if pair && at == 0 && taken[other].insert(new) {
                    kept.insert(*old);
                }
                maps[at].insert(*old, new);
                self.told.push(kinds[at].sentence(wish, *old, new));
            }
        }
        [self.users, self.groups] = maps;
    }

    fn refuse(&mut self, database: Database, wish: &Wish, old: u32, why: &str) {
        let text = format!(
            "{}: number {old} of {}, new in the base, cannot be moved: {why}",
            database.name(),
            named(&wish.names)
        );
        self.refused.push((database, text));
    }
}

impl<'a> Kind<'a> {
    fn of(database: Database, files: Three<&'a [u8]>, allowed: bool) -> Self {
        let held = Three {
            old: numbers(database, files.old),
            base: numbers(database, files.base),
            clone: numbers(database, files.clone),
        };
        let mut kind = Self { database, held, wishes: BTreeMap::new() };
        if allowed {
            kind.wish();
            if kind.wishes.len() > MOST {
                kind.wishes.clear();
            }
            kind.drop_unsound();
        }
        kind
    }

    fn wish(&mut self) {
        let Three { old, base, clone } = &self.held;
        let added = |name: &[u8]| !old.contains_key(name);
        let mut by_number: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
        base.iter().for_each(|(name, id)| by_number.entry(*id).or_default().push(name));
        let mut holders: BTreeMap<u32, &[u8]> = BTreeMap::new();
        for (name, id) in clone.iter().filter(|(name, id)| added(name) && base.get(*name) != Some(id)) {
            let holder = holders.entry(*id).or_insert(name);
            *holder = (*holder).min(name);
        }
        let was: BTreeSet<u32> = old.values().copied().collect();
        for (id, mut names) in by_number {
            if was.contains(&id) || !names.iter().all(|name| added(name)) {
                continue;
            }
            names.sort_unstable();
            let in_clone: BTreeSet<u32> = names.iter().filter_map(|name| clone.get(name)).copied().collect();
            let mut wanted = in_clone.into_iter();
            let wish = match (wanted.next(), wanted.next()) {
                (Some(to), None) if to != id => Some((Some(to), None)),
                (None, _) => holders.get(&id).map(|holder| (None, Some(holder.to_vec()))),
                _ => None,
            };
            if let Some((to, taken_by)) = wish {
                let names = names.into_iter().map(<[u8]>::to_vec).collect();
                self.wishes.insert(id, Wish { names, to, taken_by });
            }
        }
    }

    /// Takes out what would give a number to two: until nothing more is to be taken out.
    fn drop_unsound(&mut self) {
        let in_base: BTreeSet<u32> = self.held.base.values().copied().collect();
        loop {
            let mut targets: BTreeMap<u32, usize> = BTreeMap::new();
            for to in self.wishes.values().filter_map(|wish| wish.to) {
                *targets.entry(to).or_default() += 1;
            }
            let before = self.wishes.len();
            let leaving: BTreeSet<u32> = self.wishes.keys().copied().collect();
            self.wishes.retain(|id, wish| {
                let is_free =
                    |to: u32| targets[&to] == 1 && (!in_base.contains(&to) || leaving.contains(&to));
                is_movable(*id) && wish.to.is_none_or(|to| is_movable(to) && is_free(to))
            });
            if self.wishes.len() == before {
                return;
            }
        }
    }

    /// Takes out what cannot be moved without leaving something behind.
    fn refuse(&mut self, moves: &mut Moves, files: &AccountFiles, ids: &Three<Ids>, hidden: Option<&str>) {
        let is_users = self.database == Database::Passwd;
        let by_number = named_by_number(files);
        let used =
            |ids: &Ids, id: u32| if is_users { ids.users.contains(&id) } else { ids.groups.contains(&id) };
        loop {
            let leaving: BTreeSet<u32> = self.wishes.keys().copied().collect();
            let why = |id: u32, wish: &Wish| {
                if used(&ids.old, id) {
                    return Some("files of the old base have it already".to_owned());
                }
                if let Some(to) = wish.to.filter(|to| used(&ids.base, *to) && !leaving.contains(to)) {
                    return Some(format!("files of the base have {to}, the clone's number of it, already"));
                }
                if is_users && ids.base.roots.contains(&id) {
                    return Some("a file's capability names it as the root of a namespace".to_owned());
                }
                if is_users && by_number.contains(&id) {
                    return Some("subuid or subgid names it by its number".to_owned());
                }
                if ids.base.unknown {
                    return Some("a list of access breaks its format".to_owned());
                }
                hidden
                    .map(|part| format!("{part} was changed by the base, and its files cannot be looked at"))
            };
            let found = self.wishes.iter().find_map(|(id, wish)| why(*id, wish).map(|why| (*id, why)));
            let Some((id, why)) = found else { return };
            if let Some(wish) = self.wishes.remove(&id) {
                moves.refuse(self.database, &wish, id, &why);
            }
            // What counted on this number to become free stays as well.
            let stay: Vec<u32> =
                self.wishes.iter().filter(|(_, wish)| wish.to == Some(id)).map(|(id, _)| *id).collect();
            for id in stay {
                if let Some(wish) = self.wishes.remove(&id) {
                    moves.refuse(
                        self.database,
                        &wish,
                        id,
                        "the number that the clone gave it is not free in the base",
                    );
                }
            }
        }
    }

    fn sentence(&self, wish: &Wish, old: u32, new: u32) -> String {
        let names = named(&wish.names);
        let why = match &wish.taken_by {
            Some(holder) => format!("{old} is {}'s in the clone", shown(holder)),
            None => "as in the clone".to_owned(),
        };
        format!(
            "{}: {names}, new in the base, has number {new} in place of {old}, with its files: {why}",
            self.database.name()
        )
    }
}

/// Numbers that nobody may be given: accounts, files and ranges of any version have them.
fn taken(kind: &Kind<'_>, files: &AccountFiles, ids: &Three<Ids>) -> BTreeSet<u32> {
    let held = [&kind.held.old, &kind.held.base, &kind.held.clone];
    let mut taken: BTreeSet<u32> = held.iter().flat_map(|held| held.values().copied()).collect();
    taken.extend(kind.wishes.values().filter_map(|wish| wish.to));
    for ids in [&ids.old, &ids.base, &ids.clone] {
        taken.extend(if kind.database == Database::Passwd { &ids.users } else { &ids.groups });
    }
    for database in [Database::Subuid, Database::Subgid] {
        let Three { old, base, clone } = files.of(database);
        for file in [old, base, clone] {
            // Sorted, so that each number is looked at once however often it is given out.
            let mut behind = 0;
            for (start, end, _) in ranges(file) {
                let end = end.min(u64::from(PEOPLE.end));
                taken.extend((start.max(behind)..end).filter_map(|id| u32::try_from(id).ok()));
                behind = behind.max(end);
            }
        }
    }
    taken
}

/// Users of the base whose ranges belong to their numbers.
fn named_by_number(files: &AccountFiles) -> BTreeSet<u32> {
    let name = |line: &[u8]| number(line.split(|&byte| byte == b':').next().unwrap_or_default());
    let all = [Database::Subuid, Database::Subgid].map(|database| files.of(database).base);
    all.into_iter().flat_map(lines).filter_map(name).collect()
}

fn named(names: &[Vec<u8>]) -> String {
    names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ")
}
