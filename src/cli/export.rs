use super::Outcome;
use super::context::Context;
use super::progress::Bar;
use crate::ops::export::{ExportRequest, export};
use crate::store::{BaseRef, DiskFormat};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

/// Write a clone or base into one image file of its own.
///
/// The file holds all that the disk shows and stands on nothing else. It appears under its name when it is complete.
#[derive(Args, Debug)]
pub(super) struct Export {
    /// Clone, or base as NAME or NAME@V.
    name: BaseRef,
    /// File to make.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Format of the file.
    #[arg(long, value_enum, default_value = "qcow2")]
    format: Format,
    /// Replace a file that is there already.
    #[arg(long)]
    force: bool,
}

impl Export {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let target = store.find(&self.name)?;
        bar.start(format!("exporting {target}"));
        let format = match self.format {
            Format::Raw => DiskFormat::Raw,
            Format::Qcow2 => DiskFormat::Qcow2,
        };
        export(&store, &ExportRequest { target, out: self.out, format, force: self.force }, &bar)?;
        Ok(ExitCode::SUCCESS)
    }
}
