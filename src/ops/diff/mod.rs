//! Diff: what two disks of a store differ in, by files and by blocks.

mod blocks;
mod content;
mod files;
mod pair;
mod probe;

use super::Progress;
use super::merge::same::is_same;
use super::merge::volumes::Volume;
use super::scan::Against;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::guestfs::Window;
use crate::guestfs::partitions::{Partition, places};
use crate::store::{Access, BaseRef, OpenDisk, Store, Target};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

pub use blocks::BlockChange;
pub use content::{ContentDifference, FileSide};
pub use files::{Aspect, Change, Mark, kind_word};

/// Which disks to compare.
#[derive(Clone, Debug)]
pub struct DiffRequest {
    /// The disk that is looked at.
    pub new: Target,
    /// What it is compared with; the base that a clone stands on when it is not said.
    pub old: Option<Target>,
}

/// One thing of both disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Both<T> {
    /// Of the disk that is compared with.
    pub old: T,
    /// Of the disk that is looked at.
    pub new: T,
}

/// What two disks differ in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The disks' names.
    pub disks: Both<String>,
    /// Their sizes in bytes.
    pub sizes: Both<u64>,
    /// Whether they have other partitions; those with the same number are compared then.
    pub layout_differs: bool,
    /// What each partition differs in; the whole disk is partition 0 where there is no table.
    pub places: Vec<PlaceDifference>,
    /// Bytes that differ outside of the partitions, in blocks of 4 KiB; not counted when the partitions are others.
    pub outside_bytes: Option<u64>,
}

/// What one partition differs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlaceDifference {
    /// Its number.
    pub partition: u32,
    /// What is in it; nothing on a disk that does not have it.
    pub kinds: Both<Option<&'static str>>,
    /// Paths that differ, when files were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Change>>,
    /// Bytes that differ, in blocks of 4 KiB, when blocks were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differing_bytes: Option<u64>,
    /// Why the files of an ext filesystem were not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Two open disks.
pub(crate) struct Pair {
    disks: Both<OpenDisk>,
    names: Both<String>,
    /// Layers at the bottom of both that are the same files.
    shared: usize,
}

/// A partition of one disk or of both.
struct Place(Both<Option<Partition>>);

impl Place {
    fn number(&self) -> u32 {
        self.0.new.or(self.0.old).map_or(0, |place| place.number)
    }

    fn both(&self) -> Option<Both<Partition>> {
        Some(Both { old: self.0.old?, new: self.0.new? })
    }
}

/// A progress whose total grows with each part of the work.
struct Parts<'a> {
    progress: &'a dyn Progress,
    total: AtomicU64,
}

impl<'a> Parts<'a> {
    fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, total: AtomicU64::new(0) }
    }
}

impl Progress for Parts<'_> {
    fn total(&self, bytes: u64) {
        self.progress.total(self.total.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }

    fn cancelled(&self) -> bool {
        self.progress.cancelled()
    }
}

/// Compares two disks, file by file where both have an ext filesystem, else by blocks. Journals are replayed in memory.
///
/// # Errors
/// `NotFound`, `Busy` while somebody writes to a clone, `Invalid` when it is not said what a base is compared with,
/// `Interrupted`, the gate's, the host's. What is damaged inside of a disk is told in the result.
pub fn diff(store: &Store, request: &DiffRequest, progress: &dyn Progress) -> Result<Difference> {
    let pair = Pair::open(store, request)?;
    let progress = Parts::new(progress);
    let (old, new) = (&pair.disks.old.disk, &pair.disks.new.disk);
    let places = pair.places()?;
    let layout_differs = places.iter().any(|place| {
        let size = |place: &Partition| (place.number > 0).then_some((place.start, place.len));
        place.0.old.as_ref().map(size) != place.0.new.as_ref().map(size)
    });
    let outside_bytes = if layout_differs { None } else { Some(pair.outside(&places, &progress)?) };
    let places = places.iter().map(|place| pair.place(place, &progress)).collect::<Result<_>>()?;
    let sizes = Both { old: old.size(), new: new.size() };
    Ok(Difference { disks: pair.names, sizes, layout_differs, places, outside_bytes })
}

