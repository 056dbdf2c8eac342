//! Small good images, where their structures are, and the list of damages done to them.

use std::path::Path;

/// The bit of L1 and L2 entries that says: referenced once.
pub const COPIED: u64 = 1 << 63;
/// The bit of an L2 entry that says: compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// The bits of an entry that hold an offset.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// The recipe of each good image; all are over `b.raw` but the v2 one.
pub const IMAGES: [(&str, &[&str]); 4] = [
    (
        "plain",
        &[
            "raw b.raw 262144",
            "fill b.raw 0 200000 1",
            "img create -q -f qcow2 -o cluster_size=4k,backing_file=b.raw,backing_fmt=raw t.qcow2 4M",
            "io t.qcow2 write -P 1 0 20k; write -P 2 40k 3k; write -z 60k 8k; write -c -P 3 80k 4k; write -c -P 4 84k 4k; write -P 5 2M 12k",
            "img snapshot -q -c one t.qcow2",
            "io t.qcow2 write -P 6 0 8k; write -P 7 100k 4k",
        ],
    ),
    (
        "extended",
        &[
            "raw b.raw 262144",
            "fill b.raw 0 200000 1",
            "img create -q -f qcow2 -o extended_l2=on,cluster_size=16k,backing_file=b.raw,backing_fmt=raw t.qcow2 1M",
            "io t.qcow2 write -P 1 0 20k; write -P 2 40k 3k; write -z 60k 8k; write -c -P 3 80k 16k; write -P 5 512k 33k",
        ],
    ),
    (
        "v2",
        &[
            "img create -q -f qcow2 -o compat=0.10,cluster_size=4k t.qcow2 4M",
            "io t.qcow2 write -P 1 0 20k; write -c -P 3 80k 4k; write -P 5 2M 12k",
        ],
    ),
    (
        "zstd",
        &[
            "img create -q -f qcow2 -o cluster_size=4k,compression_type=zstd t.qcow2 256k",
            "io t.qcow2 write -c -P 3 0 4k; write -c -P 4 4k 4k; write -P 5 16k 12k",
        ],
    ),
];

/// One damage.
pub struct Damage {
    /// Structure, field and what is wrong with it.
    pub name: &'static str,
    /// Which of [`IMAGES`] it is done to.
    pub image: &'static str,
    /// Does it.
    pub patch: fn(&mut Vec<u8>, &Layout),
}

/// Places of structures in a good image, in bytes of the file.
#[derive(Clone, Debug)]
pub struct Layout {
    pub cluster: usize,
    pub l1: usize,
    pub l1_entries: usize,
    pub refcount_table: usize,
    pub refcount_block: usize,
    pub snapshots: usize,
    /// The table of the first L1 entry.
    pub l2: usize,
    /// Bytes of one L2 entry.
    pub entry: usize,
    /// The first header extension.
    pub extensions: usize,
    /// Bytes of the file.
    pub len: usize,
}

