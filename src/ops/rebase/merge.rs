//! The merge of a clone's disk: filesystem by filesystem by files, everything else as a whole.

use super::bases::{self, Both, Pair, named, volume};
use super::{MergeSettings, Merged};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::Window;
use crate::guestfs::edit::Volume as _;
use crate::guestfs::partitions::partitions;
use crate::ops::Progress;
use crate::ops::merge::tree::Tree;
use crate::ops::merge::volumes::{Place, Volume, Volumes};
use crate::ops::merge::{Plan, Three, apply, plan_system};
use crate::ops::scan::{Against, Count, difference_in};
use crate::ops::version::Delta;
use crate::units::{GuestOffset, length};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The three disks, and how many layers at the bottom are the same files: of old and new base, of old base and clone.
#[derive(Clone, Copy)]
pub(super) struct Disks<'a> {
    three: Three<&'a Disk>,
    shared: [usize; 2],
}

/// A filesystem to be merged.
struct Filesystem<'a> {
    place: Place,
    bases: &'a Both,
    clone: Volume<'a>,
    tree: Tree,
    shared: [usize; 2],
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

impl<'a> Disks<'a> {
    /// Those of a clone, whose layers have the files `files`.
    pub(super) fn of(pair: &'a Pair, clone: &'a Disk, files: &[PathBuf]) -> Self {
        let three = Three { old: &pair.old.disk, base: &pair.new.disk, clone };
        Self { three, shared: [pair.shared, pair.old.shared_with(files)] }
    }
}

/// Plans the merge; nothing is written.
///
/// # Errors
/// `Unsupported` when the disks cannot be merged by files, with the reason; `Corrupt` for a damaged filesystem; whatever
/// reading gives.
pub(super) fn prepare<'a>(
    pair: &'a Pair,
    (clone, files): (&'a Disk, &[PathBuf]),
    settings: &MergeSettings,
    progress: &dyn Progress,
) -> Result<Work<'a>> {
    let disks = Disks::of(pair, clone, files);
    pair.refuse_layout(&partitions(clone)?, clone.size())?;
    let label = pair.onto.to_string();
    let mut work = Work { disks, filesystems: Vec::new(), copied: Vec::new(), report: Merged::default() };
    let mut rest = Vec::new();
    let mut at = 0;
    for (place, bases) in &pair.places {
        rest.push((at..place.start.0, None));
        at = place.end().0;
        let clone = bases.as_ref().map(|_| volume(clone, place, "the clone")).transpose()?.flatten();
        match bases.as_ref().zip(clone) {
            Some((bases, clone)) => {
                let found = plan((place, bases, clone), disks.shared, settings, &label)?;
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

fn plan<'a>(
    (place, bases, clone): (&Place, &'a Both, Volume<'a>),
    shared: [usize; 2],
    settings: &MergeSettings,
    label: &str,
) -> Result<Filesystem<'a>> {
    bases.refuse_other(place, &clone)?;
    let tree = bases::tree(&clone, place, "the clone")?;
    let mut found = Filesystem { place: *place, bases, clone, tree, shared, plan: Plan::default() };
    let trees = (found.trees(), &found.bases.pairs);
    found.plan = plan_system(trees, &found.volumes(), &settings.rules, label)?;
    Ok(found)
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

impl Filesystem<'_> {
    fn volumes(&self) -> Volumes<'_> {
        let three = Three { old: &self.bases.old, base: &self.bases.new, clone: &self.clone };
        Volumes { three, shared: self.shared, compared: &self.bases.compared }
    }

    fn trees(&self) -> Three<&Tree> {
        let [old, base] = &self.bases.trees;
        Three { old, base, clone: &self.tree }
    }
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
        for filesystem in &self.filesystems {
            let window = Window::new(new, &filesystem.place)?;
            // The base may have been left without an unmount.
            let replayed = filesystem.bases.new.filesystem.bytes();
            for (block, data) in replayed.written() {
                window.write(data, GuestOffset(block.0 * length(data.len())))?;
            }
            let (plan, volumes, trees) = (&filesystem.plan, filesystem.volumes(), filesystem.trees());
            apply(plan, &volumes, trees, &window, (program, folder), progress)
                .map_err(|error| error.at(named(filesystem.place.number)))?;
        }
        for range in &self.copied {
            let against = Against { disk: new, shared: 0 };
            difference_in(self.disks.three.clone, against, range.clone(), &Delta::new(new), progress)?;
        }
        Ok(())
    }
}
