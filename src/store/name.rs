//! Names of bases and clones, and how a user points at one.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name in bytes.
pub const NAME_MAX: usize = 128;

/// The name of a base or a clone: 1 to 128 bytes of `[A-Za-z0-9._-]`, the first a letter or a digit.
///
/// Such a name is one path component on every filesystem, never `.` or `..`, never hidden, never an option.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let shown: String = text.chars().take(40).flat_map(char::escape_default).collect();
        let refuse = |why: &str| Err(Error::invalid(format!("\"{shown}\" is not a name: {why}")));
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > NAME_MAX {
            return refuse(&format!("it has {} bytes, at most {NAME_MAX} are allowed", text.len()));
        }
        if let Some(wrong) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
            let wrong = wrong.escape_default();
            return refuse(&format!("'{wrong}' is not a letter, digit, dot, hyphen or underscore"));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return refuse("it must begin with a letter or a digit");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A base as a user names it: `NAME` (its newest version) or `NAME@V`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseRef {
    /// Name of the base.
    pub name: Name,
    /// Its version, from 1 on; `None` for the newest.
    pub version: Option<u32>,
}

impl BaseRef {
    /// One version of a base.
    #[must_use]
    pub fn exact(name: Name, version: u32) -> Self {
        Self { name, version: Some(version) }
    }
}

impl FromStr for BaseRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: text.parse()?, version: None });
        };
        let name: Name = name.parse()?;
        let version = parse_version(version).ok_or_else(|| {
            let shown: String = version.chars().take(20).flat_map(char::escape_default).collect();
            Error::invalid(format!(
                "\"{shown}\" is not a version of {name}: use a number from 1 on, as in {name}@1"
            ))
        })?;
        Ok(Self { name, version: Some(version) })
    }
}

/// A version or checkpoint number in its one canonical spelling: decimal, from 1 on, no sign, no leading zero.
pub(super) fn parse_version(text: &str) -> Option<u32> {
    let canonical =
        text.starts_with(|c: char| matches!(c, '1'..='9')) && text.bytes().all(|b| b.is_ascii_digit());
    canonical.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for BaseRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => f.pad(&format!("{}@{version}", self.name)),
            None => self.name.fmt(f),
        }
    }
}

/// Something of the store that has a disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// One version of a base.
    Base(BaseRef),
    /// A clone.
    Clone(Name),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(base) => base.fmt(f),
            Self::Clone(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_leave_their_folder_or_hide_are_refused() {
        let long = "a".repeat(300);
        for bad in
            ["", ".", "..", "a/b", "/a", "../a", ".a", "-a", "_a", "a b", "a\n", "a\0", "é", "a@1", &long]
        {
            let error = bad.parse::<Name>().unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Invalid, "{bad:?}");
            let shown = error.to_string();
            assert!(shown.is_ascii() && shown.len() < 200 && !shown.contains('\n'), "{shown:?}");
        }
        for good in ["a", "0", "A.b_c-d", &"a".repeat(128)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_version_has_one_spelling() {
        assert_eq!("a@12".parse::<BaseRef>().unwrap(), BaseRef::exact("a".parse().unwrap(), 12));
        assert_eq!("a".parse::<BaseRef>().unwrap().version, None);
        for bad in ["a@", "a@0", "a@01", "a@+1", "a@-1", "a@1@2", "a@4294967296", "@1", "a@x"] {
            assert!(bad.parse::<BaseRef>().is_err(), "{bad}");
        }
    }
}
