//! The merge of a clone's disk: filesystem by filesystem by files, everything else as a whole.

use super::bases::{Both, Pair, named, volume};
use super::mounts::refuse_sleeping;
use super::parts::{self, Fat};
use super::{MergeSettings, Merged};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::Window;
use crate::guestfs::edit::Volume as _;
use crate::guestfs::partitions::partitions;
use crate::ops::Progress;
use crate::ops::merge::accounts::Database;
use crate::ops::merge::derived::Comeback;
use crate::ops::merge::later::Touched;
use crate::ops::merge::renumber::{AccountFiles, Ids, Moves};
use crate::ops::merge::rules::Rules;
use crate::ops::merge::tree::Tree;
use crate::ops::merge::volumes::{Place, Volume, Volumes};
use crate::ops::merge::{Part, Plan, Side, System, Three, apply};
use crate::ops::scan::{Against, difference_in};
use crate::ops::version::Delta;
use crate::units::{GuestOffset, length};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The three disks, and how many layers at the bottom are the same files: of old and new base, of old base and clone.
#[derive(Clone, Copy)]
pub(super) struct Disks<'a> {
    pub(super) three: Three<&'a Disk>,
    pub(super) shared: [usize; 2],
}

/// A filesystem that all three have.
struct Opened<'a> {
    place: Place,
    bases: &'a Both,
    clone: Volume<'a>,
    tree: Tree,
    /// What of it may be another than in the old base.
    touched: Touched,
    shared: [usize; 2],
}

