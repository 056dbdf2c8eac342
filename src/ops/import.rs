//! Import: a disk image becomes a base.

use super::Progress;
use super::convert::convert;
use super::scan::{Flat, Nowhere, scan};
use super::source::{Source, SourceFile};
use crate::disk::{Disk, Layer, RawLayer};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::store::{Base, DISK_MAX, DiskFormat, Name, NewBase, Store, SumFile, Sums};
use crate::units::SECTOR;
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
    /// The base's name; it becomes version 1.
    pub name: Name,
    /// Whether a qcow2 source's backing files in the same folder are read as well; refused otherwise.
    pub follow_backing: bool,
}

/// Copies an image into the store as a new base.
///
/// A raw disk whose length is no multiple of 512 bytes is padded with zeros.
///
/// # Errors
/// `Exists`, `Corrupt`, `Unsupported`, `Busy` (somebody writes to the source), `Changed` (it changed meanwhile),
/// `NoSpace`, `Interrupted`, the host's. Nothing is left behind.
pub fn import(store: &Store, request: &ImportRequest, progress: &dyn Progress) -> Result<Base> {
    let top = SourceFile::open(&request.source)?;
    let format = match request.format {
        Some(format) => format,
        None => top.recognise()?,
    };
    let source = request.source.display().to_string();
    let new = store.new_base(&request.name)?;
    let Copied { size, sums, list } = match format {
        Format::Raw | Format::Qcow2 => native(request, top, format, &new, progress)?,
        _ => converted(&top, format, &new, progress).map_err(|error| error.at(&source))?,
    };
    new.commit(size, &sums, list, &source)
}

/// A disk that was copied into a new base.
struct Copied {
    size: u64,
    sums: Sums,
    list: SumFile,
}

fn native(
    request: &ImportRequest,
    top: SourceFile,
    format: Format,
    new: &NewBase,
    progress: &dyn Progress,
) -> Result<Copied> {
    let source = Source::open(request, top, format)?;
    let place = request.source.display();
    let size = padded(source.disk.size()).map_err(|error| error.at(&place))?;
    let out = new.create_disk(DiskFormat::Raw)?;
    out.set_len(size).map_err(|error| Error::io(format!("cannot make a file of {size} bytes"), error))?;
    let mut list = new.create_sums()?;
    let sums = scan(&source.disk, size, &Flat(&out), progress, &mut |sum| list.push(sum))
        .map_err(|error| error.at(&place))?;
    source.files.iter().try_for_each(SourceFile::unchanged)?;
    Ok(Copied { size, sums, list })
}

/// The child writes the base's own file; its content is then read once for the sums.
fn converted(top: &SourceFile, format: Format, new: &NewBase, progress: &dyn Progress) -> Result<Copied> {
    let path = new.disk_path(DiskFormat::Raw);
    convert(top, format, &path, progress)?;
    top.unchanged()?;
    let cannot = |error| Error::io("cannot read what qemu-img wrote", error);
    let file = new.open_disk(DiskFormat::Raw)?;
    let len = file.len().map_err(cannot)?;
    let size = padded(len)?;
    file.set_len(size).map_err(cannot)?;
    let disk = Disk::new(vec![Layer::Raw(RawLayer::new(Arc::new(file), false)?)])?;
    let mut list = new.create_sums()?;
    let sums = scan(&disk, size, &Nowhere, progress, &mut |sum| list.push(sum))?;
    Ok(Copied { size, sums, list })
}

fn padded(len: u64) -> Result<u64> {
    match len {
        0 => Err(Error::invalid("it is empty: there is no disk in it")),
        1..=DISK_MAX => Ok(len.next_multiple_of(SECTOR)),
        _ => Err(Error::invalid(format!("its disk has {len} bytes; at most 16 TiB are taken"))),
    }
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
