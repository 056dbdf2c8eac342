//! Which L2 tables there are and how often each is pointed to, in bounded memory.

/// Uses kept at most, of 24 bytes each.
const MOST_USES: usize = 1 << 19;

/// Who points to an L2 table.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableUse {
    /// Its first byte in the file.
    pub(super) place: u64,
    /// By how many entries of all L1 tables.
    pub(super) times: u32,
    /// The entry of the disk's L1 table that does, or of a snapshot's when that one does not.
    pub(super) l1_index: usize,
    /// By how many entries of the disk's own L1 table.
    pub(super) active: u32,
}

/// L2 tables in the order of the file, each once: those of a window of the file.
#[derive(Debug)]
pub(super) struct TableUses {
    start: u64,
    /// What begins here or behind has to wait for the next window.
    end: u64,
    uses: Vec<TableUse>,
    most: usize,
}

impl TableUses {
    /// Nothing known yet; only tables from `start` on are kept.
    pub(super) fn from(start: u64) -> Self {
        Self { start, end: u64::MAX, uses: Vec::new(), most: MOST_USES }
    }

    /// An L1 entry points to the table at `place`.
    pub(super) fn add(&mut self, place: u64, l1_index: usize, active: bool) {
        if place < self.start || place >= self.end {
            return;
        }
        if self.uses.len() == self.most {
            self.merge();
            if self.uses.len() > self.most / 2 {
                self.end = self.uses[self.most / 2].place;
                self.uses.truncate(self.most / 2);
                return self.add(place, l1_index, active);
            }
        }
        self.uses.push(TableUse { place, times: 1, l1_index, active: u32::from(active) });
    }

    fn merge(&mut self) {
        self.uses.sort_unstable_by_key(|table| (table.place, table.active == 0, table.l1_index));
        self.uses.dedup_by(|next, kept| {
            let same = next.place == kept.place;
            if same {
                kept.times = kept.times.saturating_add(next.times);
                kept.active = kept.active.saturating_add(next.active);
            }
            same
        });
    }

    /// Everything was added: the tables of the window, and where the next one begins.
    pub(super) fn finish(mut self) -> (Vec<TableUse>, Option<u64>) {
        self.merge();
        (self.uses, (self.end < u64::MAX).then_some(self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn each_table_is_given_once_with_all_its_uses() {
        let mut model = BTreeMap::new();
        let entries: Vec<(u64, bool)> = (0..20_000_u64).map(|n| (n * n % 4093 * 512, n % 5 == 0)).collect();
        for (place, active) in &entries {
            let known: &mut (u32, u32) = model.entry(*place).or_default();
            *known = (known.0 + 1, known.1 + u32::from(*active));
        }
        for most in [2, 100, MOST_USES] {
            let (mut found, mut start) = (BTreeMap::new(), Some(0));
            while let Some(from) = start {
                let mut uses = TableUses { most, ..TableUses::from(from) };
                for (number, (place, active)) in (0..).zip(&entries) {
                    uses.add(*place, number, *active);
                }
                let (tables, next) = uses.finish();
                for table in &tables {
                    let first = &entries[table.l1_index];
                    assert!(first.0 == table.place && first.1 == (table.active > 0));
                    assert!(found.insert(table.place, (table.times, table.active)).is_none());
                }
                start = next;
            }
            assert_eq!(found, model, "with {most} uses");
        }
    }
}
