//! What a merge will do, and what it would need somebody to decide.

use super::Three;
use super::databases::Databases;
use super::decide::{Input, Merge, shown};
use super::derived::{BOOT_UNIT, Comeback, boot_unit};
use super::dpkg::Change;
use super::fate::Conflict;
use super::pair::Pairs;
use super::renumber::Moves;
use super::rules::Rules;
use super::steps::{Step, Steps};
use super::tree::{Contents, Tree};
use crate::error::Result;
use std::collections::BTreeSet;

/// A merge that can be carried out, if no conflict is left open.
#[derive(Debug)]
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
    /// The unit that makes them again at the next boot: its name and text.
    pub boot_unit: Option<(&'static str, String)>,
    /// Packages that differ between the versions, and what became of each.
    pub packages: Vec<Change>,
    /// Dependencies of packages that are broken now, and were on neither side.
    pub broken: Vec<String>,
    /// Numbers of the base's new accounts that became others, in sentences.
    pub renumbered: Vec<String>,
}

/// Plans the merge of a filesystem with all that is known about what is in it. `bases` pairs the files of the bases;
/// `moves` are the numbers of the base's accounts that become others first.
///
/// # Errors
/// As [`plan`].
pub fn plan_system(
    (trees, bases): (Three<&Tree>, &Pairs),
    contents: &dyn Contents,
    rules: &Rules,
    label: &str,
    moves: &Moves,
) -> Result<Plan> {
    let renumbered = (!moves.is_empty()).then(|| moves.tree(trees.base));
    let trees = Three { base: renumbered.as_ref().map_or(trees.base, |new| &new.tree), ..trees };
    let databases = Databases::of(trees, contents, rules, moves)?;
    let input =
        Input { trees, bases, contents, rules, units: databases.units.as_ref(), forced: &databases.forced };
    let mut plan = plan(&input, label)?;
    plan.conflicts.extend(databases.conflicts);
    plan.settled.extend(databases.settled);
    plan.packages = databases.packages;
    plan.broken = databases.broken;
    if databases.accounts {
        plan.conflicts.extend(moves.conflicts());
        plan.renumbered.clone_from(&moves.told);
    }
    if let Some(renumbered) = renumbered {
        // Numbers come first: what follows starts from the tree that has them.
        let merging = std::mem::replace(&mut plan.steps, renumbered.steps);
        plan.steps.extend(merging);
        plan.kept.extend(renumbered.paths);
    }
    Ok(plan)
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
    let comebacks: BTreeSet<Comeback> = merge.derived.iter().filter_map(|path| Comeback::of(path)).collect();
    let (mut conflicts, mut volatile) = (merge.conflicts, merge.volatile);
    for list in [&mut conflicts, &mut volatile] {
        list.sort_by(|a, b| (&a.path, a.clash).cmp(&(&b.path, b.clash)));
    }
    merge.settled.extend(volatile_in_a_sentence(&volatile));
    Ok(Plan {
        steps: steps.into_list(),
        conflicts,
        volatile,
        settled: merge.settled,
        kept,
        derived: merge.derived,
        boot_unit: boot_unit(&comebacks).map(|text| (BOOT_UNIT, text)),
        packages: Vec::new(),
        broken: Vec::new(),
        renumbered: Vec::new(),
    })
}

fn volatile_in_a_sentence(volatile: &[Conflict]) -> Option<String> {
    let first = volatile.first()?;
    let paths: BTreeSet<&[u8]> = volatile.iter().map(|conflict| &conflict.path[..]).collect();
    let path = shown(&first.path);
    Some(match paths.len() {
        1 => format!("1 path that running alone changes is the clone's: {path}"),
        count => format!("{count} paths that running alone changes are the clone's, the first {path}"),
    })
}

impl Plan {
    /// The conflicts that nobody decided: with any, nothing must be changed.
    #[must_use]
    pub fn open(&self) -> Vec<&Conflict> {
        self.conflicts.iter().filter(|conflict| conflict.taken.is_none()).collect()
    }
}
