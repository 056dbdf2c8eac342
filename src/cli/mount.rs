use super::Outcome;
use super::context::Context;
use super::interrupt::on_request_to_end;
use super::mount_log::{self, MountLog};
use super::output;
use super::transport::Way;
use crate::view::View;
use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum as _};
use fuse_mount::{Options, Stopper};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, OnceLock};

/// What the server in the background says when the view is up.
const UP: &str = "up";

/// Show all bases and clones as raw disk files in a directory.
///
/// bases/NAME@V.raw can be read. clones/NAME.raw can be read and written, by one process at a time; each partition of a
/// clone is a file clones/NAME.pN.raw as well. Returns when the view is up; `cowshed umount DIR` ends it.
#[derive(Args, Debug)]
pub(super) struct Mount {
    /// An empty directory.
    dir: PathBuf,
    /// Stay in the foreground; Ctrl-C unmounts.
    #[arg(long)]
    foreground: bool,
    /// Let other users read bases (needs user_allow_other in /etc/fuse.conf for plain users).
    #[arg(long)]
    allow_other: bool,
    /// Refuse writing to clones through this view.
    #[arg(long)]
    read_only: bool,
    /// Mount over a directory that is not empty; what is in it is hidden meanwhile.
    #[arg(long)]
    nonempty: bool,
    /// Serving threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// How the kernel's requests come: through /dev/fuse, or over io_uring, which is faster and wants Linux 6.14 or later with
    /// fuse's enable_uring switched on; auto takes io_uring where it is.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Way::Auto, env = "COWSHED_TRANSPORT")]
    transport: Way,
    /// This is the server in the background: it says on standard output when the view is up.
    #[arg(long, hide = true)]
    background: bool,
}

impl Mount {
    pub(super) fn run(self, context: &Context) -> Outcome {
        if self.background {
            return self.serve_in_background(context);
        }
        if self.foreground {
            self.serve(context, || Ok(()))?;
        } else {
            self.start(context)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Serves until unmounted; calls `up` when the view can be used.
    fn serve(&self, context: &Context, up: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let stopper: Arc<OnceLock<Stopper>> = Arc::default();
        let known = stopper.clone();
        on_request_to_end(move || stop(known.get()))?;
        let store = context.store()?;
        self.refuse_inside(store.root())?;
        let view = View::new(store)?;
        let mut options = Options {
            allow_other: self.allow_other,
            read_only: self.read_only,
            nonempty: self.nonempty,
            transport: self.transport.into(),
            ..Options::default()
        };
        options.threads = self.threads.map_or(options.threads, usize::from);
        let mount = fuse_mount::mount(view, &self.dir, options)?;
        // Only this function sets it.
        let _ = stopper.set(mount.stopper());
        up()?;
        Ok(mount.wait()?)
    }

    /// A view over its own store, or inside it, would hide what it serves.
    fn refuse_inside(&self, store: &Path) -> anyhow::Result<()> {
        // A directory that cannot be resolved is refused, or taken over from a dead server, by the mount itself.
        let (Ok(dir), Ok(store)) = (self.dir.canonicalize(), store.canonicalize()) else { return Ok(()) };
        if dir.starts_with(&store) || store.starts_with(&dir) {
            bail!(
                "{} and the store {} lie inside each other; give another directory",
                dir.display(),
                store.display()
            );
        }
        Ok(())
    }

    /// Starts this program again as a server that outlives the terminal, and waits until the view is up.
    fn start(&self, context: &Context) -> anyhow::Result<()> {
        let store = context.store()?;
        self.refuse_inside(store.root())?;
        let dir = std::path::absolute(&self.dir)?;
        let log = MountLog::new(store.root(), &dir);
        let program = Context::program()?;
        let mut command = Command::new(program);
        command
            .arg("--store")
            .arg(std::path::absolute(store.root())?)
            .arg("mount")
            .arg(&dir)
            .arg("--background");
        command.args(self.allow_other.then_some("--allow-other"));
        command.args(self.read_only.then_some("--read-only"));
        command.args(self.nonempty.then_some("--nonempty"));
        command.args(self.transport.to_possible_value().map(|way| format!("--transport={}", way.get_name())));
        command.args(self.threads.map(|threads| format!("--threads={threads}")));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.file()).current_dir("/");
        let mut server = command.spawn().context("the server cannot be started")?;
        let mut said = String::new();
        if let Some(mut answer) = server.stdout.take() {
            answer.read_to_string(&mut said).context("the server cannot be heard")?;
        }
        if said.trim_end() == UP {
            log.write_pid(server.id());
            return Ok(());
        }
        let status = server.wait()?;
        log.remove_unless_in_use();
        match said.trim_end() {
            "" => Err(anyhow!("the server ended before the view was up ({status})")),
            reason => Err(anyhow!("{reason}")),
        }
    }

    fn serve_in_background(&self, context: &Context) -> Outcome {
        close_inherited();
        // The terminal may go. It fails only for the leader of a process group, which has no terminal to lose then.
        let _ = nix::unistd::setsid();
        let mut is_up = false;
        let served = self.serve(context, || {
            output::line(UP)?;
            let null = File::options().write(true).open("/dev/null")?;
            // Whoever started this server waits for the end of its standard output.
            nix::unistd::dup2_stdout(null.as_fd())?;
            is_up = true;
            Ok(())
        });
        if is_up {
            mount_log::end(context.store()?.root(), &self.dir);
        } else if let Err(error) = &served {
            // Whoever started this server says it.
            let _ = writeln!(io::stdout(), "{}", super::failure::sentence(error));
            return Ok(ExitCode::FAILURE);
        }
        served.map(|()| ExitCode::SUCCESS)
    }
}

/// Closes what the caller of the command had open, such as a shell's lock file: the server would hold it for days.
fn close_inherited() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The folder's own descriptor is among them, and closed already.
        let _ = nix::unistd::close(descriptor);
    }
}

fn stop(stopper: Option<&Stopper>) {
    let Some(stopper) = stopper else { std::process::exit(130) };
    if let Err(error) = stopper.stop() {
        let _ = writeln!(io::stderr(), "cowshed: {error}");
    }
}
