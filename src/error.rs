//! The one error type of the library: a kind to match on, a sentence, and the cause.

use std::fmt;
use std::io;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named thing does not exist.
    NotFound,
    /// The name is taken already.
    Exists,
    /// Somebody else uses it: another process, or a clone that depends on it.
    Busy,
    /// An argument or a name that cannot be accepted.
    Invalid,
    /// A file breaks its format.
    Corrupt,
    /// A feature that is refused on purpose.
    Unsupported,
    /// A base is not what it was when it was sealed.
    Changed,
    /// The target cannot be written.
    ReadOnly,
    /// The host filesystem is full, or a quota is.
    NoSpace,
    /// An earlier write or sync failed; the disk takes nothing until it is opened again.
    Latched,
    /// The user or a signal stopped the work.
    Interrupted,
    /// The host failed to read, write or sync.
    Io,
}

/// An error of any part of the library.
///
/// `Display` gives the sentence only; the cause, if there is one, is [`std::error::Error::source`].
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`: what is wrong, where, and what to do.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A failed host operation; the kind follows from `source`.
    pub fn io(message: impl Into<String>, source: io::Error) -> Self {
        Self { kind: kind_of(&source), message: message.into(), source: Some(Box::new(source)) }
    }

    /// A file that breaks its format.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    /// A feature that is refused.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// A value that cannot be accepted.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// The same error, with `place` (a file, a clone, a base) said before it.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The error number that a disk's user (FUSE, a block protocol) is given.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self.kind {
            Kind::NotFound => libc::ENOENT,
            Kind::Exists => libc::EEXIST,
            Kind::Busy => libc::EBUSY,
            Kind::Invalid => libc::EINVAL,
            Kind::Unsupported => libc::EOPNOTSUPP,
            Kind::Changed => libc::ESTALE,
            Kind::ReadOnly => libc::EROFS,
            Kind::NoSpace => libc::ENOSPC,
            Kind::Interrupted => libc::EINTR,
            Kind::Corrupt | Kind::Latched | Kind::Io => libc::EIO,
        }
    }
}

fn kind_of(source: &io::Error) -> Kind {
    match source.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::AlreadyExists => Kind::Exists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Kind::NoSpace
        }
        io::ErrorKind::ReadOnlyFilesystem => Kind::ReadOnly,
        io::ErrorKind::Interrupted => Kind::Interrupted,
        _ => Kind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::from_raw_os_error(error.errno())
    }
}

/// Says on standard error what went wrong; the program that uses a disk only gets an error number.
pub(crate) fn report(error: &Error) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    tell(format_args!("{error}{cause}"));
}

/// Says something on standard error, for people.
pub(crate) fn tell(what: fmt::Arguments<'_>) {
    use io::Write;
    // The log may be gone; there is nobody to tell then.
    let _ = writeln!(io::stderr(), "cowshed: {what}");
}
