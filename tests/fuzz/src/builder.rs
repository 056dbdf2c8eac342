//! Makes a valid image from decisions, and knows what it reads as; then does the damage that is asked for.

use super::input::Input;
use std::io::Write;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// An image and what is known of it.
pub struct Built {
    pub bytes: Vec<u8>,
    /// The raw file below it, named `b.raw`.
    pub base: Option<Vec<u8>>,
    /// What the guest sees, as long as nothing is damaged.
    pub content: Vec<u8>,
    pub damaged: bool,
}

#[derive(Clone)]
struct Entry {
    word: u64,
    bitmap: u64,
    /// Host clusters that it uses.
    uses: std::ops::Range<u64>,
    content: Vec<u8>,
}

struct Table {
    cluster: u64,
    entries: Vec<Entry>,
}

struct Builder {
    cluster_bits: u32,
    extended: bool,
    version: u32,
    zstd: bool,
    order: u32,
    size: u64,
    /// Guest clusters that get an entry at all.
    mapped: u64,
    clusters: Vec<Vec<u8>>,
    tables: Vec<Table>,
    /// Room left in a cluster of compressed data: cluster and first free byte.
    pack: Option<(u64, usize)>,
    base: Option<Vec<u8>>,
}

fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

impl Builder {
    fn new(input: &mut Input<'_>) -> Self {
        let shape = input.byte();
        let extended = shape & 1 != 0;
        let cluster_bits =
            if extended { 14 + u32::from(shape >> 1) % 2 } else { 9 + u32::from(shape >> 1) % 5 };
        let version = if !extended && shape & 0x40 != 0 { 2 } else { 3 };
        let sectors = 1 + input.below(4 << (cluster_bits - 9));
        let size = sectors * 512 * if input.byte() == 7 { 0 } else { 1 };
        let base = (shape & 0x80 != 0).then(|| {
            let len = (size as usize * usize::from(input.byte()) / 128).next_multiple_of(512);
            (0..len).map(|at| (at / 512 * 7 + 1) as u8 | 1).collect()
        });
        Self {
            cluster_bits,
            extended,
            version,
            zstd: version == 3 && input.byte() & 1 != 0,
            order: if version == 2 { 4 } else { u32::from(input.byte()) % 7 },
            size,
            mapped: size.div_ceil(1 << cluster_bits),
            clusters: vec![Vec::new()],
            tables: Vec::new(),
            pack: None,
            base,
        }
    }

    fn cluster_size(&self) -> usize {
        1 << self.cluster_bits
    }

