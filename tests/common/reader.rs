//! A second reader of qcow2 images, written from the format alone: it shares no line with the engine.
//!
//! It counts every reference, holds the counts and the COPIED bits against them, and reads the whole disk and every
//! snapshot of it. It is made for small images, and for being used thousands of times a second.

use std::collections::{HashMap, HashSet};
use std::io::Read;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// The memory of a reader, used again for each image.
#[derive(Debug, Default)]
pub struct Reader {
    /// The disk's bytes, after [`Reader::examine`].
    pub contents: Vec<u8>,
    /// The bytes of all snapshots, one after the other.
    pub snapshots: Vec<u8>,
    /// Clusters that are counted more often than they are used.
    pub leaks: u64,
    /// The sectors of the file that a disk's bytes come from, when they are asked for.
    pub sources: Option<HashSet<u64>>,
    /// References found for each host cluster.
    references: Vec<u32>,
    /// Unpacked clusters by what they were packed to.
    unpacked: HashMap<Vec<u8>, Vec<u8>>,
}

/// What the header says.
#[derive(Clone, Copy, Debug)]
struct Format {
    bits: u32,
    size: u64,
    l1: (u64, u64),
    counts: (u64, u64),
    order: u32,
    snapshots: (u64, u64),
    extended: bool,
    zero_flag: bool,
    zstd: bool,
}

fn be32(file: &[u8], at: u64) -> u64 {
    be64(file, at) >> 32
}

fn be64(file: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).unwrap();
    if let Some(bytes) = file.get(at..at + 8) {
        return u64::from_be_bytes(bytes.try_into().unwrap());
    }
    let rest = file.get(at..).unwrap_or(&[]);
    let mut raw = [0; 8];
    raw[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(raw)
}

/// Where a structure lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Structure {
    Header,
    RefcountTable,
    RefcountBlock,
    L1,
    L2,
    Data,
}

/// The structure that each host cluster of an image belongs to; `Data` where none does.
pub fn structures(file: &[u8]) -> (u32, Vec<Structure>) {
    let format = Format::read(file).unwrap();
    let mut map = vec![Structure::Data; (file.len() >> format.bits) + 1];
    let mut set = |at: u64, bytes: u64, structure| {
        for cluster in at >> format.bits..=(at + bytes - 1) >> format.bits {
            map[cluster as usize] = structure;
        }
    };
    set(0, 1, Structure::Header);
    set(format.counts.0, format.counts.1 << format.bits, Structure::RefcountTable);
    for entry in 0..format.counts.1 << format.bits >> 3 {
        match be64(file, format.counts.0 + entry * 8) {
            0 => {}
            block => set(block, 1, Structure::RefcountBlock),
        }
    }
    set(format.l1.0, format.l1.1 * 8, Structure::L1);
    for entry in 0..format.l1.1 {
        match be64(file, format.l1.0 + entry * 8) & PLACE {
            0 => {}
            table => set(table, 1, Structure::L2),
        }
    }
    (format.bits, map)
}

/// The clusters that a refcount block counts as free, and the log2 of a cluster's bytes.
pub fn free_clusters(file: &[u8]) -> (u32, Vec<u64>) {
    let format = Format::read(file).unwrap();
    let per_block = (format.cluster() * 8) >> format.order;
    let covered = |cluster: &u64| be64(file, format.counts.0 + cluster / per_block * 8) != 0;
    let clusters = 0..(format.counts.1 << format.bits >> 3) * per_block;
    (
        format.bits,
        clusters.filter(covered).filter(|cluster| format.count(file, *cluster) == 0).take(100).collect(),
    )
}

