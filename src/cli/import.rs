use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::progress::Bar;
use super::units::size;
use crate::error::Error;
use crate::ops::import::{Format, ImportRequest, import};
use crate::store::Name;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Store a disk image as a new base, or as the next version of one.
///
/// The image is copied into the store, sparse, and sealed: its content is digested and never changes again. The image
/// itself is left as it is. qcow2, vmdk, vdi, vhd and vhdx are recognised; raw is taken only for a file without any of
/// their marks. With --update only what differs from the newest version is stored. Clones stay on the version that
/// they stand on: `cowshed rebase` moves them.
#[derive(Args, Debug)]
pub(super) struct Import {
    /// Image file or block device.
    #[arg(value_name = "IMAGE")]
    source: PathBuf,
    /// Name of the new base.
    #[arg(long, required_unless_present = "update", conflicts_with = "update")]
    name: Option<Name>,
    /// Base that gets a new version.
    #[arg(long, value_name = "BASE")]
    update: Option<Name>,
    /// Format of the image: raw, qcow2, vmdk, vdi, vhd or vhdx.
    #[arg(long)]
    format: Option<Format>,
    /// Read the backing files of a qcow2 image too, when they lie in its folder.
    #[arg(long)]
    follow_backing: bool,
    #[command(flatten)]
    json: Json,
}

impl Import {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let Self { source, name, update, format, follow_backing, json } = self;
        let (name, update) = match (name, update) {
            (_, Some(base)) => (base, true),
            (Some(name), None) => (name, false),
            (None, None) => return Err(Error::invalid("give --name NAME or --update BASE").into()),
        };
        let store = if update { context.store()? } else { context.store_or_new()? };
        bar.start(format!("importing {name}"));
        let base = import(&store, &ImportRequest { source, format, name, update, follow_backing }, &bar)?;
        bar.end();
        if json.json {
            output::json(&base)?;
        } else {
            output::line(format!("{}@{}, {}", base.name, base.version, size(base.size)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
