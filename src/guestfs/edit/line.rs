//! The parent's end: it starts the child, and reads and answers what it says.
//!
//! The socket never blocks the parent, so neither side can wait for the other to read first.

use super::COMMAND;
use super::wire::{Answer, MOST, Mode, Order, frame, framed};
use crate::error::{Error, Kind, Result};
use crate::guestfs::partitions::Bytes;
use crate::units::{GIB, GuestOffset, length};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const ADDRESS_SPACE: u64 = 4 * GIB;
/// No more is read from the child while this many bytes wait for it.
const OUTPUT_MOST: usize = 4 * MOST as usize;
/// Read from the socket at a time.
const PIECE: usize = 256 << 10;

/// How long a child may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// It says nothing.
    pub silence: Duration,
    /// It speaks, and nothing is done.
    pub standstill: Duration,
    /// Seconds of processor time.
    pub cpu: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { silence: Duration::from_secs(120), standstill: Duration::from_secs(900), cpu: 3600 }
    }
}

/// Who answers the child.
pub(crate) trait Peer {
    /// Does what `answer` asks for; what the child is told goes to `out`. Says whether the task came forward.
    fn hear(&mut self, answer: Answer, out: &mut Vec<u8>) -> Result<bool>;
}

/// A child and the socket to it; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    process: Child,
    socket: UnixStream,
    input: Vec<u8>,
    /// What is to be sent, from `sent` on.
    output: Vec<u8>,
    sent: usize,
    forward: Instant,
    limits: Limits,
}

fn speech() -> Error {
    Error::new(
        Kind::Io,
        "the child that changes the filesystem said something that makes no sense; it was stopped",
    )
}

impl Line {
    /// Starts `program` as the child for a filesystem of `size` bytes.
    pub(crate) fn start(program: &Path, size: u64, mode: Mode, limits: Limits) -> Result<Self> {
        let cannot = |error| Error::io("cannot start the child that changes the filesystem", error);
        let (socket, theirs) = UnixStream::pair().map_err(cannot)?;
        socket.set_nonblocking(true).map_err(cannot)?;
        let mut command = Command::new(program);
        command.arg(COMMAND).env_clear().current_dir("/");
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: `limit` makes system calls that are safe between fork and exec; it allocates nothing.
        unsafe { command.pre_exec(move || limit(limits.cpu)) };
        let process = command.spawn().map_err(cannot)?;
        let mut output = Vec::new();
        Order::Hello { size, mode }.encode(&mut output);
        Ok(Self { process, socket, input: Vec::new(), output, sent: 0, forward: Instant::now(), limits })
    }

    /// Where messages to the child are put.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    fn waiting(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Waits until the child says something or takes something, and lets `peer` answer.
    pub(crate) fn turn(&mut self, peer: &mut dyn Peer) -> Result<()> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.waiting() < OUTPUT_MOST);
        events.set(PollFlags::POLLOUT, self.waiting() > 0);
        let mut fds = [PollFd::new(self.socket.as_fd(), events)];
        let timeout = PollTimeout::try_from(self.limits.silence).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(late("said nothing", self.limits.silence)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(Error::io("cannot wait for the child", error.into())),
        }
        let ready = fds[0].revents().unwrap_or(PollFlags::empty());
        if self.forward.elapsed() > self.limits.standstill {
            return Err(late("did not come forward", self.limits.standstill));
        }
        if ready.contains(PollFlags::POLLOUT) {
            self.send()?;
        }
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) && self.waiting() < OUTPUT_MOST {
            self.receive(peer)?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        match self.socket.write(&self.output[self.sent..]) {
            Ok(len) => self.sent += len,
            Err(error) if passing(&error) => {}
            // What it said before it ended is read first: that names the cause.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.sent = self.output.len(),
            Err(error) => return Err(Error::io("cannot write to the child", error)),
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        } else if self.sent > OUTPUT_MOST {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    fn receive(&mut self, peer: &mut dyn Peer) -> Result<()> {
        let old = self.input.len();
        self.input.resize(old + PIECE, 0);
        let read = self.socket.read(&mut self.input[old..]);
        self.input.truncate(old + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Err(self.ended()),
            Ok(_) => {}
            Err(error) if passing(&error) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(self.ended()),
            Err(error) => return Err(Error::io("cannot read from the child", error)),
        }
        let mut at = 0;
        while let Some(fields) = frame(&self.input[at..]) {
            let fields = fields.map_err(|()| speech())?;
            let answer = Answer::decode(fields).ok_or_else(speech)?;
            at += framed(fields);
            if peer.hear(answer, &mut self.output)? {
                self.forward = Instant::now();
            }
        }
        self.input.drain(..at);
        Ok(())
    }

    /// Why the child is gone.
    fn ended(&mut self) -> Error {
        // It closed its socket; it may still be about to end.
        for _ in 0..100 {
            match self.process.try_wait() {
                Ok(Some(status)) => return gone(status),
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                Err(error) => return Error::io("cannot wait for the child", error),
            }
        }
        Error::new(Kind::Io, "the child that changes the filesystem hung up before it was done")
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // That it ended by itself just now is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Answers a question for bytes of `volume`.
pub(crate) fn reply(volume: &dyn Bytes, at: u64, len: u32, out: &mut Vec<u8>) -> Result<()> {
    let at = inside(volume.size(), at, len as usize)?;
    let mut buf = vec![0; len as usize];
    volume.read(&mut buf, GuestOffset(at))?;
    Order::Bytes(buf).encode(out);
    Ok(())
}

/// The bytes `at` to `at + len`, if they lie inside a place of `size` bytes and are few enough for one message.
pub(crate) fn inside(size: u64, at: u64, len: usize) -> Result<u64> {
    let end = at.checked_add(length(len));
    if len > MOST as usize || end.is_none_or(|end| end > size) {
        return Err(Error::corrupt(format!(
            "the filesystem leads outside of its place: {len} bytes at {at:#x} are asked for, {size} are there"
        )));
    }
    Ok(at)
}

fn passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn late(what: &str, limit: Duration) -> Error {
    let seconds = limit.as_secs_f32();
    Error::new(
        Kind::Io,
        format!("the child that changes the filesystem {what} for {seconds} s; it was stopped"),
    )
}

fn gone(status: ExitStatus) -> Error {
    match status.signal() {
        Some(libc::SIGXCPU) => Error::corrupt(
            "the filesystem took more processor time than one does that is in order; the child was stopped",
        ),
        Some(libc::SIGSYS) => {
            Error::corrupt("the child that changes the filesystem tried what it may not do; it was stopped")
        }
        Some(libc::SIGKILL) => Error::new(
            Kind::Io,
            "the child that changes the filesystem was killed: the host may be short of memory (its kernel log tells), or somebody did it",
        ),
        Some(_) => Error::corrupt(format!("the filesystem broke the child that changes it ({status})")),
        None => Error::new(
            Kind::Io,
            format!("the child that changes the filesystem ended before it was done ({status})"),
        ),
    }
}

/// Runs in the child before our program does: it holds for any program.
fn limit(cpu: u64) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE)?;
    // At the first limit comes SIGXCPU; SIGKILL at the second would look like a host without memory.
    setrlimit(Resource::RLIMIT_CPU, cpu, cpu.saturating_add(10))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    Ok(())
}
