//! The status file and apt's extended states, three ways.

use super::check::World;
use super::package::{Id, Package, native};
use super::stanza::{self, Stanza};
use super::version::compare;
use crate::error::Result;
use crate::ops::merge::keyed::{index, order, shown};
use crate::ops::merge::{Side, Three};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Most rounds of keeping packages for those that the clone keeps: the length of a chain of dependencies.
const ROUNDS_MAX: usize = 64;

/// Which side a package is taken from when both changed it, differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// The higher version.
    #[default]
    Higher,
    /// The new base's.
    Base,
    /// The clone's.
    Clone,
}

/// Where a package's files come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// All of them from this side.
    Whole(Side),
    /// Each merged for itself: at most one side changed the package, or both have the same version.
    Either,
    /// The package is gone, and this is the side that removed it: what lies at its paths there.
    Gone(Side),
}

/// What happened to a package, seen from the clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The clone did not have it.
    Added,
    /// The clone had a lower version.
    Upgraded,
    /// The clone had a higher version.
    Downgraded,
    /// The clone had it.
    Removed,
    /// As in the clone; the new base has another version, or does not have it.
    Kept,
}

/// One package in the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which one.
    pub id: Id,
    /// What happened.
    pub what: What,
    /// Its versions, where it is installed.
    pub versions: Three<Option<String>>,
    /// The version after the merge.
    pub after: Option<String>,
    /// Why, when both sides changed it.
    pub reason: Option<&'static str>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
        let what = match self.what {
            What::Added => "added",
            What::Upgraded => "upgraded",
            What::Downgraded => "downgraded",
            What::Removed => "removed",
            What::Kept => "kept",
        };
        let (clone, after) = (version(&self.versions.clone), version(&self.after));
        write!(f, "{} {what}: {clone} -> {after}", self.id)?;
        self.reason.map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

/// The merged databases.
#[derive(Clone, Debug)]
pub struct Packages {
    /// `/var/lib/dpkg/status`.
    pub status: Vec<u8>,
    /// `/var/lib/apt/extended_states`.
    pub extended_states: Vec<u8>,
    /// Every package that is installed anywhere, with where its files and its stanza come from.
    pub takes: BTreeMap<Id, (Take, Side)>,
    /// Packages that are not in the result as they are in the clone, or not as they are in the new base.
    pub changes: Vec<Change>,
    /// The architecture of the system.
    pub native: Vec<u8>,
}

/// What was decided about one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    from: Side,
    take: Take,
    reason: Option<&'static str>,
}

type Found<'p, 'a> = Three<Option<&'p Package<'a>>>;

/// Merges the status files and the extended states of three versions of a system; a missing file is an empty one.
///
/// # Errors
/// `Corrupt` when a file is not made of stanzas, with the line; `Unsupported` when one is too large.
pub fn merge(status: Three<&[u8]>, extended: Three<&[u8]>, preference: Preference) -> Result<Packages> {
    let stanzas = read(status, "dpkg's status")?;
    let marks = read(extended, "apt's extended states")?;
    let native = [&stanzas.base, &stanzas.clone, &stanzas.old].into_iter().find_map(|file| native(file));
    let native = native.unwrap_or(b"all");
    let packages = stanzas.map(|stanzas| keyed(stanzas, native));
    let indexes = packages.map(|packages| index(packages));
    let keys = packages.map(|packages| packages.iter().map(|(id, _)| id.clone()).collect::<Vec<Id>>());
    let ids = order(&keys.base, &keys.clone);
    let found = |id: &Id| indexes.map(|index| index.get(id).copied());
    let mut verdicts: Vec<Verdict> = ids.iter().map(|id| decide(&found(id), preference)).collect();
    keep_what_is_needed(&ids, &found, &mut verdicts, native)?;
    Ok(result(&ids, &found, &verdicts, &marks, native))
}

fn read<'a>(files: Three<&'a [u8]>, name: &str) -> Result<Three<Vec<Stanza<'a>>>> {
    let one = |file: &'a [u8], side: &str| {
        stanza::parse(file).map_err(|error| error.at(format_args!("{name} of the {side}")))
    };
    Ok(Three {
        old: one(files.old, "old base")?,
        base: one(files.base, "new base")?,
        clone: one(files.clone, "clone")?,
    })
}

fn keyed<'a>(stanzas: &'a [Stanza<'a>], native: &'a [u8]) -> Vec<(Id, Package<'a>)> {
    stanzas
        .iter()
        .filter_map(|stanza| Package::new(stanza, native))
        .map(|package| (package.id(), package))
        .collect()
}

