//! Shrink: the bytes that a clone stores and nobody needs go back to the host.
//!
//! Nobody needs what is free in the guest's filesystems, what is the same as below the clone's own layer, and zeros. No
//! byte that a guest can miss changes: so this needs no undo, and can be stopped and begun again at any moment.

mod base;
mod needless;
mod recompress;

use super::Progress;
use super::fold::foldable;
use super::many::many;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::guestfs::free::{Area, Free, survey};
use crate::qcow2::{Compacted, Ended};
use crate::store::{Access, Name, Store, Target};
use crate::units::GuestOffset;
use needless::{Found, Search};
use recompress::{Sample, recompress, refuse_compat};
use serde::Serialize;
use std::ops::Range;

pub use base::{ShrunkBase, plan_base, shrink_base};
pub use needless::Needless;
pub use recompress::Recompressed;

/// A part of the disk of which nobody knows what is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// What it is.
    pub what: String,
    /// Why it is left whole.
    pub reason: String,
    /// Bytes of the clone's own layer in it; of a base, bytes of it that are stored.
    pub own_bytes: u64,
}

/// A checkpoint's share of the host's space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The checkpoint.
    pub number: u32,
    /// What its files take up.
    pub bytes: u64,
    /// What the host gets back when it goes, at least: what stands on it keeps what is still seen of it. `None` when it
    /// cannot go, or cannot be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gives_back_bytes: Option<u64>,
    /// Whether several layers stand on it: it cannot go before all of them but one do.
    pub needed: bool,
}

/// What a clone costs on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Blocks of its folder, checkpoints included.
    pub host_bytes: u64,
    /// Length of its file.
    pub file_bytes: u64,
}

/// What a shrink did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shrunk {
    /// The clone.
    pub clone: Name,
    /// Bytes that its own layer stored.
    pub own_bytes: u64,
    /// What of them nobody needs.
    pub needless: Needless,
    /// Bytes of its file that only they take up: fewer, where they are compressed.
    pub gives_back_bytes: u64,
    /// What compressing gives, if that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompress: Option<Recompressed>,
    /// What it cost before.
    pub before: Cost,
    /// What it costs now; not known of a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Cost>,
    /// Parts of the disk that are left whole.
    pub left: Vec<Left>,
    /// Checkpoints that hold space.
    pub checkpoints: Vec<Held>,
    /// Why the file is longer than what it holds, when it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bounded_by: Option<String>,
}

/// How it is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Whether it is only told what would be done.
    pub plan: bool,
    /// Whether what is left of a clone's own layer is compressed.
    pub recompress: bool,
}

/// What came of a clone or base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Done {
    /// A clone.
    Clone(Shrunk),
    /// A base.
    Base(ShrunkBase),
}

/// Shrinks clones and bases, `jobs` of them at a time. `each` is told what came of each, in the order in which they end. Those
/// that were not begun when the user stops the work are not told of.
pub fn shrink_all(
    store: &Store,
    targets: &[Target],
    jobs: usize,
    settings: Settings,
    progress: &dyn Progress,
    each: &mut dyn FnMut(&Target, Result<Done>),
) {
    many(targets, jobs, progress, |target| shrink_target(store, target, settings, progress), each);
}

/// Shrinks a clone or base.
///
/// # Errors
/// As [`shrink`] and [`shrink_base`].
pub fn shrink_target(
    store: &Store,
    target: &Target,
    settings: Settings,
    progress: &dyn Progress,
) -> Result<Done> {
    match (target, settings.plan) {
        (Target::Base(base), _) if settings.recompress => {
            Err(Error::invalid(format!("{base} is a base: only what is a clone's own is compressed")))
        }
        (Target::Clone(clone), true) => plan(store, clone, settings.recompress, progress).map(Done::Clone),
        (Target::Clone(clone), false) => shrink(store, clone, settings.recompress, progress).map(Done::Clone),
        (Target::Base(base), true) => plan_base(store, base).map(Done::Base),
        (Target::Base(base), false) => shrink_base(store, base, progress).map(Done::Base),
    }
}

/// What [`shrink`] would do; nothing is changed.
///
/// # Errors
/// As [`shrink`].
pub fn plan(store: &Store, clone: &Name, recompress: bool, progress: &dyn Progress) -> Result<Shrunk> {
    let open = store.open_clone(clone, Access::Read)?;
    let mut report = Shrunk::of(store, clone)?;
    report.checkpoints = held(store, clone)?;
    report.look(&open.disk, recompress, progress).map_err(|error| error.at(format!("clone {clone}")))?;
    Ok(report)
}

