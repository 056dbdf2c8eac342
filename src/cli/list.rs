use super::Outcome;
use super::context::Context;
use super::failure;
use super::output::{self, Json};
use super::units::{count, size};
use crate::store::{Base, Broken, Clone, Name, Overview, Usage};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;

/// List the bases and clones, with what each costs on the host.
#[derive(Args, Debug)]
pub(super) struct List {
    #[command(flatten)]
    json: Json,
}

/// Something of the store with its costs, as `--json` prints it.
#[derive(Serialize)]
pub(super) struct Item<T> {
    #[serde(flatten)]
    item: T,
    #[serde(flatten)]
    usage: Usage,
    /// Newer versions of the clone's base.
    #[serde(skip_serializing_if = "Option::is_none")]
    versions_behind: Option<usize>,
}

#[derive(Serialize)]
struct Report {
    bases: Vec<Item<Base>>,
    clones: Vec<Item<Clone>>,
    broken: Vec<Broken>,
}

/// The versions that each base has.
pub(super) struct Versions(BTreeMap<Name, Vec<u32>>);

impl Versions {
    pub(super) fn of<'a>(bases: impl IntoIterator<Item = &'a Base>) -> Self {
        let mut versions: BTreeMap<Name, Vec<u32>> = BTreeMap::new();
        for base in bases {
            versions.entry(base.name.clone()).or_default().push(base.version);
        }
        Self(versions)
    }

    /// How many versions of its base are newer than the one that `clone` stands on.
    pub(super) fn behind(&self, clone: &Clone) -> usize {
        behind(self.0.get(&clone.base.name).map(Vec::as_slice).unwrap_or_default(), clone)
    }
}

/// How many of its base's versions are newer than the one that `clone` stands on.
pub(super) fn behind(versions: &[u32], clone: &Clone) -> usize {
    versions.iter().filter(|version| **version > clone.base.version).count()
}

/// What a base version or clone stands behind, in words.
pub(super) fn behind_text(behind: usize) -> String {
    if behind == 0 { String::new() } else { format!("{} behind", count(behind as u64, "version")) }
}

fn note(clone: &Clone, versions: &Versions) -> String {
    let waits = clone.waiting.as_ref().map(|waiting| format!("on {} at its next start", waiting.onto));
    let behind = Some(behind_text(versions.behind(clone))).filter(|text| !text.is_empty());
    behind.into_iter().chain(waits).collect::<Vec<_>>().join(", ")
}

impl List {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let overview = context.store()?.overview()?;
        let code = failure::say_broken(&overview.broken);
        let versions = Versions::of(overview.bases.iter().map(|(base, _)| base));
        if self.json.json {
            output::json(&report(overview, &versions))?;
        } else {
            let rows = rows(&overview, &versions);
            let header = ["NAME", "KIND", "BASE", "SIZE", "OWN", "CREATED", "NOTE"];
            output::print_table(&output::table(&header, &[3, 4], rows))?;
        }
        Ok(code)
    }
}

fn report(overview: Overview, versions: &Versions) -> Report {
    let bases = overview.bases.into_iter();
    let clones = overview.clones.into_iter();
    Report {
        bases: bases.map(|(item, usage)| Item { item, usage, versions_behind: None }).collect(),
        clones: clones
            .map(|(item, usage)| Item { versions_behind: Some(versions.behind(&item)), item, usage })
            .collect(),
        broken: overview.broken,
    }
}

fn rows(overview: &Overview, versions: &Versions) -> Vec<Vec<String>> {
    let base = |(base, usage): &(Base, Usage)| {
        let name = format!("{}@{}", base.name, base.version);
        let below = base.parent.map(|parent| format!("@{parent}")).unwrap_or_default();
        let costs = size(usage.own_bytes);
        vec![name, "base".to_owned(), below, size(base.size), costs, base.created.clone(), String::new()]
    };
    let clone = |(clone, usage): &(Clone, Usage)| {
        vec![
            clone.name.to_string(),
            "clone".to_owned(),
            clone.base.to_string(),
            size(clone.size),
            size(usage.own_bytes),
            clone.created.clone(),
            note(clone, versions),
        ]
    };
    overview.bases.iter().map(base).chain(overview.clones.iter().map(clone)).collect()
}
