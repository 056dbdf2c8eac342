//! A program of the host that works on what a guest wrote: with limits, without a network, watched until it ends.

use crate::units::index;
use landlock::RulesetCreated;
use nix::sys::resource::{Resource, setrlimit};
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

/// Seconds of processor time between SIGXCPU and SIGKILL: the latter would look like a host without memory.
const CPU_GRACE: u64 = 10;
/// How often a running program is looked at.
const TICK: Duration = Duration::from_millis(5);

/// What a program may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Seconds of processor time.
    pub(crate) cpu: u64,
    /// Longest file that may be written, in bytes.
    pub(crate) file: u64,
    /// Bytes that are kept of what it says on each output; the rest is thrown away.
    pub(crate) words: u64,
}

/// Runs `command` until it ends: its status, and what it said. `None` when `stop` ended it. `kept` stays open in it; the
/// files and hosts that it reaches are those of `rules`, as far as the kernel knows how.
///
/// # Errors
/// `NotFound` when there is no such program, the host's.
pub(crate) fn run(
    mut command: Command,
    limits: Limits,
    kept: Option<RawFd>,
    rules: RulesetCreated,
    stop: &dyn Fn() -> bool,
) -> io::Result<Option<Output>> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut rules = Some(rules);
    // SAFETY: `confine` only makes system calls that are safe between fork and exec; it allocates nothing.
    unsafe { command.pre_exec(move || confine(limits, kept, rules.take())) };
    let mut child = command.spawn()?;
    let (out, said) =
        (collect(child.stdout.take(), limits.words), collect(child.stderr.take(), limits.words));
    let status = wait(&mut child, stop);
    let (stdout, stderr) = (out.join().unwrap_or_default(), said.join().unwrap_or_default());
    Ok(status?.map(|status| Output { status, stdout, stderr }))
}

fn wait(child: &mut Child, stop: &dyn Fn() -> bool) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if stop() {
            // That it ended by itself just now is as good.
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        thread::sleep(TICK);
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>, most: u64) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut kept, mut buf) = (Vec::new(), [0; 4096]);
        let Some(mut pipe) = pipe else { return kept };
        // Read to the end even when nothing more is kept: a full pipe would stop the child.
        while let Ok(len @ 1..) = pipe.read(&mut buf) {
            let room = index(most).saturating_sub(kept.len());
            kept.extend_from_slice(&buf[..len.min(room)]);
        }
        kept
    })
}

/// Runs in the child before the program does.
fn confine(limits: Limits, kept: Option<RawFd>, rules: Option<RulesetCreated>) -> io::Result<()> {
    // SAFETY: plain system calls on numbers; `kept` is open in the parent and so in this child.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || kept.is_some_and(|fd| libc::fcntl(fd, libc::F_SETFD, 0) != 0)
        {
            return Err(io::Error::last_os_error());
        }
        // Not everybody may, and the limits below hold all the same.
        if libc::unshare(libc::CLONE_NEWNET) != 0 {
            libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET);
        }
    }
    setrlimit(Resource::RLIMIT_AS, limits.memory, limits.memory)?;
    setrlimit(Resource::RLIMIT_CPU, limits.cpu, limits.cpu + CPU_GRACE)?;
    setrlimit(Resource::RLIMIT_FSIZE, limits.file, limits.file)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(rules) = rules {
        // That the kernel has only a part of it is no error.
        rules.restrict_self().map_err(|_| io::Error::from_raw_os_error(libc::EPERM))?;
    }
    Ok(())
}