fn there<'p, 'a>(package: Option<&'p Package<'a>>) -> Option<&'p Package<'a>> {
    package.filter(|package| package.installed)
}

fn decide(found: &Found<'_, '_>, preference: Preference) -> Verdict {
    let bytes = found.map(|package| package.map(|package| package.stanza.bytes));
    if let Some(from) = bytes.clear() {
        return Verdict { from, take: Take::Either, reason: None };
    }
    let whole = |side, reason| Verdict { from: side, take: Take::Whole(side), reason: Some(reason) };
    match (there(found.base), there(found.clone)) {
        (Some(base), Some(clone)) => both(found, base, clone, preference),
        (Some(_), None) if there(found.old).is_none() => whole(Side::Base, "new in the base"),
        (Some(_), None) if preference == Preference::Base => whole(Side::Base, "as asked, the base's"),
        (Some(_), None) => {
            let reason = Some("removed in the clone, changed in the base");
            Verdict { from: Side::Clone, take: Take::Gone(Side::Clone), reason }
        }
        (None, Some(_)) if there(found.old).is_none() => whole(Side::Clone, "new in the clone"),
        (None, Some(_)) if preference == Preference::Base => {
            let reason = Some("as asked, the base's: it is removed there");
            Verdict { from: Side::Base, take: Take::Gone(Side::Base), reason }
        }
        (None, Some(_)) => whole(Side::Clone, "removed in the base, changed in the clone"),
        (None, None) => Verdict { from: Side::Clone, take: Take::Either, reason: None },
    }
}

/// A package that both sides have and changed, differently.
fn both(found: &Found<'_, '_>, base: &Package<'_>, clone: &Package<'_>, preference: Preference) -> Verdict {
    let whole = |side, reason| Verdict { from: side, take: Take::Whole(side), reason: Some(reason) };
    let order = compare(base.version, clone.version);
    if order == Ordering::Equal {
        // The files are the same; what differs is a mark of the user's, or how far an installation came.
        let from = if clone.whole() || !base.whole() { Side::Clone } else { Side::Base };
        return Verdict { from, take: Take::Either, reason: None };
    }
    let unchanged = there(found.old).is_some_and(|old| compare(old.version, clone.version).is_eq());
    match preference {
        Preference::Base => whole(Side::Base, "as asked, the base's"),
        Preference::Clone => whole(Side::Clone, "as asked, the clone's"),
        Preference::Higher if unchanged && clone.held() => whole(Side::Clone, "on hold in the clone"),
        Preference::Higher if order.is_gt() => whole(Side::Base, "the higher version"),
        Preference::Higher => whole(Side::Clone, "the higher version"),
    }
}

/// Packages that only the base removed, and that a package of the clone's own depends on, stay.
fn keep_what_is_needed<'p, 'a: 'p>(
    ids: &[Id],
    found: &impl Fn(&Id) -> Found<'p, 'a>,
    verdicts: &mut [Verdict],
    native: &'a [u8],
) -> Result<()> {
    let threes: Vec<Found<'p, 'a>> = ids.iter().map(found).collect();
    for _ in 0..ROUNDS_MAX {
        let chosen = |(three, verdict): (&Found<'p, 'a>, &Verdict)| three.of(verdict.from).cloned();
        let places: Vec<usize> =
            (0..ids.len()).filter(|&at| threes[at].of(verdicts[at].from).is_some()).collect();
        let packages: Vec<Package<'a>> = threes.iter().zip(&*verdicts).filter_map(chosen).collect();
        let mut dropped: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (at, three) in threes.iter().enumerate() {
            if there(three.base).is_none() && verdicts[at].from == Side::Base {
                for name in there(three.clone).map(names).unwrap_or_default() {
                    dropped.entry(name).or_default().push(at);
                }
            }
        }
        if dropped.is_empty() {
            return Ok(());
        }
        let mut world = World::new(&packages, native);
        let mut kept: Vec<usize> = Vec::new();
        for gap in world.broken()?.iter().filter(|gap| gap.field.ends_with("epends")) {
            if verdicts[places[gap.package]].from == Side::Clone {
                let named = super::relation::alternatives(gap.clause).unwrap_or_default();
                let candidates = named.iter().filter_map(|named| dropped.get(named.name)).flatten().copied();
                let meets = |&at: &usize| {
                    threes[at].clone.is_some_and(|package| world.would_meet(gap.package, gap.clause, package))
                };
                kept.extend(candidates.take(100).find(meets));
            }
        }
        for &at in &kept {
            let reason = Some("removed in the base, needed in the clone");
            verdicts[at] = Verdict { from: Side::Clone, take: Take::Whole(Side::Clone), reason };
        }
        if kept.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

/// All names that a package answers to.
fn names<'a>(package: &Package<'a>) -> Vec<&'a [u8]> {
    let provides = package.stanza.get("Provides").unwrap_or_default();
    let provided =
        super::relation::clauses(provides).filter_map(super::relation::named).map(|named| named.name);
    std::iter::once(package.name).chain(provided).collect()
}

