//! Hostile files of the largest kind: opening, reading and checking them takes at most 256 MiB and comes to an end.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod bounded;
}

use common::bounded::{self, within};
use cowshed::qcow2::{CheckReport, Image, Nothing, OpenOptions, check, repair};
use cowshed::storage::{HostFile, Storage};
use cowshed::units::{GuestOffset, HostOffset};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: bounded::Counting = bounded::Counting;

/// Only one test counts memory at a time.
static ALONE: Mutex<()> = Mutex::new(());

const MEMORY: usize = 256 << 20;
const LIMIT: Duration = Duration::from_secs(300);
const COPIED: u64 = 1 << 63;

/// A sparse file with a version 3 header, and what follows.
#[derive(Clone)]
struct Hostile {
    file: Arc<HostFile>,
    bits: u32,
}

/// The fields of a header that a test chooses.
struct Fields {
    bits: u32,
    size: u64,
    order: u64,
    l1: (u64, u64),
    /// First cluster and clusters.
    refcounts: (u64, u64),
    /// First cluster and count.
    snapshots: (u64, u64),
}

impl Default for Fields {
    fn default() -> Self {
        Self { bits: 16, size: 1 << 30, order: 4, l1: (1, 2), refcounts: (2, 1), snapshots: (0, 0) }
    }
}

impl Hostile {
    fn new(fields: &Fields) -> Self {
        let file = Arc::new(HostFile::new(tempfile::tempfile().unwrap()));
        let this = Self { file, bits: fields.bits };
        let cluster = 1 << fields.bits;
        let mut header = vec![0; 112];
        let mut put = |at: usize, width: usize, value: u64| {
            header[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        };
        put(0, 4, 0x5146_49fb);
        put(4, 4, 3);
        put(20, 4, fields.bits.into());
        put(24, 8, fields.size);
        put(36, 4, fields.l1.1);
        put(40, 8, fields.l1.0 * cluster);
        put(48, 8, fields.refcounts.0 * cluster);
        put(56, 4, fields.refcounts.1);
        put(60, 4, fields.snapshots.1);
        put(64, 8, fields.snapshots.0 * cluster);
        put(96, 4, fields.order);
        put(100, 4, 104);
        this.file.write_at(&header, HostOffset(0)).unwrap();
        this
    }

    fn words(&self, at: u64, words: impl Iterator<Item = u64>) {
        let bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
        self.file.write_at(&bytes, HostOffset(at)).unwrap();
    }

    fn len(&self, clusters: u64) {
        self.file.set_len(clusters << self.bits).unwrap();
    }

    /// Checks, opens, reads and writes within the bounds; what the check says.
    fn survive(self, what: &str) -> cowshed::Result<CheckReport> {
        self.survive_each(what, &["check", "reading", "writing", "repair"])
    }

    fn survive_each(self, what: &str, steps: &'static [&'static str]) -> cowshed::Result<CheckReport> {
        let mut report = None;
        for step in steps.iter().copied() {
            let file = self.file.clone();
            bounded::reset_peak();
            let before = bounded::peak();
            let result = within(LIMIT, move || match step {
                "check" => Some(check(file)),
                "repair" => repair(file).ok().map(Ok),
                _ => {
                    look(file, step == "writing");
                    None
                }
            });
            let result = result.unwrap_or_else(|error| panic!("{what}, {step}: {error}"));
            report = report.or(result);
            let used = bounded::peak() - before;
            println!("{what}, {step}: {} MiB", used >> 20);
            assert!(used <= MEMORY, "{what}: {step} took {} MiB", used >> 20);
        }
        report.unwrap()
    }
}

