//! The merge of a clone's disk: filesystem by filesystem by files, everything else as a whole.

use super::{MergeSettings, Merged};
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::guestfs::Window;
use crate::guestfs::edit::Volume as _;
use crate::guestfs::partitions::{Partition, partitions, places};
use crate::ops::Progress;
use crate::ops::merge::tree::Tree;
use crate::ops::merge::volumes::{Place, Volume, Volumes};
use crate::ops::merge::{Plan, Three, apply, plan_system};
use crate::ops::scan::{Against, Count, difference_in};
use crate::ops::version::Delta;
use crate::units::{GuestOffset, length};
use std::ops::Range;
use std::path::Path;

/// The three disks, and how many layers at the bottom are the same files: of old and new base, of old base and clone.
#[derive(Clone, Copy)]
pub(super) struct Disks<'a> {
    pub(super) three: Three<&'a Disk>,
    pub(super) shared: [usize; 2],
}

/// A filesystem to be merged.
struct Filesystem<'a> {
    place: Place,
    volumes: Volumes<'a>,
    trees: Three<Tree>,
    plan: Plan,
}

/// A merge that is planned.
pub(super) struct Work<'a> {
    disks: Disks<'a>,
    filesystems: Vec<Filesystem<'a>>,
    /// Parts of the disk that the clone changed and the new base did not, outside of the filesystems.
    copied: Vec<Range<u64>>,
    pub(super) report: Merged,
}

/// Plans the merge; nothing is written.
///
/// # Errors
/// `Unsupported` when the disks cannot be merged by files, with the reason; `Corrupt` for a damaged filesystem; whatever
/// reading gives.
pub(super) fn prepare<'a>(
    disks: Disks<'a>,
    settings: &MergeSettings,
    label: &str,
    progress: &dyn Progress,
) -> Result<Work<'a>> {
    let places = common_places(disks.three)?;
    let mut work = Work { disks, filesystems: Vec::new(), copied: Vec::new(), report: Merged::default() };
    let mut rest = Vec::new();
    let mut at = 0;
    for place in &places {
        rest.push((at..place.start.0, None));
        at = place.end().0;
        match open(disks, place)? {
            Some(volumes) => {
                let found = plan(*place, volumes, settings, label)?;
                work.report.add(&found.plan);
                work.filesystems.push(found);
            }
            None => rest.push((place.start.0..at, Some(place.number))),
        }
    }
    rest.push((at..disks.three.base.size(), None));
    if work.filesystems.is_empty() {
        return Err(Error::unsupported(
            "there is no ext2, ext3 or ext4 filesystem on its disk to merge; --strategy keep or replace does without",
        ));
    }
    for (range, number) in rest.into_iter().filter(|(range, _)| !range.is_empty()) {
        work.copied.extend(block_side(disks, range, number, progress)?);
    }
    Ok(work)
}

/// The places that filesystems may be in, in the order of the disk: they are the same on all three.
fn common_places(disks: Three<&Disk>) -> Result<Vec<Partition>> {
    let old = partitions(disks.old)?;
    let same = partitions(disks.base)? == old && partitions(disks.clone)? == old;
    if !same || disks.old.size() != disks.clone.size() {
        return Err(Error::unsupported(
            "its partitions, or the new base's, are not those that it was made with: files cannot be merged across \
             another layout",
        ));
    }
    let shorter = if disks.base.size() < disks.old.size() { disks.base } else { disks.old };
    let mut places = places(shorter)?;
    places.sort_by_key(|place| place.start.0);
    Ok(places)
}

/// The filesystem in a place, if all three versions have it.
fn open<'a>(disks: Disks<'a>, place: &Place) -> Result<Option<Volumes<'a>>> {
    let one = |disk: &'a Disk, name: &str| match Volume::open(disk, place) {
        Ok(volume) => Ok(Some(volume)),
        Err(error) if error.kind() == Kind::Invalid => Ok(None),
        Err(error) => Err(error.at(format!("{}, {name}", named(place.number)))),
    };
    let Three { old, base, clone } = disks.three;
    let found = [one(old, "the old base")?, one(base, "the new base")?, one(clone, "the clone")?];
    let [Some(old), Some(base), Some(clone)] = found else { return Ok(None) };
    let uuid = |volume: &Volume<'_>| volume.filesystem.superblock().uuid;
    if uuid(&old) != uuid(&base) || uuid(&old) != uuid(&clone) {
        return Err(Error::unsupported(format!(
            "{}: the new base has another filesystem there (another UUID), not a later state of the same one",
            named(place.number)
        )));
    }
    Ok(Some(Volumes { three: Three { old, base, clone }, shared: disks.shared }))
}

fn plan<'a>(
    place: Place,
    volumes: Volumes<'a>,
    settings: &MergeSettings,
    label: &str,
) -> Result<Filesystem<'a>> {
    let tree = |volume: &Volume<'_>, name: &str| {
        volume.tree().map_err(|error| error.at(format!("{}, {name}", named(place.number))))
    };
    let three = &volumes.three;
    let trees = Three {
        old: tree(&three.old, "the old base")?,
        base: tree(&three.base, "the new base")?,
        clone: tree(&three.clone, "the clone")?,
    };
    let plan = plan_system(trees.map(|tree| tree), &volumes, &settings.rules, label)?;
    Ok(Filesystem { place, volumes, trees, plan })
}

/// A part that is merged as a whole: where the clone's bytes are taken. What both sides changed is refused.
fn block_side(
    disks: Disks<'_>,
    range: Range<u64>,
    number: Option<u32>,
    progress: &dyn Progress,
) -> Result<Option<Range<u64>>> {
    let Three { old, base, clone } = disks.three;
    let differs = |disk: &Disk, shared: usize| {
        let found = Count::default();
        difference_in(disk, Against { disk: old, shared }, range.clone(), &found, progress)?;
        Ok::<_, Error>(found.all() > 0)
    };
    if !differs(clone, disks.shared[1])? {
        return Ok(None);
    }
    if !differs(base, disks.shared[0])? {
        return Ok(Some(range));
    }
    let what = number.map_or_else(|| "the space between its partitions".to_owned(), named);
    Err(Error::unsupported(format!(
        "{what} was changed by the clone and by the new base, and has no filesystem whose files can be merged"
    )))
}

fn named(partition: u32) -> String {
    if partition == 0 { "its disk".to_owned() } else { format!("partition {partition}") }
}

impl Work<'_> {
    /// Writes the merged disk; `new` is an empty layer over the new base.
    ///
    /// # Errors
    /// As [`apply`].
    pub(super) fn carry_out(
        &self,
        new: &Disk,
        (program, folder): (&Path, &Path),
        progress: &dyn Progress,
    ) -> Result<()> {
        for Filesystem { place, volumes, trees, plan } in &self.filesystems {
            let window = Window::new(new, place)?;
            // The base may have been left without an unmount.
            let replayed = volumes.three.base.filesystem.bytes();
            for (block, data) in replayed.written() {
                window.write(data, GuestOffset(block.0 * length(data.len())))?;
            }
            apply(plan, volumes, trees.map(|tree| tree), &window, (program, folder), progress)
                .map_err(|error| error.at(named(place.number)))?;
        }
        for range in &self.copied {
            let against = Against { disk: new, shared: 0 };
            difference_in(self.disks.three.clone, against, range.clone(), &Delta::new(new), progress)?;
        }
        Ok(())
    }
}
