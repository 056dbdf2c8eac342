use super::Outcome;
use super::context::Context;
use super::output;
use crate::store::{BaseRef, Target};
use clap::Args;
use std::process::ExitCode;

/// Print the file of a clone or base, for QEMU or libvirt.
///
/// A clone's file is qcow2 and may be given to QEMU as it is. A base's file must only be read. What a killed mount or run
/// left unflushed is put into the clone's file first.
#[derive(Args, Debug)]
pub(super) struct Path {
    /// Clone, or base as NAME or NAME@V.
    name: BaseRef,
}

impl Path {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let target = store.find(&self.name)?;
        if let Target::Clone(name) = &target {
            store.settle_log(name)?;
        }
        let path = store.path(&target)?;
        output::line(path.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
