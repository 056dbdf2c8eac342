use super::Outcome;
use super::context::Context;
use super::failure;
use super::output::{self, Json};
use super::progress::Bar;
use super::units::{count, percent};
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::ops::check::{CloneReport, LayerReport, check_clone};
use crate::store::{Name, Store};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code when there are leaks and no errors.
const LEAKS: u8 = 3;

/// Check the structure of clones, and repair what is safe to repair.
///
/// Reads the tables of all files of a clone and collects all damage. Ends with 0 when all is well, 1 when there are
/// errors, 3 when there are only leaks (space that is lost, no data). --repair gives leaks back and corrects reference
/// counts; --reseal accepts checkpoints whose files were touched, if their structure is right. For both nobody may have
/// the clone open.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// The clones.
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<Name>,
    /// All clones.
    #[arg(long)]
    all: bool,
    /// Repair what is safe to repair, then check again.
    #[arg(long)]
    repair: bool,
    /// Accept checkpoints whose files were touched, if their structure is right. Their content cannot be compared.
    #[arg(long)]
    reseal: bool,
    #[command(flatten)]
    json: Json,
}

/// A clone's report, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    name: String,
    errors: u64,
    leaks: u64,
    /// Whether somebody is writing to the clone, so that it was not checked.
    busy: bool,
    /// Why the clone cannot be opened or checked.
    refused: Option<String>,
    /// Why checkpoints cannot be opened.
    refused_checkpoints: Vec<String>,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    file: PathBuf,
    errors: u64,
    messages: Vec<String>,
    leaks: u64,
    allocated_clusters: u64,
    compressed_clusters: u64,
    total_clusters: u64,
    image_end: u64,
}

impl Check {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let mut reports = Vec::new();
        let names = match self.all {
            true => {
                let survey = store.survey()?;
                let broken = survey.broken.into_iter().filter(|broken| broken.kind == "clone");
                reports.extend(broken.map(|broken| Report::refused(broken.name, broken.reason)));
                survey.clones.into_iter().map(|clone| clone.name).collect()
            }
            false => self.names.clone(),
        };
        for name in names {
            if bar.cancelled() {
                return Err(Error::new(Kind::Interrupted, "stopped before all clones were checked").into());
            }
            reports.push(match self.one(&store, &name) {
                Ok(report) => report.into(),
                // A clone in use is no damage; those that are not are checked.
                Err(error) if self.all && error.kind() == Kind::Busy => Report::busy(name.to_string()),
                // One clone that cannot be read does not keep the others from being checked.
                Err(error) if self.all => Report::refused(name.to_string(), failure::sentence(&error.into())),
                Err(error) => return Err(error.into()),
            });
        }
        bar.end();
        if self.json.json {
            output::json(&reports)?;
        } else {
            reports.iter().try_for_each(|report| output::line(report.text()))?;
        }
        Ok(exit_code(&reports))
    }

    fn one(&self, store: &Store, name: &Name) -> Result<CloneReport> {
        if self.reseal {
            store.reseal_checkpoints(name)?;
        }
        check_clone(store, name, self.repair)
    }
}

fn exit_code(reports: &[Report]) -> ExitCode {
    if reports.iter().any(|report| report.errors > 0) {
        ExitCode::FAILURE
    } else if reports.iter().any(|report| report.leaks > 0) {
        ExitCode::from(LEAKS)
    } else {
        ExitCode::SUCCESS
    }
}

impl From<CloneReport> for Report {
    fn from(report: CloneReport) -> Self {
        let (errors, leaks) = (report.errors(), report.leaks());
        let layers = report.layers.into_iter().map(Layer::from).collect();
        let (refused, refused_checkpoints) = (report.refused, report.refused_checkpoints);
        Self {
            name: report.name.to_string(),
            errors,
            leaks,
            busy: false,
            refused,
            refused_checkpoints,
            layers,
        }
    }
}

impl From<LayerReport> for Layer {
    fn from(LayerReport { file, report }: LayerReport) -> Self {
        Self {
            file,
            errors: report.error_count,
            messages: report.errors,
            leaks: report.leaks,
            allocated_clusters: report.allocated_clusters,
            compressed_clusters: report.compressed_clusters,
            total_clusters: report.total_clusters,
            image_end: report.image_end,
        }
    }
}

impl Report {
    fn refused(name: String, reason: String) -> Self {
        let refused = Some(reason);
        Self {
            name,
            errors: 1,
            leaks: 0,
            busy: false,
            refused,
            refused_checkpoints: Vec::new(),
            layers: Vec::new(),
        }
    }

    fn busy(name: String) -> Self {
        let (refused, layers) = (None, Vec::new());
        Self { name, errors: 0, leaks: 0, busy: true, refused, refused_checkpoints: Vec::new(), layers }
    }

    fn text(&self) -> String {
        let mut text = match (self.errors, self.leaks) {
            _ if self.busy => format!("{}: in use, not checked", self.name),
            (0, 0) => format!("{}: no errors", self.name),
            (0, leaks) => format!("{}: no errors, {}", self.name, count(leaks, "leaked cluster")),
            (errors, leaks) => {
                format!("{}: {}, {}", self.name, count(errors, "error"), count(leaks, "leaked cluster"))
            }
        };
        if let Some(top) = self.layers.first() {
            let (part, whole) = (top.allocated_clusters, top.total_clusters);
            text += &format!(", {part} of {whole} clusters allocated ({})", percent(part, whole));
        }
        let refusal =
            self.refused.iter().chain(&self.refused_checkpoints).map(|reason| format!("\n  {reason}"));
        let shown = |layer: &Layer| {
            let file = layer.file.display().to_string();
            layer.messages.iter().map(move |message| format!("\n  {file}: {message}")).collect::<Vec<_>>()
        };
        text.extend(refusal.chain(self.layers.iter().flat_map(shown)));
        text
    }
}
