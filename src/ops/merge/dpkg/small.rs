//! dpkg's small databases.

use crate::error::Result;
use crate::ops::merge::Three;
use crate::ops::merge::keyed::{Merged, bounded, line_sets, lines, records, shown};
use crate::ops::merge::rules::Winner;

/// Longest of these files, in bytes.
const FILE_MAX: usize = 16 << 20;

/// One of the small databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Small {
    /// `diversions`: three lines for each path.
    Diversions,
    /// `statoverride`: owner, group, mode and path.
    StatOverride,
    /// A file of `triggers`: a set of lines.
    Triggers,
}

impl Small {
    /// The database at `path`.
    #[must_use]
    pub fn of(path: &[u8]) -> Option<Self> {
        match path.strip_prefix(b"/var/lib/dpkg/")? {
            b"diversions" => Some(Self::Diversions),
            b"statoverride" => Some(Self::StatOverride),
            b"triggers/Lock" => None,
            rest => rest.strip_prefix(b"triggers/").map(|_| Self::Triggers),
        }
    }
}

/// Merges one of them; a missing file is an empty one.
///
/// # Errors
/// `Unsupported` when a file is longer than 16 MiB.
pub fn merge(database: Small, files: Three<&[u8]>, winner: Winner) -> Result<Merged> {
    bounded("a database of dpkg", &files, FILE_MAX)?;
    let mut merged = Merged::default();
    merged.bytes = match database {
        Small::Triggers => line_sets(files),
        Small::Diversions => {
            let records_of = files.map(|file| cut(file, 3, |lines| lines[0].to_vec()));
            let sides = Three { old: &records_of.old[..], base: &records_of.base, clone: &records_of.clone };
            records(&mut merged, sides, winner, |path| format!("diversions: {}", shown(path)))
        }
        Small::StatOverride => {
            let path = |lines: &[&[u8]]| {
                lines[0].splitn(4, |&byte| byte == b' ').last().unwrap_or_default().to_vec()
            };
            let records_of = files.map(|file| cut(file, 1, path));
            let sides = Three { old: &records_of.old[..], base: &records_of.base, clone: &records_of.clone };
            records(&mut merged, sides, winner, |path| format!("statoverride: {}", shown(path)))
        }
    };
    Ok(merged)
}

/// Records of `count` lines each; what is left at the end of a malformed file is one of its own.
fn cut(file: &[u8], count: usize, key: impl Fn(&[&[u8]]) -> Vec<u8>) -> Vec<(Vec<u8>, &[u8])> {
    let mut at = 0;
    lines(file)
        .chunks(count)
        .map(|chunk| {
            let start = at;
            at += chunk.iter().map(|line| line.len() + 1).sum::<usize>();
            (key(chunk), &file[start..at.min(file.len())])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Small, merge};
    use crate::ops::merge::Three;
    use crate::ops::merge::rules::Winner;

    fn merged(database: Small, texts: [&str; 3]) -> (String, Vec<String>) {
        let [old, base, clone] = texts.map(str::as_bytes);
        let merged = merge(database, Three { old, base, clone }, Winner::Fail).expect("small");
        (String::from_utf8_lossy(&merged.bytes).into_owned(), merged.conflicts)
    }

    #[test]
    fn diversions_merge_by_path() {
        let (said, conflicts) =
            merged(Small::Diversions, ["/a\n/b\np\n", "/a\n/b\np\n/c\n/d\nq\n", "/e\n/f\nr\n"]);
        assert_eq!((said.as_str(), conflicts.len()), ("/c\n/d\nq\n/e\n/f\nr\n", 0));
        let (_, conflicts) = merged(Small::Diversions, ["/a\n/b\np\n", "/a\n/c\np\n", "/a\n/d\np\n"]);
        assert_eq!(conflicts, ["diversions: /a changed on both sides"]);
    }

    #[test]
    fn overrides_merge_by_path_and_triggers_as_lines() {
        let (said, _) = merged(Small::StatOverride, ["", "root root 4755 /a b\n", "root mail 755 /c\n"]);
        assert_eq!(said, "root root 4755 /a b\nroot mail 755 /c\n");
        let (_, conflicts) =
            merged(Small::StatOverride, ["", "root root 4755 /a b\n", "root mail 755 /a b\n"]);
        assert_eq!(conflicts, ["statoverride: /a b changed on both sides"]);
        assert_eq!(
            merged(Small::Triggers, ["/a x\n/b y\n", "/a x\n/c z\n", "/b y\n/d w\n"]).0,
            "/c z\n/d w\n"
        );
        assert_eq!(Small::of(b"/var/lib/dpkg/triggers/ldconfig"), Some(Small::Triggers));
        assert_eq!(Small::of(b"/var/lib/dpkg/triggers/Lock"), None);
    }
}
