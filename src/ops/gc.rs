//! Gc: base versions that nothing needs go; what stands on one of them is rewritten first, to stand without it.

use super::Progress;
use super::scan::{Against, scan, scan_against};
use super::version::Delta;
use crate::error::{Error, Kind, Result};
use crate::store::{Access, BaseRef, Flattened, Name, Standing, Store, Target};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It stays as it is.
    Keep,
    /// Its file is rewritten to stand on an earlier version, or on none. Its content stays.
    Flatten,
    /// It goes.
    Remove,
}

/// What is, or would be, done with one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Name of the base.
    pub base: Name,
    /// Version.
    pub version: u32,
    /// What becomes of it.
    pub fate: Fate,
    /// Why.
    pub why: String,
    /// The version that its file stands on afterwards.
    pub parent: Option<u32>,
    /// Bytes of the host that this gives back.
    pub frees_bytes: u64,
    /// Bytes of the host that this takes. Before it is done: the content that must be copied, a part of which may turn
    /// out to be the same as what is below; the tables that tell where it lies are not counted.
    pub costs_bytes: u64,
}

/// What is told of a collection.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A version is about to be rewritten or removed.
    Begun(&'a Step),
    /// A version is done, or left as it is.
    Done(&'a Step),
}

/// What would be done with each version of a base (of all bases, when none is given), in order; changes nothing.
///
/// A version is needed when it is the newest of its base, a clone or one of its checkpoints stands on it, or somebody
/// has it open. One that is not needed is kept all the same when copying its content into those that stand on it takes
/// more than its removal gives back, unless `force`.
///
/// # Errors
/// `NotFound`, `Corrupt` for a broken manifest, the host's.
pub fn plan(store: &Store, base: Option<&Name>, force: bool) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for name in names(store, base)? {
        steps.extend(Plan::of(store, &name, force)?.steps);
    }
    Ok(steps)
}

/// Does it. Each version is one change that is made whole or not at all, so that what was done stays done when this is
/// stopped or fails; run again, it goes on. What was removed cannot be brought back.
///
/// # Errors
/// As [`plan`]; `Changed` for a version that does not hold what was sealed, `Unsupported` where the filesystem cannot
/// exchange two folders, `NoSpace`, `Interrupted`.
pub fn gc(
    store: &Store,
    base: Option<&Name>,
    force: bool,
    progress: &dyn Progress,
    told: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    for name in names(store, base)? {
        Plan::of(store, &name, force)?.execute(store, progress, told)?;
    }
    Ok(())
}

fn names(store: &Store, base: Option<&Name>) -> Result<BTreeSet<Name>> {
    match base {
        Some(name) => Ok([name.clone()].into()),
        None => Ok(store.bases()?.into_iter().map(|base| base.name).collect()),
    }
}

/// What becomes of the versions of one base.
struct Plan {
    /// In order of the versions.
    steps: Vec<Step>,
    versions: BTreeMap<u32, Standing>,
    /// Versions that a rewritten one stands on and shall not.
    below_rewritten: BTreeSet<u32>,
}

impl Plan {
    fn of(store: &Store, name: &Name, force: bool) -> Result<Self> {
        let standing = store.standing(name)?;
        let versions = standing.into_iter().map(|one| (one.base.version, one)).collect();
        let mut choice = Choice { store, name, versions, kept: BTreeMap::new(), shares: BTreeMap::new() };
        choice.keep_all();
        for version in choice.unneeded() {
            choice.decide(version, force)?;
        }
        choice.plan()
    }

    fn execute(&self, store: &Store, progress: &dyn Progress, told: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let of = |fate: Fate| self.steps.iter().filter(move |step| step.fate == fate);
        of(Fate::Keep).for_each(|step| told(Event::Done(step)));
        // What only has to go makes room for the rest.
        let (later, first): (Vec<&Step>, Vec<&Step>) =
            of(Fate::Remove).rev().partition(|step| self.below_rewritten.contains(&step.version));
        first.into_iter().try_for_each(|step| remove(store, step, told))?;
        for step in of(Fate::Flatten) {
            told(Event::Begun(step));
            let Flattened { before, after } = self.flatten(store, step, progress)?;
            let done = Step {
                frees_bytes: before.saturating_sub(after),
                costs_bytes: after.saturating_sub(before),
                ..step.clone()
            };
            told(Event::Done(&done));
        }
        later.into_iter().try_for_each(|step| remove(store, step, told))
    }

    fn flatten(&self, store: &Store, step: &Step, progress: &dyn Progress) -> Result<Flattened> {
        let Some(standing) = self.versions.get(&step.version) else {
            return Err(Error::invalid(format!("base {} has no version {}", step.base, step.version)));
        };
        let flatten = store.begin_flatten(&standing.base, step.parent)?;
        let mut list = flatten.create_sums()?;
        let sink = Delta::new(flatten.new_disk());
        let (size, mut each) = (flatten.size(), |sum: &crate::store::BlockSum| list.push(sum));
        let sums = match flatten.below() {
            Some(disk) => {
                let against = Against { disk, shared: disk.layers().len(), exact: false };
                scan_against(flatten.old(), against, size, &sink, progress, &mut each)
            }
            None => scan(flatten.old(), size, &sink, progress, &mut each),
        };
        let place = || format!("base {}@{}", step.base, step.version);
        flatten.publish(&sums.map_err(|error| error.at(place()))?, list)
    }
}

