//! The programs of e2fsprogs on one file, confined: they see that file and the system's own, and nothing else.

use crate::error::{Error, Kind, Result};
use crate::units::{GIB, MIB};
use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError,
};
use nix::sys::resource::{Resource, setrlimit};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

const ADDRESS_SPACE: u64 = 16 * GIB;
/// Seconds of processor time: some, and one for each of these bytes of the filesystem's place.
const CPU_SECONDS: u64 = 300;
const CPU_BYTES: u64 = 64 * MIB;
/// More of what a program says is thrown away.
const WORDS: usize = 4000;
/// The file or folder as the program finds it.
const OWN: &str = "/proc/self/fd/0";
/// How often a running program is looked at.
const TICK: Duration = Duration::from_millis(5);

/// One run of a program on a filesystem in a file.
#[derive(Debug)]
pub(super) struct Tool<'a> {
    pub(super) program: &'static str,
    /// What comes before the file's name.
    pub(super) arguments: &'a [&'a str],
    /// The file, or a folder with it.
    pub(super) file: &'a File,
    /// The file's path below that folder.
    pub(super) below: Option<&'static str>,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Whether the program may write to the file.
    pub(super) writes: bool,
}

/// How a run ended by itself.
#[derive(Debug)]
pub(super) struct Ended {
    /// The exit code, 0 to 15.
    pub(super) code: i32,
    /// All that the program said, cut, as it may be shown.
    pub(super) words: String,
}

impl Tool<'_> {
    /// Runs it until it ends, or until `stop` says so; `after` are arguments behind the file's name.
    ///
    /// # Errors
    /// `NotFound` without the program; `Interrupted`; `Io` when it did not end by itself.
    pub(super) fn run_with(&self, after: &[&str], stop: &dyn Fn() -> bool) -> Result<Ended> {
        let program = self.program;
        let cannot = |error| Error::io(format!("cannot start {program}"), error);
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
        let mut command = Command::new(program);
        let name = self.below.map_or_else(|| OWN.to_owned(), |below| format!("{OWN}/{below}"));
        command.args(self.arguments).arg(name).args(after);
        command.env_clear().env("PATH", path).env("LC_ALL", "C").current_dir("/");
        command.stdin(Stdio::from(self.file.try_clone().map_err(cannot)?));
        // Ctrl-C is for us alone.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let rules = rules(self.file, self.writes).map_err(|error| cannot(io::Error::other(error)))?;
        let (mut rules, cpu) = (Some(rules), CPU_SECONDS + self.size / CPU_BYTES);
        let longest = if self.writes { self.size } else { 0 };
        // SAFETY: `confine` only makes system calls that are safe between fork and exec; it allocates nothing.
        unsafe { command.pre_exec(move || confine(cpu, longest, rules.take())) };
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::new(
                Kind::NotFound,
                format!("{program} is needed for the filesystem: install the package e2fsprogs"),
            ),
            _ => cannot(error),
        })?;
        let said = (collect(child.stdout.take()), collect(child.stderr.take()));
        let status = wait(&mut child, stop);
        let said = [said.0.join().unwrap_or_default(), said.1.join().unwrap_or_default()].concat();
        let status = status.map_err(|error| error.at(program))?;
        let words = super::edit::printed(&String::from_utf8_lossy(&said[..said.len().min(WORDS)]));
        match status.code() {
            Some(code @ 0..16) => Ok(Ended { code, words }),
            _ => Err(Error::new(Kind::Io, format!("{program} did not end well ({status}): {words}"))),
        }
    }

    /// As [`Tool::run_with`], with nothing behind the file's name.
    ///
    /// # Errors
    /// As there.
    pub(super) fn run(&self, stop: &dyn Fn() -> bool) -> Result<Ended> {
        self.run_with(&[], stop)
    }
}

fn wait(child: &mut Child, stop: &dyn Fn() -> bool) -> Result<ExitStatus> {
    loop {
        let ended = child.try_wait().map_err(|error| Error::io("cannot wait for it", error))?;
        if let Some(status) = ended {
            return Ok(status);
        }
        if stop() {
            // That it ended by itself just now is as good.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::new(Kind::Interrupted, "stopped; nothing was changed"));
        }
        thread::sleep(TICK);
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut kept, mut buf) = (Vec::new(), [0; 4096]);
        let Some(mut pipe) = pipe else { return kept };
        // Read to the end even when nothing more is kept: a full pipe would stop the child.
        while let Ok(len @ 1..) = pipe.read(&mut buf) {
            let room = WORDS.saturating_sub(kept.len());
            kept.extend_from_slice(&buf[..len.min(room)]);
        }
        kept
    })
}

/// Runs in the child before the program does.
fn confine(cpu: u64, longest: u64, rules: Option<RulesetCreated>) -> io::Result<()> {
    // SAFETY: plain system calls on numbers.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            return Err(io::Error::last_os_error());
        }
        // Not everybody may, and the limits below hold all the same.
        if libc::unshare(libc::CLONE_NEWNET) != 0 {
            libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET);
        }
    }
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE)?;
    setrlimit(Resource::RLIMIT_CPU, cpu, cpu + 10)?;
    setrlimit(Resource::RLIMIT_FSIZE, longest, longest)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(rules) = rules {
        // That the kernel has only a part of it is no error.
        rules.restrict_self().map_err(|_| io::Error::from_raw_os_error(libc::EPERM))?;
    }
    Ok(())
}

fn rules(file: &File, writes: bool) -> std::result::Result<RulesetCreated, RulesetError> {
    let read = AccessFs::from_read(ABI::V5);
    let own = match writes {
        true => AccessFs::ReadDir | AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
        false => AccessFs::ReadFile.into(),
    };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .create()?
        .add_rule(PathBeneath::new(file.as_fd(), own))?;
    for folder in ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/nix", "/gnu"] {
        if let Ok(folder) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(folder, read))?;
        }
    }
    Ok(rules)
}
