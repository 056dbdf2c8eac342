//! How a virtual disk is cut into clusters, subclusters and tables.

use crate::units::{GuestCluster, GuestOffset, HostCluster, HostOffset, KIB, index};

/// Subclusters of a cluster with extended L2.
const SUBCLUSTERS: u32 = 32;
/// L2 tables are kept in memory in pieces of this many bytes (or whole, when smaller).
const SLICE_BYTES: u64 = if cfg!(cowshed_model) { 64 } else { 4 * KIB };

/// The sizes of one image, all powers of two, as their logarithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Log2 of a cluster's bytes.
    pub cluster_bits: u32,
    /// Log2 of the bytes that one bit of a bitmap stands for; the cluster's with plain L2.
    pub subcluster_bits: u32,
    /// Whether L2 entries have bitmaps.
    pub extended_l2: bool,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
}

impl Geometry {
    /// The geometry of a disk of `virtual_size` bytes.
    #[must_use]
    pub fn new(cluster_bits: u32, extended_l2: bool, virtual_size: u64) -> Self {
        let subcluster_bits =
            if extended_l2 { cluster_bits - SUBCLUSTERS.trailing_zeros() } else { cluster_bits };
        Self { cluster_bits, subcluster_bits, extended_l2, virtual_size }
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of a subcluster.
    #[must_use]
    pub fn subcluster_size(&self) -> u64 {
        1 << self.subcluster_bits
    }

    /// Subclusters of a cluster: 32, or 1 with plain L2.
    #[must_use]
    pub fn subclusters(&self) -> u32 {
        if self.extended_l2 { SUBCLUSTERS } else { 1 }
    }

    /// One bit for each subcluster of a cluster.
    #[must_use]
    pub fn all_subclusters(&self) -> u32 {
        if self.extended_l2 { u32::MAX } else { 1 }
    }

    /// Bytes of an L2 entry.
    #[must_use]
    pub fn entry_size(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Log2 of the entries of an L2 table.
    #[must_use]
    pub fn table_bits(&self) -> u32 {
        self.cluster_bits - self.entry_size().trailing_zeros()
    }

    /// Entries of an L2 table.
    #[must_use]
    pub fn table_entries(&self) -> u64 {
        1 << self.table_bits()
    }

    /// Guest clusters of the disk, the last one perhaps cut.
    #[must_use]
    pub fn clusters(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size())
    }

    /// L2 tables that the disk needs.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.clusters().div_ceil(self.table_entries())
    }

    /// Entries of a slice: the part of an L2 table that is read, kept and written at once.
    #[must_use]
    pub fn slice_entries(&self) -> u64 {
        (SLICE_BYTES.min(self.cluster_size())) / self.entry_size()
    }

    /// Slices of the whole disk.
    #[must_use]
    pub fn slices(&self) -> u64 {
        self.clusters().div_ceil(self.slice_entries())
    }

    /// The cluster that holds a byte of the disk.
    #[must_use]
    pub fn cluster_of(&self, at: GuestOffset) -> GuestCluster {
        GuestCluster(at.0 >> self.cluster_bits)
    }

    /// The first byte of a cluster.
    #[must_use]
    pub fn start_of(&self, cluster: GuestCluster) -> GuestOffset {
        GuestOffset(cluster.0 << self.cluster_bits)
    }

    /// The distance of a byte from the start of its cluster.
    #[must_use]
    pub fn within_cluster(&self, at: GuestOffset) -> u64 {
        at.0 & (self.cluster_size() - 1)
    }

    /// The host cluster that holds a byte of the file.
    #[must_use]
    pub fn host_cluster(&self, at: HostOffset) -> HostCluster {
        HostCluster(at.0 >> self.cluster_bits)
    }

    /// The first byte of a host cluster.
    #[must_use]
    pub fn host_start(&self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }

    /// Whether a host offset is a cluster's first byte.
    #[must_use]
    pub fn is_aligned(&self, at: u64) -> bool {
        at.is_multiple_of(self.cluster_size())
    }

