//! L1 and L2 entries: words of a table, and what they mean.

use super::geometry::Geometry;
use super::layout::{COMPRESSED, COPIED, OFFSET, ZERO};
use crate::error::{Error, Result};
use crate::units::{GuestCluster, HostOffset, SECTOR};

/// An L2 entry as it lies in a table; `bitmap` is 0 with plain L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct RawEntry {
    pub(super) word: u64,
    pub(super) bitmap: u64,
}

/// What an L2 entry means, for plain and extended L2 alike: plain L2 has one subcluster, as large as the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// A cluster with, perhaps, a host cluster of its own.
    Standard(Standard),
    /// A compressed cluster.
    Compressed(Compressed),
}

/// A cluster that is not compressed. A subcluster with neither bit set shows what is below; no bit is set in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Standard {
    /// The host cluster.
    pub(super) host: Option<HostOffset>,
    /// Whether the host cluster belongs to this entry alone.
    pub(super) owned: bool,
    /// Subclusters whose bytes are in the host cluster.
    pub(super) allocated: u32,
    /// Subclusters that read as zeros.
    pub(super) zero: u32,
}

/// The place of compressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compressed {
    /// First byte.
    pub(super) host: HostOffset,
    /// Upper bound of the length, up to the end of a sector.
    pub(super) len: u64,
}

impl Compressed {
    /// The host clusters that hold a byte of it, first and one past the last.
    pub(super) fn host_clusters(&self, geometry: &Geometry) -> std::ops::Range<u64> {
        let last = HostOffset(self.host.0 + self.len - 1);
        geometry.host_cluster(self.host).0..geometry.host_cluster(last).0 + 1
    }
}

/// What may be in an entry of this image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) geometry: Geometry,
    /// Version 2 has no zero flag.
    pub(super) zero_flag: bool,
}

impl Rules {
    /// Reads an entry; every rule of the format that needs no other structure is checked.
    pub(super) fn decode(&self, raw: RawEntry, cluster: GuestCluster, file_end: u64) -> Result<Mapping> {
        if raw.word & COMPRESSED != 0 {
            return self.decode_compressed(raw, cluster, file_end).map(Mapping::Compressed);
        }
        let zero_flag = if self.geometry.extended_l2 || !self.zero_flag { 0 } else { ZERO };
        if raw.word & !(COPIED | OFFSET | zero_flag) != 0 {
            return Err(bad(cluster, raw, "has reserved bits set"));
        }
        let offset = raw.word & OFFSET;
        if !self.geometry.is_aligned(offset) {
            return Err(bad(cluster, raw, "does not point to a cluster's start"));
        }
        if offset >= file_end && offset != 0 {
            return Err(bad(cluster, raw, "points past the end of the file"));
        }
        let host = (offset != 0).then_some(HostOffset(offset));
        let (allocated, zero) = if self.geometry.extended_l2 {
            halves(raw.bitmap)
        } else if raw.word & ZERO != 0 {
            (0, 1)
        } else {
            (u32::from(host.is_some()), 0)
        };
        if allocated & zero != 0 {
            return Err(bad(cluster, raw, "marks a subcluster as both data and zeros"));
        }
        if allocated != 0 && host.is_none() {
            return Err(bad(cluster, raw, "marks data without a host cluster"));
        }
        Ok(Mapping::Standard(Standard { host, owned: raw.word & COPIED != 0, allocated, zero }))
    }

    fn decode_compressed(&self, raw: RawEntry, cluster: GuestCluster, file_end: u64) -> Result<Compressed> {
        if raw.bitmap != 0 || raw.word & COPIED != 0 {
            return Err(bad(
                cluster,
                raw,
                "is compressed and has bits set that a compressed cluster cannot have",
            ));
        }
        let offset_bits = 62 - (self.geometry.cluster_bits - 8);
        let host = raw.word & ((1 << offset_bits) - 1);
        let sectors = ((raw.word & (COMPRESSED - 1)) >> offset_bits) + 1;
        if host == 0 || host >= file_end {
            return Err(bad(cluster, raw, "points to compressed data outside of the file"));
        }
        Ok(Compressed { host: HostOffset(host), len: sectors * SECTOR - host % SECTOR })
    }

    /// Writes the entry of a compressed cluster, whose bytes are whole sectors.
    pub(super) fn encode_compressed(&self, compressed: Compressed) -> RawEntry {
        let sectors = compressed.len / SECTOR - 1;
        let word = COMPRESSED | sectors << (62 - (self.geometry.cluster_bits - 8)) | compressed.host.0;
        RawEntry { word, bitmap: 0 }
    }

