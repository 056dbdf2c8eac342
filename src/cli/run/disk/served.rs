//! A disk that is served to the run's machine by vhost-user, over a pair of sockets that nobody else sees.

use crate::serve::vhost::{Connection, Options};
use crate::serve::{Export, Idle};
use crate::store::{Name, OpenDisk, Scratch};
use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A served disk.
pub(in crate::cli::run) struct Served {
    // In the order in which they end.
    connection: RefCell<Option<Connection>>,
    export: Arc<Export>,
    _idle: Idle,
    /// What is to be closed; a throw-away layer is not.
    clone: Option<Arc<OpenDisk>>,
    options: Options,
}

impl Served {
    pub(super) fn of_clone(disk: OpenDisk, name: &Name) -> io::Result<Self> {
        let (disk, idle) = (Arc::new(disk), Idle::start()?);
        let export = Export::new(disk.clone(), name.as_str(), false, &idle);
        Ok(Self::new(export, idle, Some(disk)))
    }

    pub(super) fn of_scratch(scratch: Arc<Scratch>, name: &Name) -> io::Result<Self> {
        let idle = Idle::start()?;
        Ok(Self::new(Export::new(scratch, name.as_str(), false, &idle), idle, None))
    }

    fn new(export: Arc<Export>, idle: Idle, clone: Option<Arc<OpenDisk>>) -> Self {
        let connection = RefCell::default();
        Self { connection, export, _idle: idle, clone, options: Options::default() }
    }

    pub(super) fn queues(&self) -> u16 {
        self.options.queues
    }

    /// A socket for a machine; the last one's is hung up on.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        drop(self.connection.take());
        let connection = Connection::start(ours, self.export.clone(), self.options)?;
        *self.connection.borrow_mut() = Some(connection);
        Ok(theirs)
    }

    /// Flushes and closes the disk.
    pub(super) fn end(self) -> anyhow::Result<()> {
        let Self { connection, export, _idle, clone, .. } = self;
        drop(connection);
        let flushed = export.flush();
        // From here on nobody but this function has the disk.
        drop((export, _idle));
        let closed = clone.and_then(Arc::into_inner).map_or(Ok(()), OpenDisk::close);
        Ok(flushed.and(closed)?)
    }
}
