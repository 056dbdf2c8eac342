//! The guest's serial console on this process's terminal.
//!
//! QEMU gets pipes and a process group of its own, so Ctrl-C reaches this process alone. Keys go
//! to the guest one by one; Ctrl-] begins a command to the console itself.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{ChildStdin, ChildStdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};

/// Ctrl-], as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
const CTRL_C: u8 = 0x03;
/// How soon the input thread sees that the machine has ended.
const TICK_MS: u8 = 100;
/// How long the last output may take to be read once the machine has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// What one key does.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    /// This byte goes to the guest.
    Send(u8),
    /// The key was the console's own.
    Nothing,
    /// Stop the machine at once.
    Quit,
}

/// Recognises Ctrl-] commands in the stream of keys.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn press(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.escaped) {
            if byte == ESCAPE {
                self.escaped = true;
                return Key::Nothing;
            }
            return Key::Send(byte);
        }
        match byte {
            b'c' => Key::Send(CTRL_C),
            b'x' => Key::Quit,
            ESCAPE => Key::Send(ESCAPE),
            _ => Key::Nothing,
        }
    }
}

/// Terminal settings that are put back when the value is dropped.
struct RawTerminal {
    former: Termios,
}

impl RawTerminal {
    /// Keys arrive singly and unechoed; Ctrl-C still raises SIGINT. `None` when stdin is not a
    /// terminal that this process may use.
    fn enter() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !in_foreground() {
            return None;
        }
        let former = tcgetattr(&stdin).ok()?;
        let mut raw = former.clone();
        raw.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN);
        // Enter stays a carriage return, and Ctrl-S and Ctrl-Q are keys.
        raw.input_flags &= !(InputFlags::ICRNL
            | InputFlags::INLCR
            | InputFlags::IGNCR
            | InputFlags::IXON
            | InputFlags::ISTRIP);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // Ctrl-Z and Ctrl-\ belong to the guest.
        raw.control_chars[SpecialCharacterIndices::VSUSP as usize] = libc::_POSIX_VDISABLE;
        raw.control_chars[SpecialCharacterIndices::VQUIT as usize] = libc::_POSIX_VDISABLE;
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { former })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Not after draining: a terminal that is stopped would hold this up. Nothing can be done
        // about one that is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.former);
    }
}

/// A background job must not read from its terminal: it would be stopped.
fn in_foreground() -> bool {
    nix::unistd::tcgetpgrp(io::stdin()).is_ok_and(|group| group == nix::unistd::getpgrp())
}

/// The relay between a machine's pipes and the terminal; ends with the machine.
pub(super) struct Console {
    output: Option<JoinHandle<()>>,
    input: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    quit: Arc<AtomicBool>,
    terminal: Option<RawTerminal>,
}

impl Console {
    /// Relays `stdout` of the machine to ours, and our stdin to `stdin` of the machine.
    pub(super) fn attach(stdin: ChildStdin, stdout: ChildStdout) -> io::Result<Self> {
        let terminal = RawTerminal::enter();
        let readable = terminal.is_some() || !io::stdin().is_terminal();
        let (stop, quit) = (Arc::default(), Arc::default());
        let mut console =
            Self { output: None, input: None, stop: Arc::clone(&stop), quit: Arc::clone(&quit), terminal };
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        console.input = Some(spawn("console-in").spawn(move || {
            if readable {
                copy_input(&stdin, &stop, &quit);
            }
            // Kept open to the end: QEMU takes a closed stdin for a hang-up of the console.
            while !stop.load(Ordering::Relaxed) {
                thread::park();
            }
        })?);
        // Last, for it ends only with the machine: a half-made console can be dropped at once.
        let stop = Arc::clone(&console.stop);
        console.output = Some(spawn("console-out").spawn(move || copy_output(&stdout, &stop))?);
        Ok(console)
    }