pub fn get(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

impl Layout {
    /// Finds the structures of a good image.
    pub fn of(bytes: &[u8]) -> Self {
        let version = get(bytes, 4, 4);
        let l1 = get(bytes, 40, 8) as usize;
        let refcount_table = get(bytes, 48, 8) as usize;
        let extended = version == 3 && get(bytes, 72, 8) & 16 != 0;
        Self {
            cluster: 1 << get(bytes, 20, 4),
            l1,
            l1_entries: get(bytes, 36, 4) as usize,
            refcount_table,
            refcount_block: get(bytes, refcount_table, 8) as usize,
            snapshots: get(bytes, 64, 8) as usize,
            l2: (get(bytes, l1, 8) & OFFSET) as usize,
            entry: if extended { 16 } else { 8 },
            extensions: if version == 3 { get(bytes, 100, 4) as usize } else { 72 },
            len: bytes.len(),
        }
    }

    /// Place of the L2 entry of guest cluster `number`, which the first table maps.
    pub fn entry(&self, number: usize) -> usize {
        self.l2 + number * self.entry
    }

    /// Place of the 16-bit refcount of the host cluster at `offset`.
    pub fn refcount(&self, offset: usize) -> usize {
        self.refcount_block + offset / self.cluster * 2
    }

    /// The first byte past the last whole cluster of the file, and three clusters more.
    pub fn beyond(&self) -> u64 {
        ((self.len / self.cluster + 4) * self.cluster) as u64
    }
}

/// Makes the good image `name` in `folder`, as `t.qcow2`.
pub fn make(folder: &Path, name: &str) {
    let (_, steps) = IMAGES.iter().find(|(image, _)| *image == name).unwrap();
    steps.iter().for_each(|step| super::qemu::step(folder, step));
}

macro_rules! damages {
    ($($name:literal, $image:literal, |$file:ident, $at:pat_param| $patch:expr;)*) => {
        vec![$(Damage { name: $name, image: $image, patch: |$file: &mut Vec<u8>, $at: &Layout| { $patch; } }),*]
    };
}

fn header() -> Vec<Damage> {
    damages! {
        "header: magic", "plain", |f, _| put(f, 0, 4, 0x5146_4900);
        "header: version 0", "plain", |f, _| put(f, 4, 4, 0);
        "header: version 1", "plain", |f, _| put(f, 4, 4, 1);
        "header: version 4", "plain", |f, _| put(f, 4, 4, 4);
        "header: backing offset past the file", "plain", |f, l| put(f, 8, 8, l.beyond());
        "header: backing offset outside of the first cluster", "plain", |f, _| put(f, 8, 8, 4096);
        "header: backing offset of 2^63", "plain", |f, _| put(f, 8, 8, 1 << 63);
        "header: backing name of 1024 bytes", "plain", |f, _| put(f, 16, 4, 1024);
        "header: backing name of 4 GiB", "plain", |f, _| put(f, 16, 4, 0xffff_ffff);
        "header: cluster bits 0", "plain", |f, _| put(f, 20, 4, 0);
        "header: cluster bits 8", "plain", |f, _| put(f, 20, 4, 8);
        "header: cluster bits 22", "plain", |f, _| put(f, 20, 4, 22);
        "header: cluster bits 4 billion", "plain", |f, _| put(f, 20, 4, 0xffff_ffff);
        "header: size larger than L1 covers", "plain", |f, _| put(f, 24, 8, 1 << 40);
        "header: size of 2^63", "plain", |f, _| put(f, 24, 8, 1 << 63);
        "header: size of 2^64 - 512", "plain", |f, _| put(f, 24, 8, u64::MAX - 511);
        "header: AES encryption", "v2", |f, _| put(f, 32, 4, 1);
        "header: unknown encryption", "plain", |f, _| put(f, 32, 4, 9);
        "header: L1 size 0", "plain", |f, _| put(f, 36, 4, 0);
        "header: L1 size 1, too small", "plain", |f, _| put(f, 36, 4, 1);
        "header: L1 size 4 billion", "plain", |f, _| put(f, 36, 4, 0xffff_ffff);
        "header: L1 of 32 MiB, past the file", "plain", |f, _| put(f, 36, 4, 4 << 20);
        "header: L1 offset unaligned", "plain", |f, l| put(f, 40, 8, l.l1 as u64 + 512);
        "header: L1 offset past the file", "plain", |f, l| put(f, 40, 8, l.beyond());
        "header: L1 offset of 2^63", "plain", |f, _| put(f, 40, 8, 1 << 63);
        "header: L1 over the header", "plain", |f, _| put(f, 40, 8, 0);
        "header: L1 over the refcount table", "plain", |f, l| put(f, 40, 8, l.refcount_table as u64);
        "header: refcount table unaligned", "plain", |f, l| put(f, 48, 8, l.refcount_table as u64 + 8);
        "header: refcount table past the file", "plain", |f, l| put(f, 48, 8, l.beyond());
        "header: refcount table over the header", "plain", |f, _| put(f, 48, 8, 0);
        "header: refcount table over L1", "plain", |f, l| put(f, 48, 8, l.l1 as u64);
        "header: refcount table of 0 clusters", "plain", |f, _| put(f, 56, 4, 0);
        "header: refcount table of 4 billion clusters", "plain", |f, _| put(f, 56, 4, 0xffff_ffff);
        "header: one snapshot too many", "plain", |f, _| put(f, 60, 4, 2);
        "header: 70000 snapshots", "plain", |f, _| put(f, 60, 4, 70_000);
        "header: 4 billion snapshots", "plain", |f, _| put(f, 60, 4, 0xffff_ffff);
        "header: snapshot table unaligned", "plain", |f, l| put(f, 64, 8, l.snapshots as u64 + 8);
        "header: snapshot table past the file", "plain", |f, l| put(f, 64, 8, l.beyond());
        "header: snapshot table over the header", "plain", |f, _| put(f, 64, 8, 0);
        "header: no snapshots, and their table behind all", "plain", |f, _| {
            put(f, 60, 4, 0);
            put(f, 64, 8, 1 << 63);
        };
        "header: unknown incompatible bit 5", "plain", |f, _| put(f, 72, 8, 1 << 5);
        "header: unknown incompatible bit 63", "plain", |f, _| put(f, 72, 8, 1 << 63);
        "header: external data bit without a file", "plain", |f, _| put(f, 72, 8, 4);
        "header: raw data bit without a data file", "plain", |f, _| put(f, 88, 8, 2);
        "header: compression bit with zlib", "plain", |f, _| put(f, 72, 8, 8);
        "header: extended L2 bit with 4 KiB clusters", "plain", |f, _| put(f, 72, 8, 16);
        "header: extended L2 bit taken away", "extended", |f, _| put(f, 72, 8, 0);
        "header: refcount order 7", "plain", |f, _| put(f, 96, 4, 7);
        "header: refcount order 4 billion", "plain", |f, _| put(f, 96, 4, 0xffff_ffff);
        "header: refcount order 3, really 4", "plain", |f, _| put(f, 96, 4, 3);
        "header: length 0", "plain", |f, _| put(f, 100, 4, 0);
        "header: length 100", "plain", |f, _| put(f, 100, 4, 100);
        "header: length 108, no multiple of 8", "plain", |f, _| put(f, 100, 4, 108);
        "header: length past the cluster", "plain", |f, _| put(f, 100, 4, 4104);
        "header: length 4 billion", "plain", |f, _| put(f, 100, 4, 0xffff_fff8);
        "header: compression type 1 without its bit", "plain", |f, _| put(f, 104, 1, 1);
        "header: unknown compression type", "zstd", |f, _| put(f, 104, 1, 9);
        "header: compression bit taken away", "zstd", |f, _| put(f, 72, 8, 0);
        "header: zstd streams called zlib", "zstd", |f, _| { put(f, 72, 8, 0); put(f, 104, 1, 0) };
    }
}

fn extensions() -> Vec<Damage> {
    damages! {
        "extension: length past the cluster", "plain", |f, l| put(f, l.extensions + 4, 4, 5000);
        "extension: length 4 billion", "plain", |f, l| put(f, l.extensions + 4, 4, 0xffff_ffff);
        "extension: backing format of 40 bytes", "plain", |f, l| put(f, l.extensions + 4, 4, 40);
        "extension: the image is LUKS", "plain", |f, l| put(f, l.extensions, 4, 0x0537_be77);
        "extension: bitmaps of a wrong length", "plain", |f, l| {
            put(f, l.extensions, 4, 0x2385_2875);
            put(f, 88, 8, 1)
        };
        "extension: the end mark has a length past the area", "v2", |f, l| put(f, l.extensions + 4, 4, 70_000);
        "backing name: a line feed", "plain", |f, _| { let at = get(f, 8, 8) as usize; f[at + 1] = b'\n' };
        "backing name: a zero byte", "plain", |f, _| { let at = get(f, 8, 8) as usize; f[at + 1] = 0 };
        "backing name: no UTF-8", "plain", |f, _| { let at = get(f, 8, 8) as usize; f[at + 1] = 0xff };
    }
}

fn l1() -> Vec<Damage> {
    damages! {
        "L1: table past the file", "plain", |f, l| put(f, l.l1, 8, COPIED | l.beyond());
        "L1: table at 2^55", "plain", |f, l| put(f, l.l1, 8, COPIED | 1 << 55);
        "L1: table unaligned", "plain", |f, l| put(f, l.l1, 8, COPIED | l.l2 as u64 | 512);
        "L1: reserved low bit", "plain", |f, l| put(f, l.l1, 8, COPIED | l.l2 as u64 | 2);
        "L1: reserved high bit", "plain", |f, l| put(f, l.l1, 8, COPIED | 1 << 60 | l.l2 as u64);
        "L1: copied bit without a table", "plain", |f, l| put(f, l.l1, 8, COPIED);
        "L1: table over the L1 table", "plain", |f, l| put(f, l.l1, 8, COPIED | l.l1 as u64);
        "L1: table over the refcount table", "plain", |f, l| put(f, l.l1, 8, COPIED | l.refcount_table as u64);
        "L1: table over a refcount block", "plain", |f, l| put(f, l.l1, 8, COPIED | l.refcount_block as u64);
        "L1: table over a data cluster", "v2", |f, l| { let data = get(f, l.entry(0), 8); put(f, l.l1, 8, data) };
        "L1: one table twice", "v2", |f, l| put(f, l.l1 + 8, 8, COPIED | l.l2 as u64);
        "L1: table of another guest range, alone", "v2", |f, l| { let other = get(f, l.l1 + 8, 8); put(f, l.l1, 8, other) };
        "L1: copied bit missing", "v2", |f, l| put(f, l.l1, 8, l.l2 as u64);
        "L1: copied bit on a shared table", "plain", |f, l| { let old = get(f, l.l1 + 8, 8); put(f, l.l1 + 8, 8, old | COPIED) };
        "L1: entry lost", "plain", |f, l| put(f, l.l1, 8, 0);
    }
}

fn l2() -> Vec<Damage> {
    damages! {
        "L2: data past the file", "plain", |f, l| put(f, l.entry(0), 8, COPIED | l.beyond());
        "L2: data at 2^55", "plain", |f, l| put(f, l.entry(0), 8, COPIED | 1 << 55);
        "L2: data unaligned", "plain", |f, l| { let old = get(f, l.entry(0), 8); put(f, l.entry(0), 8, old | 512) };
        "L2: reserved low bit", "plain", |f, l| { let old = get(f, l.entry(0), 8); put(f, l.entry(0), 8, old | 4) };
        "L2: reserved high bit", "plain", |f, l| { let old = get(f, l.entry(0), 8); put(f, l.entry(0), 8, old | 1 << 58) };
        "L2: zero bit in a v2 image", "v2", |f, l| { let old = get(f, l.entry(0), 8); put(f, l.entry(0), 8, old | 1) };
        "L2: data over L1", "plain", |f, l| put(f, l.entry(0), 8, COPIED | l.l1 as u64);
        "L2: data over its own L2 table", "plain", |f, l| put(f, l.entry(0), 8, COPIED | l.l2 as u64);
        "L2: data over the refcount table", "plain", |f, l| put(f, l.entry(0), 8, COPIED | l.refcount_table as u64);
        "L2: data over a refcount block", "plain", |f, l| put(f, l.entry(0), 8, COPIED | l.refcount_block as u64);
        "L2: data over the snapshot table", "plain", |f, l| put(f, l.entry(0), 8, COPIED | l.snapshots as u64);
        "L2: two guest clusters on one host cluster", "v2", |f, l| { let one = get(f, l.entry(0), 8); put(f, l.entry(1), 8, one) };
        "L2: copied bit missing", "v2", |f, l| { let old = get(f, l.entry(0), 8); put(f, l.entry(0), 8, old & !COPIED) };
        "L2: copied bit on a shared cluster", "plain", |f, l| { let old = get(f, l.entry(3), 8); put(f, l.entry(3), 8, old | COPIED) };
        "L2: entry lost", "v2", |f, l| put(f, l.entry(0), 8, 0);
        "L2: all ones", "v2", |f, l| put(f, l.entry(0), 8, u64::MAX);
        "compressed: past the file", "v2", |f, l| put(f, l.entry(20), 8, COMPRESSED | l.beyond());
        "compressed: far past the file", "v2", |f, l| put(f, l.entry(20), 8, COMPRESSED | 1 << 50);
        "compressed: copied bit", "v2", |f, l| { let old = get(f, l.entry(20), 8); put(f, l.entry(20), 8, old | COPIED) };
        "compressed: stream is no zlib", "v2", |f, l| { let at = get(f, l.entry(20), 8) as usize & 0xfff_ffff; f[at..at + 8].fill(0xff) };
        "compressed: stream ends early", "v2", |f, l| { let at = get(f, l.entry(20), 8) as usize & 0xfff_ffff; f[at + 4..at + 64].fill(0) };
        "compressed: over L1", "v2", |f, l| put(f, l.entry(20), 8, COMPRESSED | l.l1 as u64);
        "compressed: stream is no zstd", "zstd", |f, l| { let at = get(f, l.entry(0), 8) as usize & 0xfff_ffff; f[at..at + 8].fill(0xff) };
    }
}

fn extended() -> Vec<Damage> {
    damages! {
        "extended: allocated and zero", "extended", |f, l| put(f, l.entry(0) + 8, 8, 0xffff_ffff_ffff_ffff);
        "extended: one subcluster allocated and zero", "extended", |f, l| put(f, l.entry(0) + 8, 4, 1);
        "extended: allocated without a cluster", "extended", |f, l| put(f, l.entry(20) + 8, 8, 1);
        "extended: compressed with a bitmap", "extended", |f, l| put(f, l.entry(5) + 8, 8, 1);
        "extended: zero bit of plain L2", "extended", |f, l| { let old = get(f, l.entry(0), 8); put(f, l.entry(0), 8, old | 1) };
        "extended: data past the file", "extended", |f, l| put(f, l.entry(0), 8, COPIED | l.beyond());
        "extended: data over its own L2 table", "extended", |f, l| put(f, l.entry(0), 8, COPIED | l.l2 as u64);
        "extended: two guest clusters on one host cluster", "extended", |f, l| { let one = get(f, l.entry(0), 8); put(f, l.entry(1), 8, one) };
    }
}

fn refcounts() -> Vec<Damage> {
    damages! {
        "refcount table: block past the file", "plain", |f, l| put(f, l.refcount_table, 8, l.beyond());
        "refcount table: block unaligned", "plain", |f, l| put(f, l.refcount_table, 8, l.refcount_block as u64 + 512);
        "refcount table: reserved low bit", "plain", |f, l| put(f, l.refcount_table, 8, l.refcount_block as u64 + 4);
        "refcount table: no block", "plain", |f, l| put(f, l.refcount_table, 8, 0);
        "refcount table: block over L1", "plain", |f, l| put(f, l.refcount_table, 8, l.l1 as u64);
        "refcount table: block over an L2 table", "plain", |f, l| put(f, l.refcount_table, 8, l.l2 as u64);
        "refcount table: one block twice", "plain", |f, l| put(f, l.refcount_table + 8, 8, l.refcount_block as u64);
        "refcount block: header counted 0", "plain", |f, l| put(f, l.refcount(0), 2, 0);
        "refcount block: L1 counted 0", "plain", |f, l| put(f, l.refcount(l.l1), 2, 0);
        "refcount block: L2 table counted 0", "plain", |f, l| put(f, l.refcount(l.l2), 2, 0);
        "refcount block: itself counted 0", "plain", |f, l| put(f, l.refcount(l.refcount_block), 2, 0);
        "refcount block: data counted 0", "v2", |f, l| { let at = (get(f, l.entry(0), 8) & OFFSET) as usize; put(f, l.refcount(at), 2, 0) };
        "refcount block: data counted 2", "v2", |f, l| { let at = (get(f, l.entry(0), 8) & OFFSET) as usize; put(f, l.refcount(at), 2, 2) };
        "refcount block: data counted 65535", "plain", |f, l| { let at = (get(f, l.entry(0), 8) & OFFSET) as usize; put(f, l.refcount(at), 2, 65535) };
        "refcount block: shared data counted 1", "plain", |f, l| { let at = (get(f, l.entry(3), 8) & OFFSET) as usize; put(f, l.refcount(at), 2, 1) };
        "refcount block: compressed data counted 0", "v2", |f, l| { let at = get(f, l.entry(20), 8) as usize & 0xfff_ffff; put(f, l.refcount(at), 2, 0) };
        "refcount block: a free cluster counted 1", "v2", |f, l| { let end = l.len + 3 * l.cluster; put(f, l.refcount(end), 2, 1) };
        "refcount block: all zeros", "plain", |f, l| f[l.refcount_block..l.refcount_block + l.cluster].fill(0);
        "refcount block: all ones", "plain", |f, l| f[l.refcount_block..l.refcount_block + l.cluster].fill(0xff);
    }
}

fn snapshots_and_length() -> Vec<Damage> {
    damages! {
        "snapshot: L1 past the file", "plain", |f, l| put(f, l.snapshots, 8, l.beyond());
        "snapshot: L1 unaligned", "plain", |f, l| { let old = get(f, l.snapshots, 8); put(f, l.snapshots, 8, old + 8) };
        "snapshot: L1 at 2^63", "plain", |f, l| put(f, l.snapshots, 8, 1 << 63);
        "snapshot: L1 over the active L1", "plain", |f, l| put(f, l.snapshots, 8, l.l1 as u64);
        "snapshot: L1 over the header", "plain", |f, l| put(f, l.snapshots, 8, 0);
        "snapshot: L1 of 4 billion entries", "plain", |f, l| put(f, l.snapshots + 8, 4, 0xffff_ffff);
        "snapshot: id past the table", "plain", |f, l| put(f, l.snapshots + 12, 2, 0xffff);
        "snapshot: name past the table", "plain", |f, l| put(f, l.snapshots + 14, 2, 0xffff);
        "snapshot: 4 GiB of extra data", "plain", |f, l| put(f, l.snapshots + 36, 4, 0xffff_ffff);
        "snapshot: 64 KiB of extra data", "plain", |f, l| put(f, l.snapshots + 36, 4, 65536);
        "snapshot: table unaligned, though there are none", "v2", |f, _| put(f, 64, 8, 0x1234);
        "file: no byte", "plain", |f, _| f.clear();
        "file: 3 bytes", "plain", |f, _| f.truncate(3);
        "file: 71 bytes", "plain", |f, _| f.truncate(71);
        "file: 100 bytes", "plain", |f, _| f.truncate(100);
        "file: one sector", "plain", |f, _| f.truncate(512);
        "file: one cluster", "plain", |f, l| f.truncate(l.cluster);
        "file: ends inside L1", "plain", |f, l| f.truncate(l.l1 + 4);
        "file: ends before L2", "plain", |f, l| f.truncate(l.l2);
        "file: ends inside L2", "v2", |f, l| f.truncate(l.l2 + 20);
        "file: ends before the last two clusters", "v2", |f, l| f.truncate(l.len - 2 * l.cluster);
        "file: the first cluster is zero", "plain", |f, l| f[..l.cluster].fill(0);
        "file: everything is ones", "plain", |f, _| f.fill(0xff);
    }
}

/// The whole list.
pub fn all() -> Vec<Damage> {
    let mut all = header();
    all.extend(extensions());
    all.extend(l1());
    all.extend(l2());
    all.extend(extended());
    all.extend(refcounts());
    all.extend(snapshots_and_length());
    all
}
