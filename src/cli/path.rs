use super::Outcome;
use super::context::Context;
use super::output;
use crate::store::BaseRef;
use clap::Args;
use std::process::ExitCode;

/// Print the file of a clone or base, for QEMU or libvirt.
///
/// A clone's file is qcow2 and may be given to QEMU as it is. A base's file must only be read.
#[derive(Args, Debug)]
pub(super) struct Path {
    /// Clone, or base as NAME or NAME@V.
    name: BaseRef,
}

impl Path {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let path = store.path(&store.find(&self.name)?)?;
        output::line(path.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