    /// Whether Ctrl-] x was pressed since the last call.
    pub(super) fn take_quit(&self) -> bool {
        self.quit.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Console {
    /// Call after the machine has ended: waits until its last output is written, or nobody reads
    /// it for [`LAST_OUTPUT`].
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(input) = self.input.take() {
            input.thread().unpark();
            let _ = input.join();
        }
        if let Some(output) = self.output.take() {
            // A terminal may take less than it polls for: then the thread is left in its write.
            let until = Instant::now() + 2 * LAST_OUTPUT;
            while !output.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
            if output.is_finished() {
                let _ = output.join();
            }
        }
        self.terminal = None;
    }
}

/// Ends when all writers of `from` are gone, or when the machine has ended and nothing is left.
fn copy_output(from: &ChildStdout, stop: &AtomicBool) {
    let stdout = io::stdout();
    let mut buffer = [0; 4096];
    let mut is_read = true;
    loop {
        // Looked at before the pipe: what an ended machine has said is in the pipe already.
        let ended = stop.load(Ordering::Relaxed);
        if !polls(from.as_fd(), PollFlags::POLLIN) {
            if ended {
                return;
            }
            continue;
        }
        match nix::unistd::read(from, &mut buffer) {
            Ok(0) => return,
            // A closed stdout must not stop the machine, so reading goes on.
            Ok(length) if is_read => is_read = show(stdout.as_fd(), &buffer[..length], stop),
            Ok(_) | Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
            Err(_) => return,
        }
    }
}

/// Writes all of `bytes`; false when nobody will read them. Once the machine has ended it waits no
/// longer than [`LAST_OUTPUT`].
fn show(out: BorrowedFd<'_>, mut bytes: &[u8], stop: &AtomicBool) -> bool {
    let mut until = None;
    while !bytes.is_empty() {
        if polls(out, PollFlags::POLLOUT) {
            // Past Stdout's buffer and lock, which nobody could take from a write that hangs.
            match nix::unistd::write(out, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
                Err(_) => return false,
            }
        } else if stop.load(Ordering::Relaxed) {
            let until = *until.get_or_insert_with(|| Instant::now() + LAST_OUTPUT);
            if Instant::now() >= until {
                return false;
            }
        }
    }
    true
}

fn copy_input(to: &ChildStdin, stop: &AtomicBool, quit: &AtomicBool) {
    let stdin = io::stdin();
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        if !polls(stdin.as_fd(), PollFlags::POLLIN) {
            continue;
        }
        // Not through Stdin's own buffer: what it held back would be lost to whoever reads next.
        let length = match nix::unistd::read(&stdin, &mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => continue,
            Err(_) => return,
        };
        let mut bytes = Vec::with_capacity(length);
        for &byte in &buffer[..length] {
            match keys.press(byte) {
                Key::Send(byte) => bytes.push(byte),
                Key::Nothing => {}
                Key::Quit => quit.store(true, Ordering::Relaxed),
            }
        }
        if send(to, &bytes, stop).is_err() {
            return;
        }
    }
}

/// Whether `fd` is ready within a tick; also when it is closed or broken, which its use will tell.
fn polls(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, what)];
    poll(&mut fds, PollTimeout::from(TICK_MS)).is_ok_and(|ready| ready > 0)
}

/// Writes all of `bytes`, but gives up once the machine ends: a guest that reads nothing fills
/// the pipe.
fn send(to: &ChildStdin, bytes: &[u8], stop: &AtomicBool) -> nix::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() && !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PollTimeout::from(TICK_MS)) {
            Ok(0) | Err(nix::Error::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        // One byte at a time never blocks on a pipe that polls as writable.
        sent += nix::unistd::write(to, &bytes[sent..=sent])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press_all(text: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        text.iter().map(|&byte| keys.press(byte)).collect()
    }

    #[test]
    fn ordinary_keys_go_to_the_guest() {
        assert_eq!(press_all(b"cx\x03"), [Key::Send(b'c'), Key::Send(b'x'), Key::Send(CTRL_C)]);
    }

    #[test]
    fn the_escape_key_begins_one_command() {
        assert_eq!(press_all(b"\x1dc"), [Key::Nothing, Key::Send(CTRL_C)]);
        assert_eq!(press_all(b"\x1dx"), [Key::Nothing, Key::Quit]);
        assert_eq!(press_all(b"\x1d\x1d"), [Key::Nothing, Key::Send(ESCAPE)]);
        assert_eq!(press_all(b"\x1d?c"), [Key::Nothing, Key::Nothing, Key::Send(b'c')]);
    }
}
