//! A sparse count for each host cluster.

use crate::units::{index, length};
use std::collections::BTreeMap;
use std::ops::Range;

/// Few counts to a node: a hostile file that scatters its references costs little more memory than its own tables.
const CHUNK: u64 = 8;

/// How many references to each host cluster were found.
#[derive(Debug, Default)]
pub(super) struct References {
    chunks: BTreeMap<u64, [u32; 8]>,
}

impl References {
    /// Counts every cluster of `clusters` `times` times more.
    pub(super) fn add(&mut self, clusters: Range<u64>, times: u32) {
        for cluster in clusters {
            let count = &mut self.chunks.entry(cluster / CHUNK).or_default()[index(cluster % CHUNK)];
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
            chunk * CHUNK + length(last) + 1
        })
    }

    /// Every cluster with a reference, and its count, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.range(0..u64::MAX)
    }

    /// As [`References::iter`], for a range of clusters.
    pub(super) fn range(&self, clusters: Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks
            .range(clusters.start / CHUNK..=clusters.end / CHUNK)
            .flat_map(|(chunk, counts)| {
                (0_u64..).zip(counts).map(move |(at, count)| (chunk * CHUNK + at, u64::from(*count)))
            })
            .filter(move |(cluster, count)| *count != 0 && clusters.contains(cluster))
    }
}
