//! Which bytes of a clone's own layer nobody needs.

use crate::disk::{Disk, Layer};
use crate::error::{Error, Result};
use crate::guestfs::free::{Area, Free};
use crate::qcow2::{Header, Source};
use crate::units::{GuestOffset, KIB, MIB, SECTOR, index, length};
use crate::zero::is_zero;
use rayon::prelude::*;
use serde::Serialize;
use std::ops::{AddAssign, Range};

/// What one thread reads at a time: with what is below it stays in the processor's cache until it was compared.
const PIECE: u64 = 256 * KIB;
/// What is looked at before something of it is dropped.
const WINDOW: u64 = 64 * MIB;

/// Bytes of a clone's own layer, by why nobody needs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Needless {
    /// The guest's filesystem has no use for them.
    pub free: u64,
    /// They are what is read without them.
    pub equal: u64,
    /// They are zeros, which need no bytes.
    pub zero: u64,
}

impl AddAssign for Needless {
    fn add_assign(&mut self, other: Self) {
        self.free += other.free;
        self.equal += other.equal;
        self.zero += other.zero;
    }
}

/// Why nobody needs a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Free,
    Equal,
    Zero,
}

/// Units that nobody needs.
type Judged = Vec<(Range<u64>, Why)>;

/// A part of the clone's own layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Own {
    range: Range<u64>,
    /// It is dropped in whole multiples of this.
    unit: u64,
}

/// What was found in one window.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Ranges that can show what is below.
    pub(super) drop: Vec<Range<u64>>,
    /// Ranges that can be told of as zeros.
    pub(super) zero: Vec<Range<u64>>,
    /// Their bytes, by reason.
    pub(super) bytes: Needless,
    /// Bytes of the own layer that were looked at.
    pub(super) own: u64,
}

/// A walk over a clone's own layer.
#[derive(Debug)]
pub(super) struct Search<'a> {
    disk: &'a Disk,
    header: &'a Header,
    areas: &'a [Area],
    /// What is free in all areas, in order and apart from each other.
    free: Vec<Range<u64>>,
    /// Bytes of the own layer in each area so far.
    pub(super) own: Vec<u64>,
    /// What is before this was looked at.
    pub(super) at: u64,
}

impl<'a> Search<'a> {
    /// `areas` cover the disk, in order; their free ranges are taken out of them.
    pub(super) fn new(disk: &'a Disk, areas: &'a mut [Area]) -> Result<Self> {
        let Some(Layer::Qcow2(image)) = disk.layers().first() else {
            return Err(Error::invalid("the disk has no layer of its own"));
        };
        let free = free_ranges(areas);
        Ok(Self { disk, header: image.header(), areas, free, own: vec![0; areas.len()], at: 0 })
    }

    /// What nobody needs of the next bytes of the own layer; `None` after the last ones.
    pub(super) fn next(&mut self) -> Result<Option<Found>> {
        let window = self.window()?;
        if window.is_empty() {
            return Ok(None);
        }
        let judged: Vec<Result<Judged>> =
            window.par_iter().map_init(Buffers::default, |buffers, own| self.judge(own, buffers)).collect();
        let mut found = Found { own: window.iter().map(|own| span(&own.range)).sum(), ..Found::default() };
        for judged in judged {
            judged?.into_iter().for_each(|(range, why)| found.add(range, why));
        }
        Ok(Some(found))
    }

    /// The next parts of the own layer that hold bytes.
    fn window(&mut self) -> Result<Vec<Own>> {
        let (mut parts, mut bytes) = (Vec::new(), 0);
        while self.at < self.disk.size() && bytes < WINDOW {
            let extent = self.disk.own_extent(GuestOffset(self.at))?;
            let unit = match extent.source {
                Source::Data(_) => self.header.geometry.subcluster_size(),
                Source::Compressed => self.header.geometry.cluster_size(),
                Source::Below | Source::Zero { .. } => {
                    self.at = self.at.saturating_add(extent.len);
                    continue;
                }
            };
            let end = (self.at + extent.len).min(self.disk.size());
            // A part begins where a unit does, and is not cut within one.
            let start = self.at / unit * unit;
            let end = end.min((start + PIECE.max(unit)) / unit * unit);
            self.count(self.at..end);
            bytes += end - self.at;
            parts.push(Own { range: self.at..end, unit });
            self.at = end;
        }
        Ok(parts)
    }

