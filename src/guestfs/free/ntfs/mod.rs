//! NTFS: clusters that `$Bitmap` calls free.
//!
//! There is no checksum, so the bitmap is not believed alone: no record of the master file table may have a cluster
//! that it calls free. What was mounted, is to be checked, or belongs to a Windows that sleeps, is left whole.
//!
//! Layout: the documentation of the Linux-NTFS project; what is refused follows what ntfs-3g refuses to mount.

mod boot;
mod log;
mod record;

use super::ranges::Ranges;
use super::{Found, left};
use crate::error::{Error, Result};
use crate::guestfs::bits::{clear_runs, next_bit};
use crate::guestfs::partitions::{Bytes, u16_at, u64_at};
use crate::units::{GuestOffset, MIB, index, length};
use boot::Boot;
use record::{ATTRIBUTE_LIST, Attribute, DATA, FILE_NAME, Piece, Record, Runs, VOLUME_INFORMATION};

/// Longest bitmap that is taken into memory: 4 TiB with clusters of 4 KiB.
const LONGEST_BITMAP: u64 = 128 * MIB;
/// How much of the table is read at once, in bytes.
const PIECE: u64 = 256 << 10;
/// The first record of the table that is not the filesystem's own.
const OWN: u64 = 16;
const ROOT: u64 = 5;

/// What is free of the filesystem in `bytes`.
pub(super) fn free(bytes: &impl Bytes, mut ranges: Ranges) -> Result<Found> {
    let volume = Volume::open(bytes)?;
    volume.check_state()?;
    let bitmap = volume.bitmap()?;
    if volume.is_asleep_or_damaged(&bitmap)? {
        return Ok(Found::Asleep);
    }
    let end = u32::try_from(volume.boot.clusters).map_err(|_| damaged("it has too many clusters"))?;
    for (first, end) in clear_runs(&bitmap, end) {
        ranges.add(u64::from(first) * volume.boot.cluster, u64::from(end) * volume.boot.cluster);
    }
    Ok(Found::Free(ranges.finish()))
}

/// A filesystem that breaks its format.
fn damaged(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("the NTFS filesystem is not what is known here: {what}; check it in its guest"))
}

struct Volume<'a, B> {
    bytes: &'a B,
    boot: Boot,
    /// The master file table.
    table: Stream,
}

/// Content that lies in clusters.
struct Stream {
    pieces: Vec<Piece>,
    /// Bytes that were written; what follows reads as zeros.
    written: u64,
}

impl Stream {
    /// The content of an attribute that lies in clusters, all in one record.
    fn of(attribute: Attribute<'_>, boot: &Boot) -> Result<Self> {
        let Some(runs) = attribute.runs(boot.clusters)? else {
            return Err(damaged("one of its own files has no clusters"));
        };
        let Runs { pieces, first, size, written } = runs;
        // A hole reads as zeros, and zeros call everything free.
        if !attribute.is_plain() || pieces.iter().any(|piece| piece.start.is_none()) {
            return Err(damaged("one of its own files has holes"));
        }
        let room = pieces.iter().map(|piece| piece.len).sum::<u64>();
        if first != 0
            || written > size
            || size > room.saturating_mul(boot.cluster)
            || size > boot.clusters * boot.cluster
        {
            return Err(damaged("one of its own files is longer than its clusters"));
        }
        Ok(Self { pieces, written })
    }
}

impl<'a, B: Bytes> Volume<'a, B> {
    fn open(bytes: &'a B) -> Result<Self> {
        let boot = Boot::read(bytes)?;
        let mut first = vec![0; index(boot.record)];
        bytes.read(&mut first, GuestOffset(boot.table * boot.cluster))?;
        let record = Record::parse(&first, 0)?.ok_or_else(|| damaged("its file table is not in use"))?;
        let table = Stream::of(record.only(DATA)?, &boot)?;
        if table.pieces.first().and_then(|piece| piece.start) != Some(boot.table)
            || table.written < OWN * boot.record
        {
            return Err(damaged("its file table is elsewhere"));
        }
        Ok(Self { bytes, boot, table })
    }

    /// Fills `buf` from byte `at` of `stream` on.
    fn read(&self, stream: &Stream, mut at: u64, mut buf: &mut [u8]) -> Result<()> {
        let cluster = self.boot.cluster;
        let first = stream.pieces.partition_point(|piece| piece.end() <= at / cluster);
        for piece in stream.pieces.get(first..).unwrap_or_default() {
            let skip = at - piece.virtual_start * cluster;
            let len = (piece.len * cluster - skip).min(length(buf.len()));
            let (part, rest) = buf.split_at_mut(index(len));
            match piece.start {
                Some(start) => self.bytes.read(part, GuestOffset(start * cluster + skip))?,
                None => part.fill(0),
            }
            (at, buf) = (at + len, rest);
            if buf.is_empty() {
                return Ok(());
            }
        }
        Err(damaged("one of its own files ends early"))
    }

    fn record(&self, number: u64) -> Result<Record> {
        let mut bytes = vec![0; index(self.boot.record)];
        self.read(&self.table, number * self.boot.record, &mut bytes)?;
        Record::parse(&bytes, number)?
            .ok_or_else(|| damaged(format_args!("file record {number} is not in use")))
    }

