//! The merge of a clone's disk: filesystem by filesystem by files, everything else as a whole.

use super::parts::{self, Fat, Part};
use super::{MergeSettings, Merged};
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::guestfs::Window;
use crate::guestfs::edit::Volume as _;
use crate::guestfs::partitions::{Partition, partitions, places};
use crate::ops::Progress;
use crate::ops::merge::accounts::Database;
use crate::ops::merge::renumber::{AccountFiles, Ids, Moves};
use crate::ops::merge::rules::Rules;
use crate::ops::merge::tree::Tree;
use crate::ops::merge::volumes::{Place, Volume, Volumes};
use crate::ops::merge::{Plan, Three, apply, plan_system};
use crate::ops::scan::{Against, difference_in};
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

/// A filesystem that is not planned yet.
struct Opened<'a> {
    place: Place,
    volumes: Volumes<'a>,
    trees: Three<Tree>,
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
    fats: Vec<Fat<'a>>,
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
    let mut work = Work {
        disks,
        filesystems: Vec::new(),
        fats: Vec::new(),
        copied: Vec::new(),
        report: Merged::default(),
    };
    let (mut found, mut rest, mut between, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for place in &places {
        between.push(at..place.start.0);
        at = place.end().0;
        match open(disks, place)? {
            Some(volumes) => found.push(Opened::read(*place, volumes)?),
            None => rest.push(place),
        }
    }
    between.push(at..disks.three.base.size());
    if found.is_empty() {
        return Err(Error::unsupported(
            "there is no ext2, ext3 or ext4 filesystem on its disk to merge; --strategy keep or replace does without",
        ));
    }
    let mut hidden = None;
    for range in between.into_iter().filter(|range| !range.is_empty()) {
        work.take(parts::between(disks, range, progress)?);
    }
    for place in rest {
        let part = parts::place(disks, place, (&settings.rules, label), progress)?;
        hidden = hidden.or(work.take(part));
    }
    let moves = moves(&found, &settings.rules, hidden.as_deref())?;
    for Opened { place, volumes, trees } in found {
        let plan = plan_system(trees.map(|tree| tree), &volumes, &settings.rules, label, &moves)?;
        work.report.add(&plan);
        work.filesystems.push(Filesystem { place, volumes, trees, plan });
    }
    Ok(work)
}

/// The numbers of the base's new accounts that become others. Only one filesystem says who has them, or nobody knows
/// whose accounts the files of a third one belong to.
fn moves(found: &[Opened<'_>], rules: &Rules, hidden: Option<&str>) -> Result<Moves> {
    let has = |tree: &Tree| tree.find(Database::Passwd.path()).is_some();
    let mut systems = found.iter().filter(|opened| has(&opened.trees.base) || has(&opened.trees.clone));
    let (Some(system), None) = (systems.next(), systems.next()) else { return Ok(Moves::default()) };
    let files = AccountFiles::read(system.trees.map(|tree| tree), &system.volumes)?;
    Ok(Moves::find(&files, rules, hidden, || {
        let mut ids = Three::<Ids>::default();
        for opened in found {
            ids.old.add(&opened.trees.old);
            ids.base.add(&opened.trees.base);
            ids.clone.add(&opened.trees.clone);
        }
        ids
    }))
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

impl<'a> Opened<'a> {
    fn read(place: Place, volumes: Volumes<'a>) -> Result<Self> {
        let tree = |volume: &Volume<'_>, name: &str| {
            volume.tree().map_err(|error| error.at(format!("{}, {name}", named(place.number))))
        };
        let three = &volumes.three;
        let trees = Three {
            old: tree(&three.old, "the old base")?,
            base: tree(&three.base, "the new base")?,
            clone: tree(&three.clone, "the clone")?,
        };
        Ok(Self { place, volumes, trees })
    }
}

pub(super) fn named(partition: u32) -> String {
    if partition == 0 { "its disk".to_owned() } else { format!("partition {partition}") }
}

impl<'a> Work<'a> {
    /// Notes what becomes of a part; tells when there may be files in it that nobody sees.
    fn take(&mut self, part: Part<'a>) -> Option<String> {
        if let Some(fat) = part.fat {
            self.report.add(&fat.plan);
            self.fats.push(fat);
        }
        self.copied.extend(part.copied);
        self.report.settled.extend(part.settled);
        part.hidden
    }

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
        for fat in &self.fats {
            fat.carry_out(new)?;
        }
        for range in &self.copied {
            let against = Against { disk: new, shared: 0 };
            difference_in(self.disks.three.clone, against, range.clone(), &Delta::new(new), progress)?;
        }
        Ok(())
    }
}
