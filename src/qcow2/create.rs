//! A new, empty image.

use super::CreateOptions;
use super::extensions::{encode_extensions, u32_len};
use super::geometry::Geometry;
use super::layout::{COPIED, MAGIC, RawHeader, incompatible};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{HostOffset, MIB, SECTOR, index, length};

/// L2 tables are laid out at creation up to this many; a disk with more has them allocated when first written.
const MOST_RESERVED_TABLES: u64 = 1 << 16;
/// New images have 16-bit refcounts, as QEMU's do.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNT_BYTES: u64 = 2;
/// Longest L1 of an image that we create, in bytes.
const MAX_L1: u64 = 32 * MIB;

/// Where the structures of a new image lie, in clusters from the start of the file.
struct Plan {
    geometry: Geometry,
    /// Entries of L1.
    tables: u64,
    /// L2 tables with a cluster of their own from the start.
    reserved: u64,
    refcount_table: u64,
    refcount_blocks: u64,
    l1: u64,
}

impl Plan {
    fn new(options: &CreateOptions) -> Result<Self> {
        let least = if options.extended_l2 { 14 } else { 9 };
        if !(least..=21).contains(&options.cluster_bits) {
            return Err(Error::invalid(format!(
                "cluster bits {} are not {least} to 21",
                options.cluster_bits
            )));
        }
        if !options.virtual_size.is_multiple_of(SECTOR)
            || options.virtual_size > super::header::MAX_VIRTUAL_SIZE
        {
            return Err(Error::invalid(format!(
                "a disk of {} bytes: the size is a multiple of 512 and at most 64 PiB",
                options.virtual_size
            )));
        }
        let geometry = Geometry::new(options.cluster_bits, options.extended_l2, options.virtual_size);
        let tables = geometry.tables();
        if tables * 8 > MAX_L1 {
            return Err(Error::invalid(format!(
                "a disk of {} bytes is too large for clusters of {} bytes",
                options.virtual_size,
                geometry.cluster_size()
            )));
        }
        let reserved = if tables <= MOST_RESERVED_TABLES { tables } else { 0 };
        let mut plan = Self { geometry, tables, reserved, refcount_table: 1, refcount_blocks: 1, l1: 0 };
        plan.l1 = (tables * 8).div_ceil(geometry.cluster_size());
        // Each round can only grow the numbers, and the blocks count a sliver of the clusters: it settles at once.
        loop {
            let blocks = (plan.clusters() * REFCOUNT_BYTES).div_ceil(geometry.cluster_size());
            let table = (blocks * 8).div_ceil(geometry.cluster_size());
            if (table, blocks) == (plan.refcount_table, plan.refcount_blocks) {
                return Ok(plan);
            }
            (plan.refcount_table, plan.refcount_blocks) = (table, blocks);
        }
    }

    fn clusters(&self) -> u64 {
        self.first_table() + self.reserved
    }

    fn first_block(&self) -> u64 {
        1 + self.refcount_table
    }

    fn first_l1(&self) -> u64 {
        self.first_block() + self.refcount_blocks
    }

    fn first_table(&self) -> u64 {
        self.first_l1() + self.l1
    }

    fn place(&self, cluster: u64) -> HostOffset {
        HostOffset(cluster << self.geometry.cluster_bits)
    }
}

/// Writes an empty image into `storage`, which must be empty; it is durable after the storage's next sync.
///
/// The L2 tables of the whole disk get their places, as holes: L1 changes only when the disk is resized.
///
/// # Errors
/// `Invalid` for a geometry that qcow2 does not have, or names too long for the first cluster; the host's errors.
pub fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<()> {
    let plan = Plan::new(options)?;
    let header = header(&plan, options)?;
    let put = |bytes: &[u8], cluster: u64| {
        storage.write_at(bytes, plan.place(cluster)).map_err(|e| Error::io("writing a new image", e))
    };
    storage.set_len(plan.place(plan.clusters()).0).map_err(|e| Error::io("laying out a new image", e))?;
    let blocks: Vec<u8> =
        (0..plan.refcount_blocks).flat_map(|n| plan.place(plan.first_block() + n).0.to_be_bytes()).collect();
    put(&blocks, 1)?;
    put(&[0, 1].repeat(index(plan.clusters())), plan.first_block())?;
    let l1: Vec<u8> = (0..plan.reserved)
        .flat_map(|n| (COPIED | plan.place(plan.first_table() + n).0).to_be_bytes())
        .collect();
    put(&l1, plan.first_l1())?;
    put(&header, 0)
}

fn header(plan: &Plan, options: &CreateOptions) -> Result<Vec<u8>> {
    let extensions = encode_extensions(options.backing.as_ref(), options.identity.as_ref())?;
    let name = options.backing.as_ref().map_or("", |backing| backing.file.as_str());
    let name_at = RawHeader::SIZE + extensions.len();
    if length(name_at + name.len()) > plan.geometry.cluster_size() || name.len() > 1023 {
        return Err(Error::invalid("the backing file's name does not fit into the image's first cluster"));
    }
    let raw = RawHeader {
        magic: MAGIC,
        version: 3,
        backing_file_offset: if name.is_empty() { 0 } else { length(name_at) },
        backing_file_size: u32_len(name.len())?,
        cluster_bits: options.cluster_bits,
        virtual_size: options.virtual_size,
        encryption_method: 0,
        l1_size: u32_len(index(plan.tables))?,
        l1_table_offset: plan.place(plan.first_l1()).0,
        refcount_table_offset: plan.place(1).0,
        refcount_table_clusters: u32_len(index(plan.refcount_table))?,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible_features: if options.extended_l2 { incompatible::EXTENDED_L2 } else { 0 },
        compatible_features: 0,
        autoclear_features: 0,
        refcount_order: REFCOUNT_ORDER,
        header_length: u32_len(RawHeader::SIZE)?,
        compression_type: 0,
        padding: [0; 7],
    };
    Ok([&raw.encode()[..], &extensions, name.as_bytes()].concat())
}
