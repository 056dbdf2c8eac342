use super::Outcome;
use super::context::Context;
use super::failure;
use super::output::{self, Json};
use super::progress::Bar;
use super::units::size;
use crate::error::Kind;
use crate::ops::shrink::plan;
use crate::store::{Base, Broken, Clone, Name, Overview, Store, Usage};
use clap::Args;
use serde::Serialize;

/// Show where the host's space goes.
///
/// OWN is what a base version or clone takes up by itself, SHARED what stands below it, FREED what the host gets back when it goes
/// alone (nothing, while something stands on it). OWN of everything and what the store itself takes up are what `du` says of the
/// store's folder.
#[derive(Args, Debug)]
pub(super) struct Du {
    /// Tell as well what `cowshed shrink` would give back, for which each clone is read.
    #[arg(long)]
    reclaimable: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Serialize)]
struct Row {
    name: String,
    kind: &'static str,
    #[serde(flatten)]
    usage: Usage,
    /// What a shrink would give back; `None` when it is not asked, of a base, and of a clone that cannot be read now.
    reclaimable_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    disks: Vec<Row>,
    broken: Vec<Broken>,
    /// What the store takes up beside its disks.
    other_bytes: u64,
    /// All of it.
    total_bytes: u64,
}

impl Du {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let overview = store.overview()?;
        let code = failure::say_broken(&overview.broken);
        let report = self.report(&store, overview, &bar)?;
        if self.json.json {
            output::json(&report)?;
        } else {
            let mut header = vec!["NAME", "OWN", "SHARED", "FREED"];
            header.extend(self.reclaimable.then_some("RECLAIMABLE"));
            let rows = report.rows(self.reclaimable);
            output::print_table(&output::table(&header, &[1, 2, 3, 4], rows))?;
        }
        Ok(code)
    }

    fn report(&self, store: &Store, overview: Overview, bar: &Bar) -> anyhow::Result<Report> {
        let mut disks: Vec<Row> = overview.bases.iter().map(base).collect();
        for (Clone { name, .. }, usage) in &overview.clones {
            let reclaimable_bytes = if self.reclaimable { reclaimable(store, name, bar)? } else { None };
            disks.push(Row { name: name.to_string(), kind: "clone", usage: *usage, reclaimable_bytes });
        }
        let total_bytes = store.host_bytes()?;
        let known: u64 = disks.iter().map(|row| row.usage.own_bytes).sum();
        let other_bytes = total_bytes.saturating_sub(known);
        Ok(Report { disks, broken: overview.broken, other_bytes, total_bytes })
    }
}

fn base((base, usage): &(Base, Usage)) -> Row {
    Row {
        name: format!("{}@{}", base.name, base.version),
        kind: "base",
        usage: *usage,
        reclaimable_bytes: None,
    }
}

fn reclaimable(store: &Store, clone: &Name, bar: &Bar) -> anyhow::Result<Option<u64>> {
    bar.start(format!("reading {clone}"));
    let planned = plan(store, clone, false, bar);
    bar.end();
    match planned {
        Ok(planned) => Ok(Some(planned.gives_back_bytes)),
        Err(error) if error.kind() == Kind::Interrupted => Err(error.into()),
        Err(error) => {
            failure::write_line(&format!("{clone} is not read: {}", failure::sentence(&error.into())));
            Ok(None)
        }
    }
}

impl Report {
    fn rows(&self, reclaimable: bool) -> Vec<Vec<String>> {
        let row = |row: &Row| {
            let Usage { own_bytes, shared_bytes, freed_if_deleted } = row.usage;
            let mut cells =
                vec![row.name.clone(), size(own_bytes), size(shared_bytes), size(freed_if_deleted)];
            if reclaimable {
                cells.push(row.reclaimable_bytes.map(size).unwrap_or_default());
            }
            cells
        };
        let mut rows: Vec<Vec<String>> = self.disks.iter().map(row).collect();
        let sum = |name: &str, bytes: u64| vec![name.to_owned(), size(bytes)];
        rows.push(sum("(the store itself)", self.other_bytes));
        rows.push(sum("(all)", self.total_bytes));
        let columns = if reclaimable { 5 } else { 4 };
        rows.iter_mut().for_each(|row| row.resize(columns, String::new()));
        rows
    }
}
