//! What is told of a shrink, for people and for programs.

use crate::cli::failure;
use crate::cli::output;
use crate::cli::units::{count, size};
use crate::error::{Kind, Result};
use crate::ops::shrink::{Done, Held, Left, Recompressed, Shrunk, ShrunkBase};
use crate::store::{Name, Target};
use serde_json::{Value, json};

/// Names of clones that are told of one version.
const NAMES: usize = 3;

/// What was told so far.
pub(super) struct Told {
    json: bool,
    plan: bool,
    sum: Sum,
    reports: Vec<Value>,
}

/// What came of all clones.
#[derive(Default)]
struct Sum {
    done: u64,
    failed: u64,
    before: u64,
    after: u64,
    gives_back: u64,
}

impl Told {
    pub(super) fn new(json: bool, plan: bool) -> Self {
        Self { json, plan, sum: Sum::default(), reports: Vec::new() }
    }

    /// Tells what came of a clone or base.
    pub(super) fn tell(&mut self, target: &Target, ending: Result<Done>) -> anyhow::Result<()> {
        let kind = if let Target::Base(_) = target { "base" } else { "clone" };
        match ending {
            Ok(done) => {
                if !self.json {
                    match &done {
                        Done::Clone(done) => tell_clone(done)?,
                        Done::Base(done) => self.tell_base(done)?,
                    }
                }
                self.reports.push(json!({ kind: target.to_string(), "state": "done", "shrink": done }));
                if let Done::Clone(done) = done {
                    self.sum.add(&done);
                }
            }
            // The end says that it was stopped.
            Err(error) if error.kind() == Kind::Interrupted => {}
            Err(error) => {
                self.sum.failed += 1;
                let state = if error.kind() == Kind::Busy { "running" } else { "failed" };
                let error = failure::sentence(&error.into());
                failure::write_line(&format!("{target} is left as it is: {error}"));
                self.reports.push(json!({ kind: target.to_string(), "state": state, "error": error }));
            }
        }
        Ok(())
    }

    /// All is done; `several`: there could be more than one.
    pub(super) fn end(&self, several: bool) -> anyhow::Result<()> {
        if self.json {
            output::json(&self.reports)?;
        } else if several {
            output::line(self.sum.text(self.plan))?;
        }
        Ok(())
    }

    pub(super) fn is_well(&self) -> bool {
        self.sum.failed == 0
    }

    fn tell_base(&self, done: &ShrunkBase) -> anyhow::Result<()> {
        let ShrunkBase { base, stored_bytes, free_bytes, gives_back_bytes, clones, new, costs_bytes, left } =
            done;
        let (free, stored) = (size(*free_bytes), size(*stored_bytes));
        let next = match new {
            Some(new) => new.to_string(),
            None => "the next version".to_owned(),
        };
        output::line(match (free_bytes, new) {
            (0, _) => {
                format!("{base}: nothing of {stored} is free in its filesystems; no new version is made")
            }
            (_, None) => format!("{base}: {next} would read the same without {free} of {stored} (free)"),
            (_, Some(_)) => format!(
                "{base}: {next} reads the same without {free} of {stored} (free), and takes {} itself",
                size(costs_bytes.unwrap_or(0))
            ),
        })?;
        tell_left(left)?;
        if *free_bytes == 0 {
            return Ok(());
        }
        let (name, back) = (&base.name, size(*gives_back_bytes));
        let gc = format!("`cowshed gc {name}`");
        output::line(match clones.len() {
            0 => format!(
                "  nothing else stands on {base}: {gc} then removes it, and gives back at least {back}"
            ),
            some => format!(
                "  {} {} on {base}: at least {back} are given back when they are on {next} (cowshed rebase --all \
                 --onto {name}), and {gc} has removed {base}",
                named(clones),
                if some == 1 { "stands" } else { "stand" }
            ),
        })?;
        if new.is_some() {
            output::line(format!("  until then `cowshed rm {next}` takes it back"))?;
        }
        Ok(())
    }
}

fn named(clones: &[Name]) -> String {
    let names = clones.iter().take(NAMES).map(Name::as_str).collect::<Vec<_>>().join(", ");
    match clones.len().saturating_sub(NAMES) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

fn tell_clone(done: &Shrunk) -> anyhow::Result<()> {
    let Shrunk { clone, needless, before, after, left, checkpoints, bounded_by, .. } = done;
    let reasons = [(needless.free, "free"), (needless.equal, "as below"), (needless.zero, "zeros")];
    let mut reasons: Vec<String> =
        reasons.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{} {word}", size(*n))).collect();
    if let Some(Recompressed { full_bytes, gives_back_bytes }) = done.recompress {
        let about = if after.is_none() { "about " } else { "" };
        reasons.push(format!("{about}{} by compressing {}", size(gives_back_bytes), size(full_bytes)));
    }
    let reasons = if reasons.is_empty() { "nothing is needless".to_owned() } else { reasons.join(", ") };
    output::line(match after {
        None => format!(
            "{clone}: {} of {} on the host would be given back ({reasons})",
            size(given_back(done)),
            size(before.host_bytes)
        ),
        Some(after) => format!(
            "{clone}: {} -> {} on the host, file {} -> {} ({reasons})",
            size(before.host_bytes),
            size(after.host_bytes),
            size(before.file_bytes),
            size(after.file_bytes)
        ),
    })?;
    tell_left(left)?;
    for held in checkpoints {
        output::line(format!("  {}", told(clone, held)))?;
    }
    if let Some(why) = bounded_by {
        output::line(format!("  the file is longer than what it holds: {why}"))?;
    }
    Ok(())
}

/// What a plan promises in all.
fn given_back(done: &Shrunk) -> u64 {
    done.gives_back_bytes + done.recompress.map_or(0, |packed| packed.gives_back_bytes)
}

fn tell_left(left: &[Left]) -> anyhow::Result<()> {
    for Left { what, own_bytes, reason } in left {
        output::line(format!("  {what} ({} of its own) is left whole: {reason}", size(*own_bytes)))?;
    }
    Ok(())
}

/// What is said of a checkpoint's share.
fn told(clone: &Name, held: &Held) -> String {
    let Held { number, bytes, gives_back_bytes, needed } = held;
    let holds = format!("checkpoint {number} holds {}", size(*bytes));
    let remove = format!("cowshed rm {clone} --checkpoint {number}");
    match (needed, gives_back_bytes) {
        (true, _) => format!("{holds}; several layers stand on it"),
        (false, None) => holds,
        (false, Some(0)) => format!("{holds}; what stands on it shows all of that"),
        (false, Some(back)) if back == bytes => format!("{holds}; {remove} gives it back"),
        (false, Some(back)) => format!("{holds}; {remove} gives back at least {}", size(*back)),
    }
}

impl Sum {
    fn add(&mut self, done: &Shrunk) {
        self.done += 1;
        self.before += done.before.host_bytes;
        self.after += done.after.unwrap_or(done.before).host_bytes;
        self.gives_back += given_back(done);
    }

    fn text(&self, plan: bool) -> String {
        let clones = count(self.done, "clone");
        let mut text = if plan {
            format!(
                "{clones}: {} of {} on the host would be given back",
                size(self.gives_back),
                size(self.before)
            )
        } else {
            format!("{clones}: {} -> {} on the host", size(self.before), size(self.after))
        };
        if self.failed > 0 {
            text.push_str(&format!(", {} left as they are", self.failed));
        }
        text
    }
}
