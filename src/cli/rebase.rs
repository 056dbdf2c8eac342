mod report;

use super::Outcome;
use super::context::Context;
use super::failure;
use super::output::{self, Json};
use super::plan::Plan;
use super::progress::Clones;
use super::units::{count, size};
use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::ops::merge::Conflict;
use crate::ops::merge::rules::{FILE_MAX, Rules};
use crate::ops::rebase::{Ending, MergeSettings, Merged, RebaseRequest, Rebased, Strategy, rebase_all};
use crate::store::{self, BaseRef, Name, Store};
use anyhow::Context as _;
use clap::Args;
use globset::{Glob, GlobMatcher};
use report::Report;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Put clones on another version of their base.
///
/// What each clone was before becomes a checkpoint, and `cowshed undo CLONE` goes back to it. A clone that is in use is
/// left as it is. Run again, clones that are done are left alone: an interrupted run is continued by the same command.
#[derive(Args, Debug)]
pub(super) struct Rebase {
    /// Clones.
    #[arg(value_name = "CLONE", required_unless_present = "all", conflicts_with = "all")]
    clones: Vec<Name>,
    /// All clones of the base.
    #[arg(long)]
    all: bool,
    /// Of those only the ones whose name matches a pattern (web-*), or that have a label (KEY=VALUE); may be given
    /// several times, and then any of them counts.
    #[arg(long, value_name = "PATTERN", requires = "all")]
    only: Vec<Only>,
    /// The base version: NAME@V, or NAME for its newest.
    #[arg(long, value_name = "BASE")]
    onto: BaseRef,
    /// What becomes of a clone's own changes. merge: file by file, the new base with what the clone changed. keep: the
    /// disk stays what it is, byte for byte. replace: it starts anew from the new base.
    #[arg(long, default_value = "merge")]
    strategy: Strategy,
    /// Rules for what both sides changed, after the built-in ones: a file with lines `POLICY GLOB`.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Write all that was, or would be, done into a file: JSON when its name ends with .json, else a page of text.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Clones named so are data disks: they are kept, whatever the strategy (a pattern; may be given several times).
    #[arg(long, value_name = "PATTERN")]
    keep_disk: Vec<Only>,
    /// Clones at a time [default: one for every two processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Take only the first N of the clones that are not done yet, to see whether all goes well.
    #[arg(long, value_name = "N", requires = "all")]
    canary: Option<usize>,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

/// A pattern for names, or a label.
#[derive(Clone, Debug)]
enum Only {
    Name(GlobMatcher),
    Label(String, String),
}

impl std::str::FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((key, value)) = text.split_once('=') {
            return Ok(Self::Label(key.to_owned(), value.to_owned()));
        }
        Glob::new(text).map(|glob| Self::Name(glob.compile_matcher())).map_err(|error| error.to_string())
    }
}

impl Only {
    fn is(&self, clone: &store::Clone) -> bool {
        match self {
            Self::Name(glob) => glob.is_match(clone.name.as_str()),
            Self::Label(key, value) => clone.labels.get(key) == Some(value),
        }
    }
}

/// How many came to which end.
#[derive(Default)]
struct Sum {
    done: u64,
    up_to_date: u64,
    conflicts: u64,
    running: u64,
    failed: u64,
}

