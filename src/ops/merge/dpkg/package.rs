//! A package as its stanza in the status file tells of it.

use super::stanza::Stanza;
use std::fmt;

/// A package of one architecture. `all` and the native architecture are the same one, as they are to dpkg.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Its name.
    pub name: Vec<u8>,
    /// Its architecture, the native one for `all`.
    pub arch: Vec<u8>,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = crate::ops::merge::keyed::shown;
        write!(f, "{}:{}", shown(&self.name), shown(&self.arch))
    }
}

/// The field `Multi-Arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Multi {
    No,
    Same,
    Foreign,
    Allowed,
}

/// A stanza of the status file.
#[derive(Clone, Debug)]
pub(super) struct Package<'a> {
    pub(super) stanza: &'a Stanza<'a>,
    pub(super) name: &'a [u8],
    pub(super) arch: &'a [u8],
    pub(super) version: &'a [u8],
    pub(super) multi: Multi,
    /// Some of its files are there: neither `not-installed` nor `config-files`.
    pub(super) installed: bool,
}

impl<'a> Package<'a> {
    /// Nothing when the stanza has no name.
    pub(super) fn new(stanza: &'a Stanza<'a>, native: &'a [u8]) -> Option<Self> {
        let arch = stanza.get("Architecture").unwrap_or(b"all");
        Some(Self {
            stanza,
            name: stanza.get("Package").filter(|name| !name.is_empty())?,
            arch: if arch == b"all" { native } else { arch },
            version: stanza.get("Version").unwrap_or_default(),
            multi: match stanza.get("Multi-Arch") {
                Some(b"same") => Multi::Same,
                Some(b"foreign") => Multi::Foreign,
                Some(b"allowed") => Multi::Allowed,
                _ => Multi::No,
            },
            installed: !matches!(words(stanza)[2], b"" | b"not-installed" | b"config-files"),
        })
    }

    pub(super) fn id(&self) -> Id {
        Id { name: self.name.to_vec(), arch: self.arch.to_vec() }
    }

    /// Whether a user said that it shall stay at its version.
    pub(super) fn held(&self) -> bool {
        words(self.stanza)[0] == b"hold"
    }

    /// Whether nothing of its installation is left to do.
    pub(super) fn whole(&self) -> bool {
        words(self.stanza)[2] == b"installed"
    }
}

/// The words of `Status`: what is wanted, whether there is an error, what is there.
fn words<'a>(stanza: &Stanza<'a>) -> [&'a [u8]; 3] {
    let status = stanza.get("Status").unwrap_or_default();
    let mut words = status.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    [(); 3].map(|()| words.next().unwrap_or_default())
}

/// The architecture of the system: that of dpkg itself, or of the first package that has one other than `all`.
pub(super) fn native<'a>(stanzas: &[Stanza<'a>]) -> Option<&'a [u8]> {
    let arch = |stanza: &Stanza<'a>| stanza.get("Architecture").filter(|arch| *arch != b"all");
    let own = stanzas.iter().find(|stanza| stanza.get("Package") == Some(b"dpkg")).and_then(arch);
    own.or_else(|| stanzas.iter().find_map(arch))
}