/// The runs of two disks that differ, in order, in blocks of 4 KiB.
///
/// # Errors
/// As [`diff`]; `Unsupported` when there are more than 33 million of them.
pub fn diff_blocks(
    store: &Store,
    request: &DiffRequest,
    progress: &dyn Progress,
) -> Result<(Both<String>, Vec<BlockChange>)> {
    let pair = Pair::open(store, request)?;
    let against = Against { disk: &pair.disks.old.disk, shared: pair.shared, exact: false };
    let list = blocks::list(&pair.disks.new.disk, against, progress)?;
    Ok((pair.names, list))
}

/// What differs in the one file at `path`, which may begin with the partition: `p1:/etc/fstab`.
///
/// # Errors
/// As [`diff`]; `NotFound` without such a file, `Invalid` for a folder, or when several filesystems have the path.
/// `Corrupt` and others when a filesystem cannot be read.
pub fn diff_content(
    store: &Store,
    request: &DiffRequest,
    path: &[u8],
    progress: &dyn Progress,
) -> Result<ContentDifference> {
    content::content(&Pair::open(store, request)?, path, &Parts::new(progress))
}

/// A path for people: as it is, or in quotes with escapes when it holds what could be mistaken, or what a terminal obeys.
#[must_use]
pub fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for letter in chunk.valid().chars() {
            let turns =
                matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            match letter {
                '\\' | '"' => text.extend(['\\', letter]),
                _ if letter.is_control() => text.extend(letter.escape_default()),
                _ if turns => text.extend(letter.escape_unicode()),
                _ => text.push(letter),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    let plain = text.as_bytes() == path && !text.contains(" -> ") && !text.ends_with([' ', ')']);
    if plain { text } else { format!("\"{text}\"") }
}

impl Pair {
    fn open(store: &Store, request: &DiffRequest) -> Result<Self> {
        let old = match (&request.old, &request.new) {
            (Some(old), _) => old.clone(),
            (None, Target::Clone(name)) => {
                let base = store.clone_named(name)?.base;
                Target::Base(BaseRef::exact(base.name, base.version))
            }
            (None, Target::Base(base)) => {
                return Err(Error::invalid(format!(
                    "say what base {base} is compared with: cowshed diff {base} DISK"
                )));
            }
        };
        let names = Both { old: old.to_string(), new: request.new.to_string() };
        let disks = Both {
            old: store.open_target(&old, Access::Read)?,
            new: store.open_target(&request.new, Access::Read)?,
        };
        let shared = disks.old.shared_with(disks.new.files());
        Ok(Self { disks, names, shared })
    }

    /// The places of both disks that have the same number.
    fn places(&self) -> Result<Vec<Place>> {
        let (old, new) = (by_number(&self.disks.old.disk)?, by_number(&self.disks.new.disk)?);
        let numbers: BTreeSet<u32> = old.keys().chain(new.keys()).copied().collect();
        let place = |number| Place(Both { old: old.get(&number).copied(), new: new.get(&number).copied() });
        Ok(numbers.into_iter().map(place).collect())
    }

    /// What differs between and around the partitions, which are the same ones.
    fn outside(&self, places: &[Place], progress: &dyn Progress) -> Result<u64> {
        let (old, new) = (&self.disks.old.disk, &self.disks.new.disk);
        let mut taken: Vec<Partition> = places.iter().filter_map(|place| place.0.new).collect();
        taken.sort_by_key(|place| place.start);
        if taken.iter().any(|place| place.number == 0) {
            return Ok(0);
        }
        let mut starts = vec![0];
        starts.extend(taken.iter().map(|place| place.end().0));
        let ends = taken.iter().map(|place| place.start.0).chain([old.size().max(new.size())]);
        let mut bytes = 0;
        for range in
            starts.into_iter().zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
        {
            bytes += blocks::count(
                new,
                Against { disk: old, shared: self.shared, exact: false },
                range,
                progress,
            )?;
        }
        Ok(bytes)
    }

    fn place(&self, place: &Place, progress: &dyn Progress) -> Result<PlaceDifference> {
        let kind = |disk: &OpenDisk, place: &Option<Partition>| {
            place.as_ref().map(|place| probe::kind(&Window::new(&disk.disk, place)?)).transpose()
        };
        let kinds =
            Both { old: kind(&self.disks.old, &place.0.old)?, new: kind(&self.disks.new, &place.0.new)? };
        let mut found = PlaceDifference {
            partition: place.number(),
            kinds,
            changes: None,
            differing_bytes: None,
            reason: None,
        };
        let Some(places) = place.both() else { return Ok(found) };
        match self.files(&places, progress) {
            Ok(changes) => found.changes = changes,
            // What is wrong inside of a disk is no reason to say nothing of the rest.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported | Kind::Busy) => {
                found.reason = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        if found.changes.is_none() {
            let (new, old) = ((&self.disks.new.disk, &places.new), (&self.disks.old.disk, &places.old));
            found.differing_bytes = Some(blocks::count_places(new, old, self.shared, progress)?);
        }
        Ok(found)
    }

    /// The filesystem in a place, when both disks have one that is read by files.
    fn volumes(&self, places: &Both<Partition>) -> Result<Option<Both<Volume<'_>>>> {
        fn open<'a>(disk: &'a OpenDisk, place: &Partition, name: &str) -> Result<Option<Volume<'a>>> {
            match Volume::open(&disk.disk, place) {
                Ok(volume) => Ok(Some(volume)),
                Err(error) if error.kind() == Kind::Invalid => Ok(None),
                Err(error) => Err(error.at(name)),
            }
        }
        let old = open(&self.disks.old, &places.old, &self.names.old)?;
        let new = open(&self.disks.new, &places.new, &self.names.new)?;
        Ok(old.zip(new).map(|(old, new)| Both { old, new }))
    }

    /// The paths that differ.
    fn files(&self, places: &Both<Partition>, progress: &dyn Progress) -> Result<Option<Vec<Change>>> {
        let Some(volumes) = self.volumes(places)? else { return Ok(None) };
        let old = volumes.old.tree().map_err(|error| error.at(&self.names.old))?;
        let new = volumes.new.tree_beside(Some(&old)).map_err(|error| error.at(&self.names.new))?;
        let same = |was: u32, is: u32| {
            let size = old.file(was).size;
            progress.total(size);
            let same = is_same((&volumes.old, was), (&volumes.new, is), self.shared, progress);
            progress.advance(size);
            same
        };
        files::changes(&old, &new, is_related(self, &volumes), &same).map(Some)
    }
}

/// Whether inode numbers mean the same in both: it is the same filesystem, in two states.
fn is_related(pair: &Pair, volumes: &Both<Volume<'_>>) -> bool {
    let uuid = |volume: &Volume<'_>| volume.filesystem.superblock().uuid;
    pair.shared > 0 && uuid(&volumes.old) == uuid(&volumes.new)
}

fn by_number(disk: &Disk) -> Result<BTreeMap<u32, Partition>> {
    Ok(places(disk)?.into_iter().map(|place| (place.number, place)).collect())
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_path_is_shown_as_it_is_or_in_quotes() {
        assert_eq!(shown("/etc/zwölf b".as_bytes()), "/etc/zwölf b");
        assert_eq!(shown(b"/a\n\x1b[31m\xff\\"), "\"/a\\n\\u{1b}[31m\\xff\\\\\"");
        assert_eq!(shown(b"/a -> b"), "\"/a -> b\"");
        assert_eq!(shown("/a\u{202e}b".as_bytes()), "\"/a\\u{202e}b\"");
    }
}
