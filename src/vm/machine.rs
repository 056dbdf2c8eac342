//! One QEMU process: started with a control socket, ended with its owner.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::accel::Accel;
use super::command::{self, DiskArgument, Serial, VmConfig};
use super::console::Console;
use super::error::VmError;
use super::qmp::{Qmp, QmpError, Shutdown};

/// How long QEMU may take from its start to its greeting.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a control command may take: short, for signals are not looked at meanwhile.
const COMMAND_LIMIT: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(50);

/// What a machine's disk is.
pub enum Drive<'a> {
    /// A raw file.
    File(&'a Path),
    /// A vhost-user-blk device.
    VhostUser {
        /// Connects to its server; called for each attempt to start.
        connect: &'a dyn Fn() -> io::Result<UnixStream>,
        /// Most queues of the device.
        queues: u16,
    },
}

impl std::fmt::Debug for Drive<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::VhostUser { queues, .. } => {
                f.debug_struct("VhostUser").field("queues", queues).finish_non_exhaustive()
            }
        }
    }
}

/// What became of an attempt to start.
#[derive(Debug)]
pub enum Started {
    /// QEMU is past its start and answers.
    Running(Box<Machine>),
    /// QEMU ended during its start, having said why on stderr.
    Ended(ExitStatus),
    /// The caller gave up before QEMU answered; QEMU is gone.
    GivenUp,
}

/// A running machine. Dropping it kills QEMU and reaps the process; QEMU also dies with the
/// thread that started it.
pub struct Machine {
    child: Child,
    /// `None` once QEMU has closed it.
    qmp: Option<Qmp>,
    console: Option<Console>,
    shutdown: Option<Shutdown>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("pid", &self.child.id())
            .field("shutdown", &self.shutdown)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Starts QEMU on `disk` and waits until it answers.
    ///
    /// # Errors
    /// [`VmError`] when QEMU is missing, a file does not open, or QEMU does not answer within a
    /// minute.
    pub fn start(config: &VmConfig, disk: &Drive<'_>, accel: Accel) -> Result<Started, VmError> {
        Self::start_unless(config, disk, accel, &|| false)
    }