/// Drops what nobody needs of a clone's own layer, compresses what is left of it, if asked to, and makes its file as short as
/// what it holds.
///
/// # Errors
/// `NotFound`, `Busy` while somebody has the clone open, `Changed` (a base), `Corrupt`, `Unsupported` (a file that cannot be
/// compressed, with the reason), `Interrupted` (what was done stays done), the host's.
pub fn shrink(store: &Store, clone: &Name, recompress_too: bool, progress: &dyn Progress) -> Result<Shrunk> {
    let mut open = store.open_clone(clone, Access::Write)?;
    // What it costs is asked while nobody else can change it.
    let mut report = Shrunk::of(store, clone)?;
    let place = |error: Error| error.at(format!("clone {clone}"));
    if recompress_too {
        refuse_compat(&open.disk).map_err(place)?;
    }
    progress.total(open.disk.size() * if recompress_too { 2 } else { 1 });
    report.search(&open.disk, progress, &mut |_, found| drop_from(&open.disk, found)).map_err(place)?;
    let mut full = false;
    if recompress_too {
        let packed = recompress(&mut open.disk, progress).map_err(place)?;
        report.recompress = Some(Recompressed::of(&packed));
        full = packed.ended == Ended::HostFull;
    }
    let compacted = open.disk.compact(&mut |_| !progress.cancelled()).map_err(place)?;
    open.close()?;
    report.bounded_by = if full { Some(NO_ROOM_TO_COMPRESS.to_owned()) } else { bound(&compacted) };
    if compacted.ended == Ended::Stopped {
        return Err(stopped());
    }
    report.after = Some(cost(store, clone)?);
    report.checkpoints = held(store, clone)?;
    Ok(report)
}

fn stopped() -> Error {
    Error::new(Kind::Interrupted, "stopped; what was given back stays given back, run it again to go on")
}

fn drop_from(disk: &Disk, found: Found) -> Result<()> {
    disk.drop_to_below(found.drop)?;
    found
        .zero
        .into_iter()
        .try_for_each(|range| disk.write_zeroes(GuestOffset(range.start), range.end - range.start))
}

const NO_ROOM_TO_COMPRESS: &str = "the host has no room for what would be compressed next";

/// Why a file did not get as short as what it holds.
fn bound(compacted: &Compacted) -> Option<String> {
    match (compacted.ended, compacted.held) {
        (Ended::HostFull, _) => Some("the host has no room for a copy of what would be moved".to_owned()),
        (_, Some(end)) => Some(format!("an internal snapshot or a bitmap ends at byte {end} of it")),
        _ => None,
    }
}

/// What the checkpoints of a clone hold, and what of it could go.
fn held(store: &Store, clone: &Name) -> Result<Vec<Held>> {
    let mut found = Vec::new();
    for number in store.checkpoints(clone)?.iter().map(|checkpoint| checkpoint.number) {
        let bytes = store.checkpoint_bytes_if_removed(clone, number)?;
        let (gives_back_bytes, needed) = match store.layers_on(clone, number)?.as_slice() {
            [] => (Some(bytes), false),
            [one] => (foldable(store, clone, number, *one).ok().map(|fold| fold.gives_back_bytes), false),
            _ => (None, true),
        };
        found.push(Held { number, bytes, gives_back_bytes, needed });
    }
    Ok(found)
}

fn cost(store: &Store, clone: &Name) -> Result<Cost> {
    let target = Target::Clone(clone.clone());
    let path = store.path(&target)?;
    let file = std::fs::metadata(&path)
        .map_err(|error| Error::io(format!("cannot ask for the length of {}", path.display()), error))?;
    Ok(Cost { host_bytes: store.usage(&target)?.own_bytes, file_bytes: file.len() })
}

impl Shrunk {
    fn of(store: &Store, clone: &Name) -> Result<Self> {
        Ok(Self {
            clone: clone.clone(),
            own_bytes: 0,
            needless: Needless::default(),
            gives_back_bytes: 0,
            recompress: None,
            before: cost(store, clone)?,
            after: None,
            left: Vec::new(),
            checkpoints: Vec::new(),
            bounded_by: None,
        })
    }

    /// Looks for what nobody needs, and for what can be compressed.
    fn look(&mut self, disk: &Disk, recompress: bool, progress: &dyn Progress) -> Result<()> {
        progress.total(disk.size());
        if !recompress {
            return self.search(disk, progress, &mut |_, _| Ok(()));
        }
        refuse_compat(disk)?;
        let (mut sample, cluster) = (Sample::new(), disk.cluster_size()?);
        self.search(disk, progress, &mut |range, found| sample.count(disk, range, &found, cluster))?;
        self.recompress = Some(sample.estimate(disk)?);
        Ok(())
    }

    /// Looks for what nobody needs, and gives it to `each` as it is found, with the range that was looked at.
    fn search(
        &mut self,
        disk: &Disk,
        progress: &dyn Progress,
        each: &mut dyn FnMut(Range<u64>, Found) -> Result<()>,
    ) -> Result<()> {
        let mut areas = survey(disk)?;
        let mut search = Search::new(disk, &mut areas)?;
        let mut at = 0;
        while let Some(found) = search.next()? {
            if progress.cancelled() {
                return Err(stopped());
            }
            self.own_bytes += found.own;
            self.needless += found.bytes;
            let ranges = found.drop.iter().chain(&found.zero).cloned();
            self.gives_back_bytes += disk.droppable(ranges)?;
            progress.advance(search.at - at);
            each(at..search.at, found)?;
            at = search.at;
        }
        progress.advance(search.at - at);
        let own = search.own;
        self.left = areas.iter().zip(own).filter_map(|(area, own)| left(area, own)).collect();
        Ok(())
    }
}

/// What is told of an area of which nobody knows what is free; nothing when the clone has nothing of its own in it.
fn left(area: &Area, own_bytes: u64) -> Option<Left> {
    match &area.free {
        Free::Left(reason) if own_bytes > 0 => {
            Some(Left { what: area.what.to_string(), reason: reason.clone(), own_bytes })
        }
        _ => None,
    }
}
