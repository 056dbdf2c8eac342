use super::Outcome;
use super::context::Context;
use super::failure::write_line;
use super::interrupt::on_request_to_end;
use super::output::{Json, json};
use crate::serve::{Export, Idle, Stopper, nbd, vhost};
use crate::store::{Access, BaseRef, Target};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgGroup, Args};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Serve a clone or a base to virtual machines and other programs.
///
/// Says on standard error when the disk is there, and ends at Ctrl-C or SIGTERM; all that was written is durable then.
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
    #[arg(long, value_name = "N", conflicts_with = "nbd", value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: Option<u16>,
    /// Speak NBD at a socket (unix:PATH, or a path with a slash) or a port of this host (127.0.0.1:PORT; 0 for any).
    #[arg(long, value_name = "SOCKET|HOST:PORT", group = "protocol", value_parser = OsStringValueParser::new().try_map(|text| nbd::Address::parse(&text)))]
    nbd: Option<nbd::Address>,
    /// What NBD clients call the disk; by default its name. The empty name is good as well.
    #[arg(long = "name", value_name = "EXPORT", conflicts_with = "vhost_user", value_parser = export_name)]
    export: Option<String>,
    /// Let other hosts reach the port. Anybody there can read and write the disk: no password, no encryption.
    #[arg(long, conflicts_with = "vhost_user")]
    listen_anywhere: bool,
    /// Refuse writing.
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    json: Json,
}

/// What is printed when a disk is there.
#[derive(Serialize)]
struct Ready<'a> {
    disk: &'a str,
    protocol: &'a str,
    address: String,
    size: u64,
    read_only: bool,
}

fn export_name(text: &str) -> Result<String, String> {
    if text.len() > nbd::MOST_NAME { Err("give at most 4096 bytes".to_owned()) } else { Ok(text.to_owned()) }
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
        let served = match (&self.vhost_user, &self.nbd) {
            (Some(socket), _) => self.vhost_user(socket, export, &stopper),
            (_, Some(address)) => self.nbd(address, export, &stopper),
            // The command line asks for a protocol.
            _ => Ok(()),
        };
        // The last user of the disk but this function.
        drop(idle);
        let closed = Arc::into_inner(disk).map_or(Ok(()), |disk| disk.close());
        served?;
        closed?;
        Ok(ExitCode::SUCCESS)
    }

    fn vhost_user(&self, socket: &Path, export: Arc<Export>, stopper: &Stopper) -> anyhow::Result<()> {
        let mut options = vhost::Options::default();
        options.queues = self.queues.unwrap_or(options.queues);
        let server = vhost::Server::bind(socket, export.clone(), options, stopper)?;
        self.say_ready(&export, "vhost-user", socket.display().to_string())?;
        // The server has the last one.
        drop(export);
        Ok(server.run()?)
    }

    fn nbd(&self, address: &nbd::Address, export: Arc<Export>, stopper: &Stopper) -> anyhow::Result<()> {
        let options = nbd::Options { anywhere: self.listen_anywhere, ..nbd::Options::default() };
        let name = self.export.as_deref().unwrap_or(export.name());
        let server = nbd::Server::bind(address, export.clone(), name, options, stopper)?;
        self.say_ready(&export, "nbd", server.uri()?)?;
        drop(export);
        Ok(server.run()?)
    }

    fn say_ready(&self, export: &Export, protocol: &str, address: String) -> anyhow::Result<()> {
        let (disk, size, read_only) = (export.name(), export.size(), export.is_read_only());
        if self.json.json {
            return json(&Ready { disk, protocol, address, size, read_only });
        }
        write_line(&format!("{disk} is served at {address}"));
        Ok(())
    }
}
