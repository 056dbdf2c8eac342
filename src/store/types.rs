//! What the store tells about what it holds. Each type serialises to the JSON that the commands print.

use super::digest::Digest;
use super::name::Name;
use crate::error::{Error, Kind};
use crate::qcow2::Identity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// How a layer's file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes as they are, sparse.
    Raw,
    /// qcow2.
    Qcow2,
}

impl DiskFormat {
    /// Its name, as in a qcow2 header and in file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One immutable version of a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Base {
    /// Name of the base.
    pub name: Name,
    /// Version, from 1 on.
    pub version: u32,
    /// How its file is laid out.
    pub format: DiskFormat,
    /// Identity of its content.
    pub digest: Digest,
    /// Size of the disk in bytes.
    pub size: u64,
    /// The version whose file this one's file stands on.
    pub parent: Option<u32>,
    /// Where it was imported from, for people to read.
    pub source: String,
    /// When: RFC 3339, UTC.
    pub created: String,
}

impl Base {
    /// What a clone of it remembers of it.
    #[must_use]
    pub fn id(&self) -> BaseId {
        BaseId { name: self.name.clone(), version: self.version, digest: self.digest }
    }
}

/// Which base version a clone stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseId {
    /// Name of the base.
    pub name: Name,
    /// Version, from 1 on.
    pub version: u32,
    /// Identity of its content.
    pub digest: Digest,
}

impl BaseId {
    /// Whether the header of an image names this one.
    pub(super) fn is(&self, header: &Identity) -> bool {
        header.name == self.name.as_str() && header.version == self.version && header.digest == self.digest.0
    }
}

impl fmt::Display for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.name, self.version))
    }
}

/// A writable disk over one base version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clone {
    /// Its name.
    pub name: Name,
    /// What it stands on.
    pub base: BaseId,
    /// Size of the disk in bytes, as it was when the clone was made.
    pub size: u64,
    /// When it was made: RFC 3339, UTC.
    pub created: String,
    /// Words of the user.
    pub labels: BTreeMap<String, String>,
    /// The rebase that waits for its next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// What becomes of what a clone changed when it is put on another version of its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// File by file: the new base, with what the clone changed since the old one.
    Merge,
    /// The disk stays what it is, byte for byte; what differs from the new base is the clone's own.
    Keep,
    /// The disk starts anew from the new base.
    Replace,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Merge => "merge",
            Self::Keep => "keep",
            Self::Replace => "replace",
        })
    }
}

impl std::str::FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "merge" => Ok(Self::Merge),
            "keep" => Ok(Self::Keep),
            "replace" => Ok(Self::Replace),
            _ => Err(Error::invalid("a strategy is one of merge, keep, replace")),
        }
    }
}

/// A rebase that waits for the next start of a clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// What the clone will stand on.
    pub onto: BaseId,
    /// What becomes of its own changes.
    pub strategy: Strategy,
    /// Since when: RFC 3339, UTC.
    pub created: String,
    /// The user's rules, after the built-in ones, in the format of a rules file.
    #[serde(skip)]
    pub rules: String,
}

/// What a canary run was told to do, and with which clones it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// The base version that the clones are put on.
    pub onto: BaseId,
    /// What becomes of their own changes.
    pub strategy: Strategy,
    /// The user's rules, after the built-in ones, in the format of a rules file.
    pub rules: String,
    /// Which clones are meant: patterns for names, or labels; all when there are none.
    pub only: Vec<String>,
    /// Which of those are data disks, which are kept: patterns or labels.
    pub keep_disks: Vec<String>,
    /// The clones that it took.
    pub clones: Vec<Name>,
}

/// A frozen state of a clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Its number within the clone, from 1 on; larger is later.
    pub number: u32,
    /// The checkpoint that its file stands on; the base when `None`.
    pub parent: Option<u32>,
    /// What the lowest of its layers stands on.
    pub base: BaseId,
    /// The user's words.
    pub note: Option<String>,
    /// The operation before which it was made by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Operation>,
    /// When it was made: RFC 3339, UTC.
    pub created: String,
}

/// An operation on a clone that `undo` takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Putting it on another base.
    Rebase,
    /// Making its disk smaller or larger.
    Resize,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Rebase => "rebase",
            Self::Resize => "resize",
        })
    }
}

/// What something costs on the host, in bytes of allocated blocks. A file with several names counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Its own files: the disk, checkpoints, manifests.
    pub own_bytes: u64,
    /// The base versions below it, which it shares with others.
    pub shared_bytes: u64,
    /// What the host gets back when it is removed: for a base that something stands on, nothing.
    pub freed_if_deleted: u64,
}

/// Everything in a store, with what it costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// Every version of every base, sorted by name and version.
    pub bases: Vec<(Base, Usage)>,
    /// All clones, sorted by name.
    pub clones: Vec<(Clone, Usage)>,
    /// What is left out.
    pub broken: Vec<Broken>,
}

/// A base version or clone that cannot be told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// `base` or `clone`.
    pub kind: &'static str,
    /// `NAME@V` of a base version, `NAME` of a clone (or of a base whose versions cannot be listed).
    pub name: String,
    /// What is wrong and what to do.
    pub reason: String,
    #[serde(skip)]
    pub(super) cause: Kind,
}

/// Everything in a store whose manifests are good, and what has a broken one.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Every version of every base, sorted by name and version.
    pub bases: Vec<Base>,
    /// All clones, sorted by name.
    pub clones: Vec<Clone>,
    /// What is left out.
    pub broken: Vec<Broken>,
}

impl Broken {
    pub(super) fn new(kind: &'static str, name: String, error: &Error) -> Self {
        let hint = format!("; put its {kind}.json back from a backup, or remove it: `cowshed rm {name}`");
        let mut broken = Self::with_hint(kind, name, error);
        if error.kind() == Kind::Corrupt {
            broken.reason.push_str(&hint);
        }
        broken
    }

    /// The same of an error that says itself what to do.
    pub(super) fn with_hint(kind: &'static str, name: String, error: &Error) -> Self {
        let mut reason = error.to_string();
        if let Some(cause) = std::error::Error::source(error) {
            reason.push_str(&format!(": {cause}"));
        }
        Self { kind, name, reason, cause: error.kind() }
    }

    /// It as an error of what cannot do without it.
    pub(super) fn error(&self) -> Error {
        Error::new(self.cause, format!("{} {}: {}", self.kind, self.name, self.reason))
    }
}

/// What a removal gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// Bytes of host blocks.
    pub bytes: u64,
}

/// What an undo did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Undone {
    /// What was taken back.
    pub operation: Operation,
    /// The checkpoint that the clone is at again.
    pub restored: u32,
    /// What it stands on now.
    pub base: BaseId,
    /// The checkpoint that holds the state from before the undo.
    pub kept: Checkpoint,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The checkpoint that holds the state from before, when it was to be kept.
    pub kept: Option<Checkpoint>,
}

/// How clones are to be made.
#[derive(Clone, Debug, Default)]
pub struct CloneOptions {
    /// Plain L2 entries with 64 KiB clusters, for tools without extended L2.
    pub compat: bool,
    /// Words of the user to keep with the clone.
    pub labels: BTreeMap<String, String>,
}

/// How a clone is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading without any lock, beside a writer if there is one: what is read may be out of date or torn.
    Inspect,
    /// Reading with the lock of a reader: `Busy` while somebody writes, and no writer gets in meanwhile.
    Read,
    /// Reading and writing, alone.
    Write,
}
