//! Export: a disk becomes one flat image file.

use super::Progress;
use super::newfile::NewFile;
use super::scan::{Early, Flat, Sink, copy};
use super::share::share;
use crate::disk::{Disk, Layer};
use crate::error::{Error, Result};
use crate::qcow2::{self, CreateOptions, Image, OpenOptions};
use crate::storage::{HostFile, Storage};
use crate::store::{Access, DiskFormat, Store, Target};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Plain qcow2 with 64 KiB clusters: what every tool reads.
const CLUSTER_BITS: u32 = 16;

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// A clone or a base.
    pub target: Target,
    /// The file to make.
    pub out: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Whether a file that is there may be replaced.
    pub force: bool,
}

/// Writes the guest-visible disk into one file, sparse; the file appears when it is complete and durable.
///
/// # Errors
/// `Exists`, `Busy` while somebody writes to the clone, `NoSpace`, `Interrupted`, the gate's, the host's.
pub fn export(store: &Store, request: &ExportRequest, progress: &dyn Progress) -> Result<()> {
    let open = store.open_target(&request.target, Access::Read)?;
    let shown = request.out.display();
    refuse_inside(store, &request.out)?;
    let out = NewFile::create(store, &request.out, request.force)?;
    let cannot = |error| Error::io(format!("cannot write {shown}"), error);
    let file = Arc::new(out.file().map_err(cannot)?);
    match request.format {
        DiskFormat::Raw => {
            share(&open.disk, &file, open.disk.size(), progress).and_then(|shared| match shared {
                true => Ok(()),
                false => copy_to(&Flat(&*file), &open.disk, &file, progress),
            })
        }
        DiskFormat::Qcow2 => write_qcow2(&open.disk, &file, progress),
    }
    .map_err(|error| error.at(&shown))?;
    file.sync().map_err(cannot)?;
    out.put()
}

/// A file of the store itself must never be replaced by an export.
fn refuse_inside(store: &Store, out: &Path) -> Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A folder that cannot be found is told by the making of the file.
    if folder.canonicalize().is_ok_and(|folder| folder.starts_with(store.root())) {
        let (out, root) = (out.display(), store.root().display());
        return Err(Error::invalid(format!(
            "{out} lies inside the store {root}; give a place outside of it"
        )));
    }
    Ok(())
}

/// Copies what is not zero to `sink`, whose bytes are those of `file`.
fn copy_to(sink: &dyn Sink, from: &Disk, file: &HostFile, progress: &dyn Progress) -> Result<()> {
    copy(from, from.size(), &Early::new(sink, file), progress)
}

fn write_qcow2(from: &Disk, file: &Arc<HostFile>, progress: &dyn Progress) -> Result<()> {
    let mut options = CreateOptions::new(from.size());
    options.cluster_bits = CLUSTER_BITS;
    options.extended_l2 = false;
    qcow2::create(&**file, &options)?;
    let storage: Arc<dyn Storage> = Arc::<HostFile>::clone(file);
    let image = Image::open(storage, OpenOptions { writable: true, ..OpenOptions::default() })?;
    let to = Disk::new(vec![Layer::qcow2(image)])?;
    copy_to(&to, from, file, progress)?;
    to.close()
}