fn look(file: Arc<HostFile>, writable: bool) {
    let Ok(image) = Image::open(file, OpenOptions { writable, ..OpenOptions::default() }) else { return };
    let size = image.virtual_size();
    for number in 0..2000_u64 {
        let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % size / 512 * 512;
        let mut buf = vec![0; 512];
        let _ = image.read(&mut buf, GuestOffset(at), &Nothing);
        let _ = image.extent(GuestOffset(at), 64 << 10);
        if writable && number < 50 {
            let _ = image.write(&buf, GuestOffset(at), &Nothing);
        }
    }
    let _ = image.close();
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn references_scattered_over_16_tib_are_counted_in_little_memory() {
    let _alone = alone();
    // 512 L2 tables of 64 KiB: four million references, no two of them neighbours, over a file of 8 TiB.
    let tables = 512;
    let hostile = Hostile::new(&Fields { size: tables << 29, l1: (3, tables), ..Fields::default() });
    let first = 8;
    hostile.words(3 << 16, (0..tables).map(|table| COPIED | (first + table) << 16));
    for table in 0..tables {
        let places = (0..8192).map(|entry| (1 << 14) + (table * 8192 + entry) * 29 % (1 << 27));
        hostile.words((first + table) << 16, places.map(|cluster| COPIED | cluster << 16));
    }
    hostile.len(1 << 27);
    let report = hostile.survive("scattered references").unwrap();
    assert_eq!(report.allocated_clusters, tables * 8192);
    assert!(report.error_count > tables * 8192, "{}", report.error_count);
    assert_eq!(report.errors.len(), 1000);
}

#[test]
fn a_full_l1_table_of_32_mib_is_walked_in_little_memory() {
    let _alone = alone();
    // Clusters of 512 bytes; each L1 entry points to an L2 table of its own, in a hole.
    let full = |entries: u64| {
        let l1 = (16, entries);
        let hostile = Hostile::new(&Fields { bits: 9, size: entries << 15, l1, ..Fields::default() });
        let first = 1 << 17;
        hostile.words(16 << 9, (0..entries).map(|entry| COPIED | (first + entry * 2) << 9));
        hostile.len(first + entries * 2);
        hostile
    };
    // A repair looks three times and counts millions of clusters anew: a smaller table shows that it ends.
    let report = full(4 << 20).survive_each("a full L1 table", &["check", "reading", "writing"]).unwrap();
    assert!(report.error_count > 4 << 20, "{}", report.error_count);
    full(1 << 18).survive("an L1 table of 2 MiB").unwrap();
}

#[test]
fn refcount_structures_of_the_largest_size_are_read_in_little_memory() {
    let _alone = alone();
    // A table of 8 MiB whose entries all name blocks in a hole, clusters of 2 MiB, counts of one bit.
    let hostile =
        Hostile::new(&Fields { bits: 21, order: 0, l1: (1, 8), refcounts: (2, 4), ..Fields::default() });
    hostile.words(2 << 21, (0..1 << 20).map(|block| (8 + block) << 21));
    hostile.words(8 << 21, std::iter::once(u64::MAX));
    hostile.len(8 + (1 << 20));
    let report = hostile.survive("a full refcount table").unwrap();
    assert!(report.leaks > 0 || report.error_count > 0);
}

#[test]
fn entries_that_jump_between_refcount_blocks_do_not_read_them_whole_each_time() {
    let _alone = alone();
    // 24 blocks of 2 MiB with bytes in them, more than are kept, and an L2 table that jumps from one to the next.
    let (blocks, per_block) = (24, 1 << 18);
    let hostile =
        Hostile::new(&Fields { bits: 21, size: 1 << 39, order: 6, l1: (1, 1), ..Fields::default() });
    hostile.words(2 << 21, (0..blocks).map(|block| (8 + block) << 21));
    for block in 0..blocks {
        for piece in 0..512 {
            hostile.words(((8 + block) << 21) + piece * 4096, std::iter::once(1));
        }
    }
    hostile.words(1 << 21, std::iter::once(COPIED | 4 << 21));
    let jumps = (0..1 << 18).map(|entry| 40 + entry % blocks * per_block + entry / blocks * 20);
    hostile.words(4 << 21, jumps.map(|cluster| COPIED | cluster << 21));
    hostile.len(blocks * per_block);
    assert!(hostile.survive("jumps between refcount blocks").unwrap().error_count > 0);
}

#[test]
fn many_snapshots_of_one_large_l1_table_are_walked_to_an_end() {
    let _alone = alone();
    // 65,536 snapshots, all with the same L1 table: the most entries that are walked, and one snapshot more.
    for (entries, refused) in [(256, false), (257, true)] {
        let hostile = Hostile::new(&Fields {
            snapshots: (16, 65536),
            l1: (8, entries),
            size: entries << 29,
            ..Fields::default()
        });
        hostile.words(8 << 16, (0..entries).map(|entry| COPIED | (512 + entry % 300) << 16));
        let mut table = Vec::new();
        for _ in 0..65536 {
            let mut entry = [0; 56];
            entry[..8].copy_from_slice(&(8_u64 << 16).to_be_bytes());
            entry[8..12].copy_from_slice(&(entries as u32).to_be_bytes());
            entry[36..40].copy_from_slice(&16_u32.to_be_bytes());
            table.extend(entry);
        }
        hostile.file.write_at(&table, HostOffset(16 << 16)).unwrap();
        hostile.len(1024);
        let report = match refused {
            false => hostile.survive("65,536 snapshots"),
            true => check(hostile.file),
        };
        let report = report.unwrap();
        let told = report.errors.iter().any(|error| error.contains("more L1 entries than can be checked"));
        assert_eq!(told, refused, "{entries} entries: {:?}", report.errors.first());
    }
}

#[test]
fn a_disk_of_64_pib_is_opened_and_read() {
    let _alone = alone();
    let hostile = Hostile::new(&Fields {
        bits: 21,
        size: 1 << 56,
        l1: (8, 1 << 17),
        refcounts: (2, 4),
        ..Fields::default()
    });
    hostile.len(16);
    hostile.survive("64 PiB").unwrap();
}
