//! A front end on a socket, from its first message to its last.

use super::session::{Handler, Session};
use crate::serve::Export;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
// Not those of `crate::sync`: no model plays front ends.
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vhost::vhost_user::{BackendReqHandler, Error};

const TICK: Duration = Duration::from_millis(10);

/// What a front end is offered.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most queues that it may set up.
    pub queues: u16,
    /// Threads of each queue.
    pub threads: usize,
}

impl Default for Options {
    /// 16 queues. A queue has as many threads as there are processors, at least 2 and at most 4: while one waits for
    /// the host's disk, another one works.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { queues: 16, threads: processors.clamp(2, 4) }
    }
}

/// A front end that is served; dropping it hangs up.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Connection {
    /// Serves `export` to the front end on `stream` until one of both hangs up.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(stream: UnixStream, export: Arc<Export>, options: Options) -> io::Result<Self> {
        let kept = stream.try_clone()?;
        let session = Session::new(export.clone(), options.queues, options.threads);
        let session = Arc::new(Handler::new(session));
        let serve = move || serve(BackendReqHandler::from_stream(stream, session), &export);
        let thread = thread::Builder::new().name("vhost-user".to_owned()).spawn(serve)?;
        Ok(Self { stream: kept, thread: Some(thread) })
    }

    /// Waits for the front end to hang up, at most `limit`; whether it has.
    pub(super) fn ends_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(TICK);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It fails when the front end was first.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic in it is on standard error already.
            let _ = thread.join();
        }
    }
}

fn serve(mut handler: BackendReqHandler<Handler>, export: &Export) {
    let error = loop {
        if let Err(error) = handler.handle_request() {
            break error;
        }
    };
    // Its queues end before the disk is flushed.
    let stream = handler.try_clone_connection();
    drop(handler);
    if !is_end(&error) {
        export.tell(format_args!("the front end is hung up on: {error}"));
    }
    // A failure is on standard error already.
    let _ = export.flush();
    if let Ok(stream) = stream {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Whether a message is missing because the front end has gone.
fn is_end(error: &Error) -> bool {
    matches!(error, Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_))
}
