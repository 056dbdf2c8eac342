use super::Outcome;
use super::context::Context;
use super::list::behind;
use super::output::{self, Json};
use super::units::{count, percent, size};
use crate::error::Result;
use crate::store::{Access, Base, BaseRef, Checkpoint, Clone, Name, OpenDisk, Store, Target, Usage};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Tell all about a clone or base: its size, what it costs, what it stands on.
#[derive(Args, Debug)]
pub(super) struct Info {
    /// Clone, or base as NAME or NAME@V.
    name: BaseRef,
    #[command(flatten)]
    json: Json,
}

/// What is told of any disk.
#[derive(Serialize)]
struct Disk {
    /// Size of the disk in bytes.
    virtual_size: u64,
    #[serde(flatten)]
    usage: Usage,
    /// Bytes of the disk that its own layers store; `None` when it cannot be opened.
    allocated_bytes: Option<u64>,
    /// Why it cannot be opened.
    refused: Option<String>,
    path: PathBuf,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Report {
    Clone {
        #[serde(flatten)]
        clone: Clone,
        #[serde(flatten)]
        disk: Disk,
        versions_behind: usize,
        checkpoints: Vec<Checkpoint>,
    },
    Base {
        #[serde(flatten)]
        base: Base,
        #[serde(flatten)]
        disk: Disk,
        clones: Vec<Name>,
    },
}

impl Info {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let report = report(&store, store.find(&self.name)?)?;
        if self.json.json {
            output::json(&report)?;
        } else {
            output::fields(&report.fields())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn report(store: &Store, target: Target) -> Result<Report> {
    match &target {
        Target::Clone(name) => {
            let clone = store.clone_named(name)?;
            Ok(Report::Clone {
                disk: disk(store, &target, clone.size)?,
                versions_behind: behind(&store.versions(&clone.base.name)?, &clone),
                checkpoints: store.checkpoints(name)?,
                clone,
            })
        }
        Target::Base(base) => {
            let clones = store.clones_of(base)?;
            let base = store.base(base)?;
            Ok(Report::Base { disk: disk(store, &target, base.size)?, clones, base })
        }
    }
}

fn disk(store: &Store, target: &Target, made_with: u64) -> Result<Disk> {
    let (path, usage) = (store.path(target)?, store.usage(target)?);
    // A disk that the gate refuses still has a manifest to tell of.
    let opened =
        store.open_target(target, Access::Inspect).and_then(|open| Ok((open.disk.size(), own(&open)?)));
    Ok(match opened {
        Ok((virtual_size, bytes)) => {
            Disk { virtual_size, usage, allocated_bytes: Some(bytes), refused: None, path }
        }
        Err(error) => {
            let refused = Some(error.to_string());
            Disk { virtual_size: made_with, usage, allocated_bytes: None, refused, path }
        }
    })
}

/// Bytes of the disk that come from the layers in the folder of its own file: for a clone not the base.
fn own(open: &OpenDisk) -> Result<u64> {
    let folder = open.files().first().and_then(|file| file.parent());
    let own = open.files().iter().take_while(|file| file.parent() == folder).count();
    Ok(open.disk.stored_by_layer()?.iter().take(own).sum())
}

impl Disk {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let exact = |bytes: u64| format!("{} ({bytes} bytes)", size(bytes));
        let allocation = match self.allocated_bytes {
            Some(bytes) => format!("{}, {} of the disk", size(bytes), percent(bytes, self.virtual_size)),
            None => "unknown".to_owned(),
        };
        let mut fields = vec![
            ("virtual size", exact(self.virtual_size)),
            ("own bytes", exact(self.usage.own_bytes)),
            ("shared bytes", exact(self.usage.shared_bytes)),
            ("freed if deleted", exact(self.usage.freed_if_deleted)),
            ("allocated", allocation),
            ("file", self.path.display().to_string()),
        ];
        fields.extend(self.refused.iter().map(|reason| ("refused", reason.clone())));
        fields
    }
}

impl Report {
    fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Clone { clone, disk, versions_behind, checkpoints } => {
                let behind = match versions_behind {
                    0 => "its newest version".to_owned(),
                    behind => format!("{} behind", count(*behind as u64, "version")),
                };
                let mut fields =
                    vec![("clone", clone.name.to_string()), ("base", format!("{}, {behind}", clone.base))];
                let waits = clone.waiting.as_ref().map(|waiting| {
                    ("at next start", format!("put on {} ({})", waiting.onto, waiting.strategy))
                });
                fields.extend(waits);
                fields.extend(disk.fields());
                fields.push(("created", clone.created.clone()));
                fields.push(("checkpoints", list(checkpoints.iter().map(|c| c.number.to_string()))));
                let labels = clone.labels.iter().map(|(key, value)| ("label", format!("{key}={value}")));
                fields.extend(labels);
                fields
            }
            Self::Base { base, disk, clones } => {
                let mut fields = vec![("base", format!("{}@{}", base.name, base.version))];
                fields.extend(base.parent.map(|parent| ("stands on", format!("{}@{parent}", base.name))));
                fields.extend(disk.fields());
                fields.push(("format", base.format.to_string()));
                fields.push(("digest", base.digest.to_string()));
                fields.push(("source", base.source.chars().filter(|c| !c.is_control()).collect()));
                fields.push(("created", base.created.clone()));
                fields.push(("clones", list(clones.iter().map(Name::to_string))));
                fields
            }
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}