    /// That it was unmounted, and that nothing is to be checked or replayed.
    fn check_state(&self) -> Result<()> {
        const VOLUME: u64 = 3;
        let record = self.record(VOLUME)?;
        let information = record.only(VOLUME_INFORMATION)?.resident().filter(|value| value.len() >= 12);
        let information = information.ok_or_else(|| damaged("it does not say its version"))?;
        if !matches!(information[8..10], [3, 0 | 1] | [1, 2]) {
            return Err(damaged("its version is not known"));
        }
        if u16_at(information, 10) != 0 {
            return left("it was not unmounted, or is to be checked; start its guest and shut it down first");
        }
        self.check_log()
    }

    fn check_log(&self) -> Result<()> {
        const LOG: u64 = 2;
        let record = self.record(LOG)?;
        let stream = Stream::of(record.only(DATA)?, &self.boot)?;
        let mut pages = vec![0; log::PAGES];
        if stream.written < length(log::PAGES) {
            return Err(damaged("its log is too short"));
        }
        self.read(&stream, 0, &mut pages)?;
        log::check(&pages)
    }

    /// A bit for each cluster.
    fn bitmap(&self) -> Result<Vec<u8>> {
        const BITMAP: u64 = 6;
        let record = self.record(BITMAP)?;
        let stream = Stream::of(record.only(DATA)?, &self.boot)?;
        let len = self.boot.clusters.div_ceil(8);
        if len > LONGEST_BITMAP {
            return left("the filesystem has more than 2^30 clusters, which is not read here");
        }
        if stream.written < len {
            return Err(damaged("its bitmap is too short"));
        }
        let mut bitmap = vec![0; index(len)];
        self.read(&stream, 0, &mut bitmap)?;
        Ok(bitmap)
    }

    /// Whether Windows sleeps here. An error when the bitmap calls a cluster free that a file has.
    fn is_asleep_or_damaged(&self, bitmap: &[u8]) -> Result<bool> {
        if next_bit(bitmap, 0, 1, true).is_none() {
            return Err(damaged("it calls its boot sector free"));
        }
        let record = self.boot.record;
        let end = self.table.written / record * record;
        let (mut at, mut asleep, mut clusters, mut chunk) = (0, false, 0, Vec::new());
        while at < end {
            chunk.resize(index((end - at).min(PIECE)), 0);
            self.read(&self.table, at, &mut chunk)?;
            for bytes in chunk.chunks_exact(index(record)) {
                if let Some(found) = Record::parse(bytes, at / record)? {
                    clusters += self.check_record(&found, at / record, bitmap)?;
                    if clusters > self.boot.clusters {
                        return Err(damaged("two files have one cluster"));
                    }
                    asleep |= self.is_memory(&found)?;
                }
                at += record;
            }
        }
        Ok(asleep)
    }

    /// That no cluster of a record is free; how many it has.
    fn check_record(&self, record: &Record, number: u64, bitmap: &[u8]) -> Result<u64> {
        let mut clusters = 0;
        for attribute in record.attributes() {
            let Some(runs) = attribute?.runs(self.boot.clusters)? else { continue };
            for piece in &runs.pieces {
                let Some(start) = piece.start else { continue };
                let bit =
                    |number: u64| u32::try_from(number).map_err(|_| damaged("it has too many clusters"));
                if next_bit(bitmap, bit(start)?, bit(start + piece.len)?, false).is_some() {
                    return Err(damaged(format_args!("its bitmap calls free what file record {number} has")));
                }
                clusters += piece.len;
                if clusters > self.boot.clusters {
                    return Err(damaged(format_args!("file record {number} has a cluster twice")));
                }
            }
        }
        Ok(clusters)
    }

    /// Whether the file is the one to which Windows writes its memory, with something in it.
    fn is_memory(&self, record: &Record) -> Result<bool> {
        let (mut is_named, mut data, mut elsewhere) = (false, None, false);
        for attribute in record.attributes() {
            let attribute = attribute?;
            match attribute.kind() {
                FILE_NAME => is_named |= attribute.resident().is_some_and(is_hiberfil),
                DATA if attribute.is_nameless() => data = Some(attribute),
                ATTRIBUTE_LIST => elsewhere = true,
                _ => (),
            }
        }
        if !is_named {
            return Ok(false);
        }
        // What cannot be looked at may be a memory.
        let Some(data) = data.filter(|_| !elsewhere) else { return Ok(true) };
        let mut head = [0; 4096];
        let Ok(stream) = Stream::of(data, &self.boot) else { return Ok(true) };
        if stream.written < length(head.len()) {
            return Ok(true);
        }
        self.read(&stream, 0, &mut head)?;
        let is_awake = crate::zero::is_zero(&head) || head.starts_with(b"wake") || head.starts_with(b"WAKE");
        Ok(!is_awake)
    }
}

/// Whether a name is `hiberfil.sys` in the root folder.
fn is_hiberfil(value: &[u8]) -> bool {
    const NAME: &[u8] = b"hiberfil.sys";
    let parent = u64_at(value, 0) & 0xffff_ffff_ffff;
    let len = usize::from(value.get(64).copied().unwrap_or(0));
    let name = value.get(66..66 + len * 2).unwrap_or_default();
    let same = |(pair, letter): (&[u8], &u8)| pair[1] == 0 && pair[0].eq_ignore_ascii_case(letter);
    parent == ROOT && len == NAME.len() && name.chunks_exact(2).zip(NAME).all(same)
}