/// A filesystem to be merged.
struct Filesystem<'a> {
    opened: Opened<'a>,
    plan: Plan,
    /// How the files come back that are left out here and on the system's other filesystems.
    comebacks: BTreeSet<Comeback>,
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
    let (mut found, mut rest, mut between, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (place, bases) in &pair.places {
        between.push(at..place.start.0);
        at = place.end().0;
        let clone = bases.as_ref().map(|_| volume(clone, place, "the clone")).transpose()?.flatten();
        match bases.as_ref().zip(clone) {
            Some((bases, clone)) => found.push(Opened::new(place, bases, clone, disks.shared)?),
            None => rest.push((place, pair.mounts.of(place))),
        }
    }
    between.push(at..disks.three.base.size());
    if found.is_empty() {
        return Err(Error::unsupported(
            "there is no ext2, ext3 or ext4 filesystem on its disk to merge; --strategy keep or replace does without",
        ));
    }
    let of = |side| -> Vec<_> { found.iter().map(|opened: &Opened<'_>| opened.of(side)).collect() };
    refuse_sleeping(&of(Side::Base), "the new base")?;
    refuse_sleeping(&of(Side::Clone), "the clone")?;
    let mut work = Work::new(disks);
    let mut hidden = None;
    for range in between.into_iter().filter(|range| !range.is_empty()) {
        work.take(parts::between(disks, range, progress)?);
    }
    for place in rest {
        let part = parts::place(disks, place, (&settings.rules, &label), progress)?;
        hidden = hidden.or(work.take(part));
    }
    let moves = moves(&found, &settings.rules, hidden.as_deref())?;
    let systems = match pair.mounts.one_system {
        true => vec![found],
        false => found.into_iter().map(|alone| vec![alone]).collect(),
    };
    for filesystems in systems {
        work.plan(filesystems, (&settings.rules, &label, &moves))?;
    }
    work.report.finish();
    Ok(work)
}

/// The numbers of the base's new accounts that become others. Only one filesystem says who has them, or nobody knows
/// whose accounts the files of a third one belong to.
fn moves(found: &[Opened<'_>], rules: &Rules, hidden: Option<&str>) -> Result<Moves> {
    let has = |tree: &Tree| tree.find(Database::Passwd.path()).is_some();
    let mut systems = found.iter().filter(|opened| has(opened.trees().base) || has(opened.trees().clone));
    let (Some(system), None) = (systems.next(), systems.next()) else { return Ok(Moves::default()) };
    let files = AccountFiles::read(system.trees(), &system.volumes())?;
    Ok(Moves::find(&files, rules, hidden, || {
        let mut ids = Three::<Ids>::default();
        for opened in found {
            let [old, base] = opened.bases.ids();
            ids.old.append(old);
            ids.base.append(base);
            ids.clone.add(&opened.tree);
        }
        ids
    }))
}

impl<'a> Opened<'a> {
    /// Reads the clone's tree; another filesystem than the bases' is refused.
    fn new(place: &Place, bases: &'a Both, clone: Volume<'a>, shared: [usize; 2]) -> Result<Self> {
        bases.refuse_other(place, &clone)?;
        let (tree, touched) = bases.tree_of(&clone, shared[1], place)?;
        Ok(Self { place: *place, bases, clone, tree, touched, shared })
    }

    fn volumes(&self) -> Volumes<'_> {
        let three = Three { old: &self.bases.old, base: &self.bases.new, clone: &self.clone };
        let touched = [&self.bases.touched, &self.touched];
        Volumes { three, shared: self.shared, touched, compared: &self.bases.compared }
    }

    fn of(&self, side: Side) -> (&Tree, &Volume<'_>) {
        match side {
            Side::Base => (&self.bases.trees[1], &self.bases.new),
            Side::Clone => (&self.tree, &self.clone),
        }
    }

    fn trees(&self) -> Three<&Tree> {
        let [old, base] = &self.bases.trees;
        Three { old, base, clone: &self.tree }
    }
}

impl<'a> Work<'a> {
    fn new(disks: Disks<'a>) -> Self {
        let (filesystems, fats, copied) = (Vec::new(), Vec::new(), Vec::new());
        Self { disks, filesystems, fats, copied, report: Merged::default() }
    }

    /// Plans the merge of the filesystems of one system.
    fn plan(
        &mut self,
        filesystems: Vec<Opened<'a>>,
        (rules, label, moves): (&Rules, &str, &Moves),
    ) -> Result<()> {
        let volumes: Vec<Volumes<'_>> = filesystems.iter().map(Opened::volumes).collect();
        let of_each = filesystems.iter().zip(&volumes);
        let parts: Vec<Part<'_>> =
            of_each.map(|(opened, volumes)| Part { trees: opened.trees(), contents: volumes }).collect();
        let system = System::of(&parts, rules, label, moves)?;
        let plans = parts.iter().zip(&filesystems);
        let plans: Vec<Plan> =
            plans.map(|(part, opened)| system.plan(*part, &opened.bases.pairs)).collect::<Result<_>>()?;
        plans.iter().chain([&system.findings()]).for_each(|plan| self.report.add(plan));
        let comebacks: BTreeSet<Comeback> = plans.iter().flat_map(Plan::comebacks).collect();
        for (opened, plan) in filesystems.into_iter().zip(plans) {
            self.filesystems.push(Filesystem { opened, plan, comebacks: comebacks.clone() });
        }
        Ok(())
    }

    /// Notes what becomes of a part; tells when there may be files in it that nobody sees.
    fn take(&mut self, part: parts::Part<'a>) -> Option<String> {
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
        for Filesystem { opened, plan, comebacks } in &self.filesystems {
            let window = Window::new(new, &opened.place)?;
            // The base may have been left without an unmount.
            let replayed = opened.bases.new.filesystem.bytes();
            for (block, data) in replayed.written() {
                window.write(data, GuestOffset(block.0 * length(data.len())))?;
            }
            apply((plan, comebacks), &opened.volumes(), opened.trees(), &window, (program, folder), progress)
                .map_err(|error| error.at(named(opened.place.number)))?;
        }
        for fat in &self.fats {
            fat.carry_out(new)?;
        }
        for range in &self.copied {
            let against = Against { disk: new, shared: 0, exact: false };
            difference_in(self.disks.three.clone, against, range.clone(), &Delta::new(new), progress)?;
        }
        Ok(())
    }
}
