//! The parts of a disk that have no filesystem of the ext family.

use super::bases::named;
use super::merge::Disks;
use super::mounts::sleeping;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::Window;
use crate::guestfs::swap::{HEADER, Swap};
use crate::ops::Progress;
use crate::ops::merge::rules::Rules;
use crate::ops::merge::volumes::Place;
use crate::ops::merge::{Plan, Side, Three, fat};
use crate::ops::scan::{Against, Count, difference_in};
use std::ops::Range;

/// A FAT filesystem that both sides changed.
#[derive(Debug)]
pub(super) struct Fat<'a> {
    place: Place,
    volumes: fat::Volumes<'a>,
    pub(super) plan: Plan,
}

/// What becomes of a part.
#[derive(Debug, Default)]
pub(super) struct Part<'a> {
    /// It is merged file by file.
    pub(super) fat: Option<Fat<'a>>,
    /// Where the clone's bytes are taken; all others are the new base's.
    pub(super) copied: Option<Range<u64>>,
    /// What was settled, in a sentence.
    pub(super) settled: Option<String>,
    /// The base changed it, and nobody can look at the files that may be in it.
    pub(super) hidden: Option<String>,
}

/// The sides that changed a part.
struct Changed {
    base: bool,
    clone: bool,
}

/// What becomes of the space of `range` between the partitions.
///
/// # Errors
/// `Unsupported` when both sides changed it; whatever reading gives.
pub(super) fn between(disks: Disks<'_>, range: Range<u64>, progress: &dyn Progress) -> Result<Part<'static>> {
    let changed = changed(disks, range.clone(), progress)?;
    whole(&changed, range, "the space between its partitions")
}

/// What becomes of a place that has no filesystem of the ext family in all three versions; `label` as for
/// [`crate::ops::merge::plan`]; `at` is where its guest mounts it, if that is known.
///
/// # Errors
/// `Unsupported` when both sides changed what cannot be merged, or a side hibernates; whatever reading gives.
pub(super) fn place<'a>(
    disks: Disks<'a>,
    (place, at): (&Place, Option<&[u8]>),
    (rules, label): (&Rules, &str),
    progress: &dyn Progress,
) -> Result<Part<'a>> {
    let swaps = swaps(disks.three, place)?;
    let range = place.start.0..place.end().0;
    let changed = changed(disks, range.clone(), progress)?;
    if let Three { old: Some(old), base: Some(base), clone: Some(clone) } = swaps {
        return Ok(swap(place, &Three { old, base, clone }, &changed));
    }
    if changed.base && changed.clone {
        let merged = Fat::plan(disks.three, (place, at), rules, label)
            .map_err(|error| error.at(format!("{}, which both sides changed", named(place.number))))?;
        if merged.is_some() {
            return Ok(Part { fat: merged, ..Part::default() });
        }
    }
    let mut part = whole(&changed, range, &named(place.number))?;
    let has_files = !place.kind.is_boot_code() && !fat::is_there(disks.three.base, place)?;
    if changed.base && has_files {
        part.hidden = Some(named(place.number));
    }
    Ok(part)
}

impl<'a> Fat<'a> {
    /// Plans the merge of a place that has a FAT filesystem in all three versions.
    fn plan(
        three: Three<&'a Disk>,
        (place, at): (&Place, Option<&[u8]>),
        rules: &Rules,
        label: &str,
    ) -> Result<Option<Self>> {
        let open =
            |disk: &'a Disk, name: &str| fat::Volume::open(disk, place).map_err(|error| error.at(name));
        let found = [
            open(three.old, "the old base")?,
            open(three.base, "the new base")?,
            open(three.clone, "the clone")?,
        ];
        let [Some(old), Some(base), Some(clone)] = found else { return Ok(None) };
        if old.serial() != base.serial() || old.serial() != clone.serial() {
            return Err(Error::unsupported("one side has another filesystem there (another serial number)"));
        }
        let volumes = Three { old, base, clone };
        let above = at.map_or_else(|| fat::mount_point(place), folders);
        let plan = fat::plan_fat(&volumes, &above, rules, label)?;
        Ok(Some(Self { place: *place, volumes, plan }))
    }

    /// Writes the merged filesystem into `new`, an empty layer over the new base.
    pub(super) fn carry_out(&self, new: &Disk) -> Result<()> {
        let window = Window::new(new, &self.place)?;
        fat::apply(&self.plan, &self.volumes, &window).map_err(|error| error.at(named(self.place.number)))
    }
}

/// The folders that a path leads through.
fn folders(path: &[u8]) -> Vec<String> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// The swap spaces of a place; one that a system sleeps in is refused, since it would wake up with another disk.
fn swaps(three: Three<&Disk>, place: &Place) -> Result<Three<Option<Swap>>> {
    let find = |disk: &Disk| Swap::find(&Window::new(disk, place)?);
    let found = Three { old: find(three.old)?, base: find(three.base)?, clone: find(three.clone)? };
    for (side, whose) in [(Side::Base, "the new base"), (Side::Clone, "the clone")] {
        if found.of(side).as_ref().is_some_and(|swap| swap.hibernated) {
            return Err(sleeping(&named(place.number), whose));
        }
    }
    Ok(found)
}

/// Swap is its header: nothing of what was swapped out is worth anything after a shutdown.
fn swap(place: &Place, swaps: &Three<Swap>, changed: &Changed) -> Part<'static> {
    let side = match swaps.clear().unwrap_or(Side::Clone) {
        Side::Clone if swaps.clone.fits(place.len) => Side::Clone,
        _ => Side::Base,
    };
    let start = place.start.0;
    let copied = side == Side::Clone && swaps.clone != swaps.base;
    let both = changed.base && changed.clone;
    let sentence = || {
        let what = named(place.number);
        format!(
            "{what} is swap: its UUID and label are the {}'s, and nothing else of it is worth keeping",
            side.word()
        )
    };
    Part {
        copied: copied.then(|| start..start + place.len.min(HEADER)),
        settled: both.then(sentence),
        ..Part::default()
    }
}

/// What is merged as a whole is the side's that changed it.
fn whole(changed: &Changed, range: Range<u64>, what: &str) -> Result<Part<'static>> {
    match changed {
        Changed { clone: false, .. } => Ok(Part::default()),
        Changed { base: false, .. } => Ok(Part { copied: Some(range), ..Part::default() }),
        _ => Err(Error::unsupported(format!(
            "{what} was changed by the clone and by the new base, and has no filesystem whose files can be merged"
        ))),
    }
}

fn changed(disks: Disks<'_>, range: Range<u64>, progress: &dyn Progress) -> Result<Changed> {
    let Three { old, base, clone } = disks.three;
    let differs = |disk: &Disk, shared: usize| {
        let found = Count::default();
        difference_in(disk, Against { disk: old, shared, exact: false }, range.clone(), &found, progress)?;
        Ok::<_, Error>(found.all() > 0)
    };
    Ok(Changed { base: differs(base, disks.shared[0])?, clone: differs(clone, disks.shared[1])? })
}