impl Format {
    fn read(file: &[u8]) -> Result<Self, String> {
        if be32(file, 0) != 0x5146_49fb || !(2..=3).contains(&be32(file, 4)) {
            return Err("reader: no qcow2 header".into());
        }
        let v3 = be32(file, 4) == 3;
        let features = if v3 { be64(file, 72) } else { 0 };
        if features & !0b1_1000 != 0 {
            return Err(format!("reader: incompatible features {features:#x}"));
        }
        Ok(Self {
            bits: be32(file, 20) as u32,
            size: be64(file, 24),
            l1: (be64(file, 40), be32(file, 36)),
            counts: (be64(file, 48), be32(file, 56)),
            order: if v3 { be32(file, 96) as u32 } else { 4 },
            snapshots: (be64(file, 64), be32(file, 60)),
            extended: features & 1 << 4 != 0,
            zero_flag: v3,
            zstd: features & 1 << 3 != 0,
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.bits
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    fn count(&self, file: &[u8], cluster: u64) -> u64 {
        let per_block = (self.cluster() * 8) >> self.order;
        let (block, at) = (cluster / per_block, cluster % per_block);
        if block >= self.counts.1 << self.bits >> 3 {
            return 0;
        }
        match be64(file, self.counts.0 + block * 8) {
            0 => 0,
            place if self.order >= 3 => {
                let bits = 1 << self.order;
                be64(file, place + at * bits / 8) >> (64 - bits)
            }
            place => {
                let byte = be64(file, place + (at >> (3 - self.order))) >> 56;
                let shift = (at & ((8 >> self.order) - 1)) << self.order;
                byte >> shift & ((1 << (1 << self.order)) - 1)
            }
        }
    }

    /// Whether an entry's COPIED bit is what the count makes it.
    fn check_copied(&self, file: &[u8], word: u64, place: u64) -> Result<(), String> {
        if (self.count(file, place >> self.bits) == 1) == (word & COPIED != 0) {
            return Ok(());
        }
        Err(format!("reader: the entry {word:#x} has a COPIED bit against its cluster's count"))
    }
}

impl Reader {
    /// Checks the image in `file` and reads all of it, over `base`.
    ///
    /// # Errors
    /// A sentence about the first damage.
    pub fn examine(&mut self, file: &[u8], base: &[u8]) -> Result<(), String> {
        let format = Format::read(file)?;
        self.sources.iter_mut().for_each(HashSet::clear);
        self.references.clear();
        self.references.resize((file.len() >> format.bits) + 1, 0);
        self.structures(file, &format)?;
        let mut contents = std::mem::take(&mut self.contents);
        let result = self.disk(file, &format, base, &mut contents);
        self.contents = contents;
        result?;
        self.snapshots.clear();
        let mut at = format.snapshots.0;
        for _ in 0..format.snapshots.1 {
            let l1 = (be64(file, at), be32(file, at + 8));
            let mut bytes = Vec::new();
            self.disk(file, &Format { l1, ..format }, base, &mut bytes)?;
            self.snapshots.append(&mut bytes);
            let names = (be32(file, at + 12) >> 16) + (be32(file, at + 12) & 0xffff);
            at += (40 + be32(file, at + 36) + names).next_multiple_of(8);
        }
        if at > format.snapshots.0 {
            self.refer(file, &format, format.snapshots.0, at - format.snapshots.0)?;
        }
        self.compare(file, &format)
    }

    fn structures(&mut self, file: &[u8], format: &Format) -> Result<(), String> {
        self.refer(file, format, 0, 1)?;
        self.refer(file, format, format.counts.0, format.counts.1 << format.bits)?;
        for entry in 0..format.counts.1 << format.bits >> 3 {
            let block = be64(file, format.counts.0 + entry * 8);
            if block != 0 {
                self.refer(file, format, block, format.cluster())?;
            }
        }
        Ok(())
    }

    /// Counts the clusters of `bytes` bytes from `at` on.
    fn refer(&mut self, file: &[u8], format: &Format, at: u64, bytes: u64) -> Result<(), String> {
        if at >= file.len() as u64 {
            return Err(format!("reader: a reference to {at:#x}, past the end of the file"));
        }
        for cluster in at >> format.bits..=(at + bytes - 1) >> format.bits {
            let cluster = cluster as usize;
            if cluster >= self.references.len() {
                self.references.resize(cluster + 1, 0);
            }
            self.references[cluster] += 1;
        }
        Ok(())
    }

    /// Reads the disk that hangs on one L1 table.
    fn disk(
        &mut self,
        file: &[u8],
        format: &Format,
        base: &[u8],
        contents: &mut Vec<u8>,
    ) -> Result<(), String> {
        let size = usize::try_from(format.size).unwrap();
        contents.clear();
        contents.extend_from_slice(&base[..base.len().min(size)]);
        contents.resize(size, 0);
        // The COPIED bits of a snapshot's tables say nothing.
        let active = format.l1.0 == be64(file, 40);
        self.refer(file, format, format.l1.0, format.l1.1 * 8)?;
        let entries = format.cluster() / format.entry_bytes();
        for l1_index in 0..format.l1.1 {
            let word = be64(file, format.l1.0 + l1_index * 8);
            let table = word & PLACE;
            if word == 0 {
                continue;
            }
            self.refer(file, format, table, format.cluster())?;
            if active {
                format.check_copied(file, word, table)?;
            }
            let first = l1_index * entries;
            let last = entries.min((format.size.div_ceil(format.cluster())).saturating_sub(first));
            for entry in 0..last {
                let place = table + entry * format.entry_bytes();
                let entry = (be64(file, place), if format.extended { be64(file, place + 8) } else { 0 });
                if entry != (0, 0) {
                    let at = ((first + (place - table) / format.entry_bytes()) << format.bits) as usize;
                    let end = size.min(at + format.cluster() as usize);
                    self.cluster(file, format, entry, active, &mut contents[at..end])?;
                }
            }
        }
        Ok(())
    }

    fn cluster(
        &mut self,
        file: &[u8],
        format: &Format,
        (word, bitmap): (u64, u64),
        active: bool,
        out: &mut [u8],
    ) -> Result<(), String> {
        if word & COMPRESSED != 0 {
            return self.packed(file, format, word, out);
        }
        let host = word & PLACE;
        if !host.is_multiple_of(format.cluster()) || word & !(COPIED | PLACE | 1) != 0 {
            return Err(format!("reader: the L2 entry {word:#x} is no entry"));
        }
        if host != 0 {
            self.refer(file, format, host, format.cluster())?;
            if active {
                format.check_copied(file, word, host)?;
            }
        }
        let (data, zeros, unit) = if format.extended {
            (bitmap & 0xffff_ffff, bitmap >> 32, format.cluster() as usize / 32)
        } else if word & 1 != 0 && format.zero_flag {
            (0, 1, format.cluster() as usize)
        } else {
            (u64::from(host != 0), 0, format.cluster() as usize)
        };
        if data & zeros != 0 || data != 0 && host == 0 {
            return Err(format!("reader: the bitmap {bitmap:#x} of {word:#x} contradicts itself"));
        }
        for (number, part) in out.chunks_mut(unit).enumerate() {
            if data >> number & 1 == 1 {
                let from = file.len().min(host as usize + number * unit);
                let to = file.len().min(from + part.len());
                let (there, behind) = part.split_at_mut(to - from);
                there.copy_from_slice(&file[from..to]);
                if let Some(sources) = &mut self.sources {
                    sources.extend(from as u64 / 512..(to as u64).div_ceil(512));
                }
                behind.fill(0);
            } else if zeros >> number & 1 == 1 {
                part.fill(0);
            }
        }
        Ok(())
    }

    fn packed(&mut self, file: &[u8], format: &Format, word: u64, out: &mut [u8]) -> Result<(), String> {
        let place_bits = 70 - format.bits;
        let host = word & ((1 << place_bits) - 1);
        let sectors = ((word & (COMPRESSED - 1)) >> place_bits) + 1;
        let end = (host & !511) + sectors * 512;
        self.refer(file, format, host, end - host)?;
        let packed = &file[host as usize..file.len().min(end as usize)];
        if !self.unpacked.contains_key(packed) {
            let mut bytes = vec![0; format.cluster() as usize];
            let result = if format.zstd {
                zstd::stream::read::Decoder::new(packed).and_then(|mut frames| frames.read_exact(&mut bytes))
            } else {
                flate2::read::DeflateDecoder::new(packed).read_exact(&mut bytes)
            };
            result.map_err(|error| format!("reader: the compressed cluster at {host:#x}: {error}"))?;
            self.unpacked.insert(packed.to_vec(), bytes);
        }
        out.copy_from_slice(&self.unpacked[packed][..out.len()]);
        Ok(())
    }

    /// Every reference is counted, and what is counted too often is a leak.
    fn compare(&mut self, file: &[u8], format: &Format) -> Result<(), String> {
        for (cluster, found) in self.references.iter().enumerate().filter(|(_, found)| **found != 0) {
            let stored = format.count(file, cluster as u64);
            if stored < u64::from(*found) {
                return Err(format!("reader: cluster {cluster:#x} is used {found} times, counted {stored}"));
            }
        }
        self.leaks = 0;
        let in_word = 64 >> format.order;
        for block in 0..format.counts.1 << format.bits >> 3 {
            let place = be64(file, format.counts.0 + block * 8) as usize;
            let end = file.len().min(place + format.cluster() as usize);
            if place == 0 || place >= end {
                continue;
            }
            let words = file[place..end].chunks(8).enumerate().filter(|(_, bytes)| **bytes != [0; 8]);
            for (word, _) in words {
                let first = (block * format.cluster() / 8 + word as u64) * in_word;
                self.leaks +=
                    (first..first + in_word).filter(|at| self.leaks_at(file, format, *at)).count() as u64;
            }
        }
        Ok(())
    }

    fn leaks_at(&self, file: &[u8], format: &Format, cluster: u64) -> bool {
        let found = self.references.get(cluster as usize).copied().unwrap_or(0);
        format.count(file, cluster) > u64::from(found)
    }
}
