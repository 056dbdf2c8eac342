//! Resize: a clone's disk becomes smaller or larger, with the partition and the filesystem at its end.

mod disk;
mod job;
mod room;
mod size;

use super::{Progress, fold};
use crate::error::{Error, Kind, Result};
use crate::guestfs::SharedDisk;
use crate::store::{BaseRef, Name, Scratch, Store, Target, refuse_more};
use crate::units::GuestOffset;
use job::Job;
use room::Room;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use size::Size;

/// Which clone shall have which size.
#[derive(Clone, Debug)]
pub struct ResizeRequest {
    /// The clone.
    pub clone: BaseRef,
    /// Its new size.
    pub size: Size,
    /// Leave partition and filesystem to the guest; only for a larger disk.
    pub image_only: bool,
    /// Keep no checkpoint of the state from before: the clone's layer is made anew, with what is still seen.
    pub no_undo: bool,
    /// Our own program, which knows [`crate::guestfs::edit::COMMAND`].
    pub program: PathBuf,
}

/// What a resize did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resized {
    /// The clone.
    pub clone: Name,
    /// Bytes that its disk had.
    pub from: u64,
    /// Bytes that it has now; the same when there was nothing to do.
    pub to: u64,
    /// How small it can be; not asked when nothing of a partition had to be cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Minimum>,
    /// The partition, or bare filesystem, that has another end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<Changed>,
    /// What was left as it is, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The checkpoint that holds the state from before; none in a plan, or when there was nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u32>,
    /// Room that the host must have meanwhile, more or less; only told by a plan without undo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_bytes: Option<u64>,
    /// What the host gets back when there is no undo; of a plan at least so much, and none where that cannot be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freed_bytes: Option<u64>,
}

/// How small a disk can be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Minimum {
    /// Bytes of the disk.
    pub bytes: u64,
    /// What cannot be made smaller: "partition 1 (ext4)".
    pub bound_by: String,
    /// Bytes that a filesystem has in use there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
}

/// A partition, or bare filesystem, with another end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Its number; 0 for a filesystem without a partition table.
    pub partition: u32,
    /// What it holds.
    pub content: String,
    /// Where it begins.
    #[serde(skip)]
    pub start: GuestOffset,
    /// Bytes that it had.
    pub from: u64,
    /// Bytes that it has now.
    pub to: u64,
}

/// Gives a clone's disk another size. The state from before becomes a checkpoint, unless the request says that it shall not:
/// `undo` goes back to it.
///
/// # Errors
/// `NotFound` (the clone, a program, FUSE), `Busy` while somebody has it open, `Invalid` for a size that its content does
/// not fit into, `Unsupported` when something is in the way, with its name; `Corrupt` (its filesystem), `NoSpace`,
/// `Interrupted`, the host's. The clone is then as it was.
pub fn resize(store: &Store, request: &ResizeRequest, progress: &dyn Progress) -> Result<Resized> {
    let clone = clone_named(store, request)?;
    let at = |error: Error| error.at(format!("clone {clone}"));
    let now = store.begin_resize(&clone, |from| Ok(request.size.of(from)?.unwrap_or(from)))?;
    let size = request.size.of(now.from())?;
    let job = Job {
        disk: now.disk(),
        from: now.from(),
        mount_point: &|| now.mount_point(),
        folder: now.folder(),
        program: &request.program,
        stop: &|| progress.cancelled(),
        act: true,
    };
    let mut done = run(&job, &clone, size, request).map_err(at)?;
    drop(job);
    super::check_cancelled(progress)?;
    if done.to == done.from {
        return Ok(done);
    }
    if request.no_undo {
        let new = now.without_undo(done.to)?;
        fold::copy(new.union(), progress).map_err(at)?;
        super::check_cancelled(progress)?;
        done.freed_bytes = Some(new.publish()?.bytes);
    } else {
        done.checkpoint = Some(now.publish(done.to)?.number);
    }
    Ok(done)
}

/// What [`resize`] would do; nothing is changed.
///
/// # Errors
/// As [`resize`].
pub fn plan(store: &Store, request: &ResizeRequest, progress: &dyn Progress) -> Result<Resized> {
    let clone = clone_named(store, request)?;
    let scratch = Arc::new(store.scratch(&Target::Clone(clone.clone()))?);
    let from = scratch.disk.disk.size();
    let size = request.size.of(from)?;
    let folder = scratch.path().parent().unwrap_or(Path::new("/"));
    let job = Job {
        disk: Arc::<Scratch>::clone(&scratch) as SharedDisk,
        from,
        mount_point: &|| scratch.mount_point(),
        folder,
        program: &request.program,
        stop: &|| progress.cancelled(),
        act: false,
    };
    let at = |error: Error| error.at(format!("clone {clone}"));
    let mut planned = run(&job, &clone, size, request).map_err(at)?;
    if request.no_undo && planned.to != from {
        let room = Room::of(store, &clone, &scratch.disk.disk, &planned).map_err(at)?;
        planned.needs_bytes = Some(room.needs_bytes);
        planned.freed_bytes = room.gives_back_bytes;
    }
    Ok(planned)
}

fn run(job: &Job<'_>, clone: &Name, size: Option<u64>, request: &ResizeRequest) -> Result<Resized> {
    if request.no_undo {
        // Under the layer of the work.
        refuse_more(job.disk(), &[None, None])?;
    }
    let from = job.from;
    let begun = Resized {
        clone: clone.clone(),
        from,
        to: from,
        minimum: None,
        changed: None,
        note: None,
        checkpoint: None,
        needs_bytes: None,
        freed_bytes: None,
    };
    match size {
        Some(size) if size == from => Ok(begun),
        Some(size) if size > from => job.larger(size, request.image_only, begun),
        _ if request.image_only => Err(Error::invalid(
            "only a larger disk can be left to its guest: what a smaller one would cut must be moved first",
        )),
        size => job.smaller(size, begun),
    }
}

/// The clone that is meant.
fn clone_named(store: &Store, request: &ResizeRequest) -> Result<Name> {
    match store.find(&request.clone)? {
        Target::Clone(name) => Ok(name),
        Target::Base(base) => Err(Error::new(
            Kind::ReadOnly,
            format!(
                "{base} is a base, which never changes: resize a clone of it, then `cowshed promote CLONE --update {}` \
                 makes the next version",
                base.name
            ),
        )),
    }
}
