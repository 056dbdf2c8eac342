//! What happens to a path, by rules that people write.
//!
//! A rules file has one rule a line, `POLICY GLOB`; `#` begins a comment; the last line that matches a path decides.

use super::Side;
use super::derived::Comeback;
use crate::error::{Error, Result};
use crate::units::length;
use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};

/// The rules that hold before any of the user's, in the format of a rules file.
pub const PRESET: &str = include_str!("preset.rules");

/// Longest rules file, in bytes.
pub const FILE_MAX: u64 = 1 << 20;
/// Most rules in all.
const RULES_MAX: usize = 4096;

/// Who wins where both sides changed the same thing, differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// Nobody: the rebase fails and changes nothing.
    Fail,
    /// The new base.
    Base,
    /// The clone.
    Clone,
    /// The clone, and the base's version lies beside it under a name of its own.
    Both,
}

impl Winner {
    /// Whose version stays under the thing's own name.
    #[must_use]
    pub fn side(self) -> Option<Side> {
        match self {
            Self::Fail => None,
            Self::Base => Some(Side::Base),
            Self::Clone | Self::Both => Some(Side::Clone),
        }
    }
}

/// What is done about a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Text is merged line by line first.
    pub lines: bool,
    /// Who wins what is left.
    pub winner: Winner,
}

/// What a path is to a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// An ordinary file, merged three ways; the policy is for conflicts only.
    Merge(Policy),
    /// Changed by running alone: the clone's where both sides changed it, and not worth a word of its own.
    Volatile,
    /// Always the clone's: whether it is there, and what is in it.
    Identity,
    /// Made from other files. Never a conflict.
    Derived {
        /// Left out of the result. Otherwise the new base's stays until it is made again.
        drop: bool,
        /// How it comes back, where that is known.
        comeback: Option<Comeback>,
    },
    /// The new base's, and never looked into.
    Exclude,
}

/// The first word of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Conflict(Policy),
    Volatile,
    Identity,
    Derived,
    Rebuild,
    Exclude,
}

const WORDS: [(&str, Word); 13] = [
    ("fail", Word::Conflict(Policy { lines: false, winner: Winner::Fail })),
    ("base", Word::Conflict(Policy { lines: false, winner: Winner::Base })),
    ("clone", Word::Conflict(Policy { lines: false, winner: Winner::Clone })),
    ("both", Word::Conflict(Policy { lines: false, winner: Winner::Both })),
    ("merge", Word::Conflict(Policy { lines: true, winner: Winner::Fail })),
    ("merge/base", Word::Conflict(Policy { lines: true, winner: Winner::Base })),
    ("merge/clone", Word::Conflict(Policy { lines: true, winner: Winner::Clone })),
    ("merge/both", Word::Conflict(Policy { lines: true, winner: Winner::Both })),
    ("volatile", Word::Volatile),
    ("identity", Word::Identity),
    ("derived", Word::Derived),
    ("rebuild", Word::Rebuild),
    ("exclude", Word::Exclude),
];

/// Rules, the later ones stronger.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The word of each glob in `globs`.
    words: Vec<Word>,
    lines: Vec<(Word, String)>,
    globs: GlobSet,
}

impl Rules {
    /// The rules of [`PRESET`].
    ///
    /// # Errors
    /// None, as long as the preset is right; a test reads it.
    pub fn preset() -> Result<Self> {
        Self::none()?.and(PRESET)
    }

    /// No rule: every conflict fails.
    ///
    /// # Errors
    /// None in practice.
    pub fn none() -> Result<Self> {
        built(Vec::new())
    }

    /// These rules, and after them those of a rules file.
    ///
    /// # Errors
    /// `Invalid` names the line and what is wrong with it.
    pub fn and(mut self, file: &str) -> Result<Self> {
        if length(file.len()) > FILE_MAX {
            return Err(Error::invalid("a rules file has at most 1 MiB"));
        }
        for (index, line) in file.lines().enumerate() {
            let rule = parsed(line).map_err(|reason| {
                Error::invalid(format!("line {}: {reason}: {}", index + 1, line.trim().escape_debug()))
            })?;
            self.lines.extend(rule);
            if self.lines.len() > RULES_MAX {
                return Err(Error::invalid(format!("line {}: more than {RULES_MAX} rules", index + 1)));
            }
        }
        built(self.lines)
    }

