mod disk;
mod edit;
mod waiting;

use self::disk::{Disk, Way};
use self::edit::Edit;
use super::Outcome;
use super::context::Context;
use super::transport;
use crate::store::{BaseRef, Store, Target};
use crate::vm::{self, AccelChoice, Serial, SignalWatch, VmConfig};
use anyhow::{Context as _, bail};
use clap::Args;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Boot a clone as a virtual machine under QEMU.
///
/// A clone that `cowshed rebase --at-next-start` left for now is put on its new version first.
///
/// The serial console is on the terminal. Ctrl-C presses the power button; a second one stops the machine. KVM is used
/// where it works, else QEMU's own translator, which is slower. Ends with QEMU's exit code: 0 when the guest powered
/// off.
#[derive(Args, Debug)]
pub(super) struct Run {
    /// The clone; with --ephemeral or --edit a base as NAME or NAME@V, too.
    name: BaseRef,
    /// Run a throw-away layer over the clone or base: nothing of this run is kept.
    #[arg(long, visible_alias = "snapshot", conflicts_with = "view")]
    ephemeral: bool,
    /// Run a base's newest version, and make what the machine leaves the next one, if it ends well: nothing is kept when
    /// it fails or is stopped by Ctrl-C.
    #[arg(long, conflicts_with_all = ["ephemeral", "view"])]
    edit: bool,
    /// Use the file of a view that is mounted at DIR, instead of a private one.
    #[arg(long, value_name = "DIR")]
    view: Option<PathBuf>,
    /// How QEMU gets at the disk.
    #[arg(long, value_name = "WAY", value_enum, default_value_t = Way::View, conflicts_with = "view")]
    disk: Way,
    /// How requests reach a private view, as for `mount`.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = transport::Way::Auto, env = "COWSHED_TRANSPORT")]
    transport: transport::Way,
    /// Memory: MiB, or with a suffix M or G.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = memory)]
    memory: u32,
    /// Virtual processors.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// Accelerator: auto, kvm or tcg.
    #[arg(long, default_value = "auto")]
    accel: AccelChoice,
    /// Kernel to start instead of the disk's own boot loader.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial root for the kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    append: Option<String>,
    /// Serial console: stdio, none, or file:PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = serial)]
    serial: Serial,
    /// Port of this host's loopback address that leads to the guest's port 22.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ssh_port: Option<u16>,
    /// Seconds that the guest may take to power off before it is stopped.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(..=GRACE_MAX))]
    grace: u64,
    /// The QEMU program.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Further QEMU arguments, after `--`.
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    extra: Vec<OsString>,
}

/// A year, in seconds.
const GRACE_MAX: u64 = 31_536_000;

fn memory(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let mib = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
    mib.filter(|mib| *mib > 0).ok_or_else(|| "give MiB as in 512, 512M or 2G".to_owned())
}

fn serial(text: &str) -> Result<Serial, String> {
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Serial::File(path.into())),
        _ if text == "stdio" => Ok(Serial::Stdio),
        _ if text == "none" => Ok(Serial::None),
        _ => Err("give stdio, none or file:PATH".to_owned()),
    }
}

impl Run {
    pub(super) fn run(self, context: &Context) -> Outcome {
        // The first to come and the last to go: a signal at any time between leaves nothing behind.
        let mut signals = SignalWatch::install().context("signals cannot be caught")?;
        let store = context.store()?;
        let target = store.find(&self.name)?;
        if let Target::Clone(name) = &target
            && !self.ephemeral
            && !self.edit
        {
            waiting::put_on_version(&store, name, &signals)?;
        }
        let edit = self.edit.then(|| Edit::begin(&store, &target)).transpose()?;
        let disk = match &edit {
            Some(edit) => edit.disk(self.disk, self.transport.into())?,
            None => self.disk(&store, &target)?,
        };
        let config = self.config(&target);
        let ran = disk.with_drive(|drive| {
            vm::run(&config, drive, &mut signals, &|sentence| {
                let _ = writeln!(io::stderr(), "cowshed: {sentence}");
            })
        });
        // The disk is closed first: whatever happened, what the guest flushed is safe then.
        let ended = disk.end().and_then(|()| Ok(ran?));
        match edit {
            Some(edit) => edit.end(&store, ended),
            None => Ok(ExitCode::from(ended?.code)),
        }
    }

    fn config(self, target: &Target) -> VmConfig {
        VmConfig {
            qemu: self.qemu,
            name: target.to_string(),
            memory_mib: self.memory,
            cpus: self.cpus,
            accel: self.accel,
            kernel: self.kernel,
            initrd: self.initrd,
            append: self.append,
            serial: self.serial,
            ssh_port: self.ssh_port,
            grace: Duration::from_secs(self.grace),
            extra: self.extra,
        }
    }

    fn disk(&self, store: &Store, target: &Target) -> anyhow::Result<Disk> {
        let name = match target {
            Target::Clone(name) => name,
            Target::Base(base) if self.ephemeral => &base.name,
            Target::Base(base) => bail!(
                "{base} is a base, which never changes; run a clone of it, add --ephemeral to throw all changes away, or --edit to \
                 make the next version"
            ),
        };
        let transport = self.transport.into();
        match &self.view {
            Some(dir) => Disk::in_view(store, dir, name),
            None if self.ephemeral => {
                Disk::of_scratch(Arc::new(store.scratch(target)?), name, self.disk, transport)
            }
            None => Disk::of_clone(store, name, self.disk, transport),
        }
    }
}
