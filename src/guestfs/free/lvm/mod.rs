//! LVM2: a volume group on one physical volume, of linear and striped volumes only.
//!
//! Layout: what LVM2 2.03 was seen to write.

mod label;
mod text;
mod volume;

use super::source::Source;
use super::{Free, Survey, What, magic};
use crate::error::Result;
use crate::guestfs::Window;
use crate::guestfs::partitions::Bytes;
use crate::units::length;
use label::{Header, Place};
use std::collections::BTreeMap;
use std::ops::Range;
use text::{Node, Section, wrong};
use volume::{Piece, Volume};

/// A group, in bytes of its physical volume.
struct Group {
    name: String,
    /// Where its extents start and end.
    extents: Range<u64>,
    volumes: Vec<Logical>,
}

/// A logical volume.
struct Logical {
    name: String,
    /// Whether its pieces follow on each other.
    linear: bool,
    pieces: Vec<Piece>,
}

impl<B: Bytes + Sync> Survey<'_, B> {
    /// The areas of a physical volume, which is `range` of the disk.
    pub(super) fn physical_volume(
        &mut self,
        bytes: &Window<&Source<'_, B>>,
        range: &Range<u64>,
        place: String,
    ) -> Result<()> {
        let what = What::Content { kind: magic::LVM, place: place.clone() };
        let group = match self.source.judge(Group::read(bytes))? {
            Ok(group) => group,
            Err(reason) => {
                self.push(range, what, Free::Left(reason));
                return Ok(());
            }
        };
        // Each piece of a volume with what is free of it, in the order of the disk.
        let mut parts: Vec<(Range<u64>, What, Free)> = Vec::new();
        for logical in &group.volumes {
            let place = format!("{}/{} on {place}", group.name, logical.name);
            parts.extend(self.logical_volume(logical, range, &place)?);
        }
        parts.sort_by_key(|(range, ..)| range.start);
        let extents = group.extents.start + range.start..group.extents.end + range.start;
        let mut at = range.start;
        for (piece, what_of_it, free) in parts {
            self.outside_of_volumes(at..piece.start, &extents, &what);
            self.push(&piece, what_of_it, free);
            at = piece.end;
        }
        self.outside_of_volumes(at..range.end, &extents, &what);
        Ok(())
    }

    /// Extents that no volume has, with what is before and behind all extents.
    fn outside_of_volumes(&mut self, range: Range<u64>, extents: &Range<u64>, what: &What) {
        let free = range.start.max(extents.start)..range.end.min(extents.end);
        if !range.is_empty() {
            let free = if free.is_empty() { Vec::new() } else { vec![free] };
            self.push(&range, what.clone(), Free::Known(free));
        }
    }

    fn logical_volume(
        &mut self,
        logical: &Logical,
        range: &Range<u64>,
        place: &str,
    ) -> Result<Vec<(Range<u64>, What, Free)>> {
        let pieces: Vec<Piece> = logical.pieces.iter().map(|piece| piece.moved(range.start)).collect();
        let (kind, free) = if logical.linear {
            let volume = Volume::new(self.source, pieces.clone());
            let kinds = magic::kinds(&volume)?;
            self.content(&volume, &kinds, place)?
        } else {
            ("unknown content", Free::Left("the volume is striped".into()))
        };
        let what = || What::Content { kind, place: place.to_owned() };
        let parts = pieces.iter().map(|piece| {
            let free = match &free {
                Free::Known(ranges) => Free::Known(piece.on_disk(ranges)),
                Free::Left(reason) => Free::Left(reason.clone()),
            };
            (piece.physical..piece.physical + piece.len, what(), free)
        });
        Ok(parts.collect())
    }
}

impl Group {
    fn read(bytes: &impl Bytes) -> Result<Self> {
        let header = Header::read(bytes)?;
        let whole = text::parse(&header.text)?;
        let [(name, group)] = whole.own_sections()[..] else { return Err(wrong("it has several groups")) };
        if whole.text("contents")? != "Text Format Volume Group" || whole.number("version")? != 1 {
            return Err(wrong("its text is of an unknown kind"));
        }
        has_only(group, "status", &["RESIZEABLE", "READ", "WRITE"])?;
        has_only(group, "flags", &[])?;
        if group.text("format")? != "lvm2" {
            return Err(wrong("its format is not lvm2"));
        }
        let unit = group.number("extent_size")?.checked_mul(512).filter(|unit| *unit > 0);
        let unit = unit.ok_or_else(|| wrong("its extents have no size"))?;
        let [(volume, physical)] = group.sections("physical_volumes")?[..] else {
            return Err(wrong("its group has several physical volumes"));
        };
        let extents = physical_volume(physical, &header, unit, bytes.size())?;
        let is_among = |area: &Place| area.start < extents.end && area.start + area.len > extents.start;
        if header.areas.iter().any(is_among) {
            return Err(wrong("an area of metadata lies among its extents"));
        }
        let count = (extents.end - extents.start) / unit;
        let unit = Unit { size: unit, first: extents.start, count, volume };
        let mut volumes = Vec::new();
        for (name, section) in group.sections("logical_volumes")? {
            volumes.push(logical_volume(name, section, &unit)?);
        }
        are_apart(&volumes)?;
        Ok(Self { name: name.to_owned(), extents, volumes })
    }
}

