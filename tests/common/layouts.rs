//! Images of every layout, small, for power cuts.

use super::qemu;
use super::reader::free_clusters;
use super::rng::Rng;
use super::scratch::Scratch;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, OpenOptions, create};
use cowshed::storage::Storage;
use std::sync::Arc;

/// An image before a workload, and what is below it.
#[derive(Clone, Debug)]
pub struct Layout {
    /// What a failure calls it.
    pub name: String,
    /// Log2 of the cluster size.
    pub bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// The image file.
    pub image: Arc<Vec<u8>>,
    /// The raw file below, empty without one.
    pub base: Arc<Vec<u8>>,
    base_file: Arc<Scratch>,
    /// Bytes of L2 tables kept in memory.
    pub cache: u64,
    /// What its states cost beside those of the cheapest layout.
    pub cost: usize,
}

impl Layout {
    /// An image of ours; the disk has `clusters` clusters and a last one that is cut, the base some sectors less.
    pub fn ours(bits: u32, extended_l2: bool, clusters: u64, over_base: bool) -> Self {
        let size = ((clusters << bits) - (1 << bits) / 2).max(1024).next_multiple_of(512);
        // The name is not needed: the base is given by hand.
        let backing = BackingName { file: "b.raw".into(), format: Some("raw".into()) };
        let backing = over_base.then_some(backing);
        let options = CreateOptions { cluster_bits: bits, extended_l2, backing, ..CreateOptions::new(size) };
        let file = Scratch::new(&[]);
        create(&*file, &options).unwrap();
        let kind = if extended_l2 { "extended" } else { "plain" };
        let below = if over_base { " over a base" } else { "" };
        let name = format!("{kind}, clusters of {} bytes{below}", 1 << bits);
        let base =
            if over_base { Rng::new(99).bytes((size - size / 5) as usize / 512 * 512) } else { Vec::new() };
        Self::new(name, bits, size, file.bytes(), base)
    }

    /// An image that QEMU makes by `steps`, in `t.qcow2`, over `b.raw` if that is made.
    pub fn qemus(name: &str, steps: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        steps.iter().for_each(|step| qemu::step(folder.path(), step));
        let image = std::fs::read(folder.path().join("t.qcow2")).unwrap();
        let base = std::fs::read(folder.path().join("b.raw")).unwrap_or_default();
        let field = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
        let (bits, size) = ((field(20) >> 32) as u32, field(24));
        Self::new(name.to_owned(), bits, size, image, base)
    }

    fn new(name: String, bits: u32, size: u64, image: Vec<u8>, base: Vec<u8>) -> Self {
        let base_file = Scratch::new(&base);
        let (image, base, cache) = (Arc::new(image), Arc::new(base), OpenOptions::default().metadata_cache);
        Self { name, bits, size, image, base, base_file, cache, cost: 1 }
    }

