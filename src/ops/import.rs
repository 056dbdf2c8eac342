//! Import: a disk image becomes a base.

use super::Progress;
use crate::error::Result;
use crate::store::{Base, Name, Store};
use std::path::PathBuf;

/// A format that import takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
    /// VMware, one sparse or stream-optimised file.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Virtual PC.
    Vhd,
    /// Hyper-V.
    Vhdx,
}

/// What to import, and as what.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// A file or a block device.
    pub source: PathBuf,
    /// Its format; recognised by the magic bytes of the structured formats when `None`, raw without any.
    pub format: Option<Format>,
    /// The base's name; it becomes version 1.
    pub name: Name,
    /// Whether a qcow2 source's backing files in the same folder are read as well; refused otherwise.
    pub follow_backing: bool,
}

/// Copies an image into the store as a new base.
///
/// # Errors
/// `Exists`, `Corrupt`, `Unsupported`, `Busy` (somebody writes to the source), `Changed` (it changed meanwhile),
/// `NoSpace`, `Interrupted`, the host's. Nothing is left behind.
pub fn import(_store: &Store, _request: &ImportRequest, _progress: &dyn Progress) -> Result<Base> {
    todo!()
}

impl std::str::FromStr for Format {
    type Err = crate::Error;
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "raw" => Self::Raw,
            "qcow2" => Self::Qcow2,
            "vmdk" => Self::Vmdk,
            "vdi" => Self::Vdi,
            "vhd" | "vpc" => Self::Vhd,
            "vhdx" => Self::Vhdx,
            _ => return Err(crate::Error::invalid("a format is one of raw, qcow2, vmdk, vdi, vhd, vhdx")),
        })
    }
}
