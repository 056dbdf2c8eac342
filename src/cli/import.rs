use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::progress::Bar;
use super::units::size;
use crate::ops::import::{Format, ImportRequest, import};
use crate::store::Name;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Store a disk image as a new base.
///
/// The image is copied into the store, sparse, and sealed: its content is digested and never changes again. The image
/// itself is left as it is. qcow2, vmdk, vdi, vhd and vhdx are recognised; raw is taken only for a file without any of
/// their marks.
#[derive(Args, Debug)]
pub(super) struct Import {
    /// Image file or block device.
    #[arg(value_name = "IMAGE")]
    source: PathBuf,
    /// Name of the base.
    #[arg(long)]
    name: Name,
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
        let store = context.store_or_new()?;
        bar.start(format!("importing {}", self.name));
        let Self { source, name, format, follow_backing, json } = self;
        let base = import(&store, &ImportRequest { source, format, name, follow_backing }, &bar)?;
        bar.end();
        if json.json {
            output::json(&base)?;
        } else {
            output::line(format!("{}@{}, {}", base.name, base.version, size(base.size)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