/// The extents of the physical volume.
struct Unit<'a> {
    size: u64,
    first: u64,
    count: u64,
    /// The volume's name in lists of stripes.
    volume: &'a str,
}

/// Refuses a list that has another word than `known`.
fn has_only(section: &Section, name: &str, known: &[&str]) -> Result<()> {
    let strange = section.list(name)?.iter().find(|node| match node {
        Node::Text(word) => !known.contains(&word.as_str()),
        _ => true,
    });
    match strange {
        None => Ok(()),
        Some(node) => Err(wrong(format_args!("{name} has {node:?}"))),
    }
}

/// Where the extents of the physical volume lie in it.
fn physical_volume(section: &Section, header: &Header, unit: u64, size: u64) -> Result<Range<u64>> {
    has_only(section, "status", &["ALLOCATABLE"])?;
    has_only(section, "flags", &[])?;
    let start = section.number("pe_start")?.checked_mul(512);
    let len = section.number("pe_count")?.checked_mul(unit);
    let extents = start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?));
    let id: String = section.text("id")?.chars().filter(|letter| *letter != '-').collect();
    match extents {
        Some(extents) if extents.start == header.data && extents.end <= size && id == header.id => {
            Ok(extents)
        }
        _ => Err(wrong("its text is about another physical volume")),
    }
}

fn logical_volume(name: &str, section: &Section, unit: &Unit<'_>) -> Result<Logical> {
    const KNOWN: [&str; 12] = [
        "id",
        "status",
        "flags",
        "creation_time",
        "creation_host",
        "segment_count",
        "allocation_policy",
        "profile",
        "tags",
        "read_ahead",
        "major",
        "minor",
    ];
    let at = |error: crate::error::Error| error.at(format_args!("the volume {name:?}"));
    has_only(section, "status", &["READ", "WRITE", "VISIBLE", "FIXED_MINOR"]).map_err(at)?;
    has_only(section, "flags", &["ACTIVATION_SKIP"]).map_err(at)?;
    let segments: BTreeMap<&str, &Section> = section.own_sections().into_iter().collect();
    let strange = section.names().find(|name| !KNOWN.contains(name) && !name.starts_with("segment"));
    if let Some(strange) = strange {
        return Err(wrong(format_args!("the volume {name:?} has {strange}")));
    }
    if section.number("segment_count")? != length(segments.len()) || segments.is_empty() {
        return Err(wrong(format_args!("the volume {name:?} has another number of segments")));
    }
    let mut logical = Logical { name: name.to_owned(), linear: true, pieces: Vec::new() };
    let mut next = 0;
    for number in 1..=segments.len() {
        let wanted = format!("segment{number}");
        let segment = segments.get(wanted.as_str());
        let segment = segment.ok_or_else(|| wrong(format_args!("there is no {wanted}")))?;
        next = take_segment(segment, unit, next, &mut logical).map_err(at)?;
    }
    Ok(logical)
}

/// Adds the pieces of a segment that starts with extent `next` of its volume; the extent behind it.
fn take_segment(segment: &Section, unit: &Unit<'_>, next: u64, logical: &mut Logical) -> Result<u64> {
    const KNOWN: [&str; 7] =
        ["start_extent", "extent_count", "type", "stripe_count", "stripe_size", "stripes", "tags"];
    if let Some(strange) = segment.names().find(|name| !KNOWN.contains(name)) {
        return Err(wrong(format_args!("a segment has {strange}")));
    }
    let kind = segment.text("type")?;
    if !matches!(kind, "striped" | "linear") {
        return Err(wrong(format_args!("a segment is of the type {kind}")));
    }
    let (count, stripes) = (segment.number("extent_count")?, segment.number("stripe_count")?);
    let list = segment.list("stripes")?;
    let sound = segment.number("start_extent")? == next
        && (1..=unit.count).contains(&count)
        && stripes > 0
        && count.is_multiple_of(stripes)
        && stripes.checked_mul(2) == Some(length(list.len()));
    if !sound {
        return Err(wrong("a segment contradicts itself"));
    }
    logical.linear &= stripes == 1;
    let each = count / stripes;
    for (number, pair) in (0_u64..).zip(list.chunks_exact(2)) {
        let [Node::Text(volume), Node::Number(start)] = pair else {
            return Err(wrong("a stripe has no place"));
        };
        if volume != unit.volume || start.checked_add(each).is_none_or(|end| end > unit.count) {
            return Err(wrong("a stripe lies outside of its physical volume"));
        }
        logical.pieces.push(Piece {
            logical: (next + number * each) * unit.size,
            physical: unit.first + start * unit.size,
            len: each * unit.size,
        });
    }
    next.checked_add(count)
        .filter(|end| *end <= unit.count)
        .ok_or_else(|| wrong("a volume has too many extents"))
}

/// No extent belongs to two volumes.
fn are_apart(volumes: &[Logical]) -> Result<()> {
    let pieces = volumes.iter().flat_map(|volume| &volume.pieces);
    let mut places: Vec<_> = pieces.map(|piece| piece.physical..piece.physical + piece.len).collect();
    places.sort_by_key(|place| place.start);
    if places.windows(2).all(|pair| pair[0].end <= pair[1].start) {
        return Ok(());
    }
    Err(wrong("two volumes have the same extent"))
}
