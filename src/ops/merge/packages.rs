//! Which database of packages or accounts a path is, and how it is merged.

use super::accounts::Database;
use super::dpkg::Small;
use super::{Side, debconf};

/// How the file at a path is merged, when it is one that is not merged as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    /// [`super::accounts::merge`].
    Accounts(Database),
    /// `/var/lib/dpkg/status`: [`super::dpkg::merge`], once for the system.
    DpkgStatus,
    /// `/var/lib/apt/extended_states`: comes with the status.
    AptStates,
    /// [`super::dpkg::merge_small`].
    Dpkg(Small),
    /// A file of `/var/lib/dpkg/alternatives`: [`super::dpkg::merge_alternatives`].
    Alternatives,
    /// A link in `/etc/alternatives`: it comes with the file of its name.
    AlternativesLink,
    /// [`super::debconf::merge`].
    Debconf,
    /// A copy or a list that is simply one side's.
    Whole(Side),
    /// The database of another package manager: when both sides changed it, differently, that is a conflict, whatever
    /// the policy. Named for people.
    Foreign(&'static str),
}

/// Databases that are not merged, by what their paths begin with.
const FOREIGN: [(&[u8], &str); 7] = [
    (b"/var/lib/rpm/", "the rpm database"),
    (b"/usr/lib/sysimage/rpm/", "the rpm database"),
    (b"/usr/share/rpm/", "the rpm database"),
    (b"/var/lib/pacman/local/", "pacman's database"),
    (b"/lib/apk/db/", "apk's database"),
    (b"/usr/lib/apk/db/", "apk's database"),
    (b"/etc/apk/world", "apk's database"),
];

impl Keyed {
    /// How the file at `path` is merged; nothing for an ordinary one.
    #[must_use]
    pub fn of(path: &[u8]) -> Option<Self> {
        match path {
            b"/var/lib/dpkg/status" => return Some(Self::DpkgStatus),
            b"/var/lib/apt/extended_states" => return Some(Self::AptStates),
            b"/var/lib/dpkg/available" => return Some(Self::Whole(Side::Base)),
            _ => {}
        }
        if let Some(foreign) = FOREIGN.iter().find(|(start, _)| path.starts_with(start)) {
            return Some(Self::Foreign(foreign.1));
        }
        if is_copy(path) {
            return Some(Self::Whole(Side::Clone));
        }
        let below = |folder: &[u8]| path.strip_prefix(folder).is_some_and(|name| !name.contains(&b'/'));
        let debconf = debconf::is_database(path).then_some(Self::Debconf);
        let file = below(b"/var/lib/dpkg/alternatives/").then_some(Self::Alternatives);
        let link =
            (below(b"/etc/alternatives/") && !path.ends_with(b"/README")).then_some(Self::AlternativesLink);
        let accounts = || Database::of(path).map(Self::Accounts);
        debconf.or(file).or(link).or_else(accounts).or_else(|| Small::of(path).map(Self::Dpkg))
    }
}

/// The copy that a program made before it last wrote its database.
fn is_copy(path: &[u8]) -> bool {
    let account = path.strip_suffix(b"-").is_some_and(|path| Database::of(path).is_some());
    let dpkg = path.strip_prefix(b"/var/lib/dpkg/").and_then(|name| name.strip_suffix(b"-old"));
    let debconf = path.strip_suffix(b"-old").is_some_and(debconf::is_database);
    account || debconf || matches!(dpkg, Some(b"status" | b"diversions" | b"statoverride" | b"available"))
}

#[cfg(test)]
mod tests {
    use super::Keyed;
    use crate::ops::merge::Side;

    #[test]
    fn databases_are_known_by_their_paths() {
        let whole = |side| Some(Keyed::Whole(side));
        assert_eq!(Keyed::of(b"/etc/passwd-"), whole(Side::Clone));
        assert_eq!(Keyed::of(b"/var/lib/dpkg/status-old"), whole(Side::Clone));
        assert_eq!(Keyed::of(b"/var/lib/dpkg/available"), whole(Side::Base));
        assert_eq!(Keyed::of(b"/var/lib/dpkg/status"), Some(Keyed::DpkgStatus));
        assert_eq!(Keyed::of(b"/var/lib/rpm/rpmdb.sqlite"), Some(Keyed::Foreign("the rpm database")));
        assert_eq!(Keyed::of(b"/etc/alternatives/awk"), Some(Keyed::AlternativesLink));
        assert_eq!(Keyed::of(b"/etc/alternatives/README"), None);
        assert_eq!(Keyed::of(b"/etc/hosts"), None);
        assert!(matches!(Keyed::of(b"/etc/gshadow"), Some(Keyed::Accounts(_))));
        assert!(matches!(Keyed::of(b"/var/lib/dpkg/diversions"), Some(Keyed::Dpkg(_))));
    }
}