fn result<'p, 'a: 'p>(
    ids: &[Id],
    found: &impl Fn(&Id) -> Found<'p, 'a>,
    verdicts: &[Verdict],
    marks: &Three<Vec<Stanza<'_>>>,
    native: &[u8],
) -> Packages {
    let mut packages = Packages {
        status: Vec::new(),
        extended_states: Vec::new(),
        takes: BTreeMap::new(),
        changes: Vec::new(),
        native: native.to_vec(),
    };
    let mut installed = HashMap::new();
    for (id, verdict) in ids.iter().zip(verdicts) {
        let three = found(id);
        let chosen = *three.of(verdict.from);
        if let Some(package) = chosen {
            packages.status.extend_from_slice(package.stanza.bytes);
            packages.status.push(b'\n');
        }
        if there(chosen).is_some() {
            installed.insert(id.clone(), verdict.take);
        }
        if [three.old, three.base, three.clone].into_iter().any(|package| there(package).is_some()) {
            packages.takes.insert(id.clone(), (verdict.take, verdict.from));
            packages.changes.extend(told(id, &three, there(chosen), verdict));
        }
    }
    packages.extended_states = extended(marks, &installed, native);
    packages
}

fn told(id: &Id, three: &Found<'_, '_>, after: Option<&Package<'_>>, verdict: &Verdict) -> Option<Change> {
    let version = |package: Option<&Package<'_>>| there(package).map(|package| shown(package.version));
    let order = |a: &Package<'_>, b: &Package<'_>| compare(a.version, b.version);
    let what = match (there(three.clone), after) {
        (None, None) => return None,
        (None, Some(_)) => What::Added,
        (Some(_), None) => What::Removed,
        (Some(clone), Some(after)) => match order(clone, after) {
            Ordering::Less => What::Upgraded,
            Ordering::Greater => What::Downgraded,
            Ordering::Equal if there(three.base).is_some_and(|base| order(base, after).is_eq()) => {
                return None;
            }
            Ordering::Equal => What::Kept,
        },
    };
    Some(Change {
        id: id.clone(),
        what,
        versions: three.map(|package| version(*package)),
        after: version(after),
        reason: verdict.reason,
    })
}

/// Apt's marks. A package that anybody asked for by hand on either side is never marked as installed automatically.
fn extended(marks: &Three<Vec<Stanza<'_>>>, installed: &HashMap<Id, Take>, native: &[u8]) -> Vec<u8> {
    let id = |stanza: &Stanza<'_>| {
        let arch = stanza.get("Architecture").filter(|arch| *arch != b"all").unwrap_or(native);
        Some(Id { name: stanza.get("Package")?.to_vec(), arch: arch.to_vec() })
    };
    let keyed = marks.map(|file| {
        file.iter().filter_map(|stanza| Some((id(stanza)?, stanza))).collect::<Vec<(Id, &Stanza<'_>)>>()
    });
    let keys = keyed.map(|file| file.iter().map(|(id, _)| id.clone()).collect::<Vec<Id>>());
    let indexes = keyed.map(|file| index(file));
    let mut bytes = Vec::new();
    for id in order(&keys.base, &keys.clone) {
        let three = indexes.map(|index| index.get(&id).map(|stanza| stanza.bytes));
        let by_hand = |side: Side| {
            let mark = indexes.of(side).get(&id).and_then(|stanza| stanza.get("Auto-Installed"));
            mark != Some(b"1")
        };
        let side = match installed.get(&id) {
            None => continue,
            Some(Take::Whole(side)) if three.of(*side).is_some() => *side,
            Some(_) => three.clear().unwrap_or(if by_hand(Side::Clone) { Side::Clone } else { Side::Base }),
        };
        if let Some(stanza) = three.of(side) {
            bytes.extend_from_slice(stanza);
            bytes.push(b'\n');
        }
    }
    bytes
}