    /// As [`Machine::start`], but asks `give_up` ten times a second whether to go on.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub fn start_unless(
        config: &VmConfig,
        disk: &Drive<'_>,
        accel: Accel,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Started, VmError> {
        check_files(config, disk)?;
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| VmError::host("making the control socket", error))?;
        let mut connected = None;
        let argument = match disk {
            Drive::File(path) => DiskArgument::File(path),
            Drive::VhostUser { connect, queues } => {
                let stream =
                    connect().map_err(|error| VmError::host("connecting to the disk's server", error))?;
                let socket = connected.insert(stream).as_raw_fd();
                DiskArgument::VhostUser { socket, queues: *queues }
            }
        };
        let arguments = command::arguments(config, argument, accel, theirs.as_raw_fd())?;
        let inherited: Vec<RawFd> =
            connected.iter().map(AsRawFd::as_raw_fd).chain([theirs.as_raw_fd()]).collect();
        let mut child = spawn(config, &arguments, inherited)?;
        drop((theirs, connected));
        let console = match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Some(Console::attach(stdin, stdout)),
            _ => None,
        };
        // From here on the process is owned: every way out reaps it.
        let mut machine = Self { child, qmp: None, console: None, shutdown: None };
        machine.console =
            console.transpose().map_err(|error| VmError::host("starting the console's threads", error))?;
        match Qmp::handshake_unless(ours, START_LIMIT, give_up) {
            Ok(qmp) => {
                machine.qmp = Some(qmp);
                Ok(Started::Running(Box::new(machine)))
            }
            Err(QmpError::GivenUp) => Ok(Started::GivenUp),
            Err(QmpError::Closed | QmpError::Io(_)) => machine.end_of_start(give_up),
            Err(_) => Err(VmError::NoAnswer { seconds: START_LIMIT.as_secs() }),
        }
    }

    /// Waits for the end of a QEMU that has hung up.
    fn end_of_start(&mut self, give_up: &dyn Fn() -> bool) -> Result<Started, VmError> {
        loop {
            if let Some(status) = self.wait_for(TICK)? {
                return Ok(Started::Ended(status));
            }
            if give_up() {
                return Ok(Started::GivenUp);
            }
        }
    }

    /// QEMU's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The control socket, for commands of the caller's own; `None` once QEMU has closed it.
    pub fn qmp(&mut self) -> Option<&mut Qmp> {
        self.qmp.as_mut()
    }

    /// Why the guest ended, as far as QEMU has told.
    pub fn shutdown(&self) -> Option<&Shutdown> {
        self.shutdown.as_ref()
    }

    /// Waits up to `limit` for the end, reading QEMU's events meanwhile; `None` if it still runs.
    ///
    /// # Errors
    /// [`VmError::Host`] when the process cannot be waited for.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>, VmError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.qmp.as_mut().map(|qmp| qmp.next_event(left)) {
                Some(Ok(Some(event))) => {
                    self.shutdown = Shutdown::from_event(&event).or(self.shutdown.take());
                }
                Some(Ok(None)) => {}
                Some(Err(_)) => self.qmp = None,
                None => thread::sleep(left.min(TICK)),
            }
            let status = self.child.try_wait().map_err(|error| VmError::host("waiting for QEMU", error))?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`VmError::Host`] when the process cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus, VmError> {
        loop {
            if let Some(status) = self.wait_for(Duration::from_secs(3600))? {
                return Ok(status);
            }
        }
    }

    /// Presses the power button. Without a control socket QEMU is asked to end instead.
    pub fn power_down(&mut self) {
        match self.qmp.as_mut().map(|qmp| qmp.system_powerdown(COMMAND_LIMIT)) {
            // A late answer is no refusal: QEMU reads the command when it comes to it.
            Some(Ok(()) | Err(QmpError::TimedOut)) => {}
            Some(Err(_)) | None => self.quit(),
        }
    }

    /// Ends QEMU without asking the guest; QEMU still closes the disk in order.
    pub fn quit(&mut self) {
        let told = self.qmp.as_mut().is_some_and(|qmp| qmp.quit(COMMAND_LIMIT).is_ok());
        if !told {
            self.signal(nix::sys::signal::Signal::SIGTERM);
        }
    }

    /// Kills QEMU.
    pub fn kill(&mut self) {
        // Fails only for a process that is reaped already.
        let _ = self.child.kill();
    }

    /// Whether the user asked on the console to stop the machine.
    pub(super) fn take_console_quit(&self) -> bool {
        self.console.as_ref().is_some_and(Console::take_quit)
    }

    fn signal(&mut self, signal: nix::sys::signal::Signal) {
        // Not reaped yet, so the id still is this process's.
        if let (Ok(None), Ok(id)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Looks at what QEMU will open, for a message better than QEMU's.
pub(super) fn check_files(config: &VmConfig, disk: &Drive<'_>) -> Result<(), VmError> {
    let disk = if let Drive::File(path) = disk { Some(*path) } else { None };
    let files = [("disk", disk), ("kernel", config.kernel.as_deref()), ("initrd", config.initrd.as_deref())];
    for (what, path) in files {
        let Some(path) = path else { continue };
        check_file(what, path).map_err(|source| VmError::File { what, path: path.to_owned(), source })?;
    }
    if is_program(&config.qemu) {
        return Ok(());
    }
    Err(VmError::QemuMissing { program: config.qemu.display().to_string() })
}

fn check_file(what: &str, path: &Path) -> io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() || kind.is_fifo() {
        return Err(io::Error::other("it is not a file"));
    }
    // The disk is left unopened: a view may still be closing it when QEMU comes as its writer.
    if what != "disk" {
        File::open(path)?;
    }
    Ok(())
}

/// Whether there is a file that a start of `program` would take: in `PATH` if it is a bare name.
fn is_program(program: &Path) -> bool {
    if program.components().count() != 1 || program.is_absolute() {
        return program.exists();
    }
    // Without PATH the host has a list of its own.
    std::env::var_os("PATH")
        .is_none_or(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn spawn(
    config: &VmConfig,
    arguments: &[std::ffi::OsString],
    inherited: Vec<RawFd>,
) -> Result<Child, VmError> {
    let piped = config.serial == Serial::Stdio;
    let stdio = || if piped { Stdio::piped() } else { Stdio::null() };
    let mut command = Command::new(&config.qemu);
    // A group of its own: Ctrl-C on the terminal must not reach QEMU, which would stop at once.
    command.args(arguments).stdin(stdio()).stdout(stdio()).process_group(0);
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getppid, fcntl).
    unsafe {
        command.pre_exec(move || prepare_child(parent, &inherited));
    }
    let program = || config.qemu.display().to_string();
    command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => VmError::QemuMissing { program: program() },
        _ => VmError::Spawn { program: program(), source },
    })
}

/// Runs in the child before exec: it dies with its parent, and keeps its sockets.
fn prepare_child(parent: nix::unistd::Pid, inherited: &[RawFd]) -> io::Result<()> {
    // SAFETY: a plain system call on this process.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the call above.
    if nix::unistd::getppid() != parent {
        return Err(io::ErrorKind::NotConnected.into());
    }
    for socket in inherited {
        // SAFETY: each one is open in the parent until after the spawn; clearing its flags (only
        // FD_CLOEXEC exists) lets it pass exec.
        if unsafe { libc::fcntl(*socket, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