    /// The same with a name that says more.
    pub fn called(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// With the smallest cache of L2 tables: slices are evicted, and commits are forced.
    pub fn evicting(self) -> Self {
        Self { name: format!("{}, smallest cache", self.name), cache: 0, ..self }
    }

    /// With old bytes in clusters that are free, as a host without holes leaves them: data that were lost then never
    /// look like the zeros that the guest had there.
    pub fn stale(mut self) -> Self {
        let mut image = self.image.to_vec();
        let (bits, free) = free_clusters(&image);
        for cluster in free {
            let at = (cluster << bits) as usize;
            let end = at + (1 << bits);
            image.resize(image.len().max(end), 0);
            image[at..end].fill(0xdd);
        }
        self.image = Arc::new(image);
        self.name.push_str(", stale");
        self
    }

    /// With states that cost `cost` times as much.
    pub fn costing(self, cost: usize) -> Self {
        Self { cost, ..self }
    }

    /// L2 tables, old and new, that may leak beside the clusters they map.
    pub fn spare_tables(&self) -> u64 {
        // Every table of the disk may be copied away from a snapshot in one flush.
        2 * ((self.size >> self.bits) / (1 << self.bits >> 4) + 1)
    }

    /// Opens it for writing from `file`.
    pub fn open(&self, file: Arc<dyn Storage>) -> cowshed::Result<Disk> {
        self.disk(Image::open(file, OpenOptions { writable: true, metadata_cache: self.cache })?)
    }

    /// The image over what is below it.
    pub fn disk(&self, image: Image) -> cowshed::Result<Disk> {
        let mut layers = vec![Layer::qcow2(image)];
        if !self.base.is_empty() {
            layers.push(Layer::Raw(RawLayer::new(self.base_file.clone(), false)?));
        }
        Disk::new(layers)
    }
}

fn create_by_qemu(options: &str, size: &str) -> String {
    format!("img create -q -f qcow2 -o {options} t.qcow2 {size}")
}

/// Images of ours: plain and extended L2 of every cluster size, with nothing below, and over a base that is shorter.
pub fn ours() -> Vec<Layout> {
    vec![
        Layout::ours(17, true, 3, true).costing(3),
        Layout::ours(14, true, 10, false).stale(),
        Layout::ours(14, true, 10, true).stale(),
        Layout::ours(16, false, 4, true).costing(2),
        Layout::ours(12, false, 40, false).stale(),
        Layout::ours(12, false, 40, true),
        Layout::ours(9, false, 300, true).stale().costing(2),
        Layout::ours(9, false, 1300, false).evicting().costing(6),
        Layout::ours(21, false, 2, false).costing(25),
        Layout::ours(21, true, 2, true).costing(25),
    ]
}

/// Images of QEMU's: what this engine does not make itself, and must keep as well.
pub fn qemus() -> Vec<Layout> {
    let base = ["raw b.raw 150000", "fill b.raw 0 150000 7"];
    let over = |name: &str, options: &str, steps: &[&str]| {
        let options = format!("{options},backing_file=b.raw,backing_fmt=raw");
        let create = create_by_qemu(&options, "200k");
        Layout::qemus(name, &[&base[..], &[create.as_str()], steps].concat())
    };
    let alone = |name: &str, options: &str, steps: &[&str]| {
        let create = create_by_qemu(options, "200k");
        Layout::qemus(name, &[&[create.as_str()], steps].concat())
    };
    let fill = "io t.qcow2 write -P 1 0 60k; write -c -P 2 64k 4k; write -c -P 3 68k 4k; write -z 80k 8k; \
        write -z -u 4k 8k; write -P 4 120k 3k";
    let fill_extended = "io t.qcow2 write -P 1 0 60k; write -c -P 2 64k 16k; write -c -P 3 80k 16k; \
        write -z 100k 3k; write -z -u 4k 8k; write -P 4 120k 3k";
    let snapshot = "img snapshot -q -c one t.qcow2";
    let again = "io t.qcow2 write -P 9 2k 9k; discard 16k 4k";
    let mut layouts = vec![
        over("tables made on demand", "cluster_size=512", &[]).costing(2),
        alone("every kind of entry", "cluster_size=4k", &[fill]),
        alone("every kind of entry, zstd", "cluster_size=4k,compression_type=zstd", &[fill]),
        over("every kind of extended entry", "cluster_size=16k,extended_l2=on", &[fill_extended]),
        alone("snapshot", "cluster_size=4k", &[fill, snapshot]),
        over("snapshot written on", "cluster_size=4k", &[fill, snapshot, again]),
        alone("extended snapshot", "cluster_size=16k,extended_l2=on", &[fill_extended, snapshot]),
        alone(
            "two snapshots",
            "cluster_size=64k",
            &["io t.qcow2 write -P 1 0 90k", snapshot, again, "img snapshot -q -c two t.qcow2"],
        )
        .costing(3),
        over(
            "version 2",
            "compat=0.10,cluster_size=4k",
            &["io t.qcow2 write -P 1 0 60k; write -c -P 2 64k 4k"],
        ),
        alone(
            "version 2, nothing below, snapshot",
            "compat=0.10,cluster_size=4k",
            &["io t.qcow2 write -P 1 0 60k; write -c -P 2 64k 4k", snapshot],
        ),
    ];
    for bits in [1, 2, 4, 8, 32, 64] {
        let options = format!("refcount_bits={bits},cluster_size=512");
        let fill = "io t.qcow2 write -P 1 0 60k; write -P 4 120k 3k";
        layouts.push(alone(&format!("refcounts of {bits} bits"), &options, &[fill]).costing(2));
    }
    let holes = ["two snapshots", "version 2", "refcounts of 64 bits", "refcounts of 8 bits"];
    let mut layouts: Vec<Layout> = layouts
        .into_iter()
        .map(|layout| if holes.contains(&layout.name.as_str()) { layout } else { layout.stale() })
        .collect();
    layouts.extend([adding(), growing()]);
    layouts
}

/// An image whose refcount blocks are full and whose refcount table is not: 64 clusters of 512 bytes for each block.
pub fn adding() -> Layout {
    let create = create_by_qemu("refcount_bits=64,cluster_size=512", "400k");
    let fill = "io t.qcow2 write -P 1 0 212k";
    Layout::qemus("refcount blocks are added", &[&create, fill, "img snapshot -q -c one t.qcow2"]).costing(4)
}

/// An image whose refcount table is nearly full: 64 blocks for 64 clusters of 512 bytes each. Its snapshot shares
/// everything, so that each write takes a cluster.
pub fn growing() -> Layout {
    let create = create_by_qemu("refcount_bits=64,cluster_size=512", "2200k");
    let fill = "io t.qcow2 write -P 1 0 1968k";
    Layout::qemus("refcount table grows", &[&create, fill, "img snapshot -q -c one t.qcow2"]).costing(12)
}