    /// What is done about `path`, absolute in the guest and without a slash at its end. It may be any bytes.
    #[must_use]
    pub fn decide(&self, path: &[u8]) -> Decision {
        let last = self.globs.matches_candidate(&Candidate::from_bytes(path)).into_iter().max();
        let derived = |drop| Decision::Derived { drop, comeback: Comeback::of(path) };
        match last.and_then(|index| self.words.get(index)) {
            None => Decision::Merge(Policy { lines: false, winner: Winner::Fail }),
            Some(Word::Conflict(policy)) => Decision::Merge(*policy),
            Some(Word::Volatile) => Decision::Volatile,
            Some(Word::Identity) => Decision::Identity,
            Some(Word::Derived) => derived(true),
            Some(Word::Rebuild) => derived(false),
            Some(Word::Exclude) => Decision::Exclude,
        }
    }
}

/// The rule of a line, if it holds one.
fn parsed(line: &str) -> Result<Option<(Word, String)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (word, glob) = line.split_once(char::is_whitespace).ok_or("a rule is a policy and a glob")?;
    let glob = glob.trim_start();
    let known = WORDS.iter().find(|(name, _)| *name == word).map(|&(_, word)| word);
    let known = known.ok_or_else(|| {
        let names: Vec<&str> = WORDS.iter().map(|(name, _)| *name).collect();
        format!("no policy is named {}; there are {}", word.escape_debug(), names.join(", "))
    })?;
    check(glob)?;
    Ok(Some((known, glob.to_owned())))
}

fn check(glob: &str) -> Result<(), String> {
    if !glob.starts_with('/') {
        return Err("a glob begins with a slash".into());
    }
    if glob.len() > 1 && glob.ends_with('/') {
        return Err("a glob does not end with a slash; /** behind a folder's name is all of it".into());
    }
    if glob.split('/').any(|part| part.contains("**") && part != "**") {
        return Err("** stands alone between slashes".into());
    }
    if glob.split('/').any(|part| part == "." || part == "..") || glob.contains("//") {
        return Err("a path in a guest has no part that is empty, . or ..".into());
    }
    compiled(glob).map(drop)
}

fn compiled(glob: &str) -> Result<globset::Glob, String> {
    GlobBuilder::new(glob)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| error.kind().to_string())
}

/// Each rule's glob; `FOLDER/**` is the folder itself as well.
fn built(lines: Vec<(Word, String)>) -> Result<Rules> {
    let mut set = GlobSetBuilder::new();
    let mut words = Vec::with_capacity(lines.len());
    for (word, glob) in &lines {
        let folder = glob.strip_suffix("/**").map(|folder| if folder.is_empty() { "/" } else { folder });
        for glob in [Some(glob.as_str()), folder].into_iter().flatten() {
            set.add(compiled(glob).map_err(Error::invalid)?);
            words.push(*word);
        }
    }
    let globs = set.build().map_err(|error| Error::invalid(format!("too many globs: {error}")))?;
    Ok(Rules { words, lines, globs })
}

#[cfg(test)]
mod tests {
    use super::{Decision, PRESET, Policy, Rules, Winner};
    use crate::ops::merge::derived::Comeback;

    fn decide(rules: &str, path: &[u8]) -> Decision {
        Rules::none().and_then(|none| none.and(rules)).map(|rules| rules.decide(path)).expect(rules)
    }

    fn wins(winner: Winner) -> Decision {
        Decision::Merge(Policy { lines: false, winner })
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let rules = "clone /a/**\n\n# words\n  base\t /a/*.c\n";
        assert_eq!(decide(rules, b"/a/x.c"), wins(Winner::Base));
        assert_eq!(decide(rules, b"/a/b/x.c"), wins(Winner::Clone), "a star stays in its folder");
        assert_eq!(decide(rules, b"/a"), wins(Winner::Clone), "the folder itself");
        assert_eq!(decide(rules, b"/ab"), wins(Winner::Fail));
        assert_eq!(decide(rules, b"/a/\xff\xfe"), wins(Winner::Clone));
        assert_eq!(decide("both /?[0-9]", b"/x5"), wins(Winner::Both));
        assert_eq!(decide("both /a/??", b"/a/\xc3\xa4"), wins(Winner::Both), "? is one byte");
        assert_eq!(decide("both /**/x", b"/x"), wins(Winner::Both));
        assert_eq!(decide("base /**", b"/"), wins(Winner::Base));
        assert_eq!(decide("base /a\\*", b"/a*"), wins(Winner::Base));
        assert_eq!(decide("base /a b", b"/a b"), wins(Winner::Base));
    }

