//! Numbers and ranges of the result that two names have.

use super::{Database, Entry, Key, number};
use crate::ops::merge::Three;
use crate::ops::merge::keyed::{Merged, lines, shown};
use crate::ops::merge::numbers::candidates;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Numbers that two names have after the merge and had on neither side.
pub(super) fn numbers_taken(
    merged: &mut Merged,
    database: Database,
    entries: &Three<Vec<Entry<'_>>>,
    names: &[(&[u8], Vec<Vec<u8>>)],
) {
    // In passwd the second field behind the name is a user's own number, in group it is the group's.
    if !matches!(database, Database::Passwd | Database::Group) {
        return;
    }
    let mut holders: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
    for (name, fields) in names {
        if let Some(id) = fields.get(1).and_then(|field| number(field)) {
            holders.entry(id).or_default().push(name);
        }
    }
    let held = entries.map(|entries| held(entries));
    let mut used: BTreeSet<u32> =
        [&held.old, &held.base, &held.clone].iter().flat_map(|held| held.values().copied()).collect();
    for (id, names) in holders.iter().filter(|(_, names)| names.len() > 1) {
        let had = |side: &HashMap<&[u8], u32>| names.iter().all(|name| side.get(name) == Some(id));
        if had(&held.base) || had(&held.clone) {
            continue;
        }
        let theirs = names.iter().filter(|&name| held.clone.get(name) != Some(id));
        let own: Vec<String> =
            names.iter().filter(|&name| held.base.get(name) != Some(id)).map(|name| shown(name)).collect();
        let base: Vec<String> = theirs.map(|name| shown(name)).collect();
        merged.conflict(|| {
            let free = candidates(*id).find(|id| !used.contains(id));
            used.extend(free);
            format!(
                "{}: number {id} is {} in the base and {} in the clone; renumber the clone's, with its files, first: {}",
                database.name(),
                base.join(", "),
                own.join(", "),
                free.map_or("no number is free".to_owned(), |free| format!("{free} is free")),
            )
        });
    }
}

pub(super) fn held<'a>(entries: &[Entry<'a>]) -> HashMap<&'a [u8], u32> {
    let id = |(key, fields): &Entry<'a>| match key {
        Key::Name(name) => fields.get(1).and_then(|field| number(field)).map(|id| (*name, id)),
        Key::Line(..) | Key::Nis(..) => None,
    };
    entries.iter().filter_map(id).collect()
}

/// Ranges of two names that overlap after the merge and did on neither side.
pub(super) fn ranges_overlap(merged: &mut Merged, database: Database, files: &Three<&[u8]>) {
    let known: Vec<Vec<(u64, u64, &[u8])>> = vec![ranges(files.base), ranges(files.clone)];
    let bytes = std::mem::take(&mut merged.bytes);
    let sorted = ranges(&bytes);
    let mut reach: Option<(u64, u64, &[u8])> = None;
    for &(start, end, name) in &sorted {
        if let Some((from, to, other)) = reach.filter(|&(_, to, other)| start < to && other != name) {
            let whole = |side: &Vec<(u64, u64, &[u8])>| {
                side.binary_search(&(start, end, name)).is_ok()
                    && side.binary_search(&(from, to, other)).is_ok()
            };
            if !known.iter().any(whole) {
                merged.conflict(|| {
                    let (name, other) = (shown(name), shown(other));
                    format!(
                        "{}: the ranges of {other} and {name} overlap at {start}; move the clone's first",
                        database.name()
                    )
                });
            }
        }
        if reach.is_none_or(|(_, to, _)| end > to) {
            reach = Some((start, end, name));
        }
    }
    merged.bytes = bytes;
}

/// The ranges of a file, by start: first number, the one behind the last, name.
pub(in crate::ops::merge) fn ranges(file: &[u8]) -> Vec<(u64, u64, &[u8])> {
    let mut found: Vec<(u64, u64, &[u8])> = lines(file).into_iter().filter_map(range).collect();
    found.sort_unstable();
    found
}

pub(in crate::ops::merge) fn range(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let parts: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
    let [name, start, count] = parts[..] else { return None };
    let (start, count) = (u64::from(number(start)?), u64::from(number(count)?));
    (count > 0).then_some((start, start + count, name))
}
