use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::progress::Bar;
use super::units::size;
use crate::error::{Error, Kind, Result};
use crate::ops::verify::{VerifyReport, reseal, verify};
use crate::store::{BaseRef, Store};
use clap::Args;
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

impl Verify {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let mut reports = Vec::new();
        for base in self.versions(&store)? {
            bar.start(format!("verifying {base}"));
            if self.reseal {
                reseal(&store, &base, &bar)?;
            }
            reports.push(verify(&store, &base, &bar)?);
        }
        bar.end();
        if self.json.json {
            output::json(&reports)?;
        } else {
            reports.iter().try_for_each(|report| output::line(text(report)))?;
        }
        let all_well = reports.iter().all(VerifyReport::is_ok);
        Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn versions(&self, store: &Store) -> Result<Vec<BaseRef>> {
        let bases = store.bases()?;
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
            if wanted.len() == before {
                let hint = format!("there is no base {base}; `cowshed list` shows what there is");
                return Err(Error::new(Kind::NotFound, hint));
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
        text += &format!("\n  {} at byte {} differ from what was sealed", size(range.length), range.start);
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
