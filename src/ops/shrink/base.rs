//! What a base stores of blocks that nobody needs is left out of its next version.
//!
//! A version never changes: its digest says what is in it, to clones, to checkpoints and to people. So the version is left
//! alone, and the next one reads the same but for zeros where the guest's filesystems have nothing. That one stores only which
//! blocks are zeros now; the host's space comes back with the version before it, when `gc` finds that nobody needs that.

use super::needless::free_ranges;
use super::{Left, left};
use crate::disk::{Disk, Walk};
use crate::error::{Error, Kind, Result};
use crate::guestfs::free::{Area, survey};
use crate::ops::version::store_disk;
use crate::ops::{Progress, check_cancelled};
use crate::store::{Base, BaseId, BaseRef, Name, Store, Target};
use crate::units::{GuestOffset, KIB};
use serde::Serialize;
use std::ops::Range;

/// What hosts store a file in: less of it gives nothing back.
const BLOCK: u64 = 4 * KIB;

/// What came of a base, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShrunkBase {
    /// The version that is looked at: the newest.
    pub base: BaseId,
    /// Bytes of its content that its file and those below it store.
    pub stored_bytes: u64,
    /// What of them the guest's filesystems have free.
    pub free_bytes: u64,
    /// What of that lies in its own file: the host gets it back when this version goes.
    pub gives_back_bytes: u64,
    /// Clones that stand on it, or will from their next start on.
    pub clones: Vec<Name>,
    /// The version without them; none in a plan, and none when nothing is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<BaseId>,
    /// What the new version takes on the host until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs_bytes: Option<u64>,
    /// Parts of the disk that are left whole.
    pub left: Vec<Left>,
}

/// What [`shrink_base`] would do; nothing is changed.
///
/// # Errors
/// As [`shrink_base`].
pub fn plan_base(store: &Store, base: &BaseRef) -> Result<ShrunkBase> {
    look(store, &newest(store, base)?).map(|(report, _)| report)
}

/// Makes a next version of a base that reads as the newest one, but for zeros where the guest's filesystems have nothing;
/// none when nothing is stored there. To remove the new version is to undo it.
///
/// # Errors
/// `NotFound`, `Invalid` for a version that is not the newest, `Changed` (the base, or somebody added a version meanwhile),
/// `NoSpace`, `Interrupted`, the host's. Nothing is left behind then.
pub fn shrink_base(store: &Store, base: &BaseRef, progress: &dyn Progress) -> Result<ShrunkBase> {
    let base = newest(store, base)?;
    let (mut report, needless) = look(store, &base)?;
    if needless.is_empty() {
        return Ok(report);
    }
    let exact = BaseRef::exact(base.name.clone(), base.version);
    let layer = store.scratch(&Target::Base(exact.clone()))?;
    let (disk, at) = (&layer.disk.disk, |error: Error| error.at(place(&exact)));
    for range in needless {
        check_cancelled(progress)?;
        disk.write_zeroes(GuestOffset(range.start), range.end - range.start).map_err(at)?;
    }
    let new = store.next_version(&base)?;
    let stored = store_disk(disk, layer.disk.files(), &new, progress).map_err(at)?;
    let new = new.commit(stored, &format!("{exact} without what its filesystems have free"))?;
    let target = Target::Base(BaseRef::exact(new.name.clone(), new.version));
    report.costs_bytes = Some(store.usage(&target)?.own_bytes);
    report.new = Some(new.id());
    Ok(report)
}

fn place(base: &BaseRef) -> String {
    format!("base {base}")
}

/// The newest version of a base; what another one has free would come back as the newest, with old content.
fn newest(store: &Store, base: &BaseRef) -> Result<Base> {
    let newest = store.base(&BaseRef { name: base.name.clone(), version: None })?;
    match base.version {
        Some(version) if version != newest.version => Err(Error::new(
            Kind::Invalid,
            format!(
                "only the newest version of a base is shrunk, {}; `cowshed gc {}` removes older ones that nothing needs",
                newest.id(),
                newest.name
            ),
        )),
        _ => Ok(newest),
    }
}

/// Looks for what the guest has no use for, and is stored.
fn look(store: &Store, base: &Base) -> Result<(ShrunkBase, Vec<Range<u64>>)> {
    let exact = BaseRef::exact(base.name.clone(), base.version);
    let open = store.open_base(&exact)?;
    let at = |error: Error| error.at(place(&exact));
    let mut areas = survey(&open.disk).map_err(at)?;
    let free = free_ranges(&mut areas);
    let stored = Stored::of(&open.disk, &areas, &free).map_err(at)?;
    let report = ShrunkBase {
        base: base.id(),
        stored_bytes: stored.areas.iter().sum(),
        free_bytes: stored.needless.iter().map(|range| range.end - range.start).sum(),
        gives_back_bytes: stored.own,
        clones: store.clones_of(&exact)?,
        new: None,
        costs_bytes: None,
        left: areas.iter().zip(&stored.areas).filter_map(|(area, bytes)| left(area, *bytes)).collect(),
    };
    Ok((report, stored.needless))
}

/// What of a disk is stored.
#[derive(Debug, Default)]
struct Stored {
    /// Bytes by area.
    areas: Vec<u64>,
    /// Whole blocks of the host that are free, in order.
    needless: Vec<Range<u64>>,
    /// Bytes of them that lie in the file of the version itself.
    own: u64,
}

impl Stored {
    fn of(disk: &Disk, areas: &[Area], free: &[Range<u64>]) -> Result<Self> {
        let mut stored = Self::default();
        for area in areas {
            let mut bytes = 0;
            let mut walk = Walk::new(disk);
            each_stored(&mut walk, area.start.0..area.start.0 + area.len, |part, _| {
                bytes += part.end - part.start;
            })?;
            stored.areas.push(bytes);
        }
        let mut walk = Walk::new(disk);
        for range in free {
            let whole = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
            each_stored(&mut walk, whole, |part, depth| {
                if depth == 0 {
                    stored.own += part.end - part.start;
                }
                match stored.needless.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => stored.needless.push(part),
                }
            })?;
        }
        Ok(stored)
    }
}

/// Calls `each` for the parts of a range that are stored, with the number of the layer.
fn each_stored(
    walk: &mut Walk<'_>,
    range: Range<u64>,
    mut each: impl FnMut(Range<u64>, usize),
) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let extent = walk.extent(GuestOffset(at))?;
        let end = at + extent.len.clamp(1, range.end - at);
        if let Some(depth) = extent.depth.filter(|_| extent.data) {
            each(at..end, depth);
        }
        at = end;
    }
    Ok(())
}
