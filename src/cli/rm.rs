use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::plan::Plan;
use super::units::size;
use crate::error::{Error, Kind, Result};
use crate::store::{BaseRef, Name, Store, Target};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::process::ExitCode;

/// Remove clones, base versions, or one checkpoint.
///
/// A base is never removed while a clone or a later version stands on it: the message says which. Clones may be named
/// together with the base they stand on. Removing cannot be undone: --plan shows what it would do.
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
    freed_bytes: u64,
}

impl Rm {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let removals = match self.checkpoint {
            Some(number) => vec![self.remove_checkpoint(&store, number)?],
            None => self.remove_all(&store)?,
        };
        if self.json.json {
            output::json(&removals)?;
        } else if self.plan.plan {
            for Removal { name, freed_bytes } in &removals {
                output::line(format!("{name} would be removed, which frees {}", size(*freed_bytes)))?;
            }
        } else {
            let freed = removals.iter().map(|removal| removal.freed_bytes).sum();
            let names: Vec<&str> = removals.iter().map(|removal| removal.name.as_str()).collect();
            output::line(format!("removed {}, freed {}", names.join(", "), size(freed)))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn remove_checkpoint(&self, store: &Store, number: u32) -> Result<Removal> {
        let [BaseRef { name, version: None }] = self.names.as_slice() else {
            return Err(Error::invalid("--checkpoint takes the name of one clone"));
        };
        let checkpoints = store.checkpoints(name)?;
        if !checkpoints.iter().any(|checkpoint| checkpoint.number == number) {
            let hint = format!("{name} has no checkpoint {number}; cowshed checkpoints {name} lists them");
            return Err(Error::new(Kind::NotFound, hint));
        }
        let freed_bytes = if self.plan.plan {
            if let Some(above) = checkpoints.iter().find(|checkpoint| checkpoint.parent == Some(number)) {
                let message = format!("checkpoint {} of {name} stands on checkpoint {number}", above.number);
                return Err(Error::new(Kind::Busy, message));
            }
            if store.current_checkpoint(name)? == Some(number) {
                let message = format!("the present state of {name} stands on checkpoint {number}");
                return Err(Error::new(Kind::Busy, message));
            }
            0
        } else {
            store.remove_checkpoint(name, number)?.bytes
        };
        Ok(Removal { name: format!("checkpoint {number} of {name}"), freed_bytes })
    }

    /// All names are looked at before the first one is removed.
    fn remove_all(&self, store: &Store) -> Result<Vec<Removal>> {
        let targets = in_order(store, &self.names)?;
        check(store, &targets)?;
        let remove = |target: &Target| {
            let freed_bytes = match target {
                _ if self.plan.plan => store.usage(target)?.freed_if_deleted,
                Target::Clone(name) => store.remove_clone(name)?.bytes,
                Target::Base(base) => store.remove_base(base)?.bytes,
            };
            Ok(Removal { name: target.to_string(), freed_bytes })
        };
        targets.iter().map(remove).collect()
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
    let bases = store.bases()?;
    let versions: Vec<String> = bases
        .iter()
        .filter(|base| base.name == *name)
        .map(|base| format!("{name}@{}", base.version))
        .collect();
    if versions.len() == 1 {
        return Ok(());
    }
    Err(Error::invalid(format!("base {name} has several versions; say which: {}", versions.join(", "))))
}

/// Refuses bases on which something stands that is not removed as well.
fn check(store: &Store, targets: &[Target]) -> Result<()> {
    for target in targets {
        let Target::Base(base) = target else { continue };
        let goes = |other: &Target| targets.contains(other);
        let clones = store.clones_of(base)?.into_iter().map(Target::Clone);
        let later = store.bases()?.into_iter().filter(|other| other.name == base.name);
        let later = later.filter(|other| other.parent == base.version);
        let later = later.map(|other| Target::Base(BaseRef::exact(other.name, other.version)));
        let stay: Vec<String> =
            clones.chain(later).filter(|other| !goes(other)).map(|other| other.to_string()).collect();
        if !stay.is_empty() {
            let message = format!("base {base} is needed by {}; remove them first", stay.join(", "));
            return Err(Error::new(Kind::Busy, message));
        }
    }
    Ok(())
}
