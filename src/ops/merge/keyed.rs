//! Databases of records that have names: each record is merged for itself.

use super::rules::Winner;
use super::{Side, Three};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Most sentences about one file; more are counted.
const NOTES_MAX: usize = 1000;

/// A database after a merge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Its bytes. With conflicts they are not to be used.
    pub bytes: Vec<u8>,
    /// What both sides changed and a policy decided, or what is worth a word, one sentence each.
    pub settled: Vec<String>,
    /// What nobody may decide silently, one sentence each.
    pub conflicts: Vec<String>,
}

impl Merged {
    pub(super) fn settled(&mut self, sentence: impl FnOnce() -> String) {
        if self.settled.len() < NOTES_MAX {
            self.settled.push(sentence());
        }
    }

    pub(super) fn conflict(&mut self, sentence: impl FnOnce() -> String) {
        if self.conflicts.len() < NOTES_MAX {
            self.conflicts.push(sentence());
        }
    }

    /// The side of `what`, which both changed: the policy's, or a conflict and then the clone's for the time being.
    pub(super) fn decide(&mut self, winner: Winner, what: impl FnOnce() -> String) -> Side {
        match winner.side() {
            Some(side) => {
                self.settled(|| format!("{}; the {}'s is taken", what(), side.word()));
                side
            }
            None => {
                self.conflict(what);
                Side::Clone
            }
        }
    }
}

/// Refuses a database that is larger than `max` bytes on any side.
pub(super) fn bounded(name: &str, files: &Three<&[u8]>, max: usize) -> Result<()> {
    if files.old.len().max(files.base.len()).max(files.clone.len()) > max {
        return Err(Error::unsupported(format!(
            "{name} is longer than {max} bytes; it is not merged by key"
        )));
    }
    Ok(())
}

/// All keys: in the base's order, then what only the clone has, in its order. No key comes twice.
pub(super) fn order<K: Clone + Eq + Hash>(base: &[K], clone: &[K]) -> Vec<K> {
    let mut seen = HashSet::with_capacity(base.len() + clone.len());
    base.iter().chain(clone).filter(|key| seen.insert((*key).clone())).cloned().collect()
}

/// What each side has under each key. Of a key that comes twice the first counts.
pub(super) fn index<K: Eq + Hash, V>(records: &[(K, V)]) -> HashMap<&K, &V> {
    let mut index = HashMap::with_capacity(records.len());
    for (key, value) in records {
        index.entry(key).or_insert(value);
    }
    index
}

/// Sets, three ways; never a conflict: what a side added is in, what a side removed is out.
pub(super) fn sets<K: Clone + Eq + Hash>(old: &[K], base: &[K], clone: &[K]) -> Vec<K> {
    let had: HashSet<&K> = old.iter().collect();
    let (in_base, in_clone): (HashSet<&K>, HashSet<&K>) = (base.iter().collect(), clone.iter().collect());
    let kept = |key: &K| match (in_base.contains(key), in_clone.contains(key)) {
        (true, true) => true,
        (false, false) => false,
        _ => !had.contains(key),
    };
    order(base, clone).into_iter().filter(kept).collect()
}

/// A file of lines that is a set: each line for itself.
#[must_use]
pub(super) fn line_sets(files: Three<&[u8]>) -> Vec<u8> {
    let lines = files.map(|file| lines(file));
    let mut bytes = Vec::new();
    for line in sets(&lines.old, &lines.base, &lines.clone) {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    bytes
}

/// The lines of a file, without their line feeds; none after the last line feed.
pub(super) fn lines(file: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = file.split(|&byte| byte == b'\n').collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    lines
}

/// Whole records, three ways. `name` says in a sentence what a key is.
pub(super) fn records<K: Clone + Eq + Hash>(
    merged: &mut Merged,
    files: Three<&[(K, &[u8])]>,
    winner: Winner,
    name: impl Fn(&K) -> String,
) -> Vec<u8> {
    let keys = files.map(|file| file.iter().map(|(key, _)| key.clone()).collect::<Vec<K>>());
    let indexes = files.map(|file| index(file));
    let mut bytes = Vec::new();
    for key in order(&keys.base, &keys.clone) {
        let three = indexes.map(|index| index.get(&key).copied());
        let side = three
            .clear()
            .unwrap_or_else(|| merged.decide(winner, || format!("{} changed on both sides", name(&key))));
        if let Some(record) = three.of(side) {
            bytes.extend_from_slice(record);
        }
    }
    bytes
}

/// `bytes` for a sentence: shortened, and harmless on a terminal.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    super::unified::printable(&text).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::{line_sets, sets};
    use crate::ops::merge::Three;

    #[test]
    fn a_set_gains_what_either_side_added_and_loses_what_either_removed() {
        assert_eq!(sets(&[1, 2, 3], &[2, 3, 4], &[1, 2, 5]), [2, 4, 5]);
        assert_eq!(sets(&[], &[1], &[1, 2]), [1, 2]);
        let files = Three { old: &b"a\nb\n"[..], base: b"b\nc", clone: b"a\nb\nd\n" };
        assert_eq!(line_sets(files), b"b\nc\nd\n");
    }
}