    /// The index into L1 of the table that maps a cluster.
    #[must_use]
    pub fn l1_index(&self, cluster: GuestCluster) -> usize {
        index(cluster.0 >> self.table_bits())
    }

    /// The slice that maps a cluster, and the entry's place in it.
    #[must_use]
    pub fn slice_of(&self, cluster: GuestCluster) -> (u64, usize) {
        let entries = self.slice_entries();
        (cluster.0 / entries, index(cluster.0 % entries))
    }

    /// Where a slice lies: the L1 index of its table, and its first byte in that table.
    #[must_use]
    pub fn slice_place(&self, slice: u64) -> (usize, u64) {
        let first = slice * self.slice_entries();
        (index(first >> self.table_bits()), (first & (self.table_entries() - 1)) * self.entry_size())
    }

    /// The bits of the subclusters that `len` bytes from `within` a cluster on touch; `len` is at least 1.
    #[must_use]
    pub fn touched(&self, within: u64, len: u64) -> u32 {
        let first = within >> self.subcluster_bits;
        let last = (within + len - 1) >> self.subcluster_bits;
        bits(first, last + 1)
    }

    /// The bits of the subclusters that `len` bytes from `within` a cluster on cover from end to end. The end of
    /// the disk counts as the end of its subcluster.
    #[must_use]
    pub fn covered(&self, cluster: GuestCluster, within: u64, len: u64) -> u32 {
        let size = self.subcluster_size();
        let first = within.div_ceil(size);
        let at_end = self.start_of(cluster).0 + within + len == self.virtual_size;
        let end = if at_end { (within + len).div_ceil(size) } else { (within + len) / size };
        if first < end { bits(first, end) } else { 0 }
    }
}

/// The runs of neighbouring bits in a mask: first bit and count.
pub(super) fn bit_runs(mut mask: u32) -> impl Iterator<Item = (u32, u32)> {
    std::iter::from_fn(move || {
        let first = mask.trailing_zeros();
        let count = mask.checked_shr(first)?.trailing_ones();
        mask &= !(u32::MAX >> (32 - count) << first);
        Some((first, count))
    })
}

/// A mask of the bits from `first` up to, not including, `end`; `first < end <= 32`.
fn bits(first: u64, end: u64) -> u32 {
    (u32::MAX >> (32 - (end - first))) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_touches_more_subclusters_than_it_covers() {
        let geometry = Geometry::new(17, true, 1 << 30);
        assert_eq!(geometry.touched(4095, 2), 0b11);
        assert_eq!(geometry.covered(GuestCluster(0), 4095, 2), 0);
        assert_eq!(geometry.covered(GuestCluster(0), 4096, 8192), 0b110);
        assert_eq!(geometry.touched(0, 1 << 17), u32::MAX);
        assert_eq!(geometry.covered(GuestCluster(0), 0, 1 << 17), u32::MAX);
    }

    #[test]
    fn the_cut_last_subcluster_is_covered_by_a_request_up_to_the_end_of_the_disk() {
        let geometry = Geometry::new(16, false, 65536 + 512);
        assert_eq!(geometry.covered(GuestCluster(1), 0, 512), 1);
        assert_eq!(geometry.covered(GuestCluster(0), 0, 512), 0);
    }

    #[test]
    fn the_runs_of_a_mask_cover_its_bits_once() {
        assert_eq!(bit_runs(0).count(), 0);
        assert_eq!(bit_runs(u32::MAX).collect::<Vec<_>>(), [(0, 32)]);
        assert_eq!(bit_runs(0x8000_0f01).collect::<Vec<_>>(), [(0, 1), (8, 4), (31, 1)]);
    }

    #[test]
    fn a_slice_of_a_small_table_is_the_table() {
        let geometry = Geometry::new(9, false, 1 << 20);
        assert_eq!(geometry.slice_entries(), geometry.table_entries());
        assert_eq!(geometry.slice_place(3), (3, 0));
    }
}
