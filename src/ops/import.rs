//! Import: a disk image becomes a base.

use super::Progress;
use super::convert::convert;
use super::scan::{Nowhere, scan};
use super::source::{Source, SourceFile};
use super::version::{padded, store_delta, store_disk};
use crate::disk::{Disk, Layer, RawLayer};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::store::{Access, Base, DiskFormat, Finished, Name, NewBase, Scratch, Store};
use std::path::PathBuf;
use std::sync::Arc;

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
    /// The base's name.
    pub name: Name,
    /// Whether it becomes the next version of a base that there is, instead of version 1 of a new one.
    pub update: bool,
    /// Whether a qcow2 source's backing files in the same folder are read as well; refused otherwise.
    pub follow_backing: bool,
}

/// Copies an image into the store as a new base, or as the next version of one: a delta over the version before, or
/// whole when more than half differs.
///
/// A raw disk whose length is no multiple of 512 bytes is padded with zeros.
///
/// # Errors
/// `Exists`, `NotFound` (no base to update), `Corrupt`, `Unsupported`, `Busy` (somebody writes to the source), `Changed`
/// (it changed meanwhile), `NoSpace`, `Interrupted`, the host's. Nothing is left behind.
pub fn import(store: &Store, request: &ImportRequest, progress: &dyn Progress) -> Result<Base> {
    let top = SourceFile::open(&request.source)?;
    let format = match request.format {
        Some(format) => format,
        None => top.recognise()?,
    };
    let source = request.source.display().to_string();
    let new = match request.update {
        true => store.new_version(&request.name)?,
        false => store.new_base(&request.name)?,
    };
    let stored = match format {
        Format::Raw | Format::Qcow2 => native(request, top, format, &new, progress)?,
        _ => converted(&top, format, &new, progress).map_err(|error| error.at(&source))?,
    };
    new.commit(stored, &source)
}

/// Makes a clone's present content the next version of a base. The clone stays as it is.
///
/// # Errors
/// `NotFound`, `Busy` while somebody writes to the clone, `Changed`, `NoSpace`, `Interrupted`, the host's.
pub fn promote(store: &Store, clone: &Name, base: &Name, progress: &dyn Progress) -> Result<Base> {
    let open = store.open_clone(clone, Access::Read)?;
    let new = store.new_version(base)?;
    let stored = store_disk(&open.disk, open.files(), &new, progress)
        .map_err(|error| error.at(format!("clone {clone}")))?;
    new.commit(stored, &format!("clone {clone}"))
}

/// Makes what a throw-away layer shows the next version of a base.
///
/// # Errors
/// As [`promote`].
pub fn promote_scratch(
    store: &Store,
    scratch: &Scratch,
    base: &Name,
    progress: &dyn Progress,
) -> Result<Base> {
    let new = store.new_version(base)?;
    let stored = store_disk(&scratch.disk.disk, scratch.disk.files(), &new, progress)?;
    new.commit(stored, "an edit of the version before")
}

fn native(
    request: &ImportRequest,
    top: SourceFile,
    format: Format,
    new: &NewBase,
    progress: &dyn Progress,
) -> Result<Finished> {
    let source = Source::open(request, top, format)?;
    let stored =
        store_disk(&source.disk, &[], new, progress).map_err(|error| error.at(request.source.display()))?;
    source.files.iter().try_for_each(SourceFile::unchanged)?;
    Ok(stored)
}

/// The child writes a raw file; its content is then read once for the sums, and once more for a delta.
fn converted(top: &SourceFile, format: Format, new: &NewBase, progress: &dyn Progress) -> Result<Finished> {
    let path = new.disk_path(DiskFormat::Raw);
    convert(top, format, &path, progress)?;
    top.unchanged()?;
    let cannot = |error| Error::io("cannot read what qemu-img wrote", error);
    let file = new.open_disk(DiskFormat::Raw)?;
    let size = padded(file.len().map_err(cannot)?)?;
    file.set_len(size).map_err(cannot)?;
    let disk = Disk::new(vec![Layer::Raw(RawLayer::new(Arc::new(file), false)?)])?;
    let stored = match new.open_before()? {
        Some(before) => store_delta(&disk, &[], &before, new, progress)?,
        None => None,
    };
    if let Some(stored) = stored {
        new.remove_disk(DiskFormat::Raw)?;
        return Ok(stored);
    }
    let mut list = new.create_sums()?;
    let sums = scan(&disk, size, &Nowhere, progress, &mut |sum| list.push(sum))?;
    Ok(Finished { format: DiskFormat::Raw, is_delta: false, size, sums, list })
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "raw" => Self::Raw,
            "qcow2" => Self::Qcow2,
            "vmdk" => Self::Vmdk,
            "vdi" => Self::Vdi,
            "vhd" | "vpc" => Self::Vhd,
            "vhdx" => Self::Vhdx,
            _ => return Err(Error::invalid("a format is one of raw, qcow2, vmdk, vdi, vhd, vhdx")),
        })
    }
}
