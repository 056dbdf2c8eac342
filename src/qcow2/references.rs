//! Counts of references to host clusters, in bounded memory however a hostile file scatters them.
//!
//! What is kept are the clusters at which the count changes: neighbours with the same count cost nothing. When even that is
//! too much, the upper part is passed over, and a later pass over the image counts it.

use std::ops::Range;

/// Steps kept at most, of 16 bytes each.
const MOST_STEPS: usize = 3 << 20;
/// Steps that there is room for at first.
const FEWEST_STEPS: usize = 1 << 16;

/// From this cluster on, the count is higher by `by`.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: u64,
    by: i64,
}

/// How many references there are to each host cluster of a window of the file.
#[derive(Debug)]
pub(super) struct References {
    window: Range<u64>,
    steps: Vec<Step>,
    most: usize,
    /// One past the last cluster with a reference, in the window or behind it.
    end: u64,
}

impl References {
    /// Nothing counted yet; only clusters from `start` on are.
    pub(super) fn from(start: u64) -> Self {
        Self::with_room(start, MOST_STEPS)
    }

    fn with_room(start: u64, most: usize) -> Self {
        Self { window: start..u64::MAX, steps: Vec::new(), most, end: 0 }
    }

    /// Counts every cluster of `clusters` `times` times more.
    pub(super) fn add(&mut self, clusters: Range<u64>, times: u32) {
        self.end = self.end.max(clusters.end);
        let (start, end) = (clusters.start.max(self.window.start), clusters.end.min(self.window.end));
        if start >= end || times == 0 {
            return;
        }
        if self.steps.len() + 2 > self.steps.capacity().max(FEWEST_STEPS) {
            self.make_room();
            if start >= self.window.end {
                return;
            }
        }
        let (by, end) = (i64::from(times), end.min(self.window.end));
        if let Some(last) = self.steps.last_mut()
            && (last.at, last.by) == (start, -by)
        {
            // Tables mostly point to neighbours, in order.
            last.at = end;
            return;
        }
        self.steps.push(Step { at: start, by });
        self.steps.push(Step { at: end, by: -by });
    }

    /// Merges the steps; when that does not help, takes more memory, and at the end gives up the upper half.
    fn make_room(&mut self) {
        self.merge();
        let capacity = self.steps.capacity().max(FEWEST_STEPS).min(self.most);
        if self.steps.len() <= capacity / 2 {
            return;
        }
        if capacity < self.most {
            let wanted = (2 * capacity).min(self.most);
            self.steps.reserve_exact(wanted - self.steps.len());
            return;
        }
        let cut = self.steps[self.most / 2].at;
        self.steps.retain(|step| step.at < cut);
        let open: i64 = self.steps.iter().map(|step| step.by).sum();
        if open != 0 {
            self.steps.push(Step { at: cut, by: -open });
        }
        self.window.end = cut;
    }

    fn merge(&mut self) {
        self.steps.sort_unstable_by_key(|step| step.at);
        self.steps.dedup_by(|next, kept| {
            let same = next.at == kept.at;
            kept.by += if same { next.by } else { 0 };
            same
        });
        self.steps.retain(|step| step.by != 0);
    }

    /// Everything was added: what was counted, and for which clusters.
    pub(super) fn finish(mut self) -> Counted {
        self.merge();
        let mut count = 0;
        for step in &mut self.steps {
            count += step.by;
            step.by = count;
        }
        Counted { window: self.window, runs: self.steps, end: self.end }
    }
}

/// The finished counts of a window.
#[derive(Debug)]
pub(super) struct Counted {
    window: Range<u64>,
    /// From this cluster on, to the next step, the count is `by`.
    runs: Vec<Step>,
    end: u64,
}

impl Counted {
    /// The clusters that these counts are complete for. Those of the next window begin behind it.
    pub(super) fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    /// Where the next window begins; `None` when this one is the last.
    pub(super) fn next(&self) -> Option<u64> {
        (self.window.end < u64::MAX).then_some(self.window.end)
    }

    /// One past the last cluster with a reference, in any window.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The count of a cluster of the window.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let behind = self.runs.partition_point(|run| run.at <= cluster);
        behind.checked_sub(1).map_or(0, |at| self.runs[at].by.unsigned_abs())
    }

    /// The same for who asks for clusters in order: what was found last is looked at first.
    pub(super) fn in_order(&self) -> impl FnMut(u64) -> u64 + '_ {
        let (mut known, mut count) = (0..0, 0);
        move |cluster| {
            if !known.contains(&cluster) {
                let behind = self.runs.partition_point(|run| run.at <= cluster);
                let place = |at: usize| self.runs.get(at).map(|run| run.at);
                count = behind.checked_sub(1).map_or(0, |at| self.runs[at].by.unsigned_abs());
                known = behind.checked_sub(1).and_then(place).unwrap_or(0)..place(behind).unwrap_or(u64::MAX);
            }
            count
        }
    }

    /// Every cluster of the window with a reference, and its count, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.windows(2).filter(|pair| pair[0].by > 0).flat_map(|pair| {
            let count = pair[0].by.unsigned_abs();
            (pair[0].at..pair[1].at).map(move |cluster| (cluster, count))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Counts = BTreeMap<u64, u64>;

    /// A model of the counts, and ranges like those of an image: runs, single clusters, overlaps.
    fn ranges() -> (Vec<(Range<u64>, u32)>, Counts) {
        let (mut ranges, mut model, mut state) = (Vec::new(), Counts::new(), 1_u64);
        for number in 0..40_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = match number % 3 {
                0 => number,
                _ => state >> 40,
            };
            let len = if number % 100 == 0 { state >> 20 & 63 } else { 1 };
            let times = u32::from(state.to_be_bytes()[1] % 3);
            ranges.push((start..start + len, times));
            for cluster in start..start + len {
                *model.entry(cluster).or_insert(0) += u64::from(times);
            }
        }
        model.retain(|_, count| *count > 0);
        (ranges, model)
    }

    #[test]
    fn little_room_takes_more_windows_and_counts_the_same() {
        let (ranges, model) = ranges();
        for most in [16, 1000, FEWEST_STEPS, MOST_STEPS] {
            let (mut found, mut windows, mut start) = (BTreeMap::new(), 0, Some(0));
            while let Some(from) = start {
                let mut references = References::with_room(from, most);
                for (clusters, times) in &ranges {
                    references.add(clusters.clone(), *times);
                    assert!(references.steps.len() <= most.max(FEWEST_STEPS));
                }
                let counted = references.finish();
                let mut in_order = counted.in_order();
                for (cluster, count) in counted.iter() {
                    assert_eq!((counted.get(cluster), in_order(cluster)), (count, count));
                    assert_eq!(in_order(cluster + 1), counted.get(cluster + 1));
                }
                assert!(counted.iter().all(|(cluster, _)| counted.window().contains(&cluster)));
                found.extend(counted.iter());
                windows += 1;
                start = counted.next();
            }
            assert_eq!(found, model, "with {most} steps");
            assert!(windows == 1 || most < MOST_STEPS);
        }
    }

    #[test]
    fn a_dense_file_costs_next_to_nothing() {
        let mut references = References::from(0);
        for cluster in 0..1_000_000 {
            references.add((cluster * 7 % 1_000_000)..(cluster * 7 % 1_000_000) + 1, 1);
        }
        let counted = references.finish();
        assert_eq!((counted.runs.len(), counted.get(999_999), counted.get(1_000_000)), (2, 1, 0));
        assert_eq!((counted.end(), counted.next()), (1_000_000, None));
    }
}