    /// Adds bytes of the own layer to the areas that they lie in.
    fn count(&mut self, range: Range<u64>) {
        let first = self.areas.partition_point(|area| area.start.0 + area.len <= range.start);
        for (area, own) in self.areas.iter().zip(&mut self.own).skip(first) {
            if area.start.0 >= range.end {
                break;
            }
            *own += range.end.min(area.start.0 + area.len) - range.start.max(area.start.0);
        }
    }

    fn judge(&self, own: &Own, buffers: &mut Buffers) -> Result<Judged> {
        let mut judged = Judged::new();
        // Units of which something has to be read, as one run.
        let mut unread: Option<Range<u64>> = None;
        let mut at = own.range.start;
        while at < own.range.end {
            let unit = at..(at / own.unit * own.unit + own.unit).min(own.range.end);
            at = unit.end;
            if self.is_free(&unit) {
                self.read_and_judge(unread.take(), own.unit, buffers, &mut judged)?;
                judged.push((unit, Why::Free));
            } else {
                unread.get_or_insert(unit.clone()).end = unit.end;
            }
        }
        self.read_and_judge(unread, own.unit, buffers, &mut judged)?;
        Ok(judged)
    }

    fn read_and_judge(
        &self,
        run: Option<Range<u64>>,
        unit: u64,
        buffers: &mut Buffers,
        judged: &mut Judged,
    ) -> Result<()> {
        let Some(run) = run else { return Ok(()) };
        let Buffers { own, below } = buffers;
        for buffer in [&mut *own, &mut *below] {
            buffer.resize(index(span(&run)), 0);
        }
        self.disk.read(own, GuestOffset(run.start))?;
        self.disk.read_below(below, GuestOffset(run.start))?;
        let mut at = run.start;
        while at < run.end {
            let end = (at / unit * unit + unit).min(run.end);
            let bytes = index(at - run.start)..index(end - run.start);
            let why = self.why(at, &own[bytes.clone()], &below[bytes]);
            judged.extend(why.map(|why| (at..end, why)));
            at = end;
        }
        Ok(())
    }

    /// Why nobody needs the unit at `start`: sector by sector where a part of it is free.
    fn why(&self, start: u64, own: &[u8], below: &[u8]) -> Option<Why> {
        if own == below {
            return Some(Why::Equal);
        }
        // Version 2 cannot tell of zeros.
        let can_tell = self.header.version >= 3;
        if can_tell && is_zero(own) {
            return Some(Why::Zero);
        }
        let sector = index(SECTOR);
        let (mut equal, mut zero, mut at) = (true, can_tell, start);
        for (own, below) in own.chunks(sector).zip(below.chunks(sector)) {
            let here = at..at + length(own.len());
            at = here.end;
            if !self.is_free(&here) {
                equal &= own == below;
                zero &= is_zero(own);
            }
            if !equal && !zero {
                return None;
            }
        }
        Some(if equal { Why::Equal } else { Why::Zero })
    }

    /// Whether the guest has no use for any byte of a range.
    fn is_free(&self, range: &Range<u64>) -> bool {
        let place = self.free.partition_point(|free| free.end <= range.start);
        self.free.get(place).is_some_and(|free| free.start <= range.start && range.end <= free.end)
    }
}

/// What is free in all areas, in order and apart from each other; it is taken out of them.
pub(super) fn free_ranges(areas: &mut [Area]) -> Vec<Range<u64>> {
    let mut free: Vec<Range<u64>> = Vec::new();
    for area in areas {
        let Free::Known(ranges) = &mut area.free else { continue };
        for range in std::mem::take(ranges) {
            match free.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => free.push(range),
            }
        }
    }
    free
}

/// What a thread reads into.
#[derive(Default)]
struct Buffers {
    own: Vec<u8>,
    below: Vec<u8>,
}

impl Found {
    fn add(&mut self, range: Range<u64>, why: Why) {
        let bytes = span(&range);
        let ranges = match why {
            Why::Free | Why::Equal => &mut self.drop,
            Why::Zero => &mut self.zero,
        };
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
        match why {
            Why::Free => self.bytes.free += bytes,
            Why::Equal => self.bytes.equal += bytes,
            Why::Zero => self.bytes.zero += bytes,
        }
    }
}

fn span(range: &Range<u64>) -> u64 {
    range.end - range.start
}
