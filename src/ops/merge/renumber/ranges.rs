//! Ranges of subordinate numbers that two sides gave out twice.

use super::find::MOST;
use super::ids::Ids;
use super::{AccountFiles, Moves, Range};
use crate::ops::merge::Three;
use crate::ops::merge::accounts::{Database, numbers, ranges};
use crate::ops::merge::keyed::shown;
use crate::ops::merge::numbers::PEOPLE;
use std::collections::BTreeSet;

const DATABASES: [Database; 2] = [Database::Subuid, Database::Subgid];
/// The last number that `useradd` gives out.
const LAST: u64 = 600_100_000;

/// New ranges of the base that overlap with one that somebody else has in the clone: by range, who.
pub(super) fn overlaps(files: &AccountFiles, allowed: impl Fn(&Database) -> bool) -> Vec<(Range, Vec<u8>)> {
    let mut found = Vec::new();
    // A range moves in both databases, or in none.
    if !DATABASES.iter().all(allowed) {
        return found;
    }
    let known: BTreeSet<(u64, u64, &[u8])> = DATABASES
        .into_iter()
        .flat_map(|database| [files.of(database).old, files.of(database).clone])
        .flat_map(ranges)
        .collect();
    for database in DATABASES {
        let Three { old, base, clone } = files.of(database).map(|file| ranges(file));
        // What the base removed and the clone left alone is not there after the merge.
        let stays: Vec<_> = clone
            .iter()
            .filter(|range| old.binary_search(range).is_err() || base.binary_search(range).is_ok())
            .collect();
        let added: Vec<_> = base.iter().filter(|range| !known.contains(range)).collect();
        if added.len() > MOST || stays.len() > MOST {
            continue;
        }
        for (start, end, name) in added {
            let other = |(from, to, other): &&&(u64, u64, &[u8])| from < end && start < to && other != name;
            let range = (name.to_vec(), *start, *end);
            if let Some((_, _, other)) = stays.iter().find(other)
                && !found.iter().any(|(known, _)| *known == range)
            {
                found.push((range, other.to_vec()));
            }
        }
    }
    found
}

impl Moves {
    pub(super) fn move_ranges(
        &mut self,
        files: &AccountFiles,
        overlaps: &[(Range, Vec<u8>)],
        ids: &Three<Ids>,
        hidden: Option<&str>,
    ) {
        let all = DATABASES.into_iter().flat_map(|database| {
            let Three { old, base, clone } = files.of(database);
            [old, base, clone].into_iter().flat_map(ranges).collect::<Vec<_>>()
        });
        let mut above = all.map(|(_, end, _)| end).max().unwrap_or(0).max(PEOPLE.end.into());
        let mut used = used(files, ids);
        used.extend(self.users.values().chain(self.groups.values()).map(|id| u64::from(*id)));
        for (range, other) in overlaps {
            let (name, start, end) = range;
            let why = if is_used(&ids.base, *start, *end) {
                Some("files of the base have numbers of it".to_owned())
            } else {
                hidden
                    .map(|part| format!("{part} was changed by the base, and its files cannot be looked at"))
            };
            let new = free(above, end - start, &used);
            let (Some(new), None) = (new, &why) else {
                let why = why.unwrap_or_else(|| "no range is free".to_owned());
                let text = format!(
                    "subuid, subgid: the range of {} from {start} on, new in the base, cannot be moved: {why}",
                    shown(name)
                );
                self.refused.push((Database::Subuid, text));
                continue;
            };
            above = new + (end - start);
            self.told.push(format!(
                "subuid, subgid: the range of {}, new in the base, begins at {new} in place of {start}, which {} has in \
                 the clone",
                shown(name),
                shown(other)
            ));
            self.ranges.insert(range.clone(), new);
        }
    }
}

/// Numbers of files and accounts of any version.
fn used(files: &AccountFiles, ids: &Three<Ids>) -> BTreeSet<u64> {
    let mut used = BTreeSet::new();
    for ids in [&ids.old, &ids.base, &ids.clone] {
        used.extend(ids.users.iter().chain(&ids.groups).chain(&ids.roots).map(|id| u64::from(*id)));
    }
    for database in [Database::Passwd, Database::Group] {
        let Three { old, base, clone } = files.of(database);
        for file in [old, base, clone] {
            used.extend(numbers(database, file).into_values().map(u64::from));
        }
    }
    used
}

fn is_used(ids: &Ids, start: u64, end: u64) -> bool {
    let number = |id: u64| u32::try_from(id).unwrap_or(u32::MAX);
    let inside = number(start)..=number(end - 1);
    ids.unknown
        || [&ids.users, &ids.groups, &ids.roots].iter().any(|ids| ids.range(inside.clone()).next().is_some())
}

/// The first range of `count` numbers from `above` on in which nothing is used.
fn free(above: u64, count: u64, used: &BTreeSet<u64>) -> Option<u64> {
    let mut start = above;
    while let Some(last) = used.range(start..start.saturating_add(count)).next_back() {
        start = last + 1;
    }
    (start + count <= LAST + 1).then_some(start)
}