    #[test]
    fn a_wrong_line_is_named_with_its_fault() {
        let said = |rules: &str| match Rules::none().and_then(|none| none.and(rules)) {
            Ok(_) => panic!("taken: {rules}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(said("\nclone etc/x"), "line 2: a glob begins with a slash: clone etc/x");
        assert!(said("keep /x").starts_with("line 1: no policy is named keep; there are fail, base, "));
        assert_eq!(said("clone"), "line 1: a rule is a policy and a glob: clone");
        assert!(said("clone /x/").contains("does not end with a slash"));
        assert!(said("clone /x**").contains("** stands alone"));
        assert!(said("clone /a/../b").contains("no part that is empty"));
        assert!(said("clone /[a").contains("line 1: unclosed character class"));
        assert!(said(&"clone /x\n".repeat(5000)).contains("more than 4096 rules"));
    }

    #[test]
    fn the_preset_says_what_the_manual_says() {
        let rules = Rules::preset().expect("the preset");
        let both = |winner| Decision::Merge(Policy { lines: true, winner });
        assert_eq!(rules.decide(b"/etc/ssh/sshd_config"), both(Winner::Clone));
        assert_eq!(rules.decide(b"/etc/fstab"), both(Winner::Fail));
        assert_eq!(rules.decide(b"/usr/bin/x"), wins(Winner::Base));
        assert_eq!(rules.decide(b"/usr/local/bin/x"), wins(Winner::Clone));
        assert_eq!(rules.decide(b"/var/lib/x"), wins(Winner::Clone));
        assert_eq!(rules.decide(b"/data"), wins(Winner::Fail));
        assert_eq!(rules.decide(b"/etc/ssh/ssh_host_rsa_key.pub"), Decision::Identity);
        assert_eq!(rules.decide(b"/proc/x/y"), Decision::Exclude);
        assert_eq!(rules.decide(b"/var/lib/NetworkManager/secret_key"), Decision::Identity);
        assert_eq!(rules.decide(b"/var/cache/debconf/config.dat"), wins(Winner::Clone), "answers are state");
        let Decision::Derived { drop: true, comeback: Some(Comeback::Run(_)) } =
            rules.decide(b"/etc/ld.so.cache")
        else {
            panic!("ld.so.cache")
        };
    }

    #[test]
    fn what_each_boot_touches_is_volatile_or_who_the_machine_is() {
        let rules = Rules::preset().expect("the preset");
        for path in [
            "/etc/mtab",
            "/etc/adjtime",
            "/tmp/x/y",
            "/root/.cache/x",
            "/home/ann/.cache/mesa/index",
            "/var/tmp/x",
            "/var/log",
            "/var/log/wtmp",
            "/var/log/lastlog",
            "/var/log/journal/0123/system.journal",
            "/var/lib/systemd/timers/stamp-apt-daily.timer",
            "/var/lib/systemd/timesync/clock",
            "/var/lib/systemd/rfkill/x",
            "/var/lib/lastlog/lastlog2.db",
            "/var/lib/wtmpdb/wtmp.db",
            "/var/lib/dhcp/dhclient.eth0.leases",
            "/var/lib/dhclient/dhclient.leases",
            "/var/lib/NetworkManager/timestamps",
            "/var/lib/logrotate/status",
            "/var/lib/logrotate/logrotate.status",
            "/var/lib/apt/periodic/update-stamp",
            "/var/lib/apt/lists/deb.debian.org_debian_dists_bookworm_InRelease",
            "/var/lib/dnf/repos/fedora-0123/countme",
            "/var/lib/chrony/drift",
            "/var/cache/man/index.db.tmp",
            "/var/cache/dnf/packages.db",
            "/var/backups/dpkg.status.0",
            "/var/spool/anacron/cron.daily",
            "/var/lib/plymouth/boot-duration",
        ] {
            let known = rules.decide(path.as_bytes());
            let fine = known == Decision::Volatile || matches!(known, Decision::Derived { drop: true, .. });
            assert!(fine, "{path}: {known:?}");
        }
        for path in ["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/etc/machine-id"] {
            assert_eq!(rules.decide(path.as_bytes()), Decision::Identity, "{path}");
        }
        for path in ["/var/lib/dpkg/status", "/var/lib/postgresql/x", "/var/spool/cron/crontabs/root"] {
            assert_eq!(rules.decide(path.as_bytes()), wins(Winner::Clone), "{path}");
        }
    }

    #[test]
    fn every_derived_path_of_the_preset_is_known_to_come_back() {
        let of =
            |word: &str| PRESET.lines().filter(move |line| line.split(' ').next() == Some(word)).collect();
        let lines: Vec<&str> =
            ["derived", "rebuild"].iter().flat_map(|word| -> Vec<&str> { of(word) }).collect();
        assert!(lines.len() > 15);
        for line in lines {
            let glob = line.rsplit(' ').next().expect(line);
            let path = glob.replace("**", "x").replace('*', "x").replace("{aliases,", "aliases{");
            let path = path.split('{').next().expect(line);
            assert!(Comeback::of(path.as_bytes()).is_some(), "{path}");
        }
    }
}
