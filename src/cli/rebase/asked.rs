//! What is asked for: on the command line now, or when a canary run was begun.

use super::{Only, Rebase};
use crate::error::{Error, Kind, Result};
use crate::ops::merge::rules::{FILE_MAX, Rules};
use crate::ops::rebase::{MergeSettings, RebaseRequest, Strategy};
use crate::store::{self, Base, BaseId, BaseRef, Canary, Name, Store};
use anyhow::Context as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// What shall be done, and with which clones.
pub(super) struct Asked {
    pub(super) onto: BaseId,
    strategy: Strategy,
    /// The user's rules, as they were written.
    pub(super) rules: String,
    only: Vec<Only>,
    keep_disks: Vec<Only>,
    pub(super) clones: Vec<store::Clone>,
}

impl Rebase {
    /// What the command line asks for.
    pub(super) fn asked(&self, store: &Store) -> anyhow::Result<Asked> {
        let onto = self.onto.as_ref().ok_or_else(|| Error::invalid("no base version is given"))?;
        let onto = store.base(onto)?;
        let mut clones = match self.all {
            true => all(store, &onto.name, &self.fleet.only)?,
            false => self.clones.iter().map(|name| store.clone_named(name)).collect::<Result<_>>()?,
        };
        if let Some(canary) = self.canary {
            clones.retain(|clone| clone.base != onto.id());
            clones.truncate(canary);
        }
        if clones.is_empty() && self.canary.is_none() {
            return Err(no_clone(&onto.name)).context("rebase");
        }
        Ok(Asked {
            onto: onto.id(),
            strategy: self.strategy.unwrap_or(Strategy::Merge),
            rules: self.rules.as_deref().map(read_rules).transpose()?.unwrap_or_default(),
            only: self.fleet.only.clone(),
            keep_disks: self.keep_disk.clone(),
            clones,
        })
    }

    /// What the last canary run was told to do, with all clones that it was about.
    pub(super) fn after_canary(&self, store: &Store) -> anyhow::Result<Asked> {
        let run = self.canary_run(store)?;
        let onto = meant(store, &run)?;
        let behind = not_there(store, &run)?;
        if !behind.is_empty() && !self.force {
            let names = behind.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
            let (verb, them) = if behind.len() == 1 { ("is", "it") } else { ("are", "them") };
            return Err(Error::new(
                Kind::Busy,
                format!(
                    "of the canary run {names} {verb} not on {} (undone since, or never put there); look at {them}, \
                     then go on with --force",
                    run.onto
                ),
            )
            .into());
        }
        let only = Only::parse_all(&run.only)?;
        let clones = all(store, &onto.name, &only)?;
        if clones.is_empty() {
            return Err(no_clone(&onto.name)).context("rebase");
        }
        let keep_disks = Only::parse_all(&run.keep_disks)?;
        Ok(Asked { onto: run.onto, strategy: run.strategy, rules: run.rules, only, keep_disks, clones })
    }

    /// The canary run that is meant: of the base that is given, or the only one.
    fn canary_run(&self, store: &Store) -> anyhow::Result<Canary> {
        let mut bases: Vec<Name> = match &self.onto {
            Some(onto) => vec![store.base(onto)?.name],
            None => store.survey()?.bases.into_iter().map(|base| base.name).collect(),
        };
        bases.dedup();
        let mut runs = Vec::new();
        for base in bases {
            runs.extend(store.canary(&base)?);
        }
        let version = self.onto.as_ref().and_then(|onto| onto.version);
        match (runs.pop(), runs.is_empty()) {
            (Some(run), true) if version.is_none_or(|version| version == run.onto.version) => Ok(run),
            (Some(run), true) => {
                Err(Error::invalid(format!("the canary run was onto {}, not another version", run.onto))
                    .into())
            }
            (Some(run), false) => {
                let others = runs.iter().map(|run| &run.onto.name).chain([&run.onto.name]);
                let names = others.map(Name::as_str).collect::<Vec<_>>().join(", ");
                Err(Error::invalid(format!("there are canary runs of {names}; name one with --onto BASE"))
                    .into())
            }
            (None, _) => {
                let hint = "begin one with --all --onto BASE --canary N";
                Err(Error::new(Kind::NotFound, format!("there is no canary run to go on with; {hint}"))
                    .into())
            }
        }
    }
}

/// The clones of a base, on whichever version, that `only` names.
fn all(store: &Store, base: &Name, only: &[Only]) -> Result<Vec<store::Clone>> {
    let meant = |clone: &store::Clone| clone.base.name == *base && Only::means(only, clone);
    Ok(store.clones()?.into_iter().filter(meant).collect())
}

fn no_clone(base: &Name) -> Error {
    Error::invalid(format!("no clone of {base} is meant"))
}

/// The version that a canary run was onto.
fn meant(store: &Store, run: &Canary) -> Result<Base> {
    let onto = &run.onto;
    match store.base(&BaseRef::exact(onto.name.clone(), onto.version)) {
        Ok(base) if base.id() == *onto => Ok(base),
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        _ => Err(Error::new(
            Kind::NotFound,
            format!("{onto}, which the canary run was onto, is gone; begin another one with --canary"),
        )),
    }
}

/// Clones of a canary run that do not stand on its version.
fn not_there(store: &Store, run: &Canary) -> Result<Vec<Name>> {
    let mut behind = Vec::new();
    for name in &run.clones {
        match store.clone_named(name) {
            Ok(clone) if clone.base == run.onto => {}
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => behind.push(name.clone()),
        }
    }
    Ok(behind)
}

fn read_rules(file: &Path) -> anyhow::Result<String> {
    let place = || format!("rules file {}", file.display());
    let mut text = String::new();
    // One byte more than is taken: a file without an end is refused like any that is too long.
    File::open(file).with_context(place)?.take(FILE_MAX + 1).read_to_string(&mut text).with_context(place)?;
    // Before anything is changed, and before they are kept for later.
    Rules::preset()?.and(&text).with_context(place)?;
    Ok(text)
}

impl Asked {
    /// One request for each clone.
    pub(super) fn requests(&self) -> anyhow::Result<Vec<RebaseRequest>> {
        let rules = Rules::preset()?.and(&self.rules)?;
        let program = crate::cli::context::Context::program()?;
        let settings = Arc::new(MergeSettings { rules, program });
        let request = |clone: &store::Clone| {
            let kept = self.keep_disks.iter().any(|disk| disk.is(clone));
            RebaseRequest {
                clone: clone.name.clone(),
                onto: BaseRef::exact(self.onto.name.clone(), self.onto.version),
                strategy: if kept { Strategy::Keep } else { self.strategy },
                settings: Arc::clone(&settings),
            }
        };
        Ok(self.clones.iter().map(request).collect())
    }

    /// What a canary run with these clones is told to do. Those of one that was begun onto the same version before it
    /// count, too.
    pub(super) fn canary(&self, store: &Store) -> Result<Canary> {
        let before = store.canary(&self.onto.name)?.filter(|before| before.onto == self.onto);
        let mut clones = before.map(|before| before.clones).unwrap_or_default();
        clones.extend(self.clones.iter().map(|clone| clone.name.clone()));
        clones.sort_unstable();
        clones.dedup();
        let texts = |patterns: &[Only]| patterns.iter().map(|pattern| pattern.text.clone()).collect();
        Ok(Canary {
            onto: self.onto.clone(),
            strategy: self.strategy,
            rules: self.rules.clone(),
            only: texts(&self.only),
            keep_disks: texts(&self.keep_disks),
            clones,
        })
    }
}
