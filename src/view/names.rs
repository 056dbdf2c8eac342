//! File names of the view.

use crate::store::{BaseRef, Name};
use std::collections::BTreeSet;

const SUFFIX: &str = ".raw";

/// What a file in the folder of clones may stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CloneFile {
    /// The clone.
    pub(super) clone: Name,
    /// One of its partitions; the whole disk when `None`.
    pub(super) partition: Option<u32>,
}

pub(super) fn clone_file(name: &Name) -> String {
    format!("{name}{SUFFIX}")
}

pub(super) fn partition_file(name: &Name, number: u32) -> String {
    format!("{name}.p{number}{SUFFIX}")
}

pub(super) fn base_file(name: &Name, version: u32) -> String {
    format!("{name}@{version}{SUFFIX}")
}

/// Whether `file` is the whole disk of one of `clones`.
pub(super) fn is_clone(file: &str, clones: &BTreeSet<&Name>) -> bool {
    let name = file.strip_suffix(SUFFIX).and_then(|stem| stem.parse().ok());
    name.is_some_and(|name: Name| clones.contains(&name))
}

/// What `file` may mean, the likeliest first: `web.p1.raw` is the clone `web.p1` if there is one, else partition 1 of
/// the clone `web`.
pub(super) fn meanings(file: &str) -> Vec<CloneFile> {
    let Some(stem) = file.strip_suffix(SUFFIX) else { return Vec::new() };
    let whole = stem.parse().ok().map(|clone| CloneFile { clone, partition: None });
    whole.into_iter().chain(partition(stem)).collect()
}

fn partition(stem: &str) -> Option<CloneFile> {
    let (clone, number) = stem.rsplit_once(".p")?;
    // One spelling only, so that each partition has one name.
    let canonical = number.bytes().all(|b| b.is_ascii_digit()) && !number.starts_with('0');
    let partition = number.parse().ok().filter(|_| canonical)?;
    Some(CloneFile { clone: clone.parse().ok()?, partition: Some(partition) })
}

/// The base version that `file` shows.
pub(super) fn base(file: &str) -> Option<BaseRef> {
    let base: BaseRef = file.strip_suffix(SUFFIX)?.parse().ok()?;
    base.version.is_some().then_some(base)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(file: &str) -> Vec<(String, Option<u32>)> {
        meanings(file).into_iter().map(|m| (m.clone.to_string(), m.partition)).collect()
    }

    #[test]
    fn a_clone_of_exactly_that_name_comes_before_a_partition() {
        assert_eq!(shown("web.raw"), [("web".to_owned(), None)]);
        assert_eq!(shown("web.p2.raw"), [("web.p2".to_owned(), None), ("web".to_owned(), Some(2))]);
        assert_eq!(shown("a.p1.p12.raw"), [("a.p1.p12".to_owned(), None), ("a.p1".to_owned(), Some(12))]);
        let name: Name = "web.p2".parse().unwrap();
        assert!(is_clone("web.p2.raw", &BTreeSet::from([&name])));
    }

    #[test]
    fn a_partition_number_has_one_spelling() {
        for file in ["web.p0.raw", "web.p01.raw", "web.p+1.raw", "web.p.raw", "web.p4294967296.raw"] {
            assert!(meanings(file).iter().all(|m| m.partition.is_none()), "{file}");
        }
        assert_eq!(shown("web"), []);
        assert_eq!(shown("../x.raw"), []);
        assert_eq!(shown(".p1.raw"), []);
    }

    #[test]
    fn a_base_file_names_its_version() {
        assert_eq!(base("debian@3.raw").unwrap().version, Some(3));
        for file in ["debian.raw", "debian@.raw", "debian@03.raw", "debian@3", "a/b@1.raw"] {
            assert_eq!(base(file), None, "{file}");
        }
    }
}
