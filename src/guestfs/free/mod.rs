//! Which bytes of a disk hold nothing that the guest needs.
//!
//! What is called free here is thrown away, so nothing is guessed: a structure that is not understood whole, that
//! contradicts itself, or that was not left in order, makes all of its area stay as it is, with the reason. What is
//! forgotten costs room only. `docs/shrink.md` has the rules for each kind.

mod ext;
mod fat;
mod lvm;
mod magic;
mod ntfs;
mod ranges;
mod source;
mod swap;
mod table;

pub(crate) use magic::{EXT, SWAP_SPACE, kinds};

use super::Window;
use super::partitions::Bytes;
use crate::error::{Error, Result};
use crate::units::GuestOffset;
use ranges::Ranges;
use source::Source;
use std::fmt;
use std::ops::Range;
use table::{Role, Slot};

/// One part of the disk, and what is known of its free space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its first byte.
    pub start: GuestOffset,
    /// Its length in bytes, at least 1.
    pub len: u64,
    /// What it is.
    pub what: What,
    /// What of it is free.
    pub free: Free,
}

/// What a part of a disk is. Its `Display` says it in words: "ext4 on partition 1".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A partition table, or one of its copies.
    Table,
    /// What no partition has.
    Gap(Gap),
    /// What lies in a partition, a volume of one, or the disk as a whole.
    Content {
        /// The name of its kind, such as "ext4".
        kind: &'static str,
        /// Where it lies, such as "partition 1".
        place: String,
    },
}

/// Where a part lies that no partition has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Before the first partition.
    Before,
    /// Between two partitions.
    Between,
    /// Behind the last partition.
    Behind,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("partition table"),
            Self::Gap(Gap::Before) => f.write_str("before the first partition"),
            Self::Gap(Gap::Between) => f.write_str("between partitions"),
            Self::Gap(Gap::Behind) => f.write_str("behind the last partition"),
            Self::Content { kind, place } => write!(f, "{kind} on {place}"),
        }
    }
}

/// What of an area is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Free {
    /// These ranges of the disk, in order and apart from each other; the rest is in use.
    ///
    /// All areas of a disk together have at most 4 Mi of them, in proportion to their lengths and at least 1024 each,
    /// which is 72 MiB of memory: when there are more, the shortest ones count as used.
    Known(Vec<Range<u64>>),
    /// Nobody knows: it is left whole, for this reason.
    Left(String),
}

impl Free {
    /// How many bytes are known to be free.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Known(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
            Self::Left(_) => 0,
        }
    }
}

/// What a reader found.
enum Found {
    /// Free ranges, counted from the first byte of what was read, in order and apart from each other.
    Free(Vec<Range<u64>>),
    /// The guest sleeps here: its memory was written to the disk.
    Asleep,
}

/// What a reader says that leaves everything as it is.
fn left<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::corrupt(reason))
}

/// The areas of `disk`, in order and without a gap: together they are the whole disk.
///
/// A guest whose memory is on the disk knows more of its filesystems than they do: then only what no partition has is
/// free.
///
/// # Errors
/// Only what reading the disk gives: what cannot be understood is an area that is [`Free::Left`].
pub fn survey<B: Bytes + Sync>(disk: &B) -> Result<Vec<Area>> {
    let source = Source::new(disk);
    let mut survey = Survey { source: &source, areas: Vec::new(), asleep: None };
    for slot in table::slots(&source)? {
        survey.slot(slot)?;
    }
    let Survey { mut areas, asleep, .. } = survey;
    if let Some(place) = asleep {
        for area in areas.iter_mut().filter(|area| matches!(area.what, What::Content { .. })) {
            area.free = Free::Left(format!(
                "the guest sleeps, with its memory on {place}; start it and shut it down first"
            ));
        }
    }
    Ok(areas)
}

/// The areas that are known so far.
struct Survey<'a, B> {
    source: &'a Source<'a, B>,
    areas: Vec<Area>,
    /// Where the memory of a sleeping guest is.
    asleep: Option<String>,
}

impl<B: Bytes + Sync> Survey<'_, B> {
    fn slot(&mut self, slot: Slot) -> Result<()> {
        let range = slot.range;
        match slot.role {
            Role::Table => self.push(&range, What::Table, Free::Known(Vec::new())),
            Role::Gap(gap, None) => self.push(&range.clone(), What::Gap(gap), Free::Known(vec![range])),
            Role::Gap(gap, Some(reason)) => self.push(&range, What::Gap(gap), Free::Left(reason)),
            Role::Place(number) => return self.place(&range, number),
            Role::Doubt(reason) => {
                let what = What::Content { kind: "unknown content", place: "the disk".into() };
                self.push(&range, what, Free::Left(reason));
            }
        }
        Ok(())
    }

    fn push(&mut self, range: &Range<u64>, what: What, free: Free) {
        let (start, len) = (GuestOffset(range.start), range.end - range.start);
        self.areas.push(Area { start, len, what, free });
    }

    /// A partition, or the whole disk as number 0.
    fn place(&mut self, range: &Range<u64>, number: u32) -> Result<()> {
        let place = if number == 0 { "the disk".to_owned() } else { format!("partition {number}") };
        let window = Window::at(self.source, GuestOffset(range.start), range.end - range.start)?;
        let kinds = magic::kinds(&window)?;
        if kinds[..] == [magic::LVM] {
            return self.physical_volume(&window, range, place);
        }
        let (kind, free) = self.content(&window, &kinds, &place)?;
        let free = match free {
            Free::Known(ranges) => Free::Known(moved(ranges, range.start)),
            Free::Left(reason) => Free::Left(reason),
        };
        self.push(range, What::Content { kind, place }, free);
        Ok(())
    }

    /// The kind of what lies in `bytes`, which has the marks of `kinds`, and what is free in it, counted from its start.
    fn content(
        &mut self,
        bytes: &impl Bytes,
        kinds: &[&'static str],
        place: &str,
    ) -> Result<(&'static str, Free)> {
        let [kind] = *kinds else {
            let reason = if kinds.is_empty() {
                "nothing on it is known here".to_owned()
            } else {
                format!("it has the marks of {}", kinds.join(" and of "))
            };
            return Ok(("unknown content", Free::Left(reason)));
        };
        let ranges = Ranges::of(bytes.size(), self.source.size());
        let found = match kind {
            magic::EXT => ext::free(bytes, ranges),
            magic::SWAP_SPACE => swap::free(bytes, ranges),
            magic::FAT => fat::free(bytes, ranges),
            magic::NTFS => ntfs::free(bytes, ranges),
            _ => left("its free space is not read here"),
        };
        let free = match self.source.judge(found)? {
            Ok(Found::Free(ranges)) => Free::Known(ranges),
            Ok(Found::Asleep) => {
                self.asleep = Some(place.to_owned());
                Free::Known(Vec::new())
            }
            Err(reason) => Free::Left(reason),
        };
        Ok((kind, free))
    }
}

/// `ranges`, counted from `start` before the place that they were counted from.
fn moved(mut ranges: Vec<Range<u64>>, start: u64) -> Vec<Range<u64>> {
    for range in &mut ranges {
        *range = range.start + start..range.end + start;
    }
    ranges
}