    fn entry_size(&self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    fn per_table(&self) -> u64 {
        (self.cluster_size() / self.entry_size()) as u64
    }

    fn add(&mut self, mut bytes: Vec<u8>) -> u64 {
        bytes.resize(self.cluster_size(), 0);
        self.clusters.push(bytes);
        self.clusters.len() as u64 - 1
    }

    /// What the base shows in guest cluster `number`.
    fn below(&self, number: u64) -> Vec<u8> {
        let size = self.cluster_size();
        let start = number as usize * size;
        let base = self.base.as_deref().unwrap_or(&[]);
        let there = base.get(start.min(base.len())..(start + size).min(base.len())).unwrap_or(&[]);
        let mut bytes = there.to_vec();
        bytes.resize(size, 0);
        bytes
    }

    fn entry(&mut self, input: &mut Input<'_>, number: u64) -> Entry {
        let (size, below) = (self.cluster_size(), self.below(number));
        let kind = input.byte();
        let fill = kind | 1;
        match kind % 5 {
            0 => Entry { word: 0, bitmap: 0, uses: 0..0, content: below },
            1 if self.version == 3 => {
                let bitmap = if self.extended { !0 << 32 } else { 0 };
                let word = u64::from(!self.extended);
                if kind & 0x40 == 0 {
                    return Entry { word, bitmap, uses: 0..0, content: vec![0; size] };
                }
                let host = self.add(vec![fill; size]);
                let word = word | host << self.cluster_bits;
                Entry { word, bitmap, uses: host..host + 1, content: vec![0; size] }
            }
            2 => self.packed(fill, size).unwrap_or(Entry { word: 0, bitmap: 0, uses: 0..0, content: below }),
            _ => {
                let data: Vec<u8> = (0..size).map(|at| fill ^ (at / 512) as u8).collect();
                let host = self.add(data.clone());
                let word = host << self.cluster_bits;
                if !self.extended {
                    return Entry { word, bitmap: 0, uses: host..host + 1, content: data };
                }
                let (allocated, zero) = (input.number(4), input.number(4));
                let mut content = below;
                for bit in 0..32 {
                    let part = bit * size / 32..(bit + 1) * size / 32;
                    if allocated >> bit & 1 != 0 {
                        content[part.clone()].copy_from_slice(&data[part]);
                    } else if zero >> bit & 1 != 0 {
                        content[part].fill(0);
                    }
                }
                Entry { word, bitmap: (zero & !allocated) << 32 | allocated, uses: host..host + 1, content }
            }
        }
    }

    /// A compressed cluster, packed behind the one before it; `None` when it does not get shorter.
    fn packed(&mut self, fill: u8, size: usize) -> Option<Entry> {
        let content: Vec<u8> = (0..size).map(|at| fill.wrapping_mul((at / 128) as u8)).collect();
        let stream = if self.zstd {
            zstd::bulk::compress(&content, 1).unwrap()
        } else {
            let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            deflate.write_all(&content).unwrap();
            deflate.finish().unwrap()
        };
        let room = self.pack.filter(|(_, at)| at + stream.len() <= size);
        if stream.len() >= size {
            return None;
        }
        let (cluster, at) = room.unwrap_or_else(|| (self.add(Vec::new()), 0));
        self.clusters[cluster as usize][at..at + stream.len()].copy_from_slice(&stream);
        self.pack = Some((cluster, at + stream.len()));
        let host = (cluster << self.cluster_bits) + at as u64;
        let sectors = (host + stream.len() as u64 - 1) / 512 - host / 512;
        let word = COMPRESSED | sectors << (62 - (self.cluster_bits - 8)) | host;
        let last = ((host / 512 + sectors) * 512) >> self.cluster_bits;
        Some(Entry { word, bitmap: 0, uses: cluster..last + 1, content })
    }

    /// An L1 table: its entries as numbers of tables. Some are those of `shared`.
    fn l1(&mut self, input: &mut Input<'_>, shared: Option<&[Option<usize>]>) -> Vec<Option<usize>> {
        let mut l1 = Vec::new();
        for number in 0..self.mapped.div_ceil(self.per_table()).max(1) {
            let choice = input.byte();
            if let Some(shared) = shared.filter(|_| choice & 1 != 0) {
                l1.push(shared[number as usize]);
            } else if choice % 8 == 6 {
                l1.push(None);
            } else {
                let first = number * self.per_table();
                let last = self.mapped.min(first + self.per_table());
                let entries = (first..last.max(first)).map(|cluster| self.entry(input, cluster)).collect();
                let cluster = self.add(Vec::new());
                self.tables.push(Table { cluster, entries });
                l1.push(Some(self.tables.len() - 1));
            }
        }
        l1
    }

    /// How often each cluster is used by these L1 tables and by itself.
    fn counts(&self, l1s: &[(u64, Vec<Option<usize>>)], own: &[u64]) -> Vec<u64> {
        let mut counts = vec![0; self.clusters.len()];
        own.iter().for_each(|cluster| counts[*cluster as usize] += 1);
        for (cluster, l1) in l1s {
            counts[*cluster as usize] += 1;
            for table in l1.iter().flatten().map(|table| &self.tables[*table]) {
                counts[table.cluster as usize] += 1;
                for used in table.entries.iter().flat_map(|entry| entry.uses.clone()) {
                    counts[used as usize] += 1;
                }
            }
        }
        counts
    }

    fn copied(counts: &[u64], cluster: u64) -> u64 {
        if counts[cluster as usize] == 1 { COPIED } else { 0 }
    }

    fn write_tables(&mut self, l1s: &[(u64, Vec<Option<usize>>)], counts: &[u64]) {
        for (cluster, l1) in l1s {
            for (number, table) in l1.iter().enumerate() {
                let Some(table) = table.map(|table| self.tables[table].cluster) else { continue };
                let word = table << self.cluster_bits | Self::copied(counts, table);
                put(&mut self.clusters[*cluster as usize], number * 8, 8, word);
            }
        }
        for table in &self.tables {
            let wide = if self.extended { 16 } else { 8 };
            let bytes = &mut self.clusters[table.cluster as usize];
            for (number, entry) in table.entries.iter().enumerate() {
                let plain = entry.word & COMPRESSED == 0 && !entry.uses.is_empty();
                let copied = if plain { Self::copied(counts, entry.uses.start) } else { 0 };
                put(bytes, number * wide, 8, entry.word | copied);
                if self.extended {
                    put(bytes, number * wide + 8, 8, entry.bitmap);
                }
            }
        }
    }

    /// Adds refcount structures for everything; the place of the table.
    fn count_all(&mut self, l1s: &[(u64, Vec<Option<usize>>)], mut own: Vec<u64>) -> (u64, Vec<u64>) {
        let table = self.add(Vec::new());
        own.push(table);
        let most = self.counts(l1s, &own).into_iter().max().unwrap_or(0);
        if self.order < 6 && most >= 1 << (1_u32 << self.order) {
            self.order = 4;
        }
        let per_block = (self.cluster_size() * 8) >> self.order;
        let mut blocks = Vec::new();
        while blocks.len() * per_block < self.clusters.len() {
            let block = self.add(Vec::new());
            own.push(block);
            blocks.push(block);
        }
        let counts = self.counts(l1s, &own);
        for (number, block) in blocks.iter().enumerate() {
            put(&mut self.clusters[table as usize], number * 8, 8, block << self.cluster_bits);
            let part = counts.iter().skip(number * per_block).take(per_block);
            let bytes = &mut self.clusters[*block as usize];
            for (at, count) in part.enumerate() {
                match self.order {
                    0..3 => bytes[at >> (3 - self.order)] |= (*count as u8) << ((at << self.order) & 7),
                    order => put(bytes, at << (order - 3), 1 << (order - 3), *count),
                }
            }
        }
        (table, counts)
    }

    fn header(&self, input: &mut Input<'_>, l1: (u64, usize), table: u64, snapshots: (u64, u64)) -> Vec<u8> {
        let mut bytes = vec![0; if self.version == 2 { 72 } else { 112 }];
        let mut field = |at: usize, width: usize, value: u64| put(&mut bytes, at, width, value);
        field(0, 4, 0x5146_49fb);
        field(4, 4, self.version.into());
        field(20, 4, self.cluster_bits.into());
        field(24, 8, self.size);
        field(36, 4, l1.1 as u64);
        field(40, 8, l1.0 << self.cluster_bits);
        field(48, 8, table << self.cluster_bits);
        field(56, 4, 1);
        field(60, 4, snapshots.1);
        field(64, 8, if snapshots.1 > 0 { snapshots.0 << self.cluster_bits } else { 0 });
        if self.version == 3 {
            field(72, 8, if self.zstd { 8 } else { 0 } | if self.extended { 16 } else { 0 });
            field(96, 4, self.order.into());
            field(100, 4, 112);
            field(104, 1, self.zstd.into());
        }
        if self.base.is_some() {
            extension(&mut bytes, 0xe279_2aca, b"raw");
        }
        for kind in 0..input.byte() % 4 {
            let len = usize::from(input.byte() % 24);
            extension(&mut bytes, 0x1234_0000 + u32::from(kind), &vec![kind; len]);
        }
        extension(&mut bytes, 0, b"");
        if self.base.is_some() {
            let at = bytes.len() as u64;
            put(&mut bytes, 8, 8, at);
            put(&mut bytes, 16, 4, 5);
            bytes.extend(b"b.raw");
        }
        bytes
    }

    fn snapshot_table(&mut self, input: &mut Input<'_>, l1s: &[(u64, Vec<Option<usize>>)]) -> u64 {
        let mut bytes = Vec::new();
        for (number, (cluster, l1)) in l1s.iter().enumerate() {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let at = bytes.len();
            bytes.resize(at + 56, 0);
            put(&mut bytes, at, 8, cluster << self.cluster_bits);
            put(&mut bytes, at + 8, 4, l1.len() as u64);
            put(&mut bytes, at + 12, 2, 1);
            put(&mut bytes, at + 14, 2, 2);
            put(&mut bytes, at + 16, 4, input.byte().into());
            put(&mut bytes, at + 36, 4, 16);
            put(&mut bytes, at + 48, 8, self.size);
            bytes.extend([b'1' + number as u8, b's', b'0' + number as u8]);
        }
        self.add(bytes)
    }

    fn build(mut self, input: &mut Input<'_>) -> Built {
        let count = input.byte() % 8;
        let count = if count > 3 { 0 } else { u64::from(count) };
        let active = self.l1(input, None);
        let place = self.add(Vec::new());
        let mut l1s = vec![(place, active.clone())];
        for _ in 0..count {
            let l1 = self.l1(input, Some(&active));
            let place = self.add(Vec::new());
            l1s.push((place, l1));
        }
        let mut own = vec![0];
        let mut snapshots = 0;
        if count > 0 {
            snapshots = self.snapshot_table(input, &l1s[1..]);
            own.push(snapshots);
        }
        let (table, counts) = self.count_all(&l1s, own);
        self.write_tables(&l1s, &counts);
        let header = self.header(input, (place, active.len()), table, (snapshots, count));
        self.clusters[0] = header;
        let size = self.cluster_size();
        self.clusters[0].resize(size, 0);
        let content = self.content(&active);
        Built { bytes: self.clusters.concat(), base: self.base, content, damaged: false }
    }

    fn content(&self, l1: &[Option<usize>]) -> Vec<u8> {
        let mut content = Vec::new();
        for number in 0..self.mapped {
            let table = l1[(number / self.per_table()) as usize].map(|table| &self.tables[table]);
            match table.map(|table| &table.entries[(number % self.per_table()) as usize]) {
                Some(entry) => content.extend(&entry.content),
                None => content.extend(self.below(number)),
            }
        }
        content.truncate(self.size as usize);
        content
    }
}

fn extension(bytes: &mut Vec<u8>, kind: u32, body: &[u8]) {
    bytes.extend(kind.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// Fields of the header: place and bytes.
const FIELDS: [(usize, usize); 17] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
];

fn get(bytes: &[u8], at: usize) -> u64 {
    let field = at.checked_add(8).and_then(|end| bytes.get(at..end));
    field.map_or(0, |field| u64::from_be_bytes(field.try_into().unwrap()))
}

/// Does one damage to the image.
fn damage(bytes: &mut Vec<u8>, input: &mut Input<'_>, cluster_bits: u32) {
    let size = 1_u64 << cluster_bits;
    let (l1, blocks) = (get(bytes, 40), get(bytes, 48));
    let l2 = get(bytes, l1 as usize) & 0x00ff_ffff_ffff_fe00;
    let kind = input.byte() % 9;
    let choice = input.below(size);
    let (at, width) = match kind {
        0 => FIELDS[choice as usize % FIELDS.len()],
        1 => (l1.saturating_add(choice % 4 * 8) as usize, 8),
        2 | 3 => (l2.saturating_add(choice * 8 % size) as usize, 8),
        4 => (blocks.saturating_add(choice % 2 * 8) as usize, 8),
        5 => (get(bytes, blocks as usize).saturating_add(choice) as usize, 1),
        6 => (get(bytes, 64).saturating_add(choice % 64) as usize, 4),
        7 => (72 + choice as usize % 120, 4),
        _ => {
            let len = bytes.len() as u64;
            bytes.truncate((len - choice % len.max(1)) as usize);
            return;
        }
    };
    let value = match input.byte() % 4 {
        // One bit of what is there, or its neighbour's value: the damages that look right.
        0 => get(bytes, at) >> (64 - width * 8) ^ 1 << (choice % (8 * width as u64)),
        1 => get(bytes, at.saturating_add(width)) >> (64 - width * 8),
        _ => input.striking(size),
    };
    if at.checked_add(width).is_some_and(|end| end <= bytes.len()) {
        put(bytes, at, width, value);
    }
}

/// The image that the decisions make.
pub fn build(input: &mut Input<'_>) -> Built {
    let builder = Builder::new(input);
    let bits = builder.cluster_bits;
    let damages = input.byte() % 8;
    let mut built = builder.build(input);
    for _ in 0..damages.saturating_sub(2) {
        let before = built.bytes.clone();
        damage(&mut built.bytes, input, bits);
        built.damaged |= built.bytes != before;
    }
    built
}
