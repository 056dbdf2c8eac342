//! A server of one disk: many clients at a time.

use super::Facts;
use super::address::Address;
use super::client::{Client, Shared};
use super::listener::Listener;
use crate::error::Result;
use crate::serve::{Export, Stopper};
use crate::sync::atomic::{AtomicBool, Ordering};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long clients may take for the answers of their last requests.
const PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(10);

/// What clients are offered.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most clients at a time.
    pub clients: usize,
    /// Threads of each.
    pub threads: usize,
    /// How long one may take before its first request.
    pub handshake: Duration,
    /// Whether a port may be reached from other hosts.
    pub anywhere: bool,
}

impl Default for Options {
    /// 64 clients, 30 seconds. A client has as many threads as there are processors, at least 2 and at most 4: while one waits
    /// for the host's disk, another one works.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            clients: 64,
            threads: processors.clamp(2, 4),
            handshake: Duration::from_secs(30),
            anywhere: false,
        }
    }
}

/// An address at which a disk is served.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    shared: Arc<Shared>,
    stopper: Stopper,
}

impl Server {
    /// Listens at `address`, and calls the disk `name`. [`Server::run`] serves.
    ///
    /// # Errors
    /// `Busy` when somebody else listens there, `Exists` when something else is there, `Invalid` when the path is too long, or
    /// the port is not for this host alone; the host's.
    pub fn bind(
        address: &Address,
        export: Arc<Export>,
        name: &str,
        options: Options,
        stopper: &Stopper,
    ) -> Result<Self> {
        let listener = Listener::bind(address, options.anywhere)?;
        let facts = Facts { name: name.to_owned(), size: export.size(), read_only: export.is_read_only() };
        let shared = Shared { export, facts, options, stopping: AtomicBool::new(false) };
        Ok(Self { listener, shared: Arc::new(shared), stopper: stopper.clone() })
    }

    /// Its address as clients write it, with the real port.
    ///
    /// # Errors
    /// The host's.
    pub fn uri(&self) -> Result<String> {
        self.listener.uri()
    }

    /// Serves until it is stopped; all that was written is durable then.
    ///
    /// # Errors
    /// The disk's, when it cannot be flushed; the host's.
    pub fn run(self) -> Result<()> {
        let Self { listener, shared, stopper } = self;
        let mut clients = Vec::<Client>::new();
        let served = loop {
            match stopper
                .wait(listener.as_fd())
                .and_then(|go_on| go_on.then(|| listener.accept()).transpose())
            {
                Ok(Some(Some(stream))) => {
                    clients.retain(|client| !client.has_ended());
                    if clients.len() >= shared.options.clients {
                        let most = shared.options.clients;
                        shared
                            .export
                            .tell(format_args!("{most} clients are served: another one is turned away"));
                        continue;
                    }
                    match Client::start(stream, shared.clone()) {
                        Ok(client) => clients.push(client),
                        Err(error) => shared.export.tell(format_args!("cannot serve a client: {error}")),
                    }
                }
                Ok(Some(None)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // Nobody comes any more, then the last ones go.
        drop(listener);
        shared.stopping.store(true, Ordering::SeqCst);
        clients.iter().for_each(Client::hush);
        let until = Instant::now() + PATIENCE;
        clients.retain(|client| !client.ends_by(until, TICK));
        drop(clients);
        served.and(shared.export.flush())
    }
}