impl Rebase {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let progress = Clones::new("rebasing")?;
        let store = context.store()?;
        let requests = self.requests(&store)?;
        // Before anything is changed: a report that cannot be written is noticed now.
        let report = self.report.as_deref().map(Report::create).transpose()?;
        progress.bar.set_length(requests.len() as u64);
        let jobs = self.jobs.map_or_else(|| rayon::current_num_threads().div_ceil(2), usize::from);
        let (mut sum, mut reports, mut failure) = (Sum::default(), Vec::new(), None);
        rebase_all(&store, &requests, jobs, self.plan.plan, &progress, &mut |name, ending| {
            progress.bar.inc(1);
            let told = progress.bar.suspend(|| self.tell(name, ending, &mut sum, &mut reports));
            failure = failure.take().or(told.err());
        });
        progress.bar.finish_and_clear();
        if let Some(failure) = failure {
            return Err(failure);
        }
        if let Some(report) = report {
            report.write(&reports)?;
        }
        if self.json.json {
            output::json(&reports)?;
        } else if requests.len() > 1 {
            output::line(sum.text(self.plan.plan))?;
        }
        if progress.cancelled() {
            let hint = "the clones that were not reached are as they were; run it again to go on";
            return Err(Error::new(crate::Kind::Interrupted, format!("stopped; {hint}")).into());
        }
        Ok(if sum.conflicts + sum.running + sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// What is asked for, one request for each clone.
    fn requests(&self, store: &Store) -> anyhow::Result<Vec<RebaseRequest>> {
        let onto = store.base(&self.onto)?;
        let mut clones = match self.all {
            true => store.clones()?.into_iter().filter(|clone| clone.base.name == onto.name).collect(),
            false => self.clones.iter().map(|name| store.clone_named(name)).collect::<Result<Vec<_>>>()?,
        };
        clones.retain(|clone| self.only.is_empty() || self.only.iter().any(|only| only.is(clone)));
        if let Some(canary) = self.canary {
            clones.retain(|clone| clone.base != onto.id());
            clones.truncate(canary);
        }
        if clones.is_empty() && self.canary.is_none() {
            return Err(Error::invalid(format!("no clone of {} is meant", onto.name))).context("rebase");
        }
        let settings = Arc::new(self.settings()?);
        let request = |clone: store::Clone| {
            let kept = self.keep_disk.iter().any(|disk| disk.is(&clone));
            let strategy = if kept { Strategy::Keep } else { self.strategy };
            RebaseRequest {
                onto: BaseRef::exact(onto.name.clone(), onto.version),
                clone: clone.name,
                strategy,
                settings: Arc::clone(&settings),
            }
        };
        Ok(clones.into_iter().map(request).collect())
    }

    fn settings(&self) -> anyhow::Result<MergeSettings> {
        let mut rules = Rules::preset()?;
        if let Some(file) = &self.rules {
            let place = || format!("rules file {}", file.display());
            let mut text = String::new();
            // One byte more than is taken: a file without an end is refused like any that is too long.
            let file = File::open(file).with_context(place)?;
            file.take(FILE_MAX + 1).read_to_string(&mut text).with_context(place)?;
            rules = rules.and(&text).with_context(place)?;
        }
        let program = std::env::current_exe().context("cannot find this program")?;
        Ok(MergeSettings { rules, program })
    }

    /// Says what came of one clone.
    fn tell(
        &self,
        name: &Name,
        ending: Ending,
        sum: &mut Sum,
        reports: &mut Vec<serde_json::Value>,
    ) -> anyhow::Result<()> {
        let (report, line) = match ending {
            Ending::Done(done) => {
                sum.done += 1;
                (json!({ "clone": name, "state": "done", "rebase": done }), Ok(self.line(&done)))
            }
            Ending::UpToDate => {
                sum.up_to_date += 1;
                let line = format!("{name}: stands on {} already", self.onto);
                (json!({ "clone": name, "state": "up to date" }), Ok(line))
            }
            Ending::Conflict(open) => {
                sum.conflicts += 1;
                let error = conflicts(&open);
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
        reports.push(report);
        match line {
            Ok(line) if !self.json.json => output::line(line)?,
            Err(error) => failure::write_line(&format!("{name} is left as it is: {error}")),
            Ok(_) => {}
        }
        Ok(())
    }

    fn line(&self, done: &Rebased) -> String {
        let Rebased { clone, from, onto, own_bytes, merge, .. } = done;
        let mut words = vec![format!("{clone}: {from} -> {onto}")];
        words.extend(merge.as_ref().map(summary));
        let own = own_bytes.map(size);
        if self.plan.plan {
            words.extend(own.map(|own| format!("would leave {own} of its own")));
        } else {
            words.extend(own.map(|own| format!("{own} of its own; undo with: cowshed undo {clone}")));
        }
        words.join(", ")
    }
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

/// The open conflicts in a sentence.
fn conflicts(open: &Rebased) -> String {
    const SHOWN: usize = 3;
    let all: Vec<&Conflict> = open.merge.iter().flat_map(Merged::open).collect();
    let mut text = count(all.len() as u64, "conflict");
    for conflict in all.iter().take(SHOWN) {
        text.push_str(&format!("; {}", report::sentence(conflict)));
    }
    if all.len() > SHOWN {
        text.push_str(&format!("; and {} more", all.len() - SHOWN));
    }
    text.push_str("; decide with --rules FILE, see all with --report FILE");
    text
}

impl Sum {
    fn text(&self, plan: bool) -> String {
        let done = if plan { "would be done" } else { "done" };
        let parts = [
            (self.done, done),
            (self.up_to_date, "already there"),
            (self.conflicts, "with conflicts"),
            (self.running, "in use"),
        ];
        let mut words: Vec<String> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
        if self.failed > 0 {
            words.push(format!("{} failed", self.failed));
        }
        let all = self.done + self.up_to_date + self.conflicts + self.running + self.failed;
        format!("{}: {}", count(all, "clone"), words.join(", "))
    }
}
