//! debconf's answers, `/var/cache/debconf/*.dat`: stanzas, merged by the question's name.

use super::Three;
use super::dpkg;
use super::keyed::{Merged, records, shown};
use super::rules::Winner;
use crate::error::{Error, Result};

/// Whether `path` is one of debconf's databases.
#[must_use]
pub fn is_database(path: &[u8]) -> bool {
    let name = path.strip_prefix(b"/var/cache/debconf/").and_then(|name| name.strip_suffix(b".dat"));
    matches!(name, Some(b"config" | b"passwords" | b"templates"))
}

/// Merges one database; a missing file is an empty one.
///
/// # Errors
/// `Corrupt` or `Unsupported` when a file is not made of stanzas that have names, or too large.
pub fn merge(files: Three<&[u8]>, winner: Winner) -> Result<Merged> {
    let mut merged = Merged::default();
    let (old, base, clone) = (named(files.old)?, named(files.base)?, named(files.clone)?);
    let sides = Three { old: &old[..], base: &base, clone: &clone };
    // Each record has its empty line.
    merged.bytes = records(&mut merged, sides, winner, |name| format!("debconf: {}", shown(name)));
    Ok(merged)
}

fn named(file: &[u8]) -> Result<Vec<(Vec<u8>, &[u8])>> {
    let mut records = Vec::new();
    let mut at = 0;
    for stanza in dpkg::parse(file)? {
        let name = stanza.get("Name").ok_or_else(|| Error::corrupt("a stanza without a name"))?;
        // A stanza with the empty line behind it.
        let start = at + file[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let end = (start + stanza.bytes.len() + 1).min(file.len());
        records.push((name.to_vec(), &file[start..end]));
        at = end;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::{is_database, merge};
    use crate::ops::merge::Three;
    use crate::ops::merge::rules::Winner;

    #[test]
    fn answers_merge_by_question() {
        let files = Three {
            old: &b"Name: a\nValue: 1\n\nName: b\nValue: 1\n\n"[..],
            base: b"Name: a\nValue: 2\n\nName: b\nValue: 1\n\n",
            clone: b"Name: a\nValue: 1\n\nName: b\nValue: 3\n\nName: c\n\n",
        };
        let merged = merge(files, Winner::Fail).expect("sound");
        assert_eq!(merged.bytes, b"Name: a\nValue: 2\n\nName: b\nValue: 3\n\nName: c\n\n");
        let both = merge(Three { clone: b"Name: a\nValue: 4\n\n", ..files }, Winner::Fail).expect("sound");
        assert_eq!(both.conflicts, ["debconf: a changed on both sides"]);
        assert!(merge(Three { clone: b"Value: 4\n\n", ..files }, Winner::Fail).is_err());
        assert!(
            is_database(b"/var/cache/debconf/config.dat")
                && !is_database(b"/var/cache/debconf/config.dat-old")
        );
    }
}
