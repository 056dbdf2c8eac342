use super::Outcome;
use super::context::Context;
use super::failure::write_line;
use super::interrupt::on_request_to_end;
use crate::serve::vhost::{Options, Server};
use crate::serve::{Export, Idle, Stopper};
use crate::store::{Access, BaseRef, Target};
use clap::{ArgGroup, Args};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Serve a clone or a base to a virtual machine at a socket.
///
/// Says on standard error when the socket is there, and ends at Ctrl-C or SIGTERM; all that was written is durable then.
/// A clone that is served is in use, as by a view. Bases are read-only.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("protocol").required(true)))]
pub(super) struct Serve {
    /// The clone, or a base as NAME or NAME@V.
    name: BaseRef,
    /// Speak vhost-user-blk at this socket, for QEMU's vhost-user-blk-pci with shared memory.
    #[arg(long, value_name = "SOCKET", group = "protocol")]
    vhost_user: Option<PathBuf>,
    /// Most queues of the device.
    #[arg(long, value_name = "N", requires = "vhost_user", value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: Option<u16>,
    /// Refuse writing.
    #[arg(long)]
    read_only: bool,
}

impl Serve {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let stopper = Stopper::new()?;
        let asked = stopper.clone();
        on_request_to_end(move || asked.stop())?;
        let store = context.store()?;
        let target = store.find(&self.name)?;
        let read_only = self.read_only || matches!(target, Target::Base(_));
        let access = if read_only { Access::Read } else { Access::Write };
        let disk = Arc::new(store.open_target(&target, access)?);
        let idle = Idle::start()?;
        let export = Export::new(disk.clone(), &target.to_string(), read_only, &idle);
        let served = match &self.vhost_user {
            Some(socket) => self.vhost_user(socket, export, &stopper),
            // The command line asks for a protocol.
            None => Ok(()),
        };
        // The last user of the disk but this function.
        drop(idle);
        let closed = Arc::into_inner(disk).map_or(Ok(()), |disk| disk.close());
        served?;
        closed?;
        Ok(ExitCode::SUCCESS)
    }

    fn vhost_user(&self, socket: &Path, export: Arc<Export>, stopper: &Stopper) -> anyhow::Result<()> {
        let mut options = Options::default();
        options.queues = self.queues.unwrap_or(options.queues);
        let ready = format!("{} is served at {}", export.name(), socket.display());
        let server = Server::bind(socket, export, options, stopper)?;
        write_line(&ready);
        Ok(server.run()?)
    }
}
