//! A small client for QMP, QEMU's machine protocol: JSON messages, one per line, over a socket.
//!
//! Every call has a time limit. What QEMU sends is not trusted to be well formed: a line that is
//! not a JSON object is skipped, a line without end is an error, and nothing is kept without bound.
//! Protocol: <https://www.qemu.org/docs/master/interop/qmp-spec.html>.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest message that is accepted, in bytes. QEMU's largest answers are some 100 KiB.
const MAX_LINE: usize = 4 << 20;
/// How often a caller that may give up is asked.
const SLICE: Duration = Duration::from_millis(100);
/// Events kept until they are asked for; older ones are dropped.
const MAX_EVENTS: usize = 256;

/// A failed exchange with QEMU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// QEMU closed the socket, usually because it ended.
    #[error("QEMU closed its control socket")]
    Closed,
    /// The time limit passed.
    #[error("QEMU did not answer on its control socket in time")]
    TimedOut,
    /// The caller gave the wait up.
    #[error("waiting for QEMU was given up")]
    GivenUp,
    /// A message exceeded the accepted length.
    #[error("QEMU sent a control message of more than {MAX_LINE} bytes")]
    TooLong,
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        description: String,
    },
    /// The socket failed.
    #[error("the control socket of QEMU failed")]
    Io(#[from] io::Error),
}

/// An asynchronous message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// Its data; `Null` if it has none.
    pub data: Value,
}

/// Why QEMU's guest ended, from the `SHUTDOWN` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// Whether the guest asked for it, rather than the host.
    pub guest: bool,
    /// QEMU's word for the reason, such as `guest-shutdown` or `host-qmp-quit`.
    pub reason: String,
}

impl Shutdown {
    /// Reads a `SHUTDOWN` event; `None` for any other.
    pub fn from_event(event: &Event) -> Option<Self> {
        (event.name == "SHUTDOWN").then(|| Self {
            guest: event.data["guest"].as_bool().unwrap_or(false),
            reason: event.data["reason"].as_str().unwrap_or("unknown").to_owned(),
        })
    }
}

