//! What is told of each clone, and of all.

use super::report;
use crate::cli::units::{count, size};
use crate::cli::{failure, output};
use crate::ops::merge::Conflict;
use crate::ops::rebase::{Ending, Merged, Rebased};
use crate::store::Name;
use serde_json::{Value, json};

/// How many came to which end.
#[derive(Default)]
pub(super) struct Sum {
    done: u64,
    up_to_date: u64,
    deferred: u64,
    conflicts: u64,
    running: u64,
    failed: u64,
}

/// What was told so far.
pub(super) struct Told {
    json: bool,
    plan: bool,
    onto: String,
    pub(super) sum: Sum,
    pub(super) reports: Vec<Value>,
}

impl Told {
    pub(super) fn new(json: bool, plan: bool, onto: String) -> Self {
        Self { json, plan, onto, sum: Sum::default(), reports: Vec::new() }
    }

    /// Says what came of one clone.
    pub(super) fn tell(&mut self, name: &Name, ending: Ending) -> anyhow::Result<()> {
        let sum = &mut self.sum;
        let (report, line) = match ending {
            Ending::Done(done) => {
                sum.done += 1;
                (json!({ "clone": name, "state": "done", "rebase": done }), Ok(line(&done, self.plan)))
            }
            Ending::UpToDate => {
                sum.up_to_date += 1;
                let line = format!("{name}: stands on {} already", self.onto);
                (json!({ "clone": name, "state": "up to date" }), Ok(line))
            }
            Ending::Deferred(waiting) => {
                sum.deferred += 1;
                let line = format!("{name}: deferred, its next start puts it on {}", waiting.onto);
                (json!({ "clone": name, "state": "deferred", "waiting": waiting }), Ok(line))
            }
            Ending::Conflict(open) => {
                sum.conflicts += 1;
                let hint = "decide with --rules FILE, see all with --report FILE";
                let error = format!("{}; {hint}", conflicts(&open));
                (json!({ "clone": name, "state": "conflict", "rebase": open }), Err(error))
            }
            Ending::Running(error) => {
                sum.running += 1;
                let error = failure::sentence(&error.into());
                (json!({ "clone": name, "state": "running", "error": error }), Err(error))
            }
            Ending::Failed(error) => {
                sum.failed += 1;
                let error = failure::sentence(&error.into());
                (json!({ "clone": name, "state": "failed", "error": error }), Err(error))
            }
        };
        self.reports.push(report);
        match line {
            Ok(line) if !self.json => output::line(line)?,
            Err(error) => failure::write_line(&format!("{name} is left as it is: {error}")),
            Ok(_) => {}
        }
        Ok(())
    }
}

/// What was, or in a plan would be, done with a clone.
pub(in crate::cli) fn line(done: &Rebased, plan: bool) -> String {
    let Rebased { clone, from, onto, own_bytes, merge, .. } = done;
    let mut words = vec![format!("{clone}: {from} -> {onto}")];
    words.extend(merge.as_ref().map(summary));
    let own = own_bytes.map(size);
    if plan {
        words.extend(own.map(|own| format!("would leave {own} of its own")));
    } else {
        words.extend(own.map(|own| format!("{own} of its own; undo with: cowshed undo {clone}")));
    }
    words.join(", ")
}

/// A merge in a few words.
fn summary(merge: &Merged) -> String {
    let settled = merge.conflicts.len() + merge.settled.len();
    let mut text = format!("{} of the clone's", count(merge.kept.len() as u64, "path"));
    if settled > 0 {
        text.push_str(&format!(", {} settled", count(settled as u64, "conflict")));
    }
    if !merge.renumbered.is_empty() {
        let numbers = count(merge.renumbered.len() as u64, "number");
        text.push_str(&format!(", {numbers} of the base's accounts moved"));
    }
    if !merge.broken.is_empty() {
        text.push_str(&format!(", {} broken by it", count(merge.broken.len() as u64, "package")));
    }
    text
}

/// The open conflicts in words.
pub(in crate::cli) fn conflicts(open: &Rebased) -> String {
    const SHOWN: usize = 3;
    let all: Vec<&Conflict> = open.merge.iter().flat_map(Merged::open).collect();
    let mut text = count(all.len() as u64, "conflict");
    for conflict in all.iter().take(SHOWN) {
        text.push_str(&format!("; {}", report::sentence(conflict)));
    }
    if all.len() > SHOWN {
        text.push_str(&format!("; and {} more", all.len() - SHOWN));
    }
    text
}

impl Sum {
    fn all(&self) -> u64 {
        self.done + self.up_to_date + self.deferred + self.conflicts + self.running + self.failed
    }

    /// Whether no clone is left as it was against the user's will.
    pub(super) fn is_well(&self) -> bool {
        self.conflicts + self.running + self.failed == 0
    }

    /// Whether all of `clones` stand on the new version.
    pub(super) fn is_whole(&self, clones: usize) -> bool {
        self.done + self.up_to_date == clones as u64
    }

    pub(super) fn text(&self, plan: bool) -> String {
        let done = if plan { "would be done" } else { "done" };
        let parts = [
            (self.done, done),
            (self.up_to_date, "already there"),
            (self.deferred, "deferred"),
            (self.conflicts, "with conflicts"),
            (self.running, "in use"),
            (self.failed, "failed"),
        ];
        let words: Vec<String> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
        format!("{}: {}", count(self.all(), "clone"), words.join(", "))
    }
}
