//! What a merge will do, and what it would need somebody to decide.

use super::Three;
use super::databases::Databases;
use super::decide::{Input, Merge};
use super::derived::{BOOT_UNIT, Comeback, boot_unit};
use super::dpkg::Change;
use super::fate::Conflict;
use super::pair::Pairs;
use super::rules::Rules;
use super::steps::{Step, Steps};
use super::tree::{Contents, Tree};
use crate::error::Result;
use std::collections::BTreeSet;

/// A merge that can be carried out, if no conflict is left open.
#[derive(Debug, Default)]
pub struct Plan {
    /// The steps, on the new base's filesystem.
    pub steps: Vec<Step>,
    /// What both sides changed, differently, sorted by path.
    pub conflicts: Vec<Conflict>,
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
}

/// Plans the merge of a filesystem with all that is known about what is in it; `bases` pairs the files of the bases.
///
/// # Errors
/// As [`plan`].
pub fn plan_system(
    (trees, bases): (Three<&Tree>, &Pairs),
    contents: &dyn Contents,
    rules: &Rules,
    label: &str,
) -> Result<Plan> {
    let databases = Databases::of(trees, contents, rules)?;
    let input =
        Input { trees, bases, contents, rules, units: databases.units.as_ref(), forced: &databases.forced };
    let mut plan = plan(&input, label)?;
    plan.conflicts.extend(databases.conflicts);
    plan.settled.extend(databases.settled);
    plan.packages = databases.packages;
    plan.broken = databases.broken;
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
    let mut conflicts = merge.conflicts;
    conflicts.sort_by(|a, b| (&a.path, a.clash).cmp(&(&b.path, b.clash)));
    Ok(Plan {
        steps: steps.into_list(),
        conflicts,
        settled: merge.settled,
        kept,
        derived: merge.derived,
        boot_unit: boot_unit(&comebacks).map(|text| (BOOT_UNIT, text)),
        packages: Vec::new(),
        broken: Vec::new(),
    })
}

impl Plan {
    /// The conflicts that nobody decided: with any, nothing must be changed.
    #[must_use]
    pub fn open(&self) -> Vec<&Conflict> {
        self.conflicts.iter().filter(|conflict| conflict.taken.is_none()).collect()
    }
}