/// A connection to one QEMU process.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Qmp {
    /// Takes a connected socket and waits for the greeting, then leaves negotiation mode.
    ///
    /// # Errors
    /// [`QmpError`]; `Closed` when QEMU ended during its start.
    pub fn handshake(stream: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        Self::handshake_unless(stream, limit, &|| false)
    }

    /// As [`Qmp::handshake`], but asks `give_up` ten times a second whether to go on.
    ///
    /// # Errors
    /// As [`Qmp::handshake`], and `GivenUp`.
    pub fn handshake_unless(
        stream: UnixStream,
        limit: Duration,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Self, QmpError> {
        let deadline = Instant::now() + limit;
        let mut qmp = Self { stream, received: Vec::new(), events: VecDeque::new(), next_id: 0 };
        while qmp.message_unless(deadline, give_up)?.get("QMP").is_none() {}
        let command = "qmp_capabilities";
        let id = qmp.request(command, &Value::Null, deadline)?;
        loop {
            let message = qmp.message_unless(deadline, give_up)?;
            if answer_to(command, id, message)?.is_some() {
                return Ok(qmp);
            }
        }
    }

    /// Runs `command` with `arguments` (`Null` for none) and gives its return value. Events that
    /// arrive meanwhile are kept for [`Qmp::next_event`].
    ///
    /// # Errors
    /// [`QmpError`]; `Refused` with QEMU's words when QEMU answers with an error.
    pub fn execute(&mut self, command: &str, arguments: &Value, limit: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + limit;
        let id = self.request(command, arguments, deadline)?;
        loop {
            let message = self.message(deadline)?;
            if let Some(value) = answer_to(command, id, message)? {
                return Ok(value);
            }
        }
    }

    /// Sends a command; its id, which the answer carries.
    fn request(&mut self, command: &str, arguments: &Value, deadline: Instant) -> Result<u64, QmpError> {
        self.next_id += 1;
        let id = self.next_id;
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments.clone();
        }
        self.send(&request, deadline)?;
        Ok(id)
    }

    /// Presses the machine's power button: a guest that listens shuts down cleanly.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn system_powerdown(&mut self, limit: Duration) -> Result<(), QmpError> {
        self.execute("system_powerdown", &Value::Null, limit).map(drop)
    }

    /// Ends QEMU without asking the guest. An end of the connection counts as success.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn quit(&mut self, limit: Duration) -> Result<(), QmpError> {
        match self.execute("quit", &Value::Null, limit) {
            Ok(_) | Err(QmpError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The machine's run state in QEMU's words, such as `running` or `shutdown`.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn query_status(&mut self, limit: Duration) -> Result<String, QmpError> {
        let status = self.execute("query-status", &Value::Null, limit)?;
        Ok(status["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// The next event, or `None` if none arrives within `limit`.
    ///
    /// # Errors
    /// [`QmpError`]; `Closed` once QEMU is gone and all its events are read.
    pub fn next_event(&mut self, limit: Duration) -> Result<Option<Event>, QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.line(deadline) {
                Ok(line) => {
                    self.classify(&line);
                }
                Err(QmpError::TimedOut) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next message that is not an event.
    fn message(&mut self, deadline: Instant) -> Result<Value, QmpError> {
        loop {
            let line = self.line(deadline)?;
            if let Some(message) = self.classify(&line) {
                return Ok(message);
            }
        }
    }

    /// As [`Qmp::message`], in slices. A part of a line is kept from one to the next.
    fn message_unless(&mut self, deadline: Instant, give_up: &dyn Fn() -> bool) -> Result<Value, QmpError> {
        loop {
            if give_up() {
                return Err(QmpError::GivenUp);
            }
            match self.message(deadline.min(Instant::now() + SLICE)) {
                Err(QmpError::TimedOut) if Instant::now() < deadline => {}
                result => return result,
            }
        }
    }

    /// Files an event away; hands back any other JSON object; drops everything else.
    fn classify(&mut self, line: &[u8]) -> Option<Value> {
        let mut message: Value = serde_json::from_slice(line).ok()?;
        if !message.is_object() {
            return None;
        }
        let Some(name) = message.get("event").and_then(Value::as_str) else {
            return Some(message);
        };
        let name = name.to_owned();
        let data = message.get_mut("data").map_or(Value::Null, Value::take);
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { name, data });
        None
    }

    fn send(&mut self, request: &Value, deadline: Instant) -> Result<(), QmpError> {
        let mut line = request.to_string();
        line.push('\n');
        self.stream.set_write_timeout(Some(remaining(deadline)?))?;
        self.stream.write_all(line.as_bytes()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => QmpError::TimedOut,
            _ => QmpError::Io(error),
        })
    }

    /// One line without its end.
    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.received[searched..].iter().position(|&b| b == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=searched + at).collect();
                line.pop();
                return Ok(line);
            }
            searched = self.received.len();
            if searched > MAX_LINE {
                return Err(QmpError::TooLong);
            }
            self.fill(deadline)?;
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), QmpError> {
        let mut chunk = [0; 4096];
        loop {
            self.stream.set_read_timeout(Some(remaining(deadline)?))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(length) => {
                    self.received.extend_from_slice(&chunk[..length]);
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                    io::ErrorKind::ConnectionReset => return Err(QmpError::Closed),
                    _ => return Err(QmpError::Io(error)),
                },
            }
        }
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The return value in `message` if it answers the command `id`.
fn answer_to(command: &str, id: u64, mut message: Value) -> Result<Option<Value>, QmpError> {
    // An answer to an earlier command that ran out of time is not ours. QEMU leaves the id out only
    // when it could not parse the request.
    if message.get("id").is_some_and(|found| found.as_u64() != Some(id)) {
        return Ok(None);
    }
    if let Some(error) = message.get("error") {
        return Err(QmpError::Refused {
            command: command.to_owned(),
            description: error["desc"].as_str().unwrap_or("no reason").to_owned(),
        });
    }
    Ok(message.get_mut("return").map(Value::take))
}

/// The time left; never zero, which a socket would take for "no limit".
fn remaining(deadline: Instant) -> Result<Duration, QmpError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(QmpError::TimedOut);
    }
    Ok(left)
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
