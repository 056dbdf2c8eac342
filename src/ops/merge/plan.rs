//! What a merge will do, and what it would need somebody to decide.

use super::Three;
use super::databases::{Databases, Part};
use super::decide::{Input, Merge, shown};
use super::derived::Comeback;
use super::dpkg::Change;
use super::fate::Conflict;
use super::pair::Pairs;
use super::renumber::Moves;
use super::rules::Rules;
use super::steps::{Step, Steps};
use crate::error::Result;
use std::collections::BTreeSet;

/// A merge that can be carried out, if no conflict is left open.
#[derive(Debug, Default)]
pub struct Plan {
    /// The steps, on the new base's filesystem.
    pub steps: Vec<Step>,
    /// What both sides changed, differently, sorted by path.
    pub conflicts: Vec<Conflict>,
    /// Those of files that running alone changes: the clone's, each.
    pub volatile: Vec<Conflict>,
    /// What a database or a line-wise merge settled, in sentences.
    pub settled: Vec<String>,
    /// Files of the result that are not as the new base has them.
    pub kept: BTreeSet<Vec<u8>>,
    /// Files that are made from others, and how each comes back.
    pub derived: BTreeSet<Vec<u8>>,
    /// Packages that differ between the versions, and what became of each.
    pub packages: Vec<Change>,
    /// Dependencies of packages that are broken now, and were on neither side.
    pub broken: Vec<String>,
    /// Numbers of the base's new accounts that became others, in sentences.
    pub renumbered: Vec<String>,
}

/// What is known of all filesystems of a system together: packages have their files on several, and are in the database
/// of one.
pub struct System<'a> {
    rules: &'a Rules,
    label: &'a str,
    moves: &'a Moves,
    databases: Databases,
}

impl<'a> System<'a> {
    /// Merges the databases of a system that has its files on `parts`. `label` is as for [`plan`]; `moves` are the numbers
    /// of the base's accounts that become others first.
    ///
    /// # Errors
    /// `Corrupt` when a database breaks its format; whatever reading them gives.
    pub fn of(parts: &[Part<'_>], rules: &'a Rules, label: &'a str, moves: &'a Moves) -> Result<Self> {
        Ok(Self { rules, label, moves, databases: Databases::of(parts, rules, moves)? })
    }

    /// Plans the merge of one of its filesystems; `bases` pairs the files of the bases.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn plan(&self, Part { trees, contents }: Part<'_>, bases: &Pairs) -> Result<Plan> {
        let renumbered = (!self.moves.is_empty()).then(|| self.moves.tree(trees.base));
        let trees = Three { base: renumbered.as_ref().map_or(trees.base, |new| &new.tree), ..trees };
        let Databases { units, forced, .. } = &self.databases;
        let input = Input { trees, bases, contents, rules: self.rules, units: units.as_ref(), forced };
        let mut plan = plan(&input, self.label)?;
        if let Some(renumbered) = renumbered {
            // Numbers come first: what follows starts from the tree that has them.
            let merging = std::mem::replace(&mut plan.steps, renumbered.steps);
            plan.steps.extend(merging);
            plan.kept.extend(renumbered.paths);
        }
        Ok(plan)
    }

    /// What the databases say of the merge: a plan without steps.
    #[must_use]
    pub fn findings(self) -> Plan {
        let Databases { packages, broken, mut conflicts, settled, accounts, .. } = self.databases;
        let mut renumbered = Vec::new();
        if accounts {
            conflicts.extend(self.moves.conflicts());
            renumbered.clone_from(&self.moves.told);
        }
        Plan { packages, broken, conflicts, settled, renumbered, ..Plan::default() }
    }
}

/// Plans a merge; `label` is what the base's version of a file is called beside the clone's. The steps, done in order,
/// make the new base's filesystem the merged one.
///
/// # Errors
/// Whatever reading the contents of files gives.
pub fn plan(input: &Input<'_>, label: &str) -> Result<Plan> {
    let mut merge = Merge::of(input, label)?;
    let mut steps = Steps::of(&mut merge);
    let kept = std::mem::take(&mut steps.kept);
    let (mut conflicts, mut volatile) = (merge.conflicts, merge.volatile);
    for list in [&mut conflicts, &mut volatile] {
        list.sort_by(|a, b| (&a.path, a.clash).cmp(&(&b.path, b.clash)));
    }
    Ok(Plan {
        steps: steps.into_list(),
        conflicts,
        volatile,
        settled: merge.settled,
        kept,
        derived: merge.derived,
        ..Plan::default()
    })
}

/// How often running alone changed what both sides have: one sentence for all, as nobody wants to read each.
pub fn volatile_in_a_sentence(volatile: &[Conflict]) -> Option<String> {
    let first = volatile.first()?;
    let paths: BTreeSet<&[u8]> = volatile.iter().map(|conflict| &conflict.path[..]).collect();
    let path = shown(&first.path);
    Some(match paths.len() {
        1 => format!("1 path that running alone changes is the clone's: {path}"),
        count => format!("{count} paths that running alone changes are the clone's, the first {path}"),
    })
}

impl Plan {
    /// How the files come back that are left out.
    pub fn comebacks(&self) -> impl Iterator<Item = Comeback> {
        self.derived.iter().filter_map(|path| Comeback::of(path))
    }

    /// The conflicts that nobody decided: with any, nothing must be changed.
    #[must_use]
    pub fn open(&self) -> Vec<&Conflict> {
        self.conflicts.iter().filter(|conflict| conflict.taken.is_none()).collect()
    }
}
