//! A sparse count for each host cluster.

use crate::units::index;
use std::collections::BTreeMap;
use std::ops::Range;

const CHUNK: u64 = 64;

/// How many references to each host cluster were found.
#[derive(Debug, Default)]
pub(super) struct References {
    chunks: BTreeMap<u64, Box<[u32]>>,
}

impl References {
    /// Counts every cluster of `clusters` `times` times more.
    pub(super) fn add(&mut self, clusters: Range<u64>, times: u32) {
        for cluster in clusters {
            let chunk = self.chunks.entry(cluster / CHUNK).or_insert_with(|| vec![0; index(CHUNK)].into());
            let count = &mut chunk[index(cluster % CHUNK)];
            *count = count.saturating_add(times);
        }
    }

    /// The count of a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        self.chunks.get(&(cluster / CHUNK)).map_or(0, |chunk| u64::from(chunk[index(cluster % CHUNK)]))
    }

    /// One past the last cluster with a reference.
    pub(super) fn end(&self) -> u64 {
        self.chunks.iter().next_back().map_or(0, |(chunk, counts)| {
            let last = counts.iter().rposition(|count| *count != 0).unwrap_or(0);
            chunk * CHUNK + crate::units::length(last) + 1
        })
    }

    /// Every cluster with a reference, and its count.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks.iter().flat_map(|(chunk, counts)| {
            counts
                .iter()
                .enumerate()
                .filter(|(_, count)| **count != 0)
                .map(move |(at, count)| (chunk * CHUNK + crate::units::length(at), u64::from(*count)))
        })
    }
}
