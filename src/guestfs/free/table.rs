//! How a disk is divided: its tables, its partitions, and what is between them.

use super::source::Source;
use super::{Gap, magic};
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, Partition, PartitionKind};
use crate::guestfs::{gpt, mbr};
use crate::units::{GuestOffset, MIB, SECTOR, index};
use std::ops::Range;

/// More partitions than this are left whole.
const MOST: usize = 256;
/// Shorter gaps are not worth a risk.
const SHORTEST_GAP: u64 = MIB;
/// Partitions of a Windows dynamic disk: a volume may go on in another one.
const DYNAMIC_MBR: u8 = 0x42;
const DYNAMIC_GPT: [[u8; 16]; 2] = [
    // AF9B60A0-1431-4F62-BC68-3311714A69AD, the data
    [0xa0, 0x60, 0x9b, 0xaf, 0x31, 0x14, 0x62, 0x4f, 0xbc, 0x68, 0x33, 0x11, 0x71, 0x4a, 0x69, 0xad],
    // 5808C8AA-7E8F-42E0-85D2-E1E90434CFB3, the database
    [0xaa, 0xc8, 0x08, 0x58, 0x8f, 0x7e, 0xe0, 0x42, 0x85, 0xd2, 0xe1, 0xe9, 0x04, 0x34, 0xcf, 0xb3],
];

/// A part of the disk.
pub(super) struct Slot {
    /// At least one byte.
    pub(super) range: Range<u64>,
    pub(super) role: Role,
}

/// What a part is.
pub(super) enum Role {
    Table,
    /// Free, unless there is a reason against it.
    Gap(Gap, Option<String>),
    /// A partition, by its number, or the whole disk as 0.
    Place(u32),
    /// The whole disk, which is left as it is for this reason.
    Doubt(String),
}

/// What the tables of a disk say.
struct Layout {
    partitions: Vec<Partition>,
    /// The tables themselves.
    tables: Vec<Range<u64>>,
    /// Gaps inside of these bytes may be free.
    usable: Range<u64>,
    /// Why no gap is.
    keep: Option<&'static str>,
}

/// The parts of a disk, in order: all of it.
pub(super) fn slots<B: Bytes>(disk: &Source<'_, B>) -> Result<Vec<Slot>> {
    let whole = 0..disk.size();
    if whole.is_empty() {
        return Ok(Vec::new());
    }
    let role = match layout(disk)? {
        Found::Nothing => Role::Place(0),
        Found::Doubt(reason) => Role::Doubt(reason),
        Found::Layout(layout) => match doubt(disk, &layout)? {
            None => return Ok(divided(&whole, layout)),
            Some(reason) => Role::Doubt(reason),
        },
    };
    Ok(vec![Slot { range: whole, role }])
}

enum Found {
    /// No table.
    Nothing,
    Doubt(String),
    Layout(Layout),
}

fn layout(disk: &dyn Bytes) -> Result<Found> {
    if disk.size() < SECTOR {
        return Ok(Found::Doubt("it is shorter than a sector".into()));
    }
    let mut sector = [0; index(SECTOR)];
    disk.read(&mut sector, GuestOffset(0))?;
    let Some(table) = mbr::Table::parse(&sector) else { return Ok(Found::Nothing) };
    if table.is_empty() {
        return Ok(Found::Nothing);
    }
    let found = if table.is_protective() { by_gpt(disk, &table)? } else { by_mbr(disk, &table)? };
    let doubt =
        || Found::Doubt("its partition table contradicts itself or its copy, or reaches past the end".into());
    Ok(found.map_or_else(doubt, Found::Layout))
}

fn by_gpt(disk: &dyn Bytes, table: &mbr::Table) -> Result<Option<Layout>> {
    let Some(found) = gpt::strict(disk)? else { return Ok(None) };
    let keep = (!table.is_plainly_protective()).then_some("the boot record has partitions of its own");
    let tables = found.tables.to_vec();
    Ok(Some(Layout { partitions: found.partitions, tables, usable: found.usable, keep }))
}

fn by_mbr(disk: &dyn Bytes, table: &mbr::Table) -> Result<Option<Layout>> {
    let Some(found) = mbr::strict(disk, table)? else { return Ok(None) };
    let keep = Some("boot loaders keep code outside of the partitions of such a disk");
    Ok(Some(Layout {
        partitions: found.partitions,
        tables: std::iter::once(0..SECTOR).collect(),
        usable: 0..0,
        keep,
    }))
}

/// Why nothing of the disk can be told.
fn doubt(disk: &impl Bytes, layout: &Layout) -> Result<Option<String>> {
    if layout.partitions.len() > MOST {
        return Ok(Some(format!("it has more than {MOST} partitions")));
    }
    let is_dynamic = |partition: &Partition| match partition.kind {
        PartitionKind::Mbr(kind) => kind == DYNAMIC_MBR,
        PartitionKind::Gpt(kind) => DYNAMIC_GPT.contains(&kind),
    };
    if layout.partitions.iter().any(is_dynamic) {
        return Ok(Some("it is a Windows dynamic disk".into()));
    }
    let mut kinds = magic::kinds(disk)?;
    kinds.retain(|kind| *kind != magic::PARTITION_TABLE);
    Ok((!kinds.is_empty()).then(|| {
        format!("it has a partition table and, as a whole, the marks of {}", kinds.join(" and of "))
    }))
}

/// The parts of a disk whose tables leave no doubt.
fn divided(whole: &Range<u64>, layout: Layout) -> Vec<Slot> {
    let Layout { partitions, tables, usable, keep } = layout;
    let first = partitions.iter().map(|partition| partition.start.0).min().unwrap_or(whole.end);
    let last = partitions.iter().map(|partition| partition.end().0).max().unwrap_or(whole.end);
    let gap = |range: Range<u64>| {
        let gap = match range.start {
            start if start >= last => Gap::Behind,
            start if start < first => Gap::Before,
            _ => Gap::Between,
        };
        let reason = match (keep, gap) {
            (Some(reason), _) => Some(reason),
            (None, Gap::Before) => Some("boot loaders keep code there"),
            (None, _) if range.end - range.start < SHORTEST_GAP => Some("it is shorter than 1 MiB"),
            (None, _) if range.start < usable.start || range.end > usable.end => {
                Some("it is not the table's to give")
            }
            (None, _) => None,
        };
        Slot { range, role: Role::Gap(gap, reason.map(str::to_owned)) }
    };
    let mut taken: Vec<Slot> = tables.into_iter().map(|range| Slot { range, role: Role::Table }).collect();
    taken.extend(partitions.iter().map(|partition| Slot {
        range: partition.start.0..partition.end().0,
        role: Role::Place(partition.number),
    }));
    taken.sort_by_key(|slot| slot.range.start);
    let mut slots = Vec::new();
    let mut at = whole.start;
    for slot in taken {
        // The tables are apart from each other and from all partitions.
        let end = slot.range.end;
        if at < slot.range.start {
            split(at..slot.range.start, &usable).for_each(|range| slots.push(gap(range)));
        }
        slots.push(slot);
        at = end;
    }
    if at < whole.end {
        split(at..whole.end, &usable).for_each(|range| slots.push(gap(range)));
    }
    slots
}

/// `range` in pieces that are wholly inside of `usable` or wholly outside.
fn split(range: Range<u64>, usable: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let cut = |at: u64| at.clamp(range.start, range.end);
    let (one, two) = (cut(usable.start), cut(usable.end));
    [range.start..one, one..two.max(one), two.max(one)..range.end]
        .into_iter()
        .filter(|range| !range.is_empty())
}
