//! What is imported: a user's image file, its backing files, or a block device, held still while it is read.

use super::import::{Format, ImportRequest};
use super::mounted;
use crate::disk::{Disk, Layer, RawLayer, check_memory};
use crate::error::{Error, Kind, Result};
use crate::qcow2::{self, BackingName, Image, OpenOptions};
use crate::storage::{Device, FileAccess, Fingerprint, Folder, HostFile, ImageLock, Role, Storage};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A chain of a user has at most this many files.
const DEPTH_MAX: usize = 64;

/// One open file of a source.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) file: File,
    path: PathBuf,
    /// `None` for a device, which has no times that tell.
    before: Option<Fingerprint>,
    _lock: Option<ImageLock>,
    /// A device, kept from being mounted.
    _held: Option<File>,
}

impl SourceFile {
    /// Opens what the user named, which may be a link.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        Self::hold(file, path)
    }

    /// Opens a file of a folder, which an image named: no link.
    fn open_in(folder: &Path, name: &str) -> Result<Self> {
        let file = Folder::open(folder).and_then(|folder| folder.file(name, FileAccess::Read));
        Self::hold(file.and_then(|file| file.to_file()), &folder.join(name))
    }

    fn hold(file: io::Result<File>, path: &Path) -> Result<Self> {
        let cannot = |error| Error::io(format!("cannot open {}", path.display()), error);
        let file = file.map_err(cannot)?;
        let kind = file.metadata().map_err(cannot)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        }
        let lock = match ImageLock::take(&file, Role::Reader) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Error::new(
                    Kind::Busy,
                    format!("{} is being written by another process; stop that first", path.display()),
                ));
            }
            // A filesystem without locks: the times before and after still tell.
            Err(_) => None,
        };
        let before = if kind.is_file() { Some(Fingerprint::of(&file).map_err(cannot)?) } else { None };
        let held = if kind.is_block_device() { mounted::hold(&file, path)? } else { None };
        Ok(Self { file, path: path.to_owned(), before, _lock: lock, _held: held })
    }

    fn storage(&self) -> Result<Arc<dyn Storage>> {
        let cannot = |error| Error::io(format!("cannot read {}", self.path.display()), error);
        let file = self.file.try_clone().map_err(cannot)?;
        match self.before {
            Some(_) => Ok(Arc::new(HostFile::new(file))),
            None => Ok(Arc::new(Device::new(file).map_err(cannot)?)),
        }
    }

    /// Refuses a file that somebody changed since it was opened.
    pub(super) fn unchanged(&self) -> Result<()> {
        let Some(before) = &self.before else { return Ok(()) };
        let now = Fingerprint::of(&self.file)
            .map_err(|error| Error::io(format!("cannot read {}", self.path.display()), error))?;
        match before.difference(&now) {
            None => Ok(()),
            Some(difference) => Err(Error::new(
                Kind::Changed,
                format!(
                    "{} was changed while it was read ({difference}); import it again",
                    self.path.display()
                ),
            )),
        }
    }

    /// The format that the magic bytes of the structured formats show; raw without any.
    pub(super) fn recognise(&self) -> Result<Format> {
        let mut head = [0; 512];
        let mut len = 0;
        while len < head.len() {
            let read = self.file.read_at(&mut head[len..], crate::units::length(len));
            match read.map_err(|error| Error::io(format!("cannot read {}", self.path.display()), error))? {
                0 => break,
                more => len += more,
            }
        }
        recognise(&head).map_err(|error| error.at(self.path.display()))
    }
}

fn recognise(head: &[u8; 512]) -> Result<Format> {
    let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    Ok(if is(0, b"QFI\xfb") {
        Format::Qcow2
    } else if is(0, b"KDMV") {
        Format::Vmdk
    } else if is(0, b"# Disk DescriptorFile") || is(0, b"COWD") {
        return Err(Error::unsupported(
            "a vmdk of several files; make one file of it: qemu-img convert -O qcow2 IN.vmdk OUT.qcow2",
        ));
    } else if is(64, &0xbeda_107f_u32.to_le_bytes()) {
        Format::Vdi
    } else if is(0, b"conectix") {
        Format::Vhd
    } else if is(0, b"vhdxfile") {
        Format::Vhdx
    } else {
        Format::Raw
    })
}

/// A source that is read natively.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) disk: Disk,
    pub(super) files: Vec<SourceFile>,
}

impl Source {
    /// Opens the raw or qcow2 chain that begins with `top`.
    pub(super) fn open(request: &ImportRequest, top: SourceFile, format: Format) -> Result<Self> {
        let folder =
            request.source.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (mut layers, mut files, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let mut next = Some((top, format));
        while let Some((file, format)) = next.take() {
            let place = file.path.display().to_string();
            if files.len() >= DEPTH_MAX {
                return Err(Error::invalid(format!("{place}: the chain has more than {DEPTH_MAX} files")));
            }
            let meta =
                file.file.metadata().map_err(|error| Error::io(format!("cannot read {place}"), error))?;
            if !seen.insert((meta.dev(), meta.ino())) {
                return Err(Error::corrupt(format!("{place} stands on itself")));
            }
            let layer = open_layer(&file, format).map_err(|error| error.at(&place))?;
            if let Layer::Qcow2(image) = &layer
                && let Some(backing) = image.backing()
            {
                let (name, format) =
                    follow(backing, request.follow_backing).map_err(|error| error.at(&place))?;
                next = Some((SourceFile::open_in(folder, name).map_err(|error| error.at(&place))?, format));
            }
            layers.push(layer);
            files.push(file);
            check_memory(&layers).map_err(|error| error.at(&place))?;
        }
        Ok(Self { disk: Disk::new(layers)?, files })
    }
}

fn open_layer(file: &SourceFile, format: Format) -> Result<Layer> {
    let storage = file.storage()?;
    if format == Format::Raw {
        return Ok(Layer::Raw(RawLayer::new(storage, false)?));
    }
    let report = qcow2::check(Arc::clone(&storage))?;
    if report.error_count > 0 {
        let first = report.errors.first().map_or("", String::as_str);
        return Err(Error::corrupt(format!(
            "{} errors, it is not imported (`qemu-img check` lists them); the first one: {first}",
            report.error_count
        )));
    }
    Ok(Layer::qcow2(Image::open(storage, OpenOptions::default())?))
}

/// The backing file that may be read: a plain name in the same folder, with its format.
fn follow(backing: &BackingName, follow: bool) -> Result<(&str, Format)> {
    let shown: String = backing.file.chars().take(200).flat_map(char::escape_default).collect();
    if !follow {
        return Err(Error::unsupported(format!(
            "it stands on \"{shown}\"; --follow-backing reads that too, or flatten it: qemu-img convert -O qcow2 IN OUT"
        )));
    }
    let plain = !backing.file.is_empty()
        && !matches!(backing.file.as_str(), "." | "..")
        && !backing.file.contains(|c: char| matches!(c, '/' | ':') || c.is_control());
    if !plain {
        return Err(Error::unsupported(format!(
            "it stands on \"{shown}\", which is not a plain name of a file in the same folder; it is not opened"
        )));
    }
    match backing.format.as_deref() {
        Some("raw") => Ok((&backing.file, Format::Raw)),
        Some("qcow2") => Ok((&backing.file, Format::Qcow2)),
        _ => Err(Error::unsupported(format!(
            "it does not say in which format \"{shown}\" is (raw or qcow2), and a guess would be unsafe; \
             set it: qemu-img rebase -u -b FILE -F FORMAT IMAGE"
        ))),
    }
}