/// Removes a version, unless somebody needs it by now.
fn remove(store: &Store, step: &Step, told: &mut dyn FnMut(Event<'_>)) -> Result<()> {
    told(Event::Begun(step));
    let done = match store.remove_old_base(&BaseRef::exact(step.base.clone(), step.version)) {
        Ok(freed) => Step { frees_bytes: freed.bytes, ..step.clone() },
        Err(error) if error.kind() == Kind::Busy => {
            Step { fate: Fate::Keep, why: error.to_string(), frees_bytes: 0, ..step.clone() }
        }
        // Somebody else was first.
        Err(error) if error.kind() == Kind::NotFound => Step { frees_bytes: 0, ..step.clone() },
        Err(error) => return Err(error),
    };
    told(Event::Done(&done));
    Ok(())
}

/// A plan in the making.
struct Choice<'a> {
    store: &'a Store,
    name: &'a Name,
    versions: BTreeMap<u32, Standing>,
    /// What is kept so far, with the reason.
    kept: BTreeMap<u32, String>,
    /// By version: how many bytes of its content come from each version below it.
    shares: BTreeMap<u32, BTreeMap<u32, u64>>,
}

impl Choice<'_> {
    fn keep_all(&mut self) {
        let why = |standing: &Standing| match standing {
            Standing { newest: true, .. } => "it is the newest version".to_owned(),
            Standing { clones: 1, .. } => "a clone stands on it".to_owned(),
            Standing { clones: 2.., .. } => format!("{} clones stand on it", standing.clones),
            Standing { in_use: true, .. } => "it is in use".to_owned(),
            _ => String::new(),
        };
        self.kept = self.versions.iter().map(|(version, standing)| (*version, why(standing))).collect();
    }

    /// The newest first: when one is decided on, all that may stand on it are.
    fn unneeded(&self) -> Vec<u32> {
        self.kept.iter().rev().filter(|(_, why)| why.is_empty()).map(|(version, _)| *version).collect()
    }

    fn parent(&self, version: u32) -> Option<u32> {
        self.versions.get(&version).and_then(|standing| standing.base.parent)
    }

    /// The versions below one that are not kept, down to the next one that is, and that one.
    fn left_out(&self, version: u32) -> (Vec<u32>, Option<u32>) {
        let (mut between, mut next) = (Vec::new(), self.parent(version));
        while let Some(below) = next.filter(|below| !self.kept.contains_key(below)) {
            between.push(below);
            next = self.parent(below);
        }
        (between, next)
    }

    /// Takes a version that is not needed out of what is kept, if that pays.
    fn decide(&mut self, version: u32, force: bool) -> Result<()> {
        let above: Vec<u32> =
            self.kept.keys().copied().filter(|above| self.left_out(*above).1 == Some(version)).collect();
        let mut cost = 0;
        for above in above {
            match self.share(above, version) {
                Ok(bytes) => cost += bytes,
                Err(error) if matches!(error.kind(), Kind::Changed | Kind::Corrupt) => {
                    self.kept.insert(version, format!("what stands on it cannot be rewritten: {error}"));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let frees = self.versions.get(&version).map_or(0, |standing| standing.bytes);
        if cost > frees && !force {
            let why = format!(
                "what stands on it would take {cost} bytes more without it, and its removal would give back \
                 {frees}; --force removes it all the same"
            );
            self.kept.insert(version, why);
        } else {
            self.kept.remove(&version);
        }
        Ok(())
    }

    /// How many bytes of what a version shows come from a version below it.
    fn share(&mut self, version: u32, below: u32) -> Result<u64> {
        if !self.shares.contains_key(&version) {
            let shares = self.read_shares(version)?;
            self.shares.insert(version, shares);
        }
        Ok(self.shares.get(&version).and_then(|shares| shares.get(&below)).copied().unwrap_or(0))
    }

    fn read_shares(&self, version: u32) -> Result<BTreeMap<u32, u64>> {
        let base = Target::Base(BaseRef::exact(self.name.clone(), version));
        let open = self.store.open_target(&base, Access::Inspect)?;
        let line = std::iter::successors(Some(version), |version| self.parent(*version));
        Ok(line.zip(open.disk.stored_by_layer()?).collect())
    }

    fn plan(mut self) -> Result<Plan> {
        let (mut steps, mut below_rewritten) = (Vec::new(), BTreeSet::new());
        let all: Vec<u32> = self.versions.keys().copied().collect();
        for version in all {
            let (between, parent) = self.left_out(version);
            let mut step = Step {
                base: self.name.clone(),
                version,
                fate: Fate::Remove,
                why: "nothing needs it".to_owned(),
                parent: None,
                frees_bytes: self.versions.get(&version).map_or(0, |standing| standing.bytes),
                costs_bytes: 0,
            };
            if let Some(why) = self.kept.get(&version) {
                step = Step { fate: Fate::Keep, why: why.clone(), parent, frees_bytes: 0, ..step };
                if !between.is_empty() {
                    step.fate = Fate::Flatten;
                }
                for below in &between {
                    step.costs_bytes += self.share(version, *below)?;
                }
                below_rewritten.extend(between);
            }
            steps.push(step);
        }
        Ok(Plan { steps, versions: self.versions, below_rewritten })
    }
}