    /// Writes an entry.
    pub(super) fn encode(&self, standard: Standard) -> RawEntry {
        let mut word = standard.host.map_or(0, |host| host.0);
        if standard.host.is_some() && standard.owned {
            word |= COPIED;
        }
        if self.geometry.extended_l2 {
            return RawEntry { word, bitmap: u64::from(standard.zero) << 32 | u64::from(standard.allocated) };
        }
        if standard.zero != 0 {
            word |= ZERO;
        }
        RawEntry { word, bitmap: 0 }
    }
}

/// The allocated and the zero half of a subcluster bitmap.
fn halves(bitmap: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the low and the high half are wanted")]
    {
        (bitmap as u32, (bitmap >> 32) as u32)
    }
}

fn bad(cluster: GuestCluster, raw: RawEntry, what: &str) -> Error {
    Error::corrupt(format!(
        "the L2 entry {:#018x} (bitmap {:#018x}) of guest cluster {cluster} {what}",
        raw.word, raw.bitmap
    ))
}

/// The place of an L2 table, from its L1 entry; `None` when there is no table.
pub(super) fn table_offset(
    word: u64,
    l1_index: usize,
    geometry: &Geometry,
    file_end: u64,
) -> Result<Option<HostOffset>> {
    let offset = word & OFFSET;
    if word & !(COPIED | OFFSET) != 0 {
        return Err(Error::corrupt(format!("L1 entry {l1_index} ({word:#018x}) has reserved bits set")));
    }
    if !geometry.is_aligned(offset) || offset >= file_end && offset != 0 {
        return Err(Error::corrupt(format!(
            "L1 entry {l1_index} ({word:#018x}) does not point to a cluster of the file"
        )));
    }
    if offset == 0 && word != 0 {
        return Err(Error::corrupt(format!(
            "L1 entry {l1_index} ({word:#018x}) is marked as its table's owner, without a table"
        )));
    }
    Ok((offset != 0).then_some(HostOffset(offset)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EXTENDED: Rules = Rules {
        geometry: Geometry {
            cluster_bits: 17,
            subcluster_bits: 12,
            extended_l2: true,
            virtual_size: 1 << 30,
        },
        zero_flag: true,
    };
    const PLAIN: Rules = Rules {
        geometry: Geometry {
            cluster_bits: 16,
            subcluster_bits: 16,
            extended_l2: false,
            virtual_size: 1 << 30,
        },
        zero_flag: true,
    };

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        for (rules, allocated, zero) in [(EXTENDED, 0xf0f0, 0x0f0f_0000), (PLAIN, 1, 0), (PLAIN, 0, 1)] {
            let entry = Standard { host: Some(HostOffset(1 << 20)), owned: true, allocated, zero };
            let decoded = rules.decode(rules.encode(entry), GuestCluster(0), 1 << 30).unwrap();
            assert_eq!(decoded, Mapping::Standard(entry));
        }
    }

    #[test]
    fn a_subcluster_is_never_both_data_and_zeros() {
        let raw = RawEntry { word: COPIED | 1 << 20, bitmap: 1 << 32 | 1 };
        assert!(EXTENDED.decode(raw, GuestCluster(0), 1 << 30).is_err());
    }

    #[test]
    fn version_2_has_no_zero_flag() {
        let raw = RawEntry { word: ZERO, bitmap: 0 };
        assert!(Rules { zero_flag: false, ..PLAIN }.decode(raw, GuestCluster(0), 1 << 30).is_err());
    }

    #[test]
    fn compressed_data_end_at_a_sector() {
        // Cluster bits 16: 54 bits of offset, then the number of further sectors.
        let raw = RawEntry { word: COMPRESSED | 2 << 54 | 0x1_0010, bitmap: 0 };
        let expected = Compressed { host: HostOffset(0x1_0010), len: 3 * SECTOR - 0x10 };
        assert_eq!(PLAIN.decode(raw, GuestCluster(0), 1 << 30).unwrap(), Mapping::Compressed(expected));
        for (rules, sectors) in [(PLAIN, 96), (EXTENDED, 192), (EXTENDED, 1)] {
            let place = Compressed { host: HostOffset(0x3_0600), len: sectors * SECTOR };
            let decoded = rules.decode(rules.encode_compressed(place), GuestCluster(0), 1 << 30).unwrap();
            assert_eq!(decoded, Mapping::Compressed(place));
        }
    }
}
