use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::plan::Plan;
use super::progress::Bar;
use super::units::size;
use crate::error::{Error, Kind, Result};
use crate::ops::fold::{self, Removed};
use crate::store::{BaseRef, Name, Store, Target};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::process::ExitCode;

/// Remove clones, base versions, or one checkpoint.
///
/// A base is never removed while a clone or a later version stands on it: the message says which. Clones may be named
/// together with the base they stand on. Of a checkpoint that something stands on, that keeps what is still seen of it: then the
/// clone must not be in use, and the host needs room for that meanwhile. Removing cannot be undone: --plan shows what it would do.
#[derive(Args, Debug)]
pub(super) struct Rm {
    /// Clones, and bases as NAME@V (or NAME, when there is one version).
    #[arg(value_name = "NAME", required = true)]
    names: Vec<BaseRef>,
    /// Remove this checkpoint of the one clone NAME instead of the clone.
    #[arg(long, value_name = "NUMBER")]
    checkpoint: Option<u32>,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

#[derive(Serialize)]
struct Removal {
    name: String,
    /// Of a plan for a checkpoint that something stands on: at least.
    freed_bytes: u64,
    /// What keeps what is still seen of a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<String>,
    /// Room that is needed meanwhile, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    needs_bytes: Option<u64>,
}

impl Rm {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let removals = match self.checkpoint {
            Some(number) => vec![self.remove_checkpoint(&store, number, &Bar::new()?)?],
            None => {
                let (removals, outcome) = self.remove_all(&store)?;
                if let Err(error) = outcome {
                    // What is gone is told before what is not.
                    if !removals.is_empty() {
                        self.report(&removals)?;
                    }
                    return Err(error.into());
                }
                removals
            }
        };
        self.report(&removals)?;
        Ok(ExitCode::SUCCESS)
    }

    fn report(&self, removals: &[Removal]) -> anyhow::Result<()> {
        if self.json.json {
            output::json(&removals)?;
        } else if self.plan.plan {
            removals.iter().try_for_each(|removal| output::line(removal.planned()))?;
        } else {
            let freed = removals.iter().map(|removal| removal.freed_bytes).sum();
            let names: Vec<&str> = removals.iter().map(|removal| removal.name.as_str()).collect();
            output::line(format!("removed {}, freed {}", names.join(", "), size(freed)))?;
        }
        Ok(())
    }

    fn remove_checkpoint(&self, store: &Store, number: u32, bar: &Bar) -> Result<Removal> {
        let [BaseRef { name, version: None }] = self.names.as_slice() else {
            return Err(Error::invalid("--checkpoint takes the name of one clone"));
        };
        let place = format!("checkpoint {number} of {name}");
        bar.start(format!("removing {place}"));
        let removed = match self.plan.plan {
            true => fold::plan(store, name, number),
            false => fold::remove_checkpoint(store, name, number, bar),
        };
        bar.end();
        let Removed { freed_bytes, into, needs_bytes, .. } = removed?;
        Ok(Removal { name: place, freed_bytes, into, needs_bytes })
    }

    /// What was removed, and why that is not all. All names are looked at before the first one is removed.
    fn remove_all(&self, store: &Store) -> Result<(Vec<Removal>, Result<()>)> {
        let targets = in_order(store, &self.names)?;
        check(store, &targets)?;
        let remove = |target: &Target| {
            let freed_bytes = match target {
                _ if self.plan.plan => store.bytes_if_removed(target)?,
                Target::Clone(name) => store.remove_clone(name)?.bytes,
                Target::Base(base) => store.remove_base(base)?.bytes,
            };
            Ok(Removal { name: target.to_string(), freed_bytes, into: None, needs_bytes: None })
        };
        let mut removals = Vec::new();
        for target in &targets {
            match remove(target) {
                Ok(removal) => removals.push(removal),
                Err(error) => return Ok((removals, Err(error))),
            }
        }
        Ok((removals, Ok(())))
    }
}

impl Removal {
    /// What a plan says of it.
    fn planned(&self) -> String {
        let Self { name, freed_bytes, into, needs_bytes } = self;
        let freed = size(*freed_bytes);
        match (into, needs_bytes) {
            (Some(into), Some(needs)) => format!(
                "{name} would be removed, which frees at least {freed}; {into} keeps what is still seen of it, and up to {} \
                 more are needed meanwhile",
                size(*needs)
            ),
            _ => format!("{name} would be removed, which frees {freed}"),
        }
    }
}

/// Each target once, in an order in which they can be removed: clones, then bases with later versions first.
fn in_order(store: &Store, names: &[BaseRef]) -> Result<Vec<Target>> {
    let mut clones = BTreeSet::new();
    let mut bases = BTreeSet::new();
    for name in names {
        match store.find(name)? {
            Target::Clone(name) => drop(clones.insert(Target::Clone(name))),
            Target::Base(base) => {
                if name.version.is_none() {
                    only_version(store, &name.name)?;
                }
                bases.insert(Target::Base(base));
            }
        }
    }
    Ok(clones.into_iter().chain(bases.into_iter().rev()).collect())
}

fn only_version(store: &Store, name: &Name) -> Result<()> {
    let versions = store.versions(name)?;
    if versions.len() == 1 {
        return Ok(());
    }
    let versions: Vec<String> = versions.iter().map(|version| format!("{name}@{version}")).collect();
    Err(Error::invalid(format!("base {name} has several versions; say which: {}", versions.join(", "))))
}

/// Refuses bases on which something stands that is not removed as well.
fn check(store: &Store, targets: &[Target]) -> Result<()> {
    for target in targets {
        let Target::Base(base) = target else { continue };
        let above = store.standing_on(base)?;
        let stay: Vec<String> =
            above.iter().filter(|other| !targets.contains(other)).map(ToString::to_string).collect();
        if !stay.is_empty() {
            // Later versions need not be removed: they can do without it.
            let only_versions =
                above.iter().all(|other| targets.contains(other) || matches!(other, Target::Base(_)));
            let hint = match only_versions {
                true => format!("`cowshed gc {}` rewrites what stands on it, and removes it", base.name),
                false => "remove them first".to_owned(),
            };
            return Err(Error::new(
                Kind::Busy,
                format!("base {base} is needed by {}; {hint}", stay.join(", ")),
            ));
        }
    }
    Ok(())
}
