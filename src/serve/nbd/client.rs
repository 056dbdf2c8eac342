//! A client, from its greeting to its last answer.

use super::handshake::negotiate;
use super::stream::{Stream, Timed};
use super::talk::Talk;
use super::{Facts, Options};
use crate::serve::Export;
use crate::sync::atomic::AtomicBool;
use std::io::{self, BufReader};
use std::net::Shutdown;
use std::sync::Arc;
// Not those of `crate::sync`: no model plays clients.
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Bytes that are taken from the socket at once: many requests, or a short write with its data.
const AT_ONCE: usize = 16 << 10;

/// What all clients of a server share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) export: Arc<Export>,
    pub(super) facts: Facts,
    pub(super) options: Options,
    /// The server ends: what is under way is answered, and no more.
    pub(super) stopping: AtomicBool,
}

/// A client that is served; dropping it hangs up, and waits for the requests that are under way.
#[derive(Debug)]
pub(super) struct Client {
    stream: Arc<Stream>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    pub(super) fn start(stream: Stream, shared: Arc<Shared>) -> io::Result<Self> {
        let stream = Arc::new(stream);
        let own = stream.clone();
        let serve = move || {
            serve(&own, &shared);
            own.shutdown(Shutdown::Both);
        };
        let thread = thread::Builder::new().name("nbd".to_owned()).spawn(serve)?;
        Ok(Self { stream, thread: Some(thread) })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes no more requests from it.
    pub(super) fn hush(&self) {
        self.stream.shutdown(Shutdown::Read);
    }

    /// Whether it ended before `until`.
    pub(super) fn ends_by(&self, until: Instant, tick: std::time::Duration) -> bool {
        while !self.has_ended() && Instant::now() < until {
            thread::sleep(tick);
        }
        self.has_ended()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic in it is on standard error already.
            let _ = thread.join();
        }
    }
}

fn serve(stream: &Stream, shared: &Shared) {
    let Shared { export, facts, options, stopping } = shared;
    let mut from = BufReader::with_capacity(AT_ONCE, Timed::new(stream, options.handshake));
    let mut to = Timed::new(stream, options.handshake);
    let agreed = negotiate(facts, &mut from, &mut to);
    if let Err(error) = &agreed
        && matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
        )
    {
        let late = error.kind() != io::ErrorKind::InvalidData;
        let why = if late { "it took too long to choose".to_owned() } else { error.to_string() };
        export.tell(format_args!("a client is hung up on: {why}"));
    }
    let Ok(Some(agreed)) = agreed else { return };
    if from.get_mut().forever().and_then(|()| to.forever()).is_err() {
        return;
    }
    let hang_up = || stream.shutdown(Shutdown::Both);
    let talk = Talk::new((export, facts, agreed), (from, to), stopping, &hang_up);
    thread::scope(|scope| {
        for _ in 1..options.threads {
            let more = thread::Builder::new().name("nbd".to_owned());
            // Those that are there go on alone.
            let _ = more.spawn_scoped(scope, || talk.work());
        }
        talk.work();
    });
}
