use super::Outcome;
use super::context::Context;
use super::failure;
use super::output::{self, Json};
use super::progress::Bar;
use super::units::size;
use crate::error::{Kind, Result};
use crate::ops::verify::{VerifyReport, reseal, verify};
use crate::store::{Base, BaseRef, Broken, Store, Survey};
use clap::Args;
use serde::Serialize;
use std::process::ExitCode;

/// Read bases again in full, and name the blocks that are damaged.
///
/// Ends with 1 when anything is wrong. --reseal accepts a base whose file was copied or restored, so that its inode or
/// times differ, if its content is still what was sealed.
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// Bases as NAME@V, or NAME for all its versions.
    #[arg(value_name = "BASE", required_unless_present = "all", conflicts_with = "all")]
    bases: Vec<BaseRef>,
    /// All bases.
    #[arg(long)]
    all: bool,
    /// Accept files that were touched, if their content is right.
    #[arg(long)]
    reseal: bool,
    #[command(flatten)]
    json: Json,
}

/// What came of one base, as `--json` prints it.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcomes {
    Read(VerifyReport),
    Failed { base: String, error: String },
}

impl Verify {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let Survey { bases, mut broken, .. } = store.survey()?;
        broken.retain(|broken| broken.kind == "base" && self.means(broken));
        let mut failed = Vec::new();
        let mut reports = Vec::new();
        for base in self.versions(&store, bases, &broken)? {
            bar.start(format!("verifying {base}"));
            match self.one(&store, &base, &bar) {
                Ok(report) => reports.push(Outcomes::Read(report)),
                Err(error) if error.kind() == Kind::Interrupted => return Err(error.into()),
                // One base that cannot be read does not keep the others from being read.
                Err(error) => {
                    let error = failure::sentence(&error.into());
                    failed.push(format!("{base}: cannot be {}: {error}", self.verb()));
                    reports.push(Outcomes::Failed { base: base.to_string(), error });
                }
            }
        }
        bar.end();
        failed.extend(
            broken.into_iter().map(|b| format!("{}: cannot be {}: {}", b.name, self.verb(), b.reason)),
        );
        if self.json.json {
            output::json(&reports)?;
        }
        let mut all_well = failed.is_empty();
        for report in &reports {
            let Outcomes::Read(report) = report else { continue };
            all_well &= report.is_ok();
            if !self.json.json {
                output::line(text(report))?;
            }
        }
        failed.iter().for_each(|line| failure::write_line(line));
        Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn verb(&self) -> &'static str {
        if self.reseal { "sealed anew" } else { "verified" }
    }

    fn one(&self, store: &Store, base: &BaseRef, bar: &Bar) -> Result<VerifyReport> {
        if self.reseal {
            reseal(store, base, bar)?;
        }
        verify(store, base, bar)
    }

    /// Whether something broken is among what was asked for.
    fn means(&self, broken: &Broken) -> bool {
        let asked = |base: &BaseRef| {
            let of = broken.name.split('@').next() == Some(base.name.as_str());
            of && (base.version.is_none() || broken.name == base.to_string())
        };
        self.all || self.bases.iter().any(asked)
    }

    fn versions(&self, store: &Store, bases: Vec<Base>, broken: &[Broken]) -> Result<Vec<BaseRef>> {
        let known: Vec<BaseRef> =
            bases.into_iter().map(|base| BaseRef::exact(base.name, base.version)).collect();
        if self.all {
            return Ok(known);
        }
        let mut wanted = Vec::new();
        for base in &self.bases {
            let meant = |one: &&BaseRef| one.name == base.name && (base.version.is_none() || **one == *base);
            let before = wanted.len();
            wanted.extend(known.iter().filter(meant).cloned());
            if wanted.len() == before && broken.is_empty() {
                return Err(store.no_base(base));
            }
        }
        Ok(wanted)
    }
}

fn text(report: &VerifyReport) -> String {
    if report.is_ok() {
        return format!("{}: intact", report.base);
    }
    let mut text = format!("{}: DAMAGED", report.base);
    if report.digest_ok && report.damaged.is_empty() {
        text = format!("{}: content intact, but not as it was sealed", report.base);
    }
    for range in &report.damaged {
        text += &format!(
            "\n  {} at byte {} differ from what was sealed or cannot be read",
            size(range.length),
            range.start
        );
    }
    for (is_right, message) in [
        (report.digest_ok, "the digest of its content is not the sealed one"),
        (report.sums_ok, "its list of block sums is damaged, so the damaged blocks cannot be named"),
        (
            report.fingerprint_ok,
            "its file was touched (inode, size or times); --reseal accepts it if the content is right",
        ),
    ] {
        if !is_right {
            text += &format!("\n  {message}");
        }
    }
    text
}
