//! Whether the packages of a status file have what they ask for.

use super::package::{Multi, Package, native};
use super::relation::{Named, alternatives, clauses};
use super::stanza;
use crate::error::{Error, Result};
use crate::ops::merge::keyed::shown;
use std::collections::HashMap;

/// Most comparisons of one check. A large desktop takes about a hundred thousand.
const WORK_MAX: u64 = 40_000_000;

/// A qualifier that no package can write: any architecture.
const EVERY: &[u8] = b" ";

/// Something that an installed package asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Broken {
    /// The package, `name:arch`.
    pub package: String,
    /// The field that asks: `Depends`, `Pre-Depends`, `Conflicts`, `Breaks` or `Multi-Arch`.
    pub field: &'static str,
    /// What it asks for: a clause with its alternatives.
    pub clause: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.package, self.field, self.clause)
    }
}

/// Checks the dependencies of all installed packages, as `apt-get check` does.
///
/// # Errors
/// `Corrupt` when `status` is no status file; `Unsupported` when a check would take more than 40 million comparisons.
pub fn check(status: &[u8]) -> Result<Vec<Broken>> {
    let stanzas = stanza::parse(status)?;
    let native = native(&stanzas).unwrap_or(b"all");
    let packages: Vec<Package<'_>> =
        stanzas.iter().filter_map(|stanza| Package::new(stanza, native)).collect();
    let found = World::new(&packages, native).broken()?;
    Ok(found.into_iter().map(|broken| broken.told(&packages)).collect())
}

/// A [`Broken`] that still knows its package.
pub(super) struct Gap<'a> {
    pub(super) package: usize,
    pub(super) field: &'static str,
    pub(super) clause: &'a [u8],
}

impl Gap<'_> {
    fn told(&self, packages: &[Package<'_>]) -> Broken {
        Broken {
            package: packages[self.package].id().to_string(),
            field: self.field,
            clause: shown(self.clause),
        }
    }
}

/// A package under one of its names: its own, or one that it provides with a version or without.
struct Target<'a> {
    package: usize,
    version: Option<&'a [u8]>,
}

/// Installed packages, by all names that they answer to.
pub(super) struct World<'p, 'a> {
    packages: &'p [Package<'a>],
    native: &'a [u8],
    names: HashMap<&'a [u8], Vec<Target<'a>>>,
    work: u64,
}

impl<'p, 'a> World<'p, 'a> {
    pub(super) fn new(packages: &'p [Package<'a>], native: &'a [u8]) -> Self {
        let mut names: HashMap<&[u8], Vec<Target<'a>>> = HashMap::new();
        for (index, package) in packages.iter().enumerate().filter(|(_, package)| package.installed) {
            let version = Some(package.version);
            names.entry(package.name).or_default().push(Target { package: index, version });
            let provides = package.stanza.get("Provides").unwrap_or_default();
            for named in clauses(provides).filter_map(super::relation::named) {
                let version = named.version.map(|(_, version)| version);
                names.entry(named.name).or_default().push(Target { package: index, version });
            }
        }
        Self { packages, native, names, work: 0 }
    }

    pub(super) fn broken(&mut self) -> Result<Vec<Gap<'a>>> {
        let mut gaps = Vec::new();
        for index in 0..self.packages.len() {
            if self.packages[index].installed {
                self.needs(index, "Pre-Depends", &mut gaps)?;
                self.needs(index, "Depends", &mut gaps)?;
                self.refuses(index, "Conflicts", &mut gaps)?;
                self.refuses(index, "Breaks", &mut gaps)?;
                self.siblings(index, &mut gaps)?;
            }
        }
        Ok(gaps)
    }

    fn needs(&mut self, package: usize, field: &'static str, gaps: &mut Vec<Gap<'a>>) -> Result<()> {
        for clause in clauses(self.packages[package].stanza.get(field).unwrap_or_default()) {
            let mut met = false;
            for named in alternatives(clause).unwrap_or_default() {
                met = met || self.hit(package, &named, |_, _| true)?;
            }
            if !met {
                gaps.push(Gap { package, field, clause });
            }
        }
        Ok(())
    }

    fn refuses(&mut self, package: usize, field: &'static str, gaps: &mut Vec<Gap<'a>>) -> Result<()> {
        for clause in clauses(self.packages[package].stanza.get(field).unwrap_or_default()) {
            let other = |own: &Package<'_>, target: &Package<'_>| own.name != target.name;
            for named in alternatives(clause).unwrap_or_default() {
                // Without a qualifier a conflict is with every architecture.
                let named = Named {
                    qualifier: named.qualifier.filter(|arch| *arch != b"any").or(Some(EVERY)),
                    ..named
                };
                if self.hit(package, &named, other)? {
                    gaps.push(Gap { package, field, clause });
                }
            }
        }
        Ok(())
    }

    /// Whether an installed package that `among` lets through answers to `named`, asked for by `asker`.
    fn hit(
        &mut self,
        asker: usize,
        named: &Named<'_>,
        among: impl Fn(&Package<'_>, &Package<'_>) -> bool,
    ) -> Result<bool> {
        let own = &self.packages[asker];
        for target in self.names.get(named.name).map_or(&[][..], |targets| targets) {
            self.work += 1;
            if self.work > WORK_MAX {
                return Err(Error::unsupported("its dependencies take too long to check"));
            }
            let package = &self.packages[target.package];
            let fits = match named.qualifier {
                None => package.arch == own.arch || package.multi == Multi::Foreign,
                Some(EVERY) => true,
                Some(b"any") => package.multi == Multi::Allowed,
                Some(b"native") => package.arch == self.native,
                Some(arch) => package.arch == arch,
            };
            let version = named
                .version
                .is_none_or(|(op, wanted)| target.version.is_some_and(|version| op.holds(version, wanted)));
            if fits && version && among(own, package) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Packages of one name and several architectures are all `Multi-Arch: same`, and of one version.
    fn siblings(&mut self, package: usize, gaps: &mut Vec<Gap<'a>>) -> Result<()> {
        let own = &self.packages[package];
        for target in self.names.get(own.name).map_or(&[][..], |targets| targets) {
            self.work += 1;
            if self.work > WORK_MAX {
                return Err(Error::unsupported("its dependencies take too long to check"));
            }
            let other = &self.packages[target.package];
            let same = own.multi == Multi::Same && other.multi == Multi::Same && own.version == other.version;
            if other.name == own.name && other.arch != own.arch && !same {
                gaps.push(Gap { package, field: "Multi-Arch", clause: other.name });
                break;
            }
        }
        Ok(())
    }

    /// Whether `candidate` (not installed) answers to one of the alternatives of `clause` for `asker`.
    pub(super) fn would_meet(&self, asker: usize, clause: &[u8], candidate: &Package<'a>) -> bool {
        let alone = [Package { installed: true, ..candidate.clone() }, self.packages[asker].clone()];
        let mut world = World::new(&alone[..1], self.native);
        world.packages = &alone;
        let mut named = alternatives(clause).unwrap_or_default().into_iter();
        named.any(|named| world.hit(1, &named, |_, _| true).unwrap_or(false))
    }
}
