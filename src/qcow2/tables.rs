//! L2 tables in memory: slices of 4 KiB, loaded on demand, found without a lock, bounded by a budget.

use super::entry::RawEntry;
use super::geometry::Geometry;
use crate::error::Result;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{ArcSwapOption, Mutex, OnceLock, size};
use crate::units::{index, length};
use std::collections::VecDeque;
use std::sync::Arc;

const GROUP: u64 = length(size(512, 8));
const LOAD_LOCKS: usize = size(64, 4);
const FEWEST_SLICES: usize = size(16, 2);

/// A piece of an L2 table.
///
/// The words of an entry change only under the exclusive lock of the entry's guest cluster and are read under that
/// lock shared, so they need no ordering of their own; the atomics let neighbouring entries be used meanwhile.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) index: u64,
    words: Box<[AtomicU64]>,
    words_per_entry: usize,
    state: Mutex<State>,
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    dirty: bool,
    writing: bool,
    evicted: bool,
    /// Whether the host holds bytes for the slice, so that writing it needs no further space.
    backed: bool,
}

impl Slice {
    fn new(index: u64, words: &[u64], words_per_entry: usize) -> Self {
        Self {
            index,
            words: words.iter().map(|word| AtomicU64::new(*word)).collect(),
            words_per_entry,
            state: Mutex::new(State { backed: words.iter().any(|word| *word != 0), ..State::default() }),
            used: AtomicBool::new(true),
        }
    }

    pub(super) fn get(&self, entry: usize) -> RawEntry {
        let at = entry * self.words_per_entry;
        let word = self.words[at].load(Ordering::Relaxed);
        let bitmap = if self.words_per_entry == 2 { self.words[at + 1].load(Ordering::Relaxed) } else { 0 };
        RawEntry { word, bitmap }
    }

    fn set(&self, entry: usize, raw: RawEntry) {
        let at = entry * self.words_per_entry;
        self.words[at].store(raw.word, Ordering::Relaxed);
        if self.words_per_entry == 2 {
            self.words[at + 1].store(raw.bitmap, Ordering::Relaxed);
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_be_bytes()).collect()
    }
}

/// A slice and its bytes at one moment, to be written out.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) slice: Arc<Slice>,
    pub(super) bytes: Vec<u8>,
}

type Slot = ArcSwapOption<Slice>;

/// All slices of an image.
#[derive(Debug)]
pub(super) struct Tables {
    geometry: Geometry,
    groups: Vec<OnceLock<Box<[Slot]>>>,
    loads: [Mutex<()>; LOAD_LOCKS],
    resident: Mutex<VecDeque<u64>>,
    dirty: Mutex<Vec<Arc<Slice>>>,
    dirty_count: AtomicUsize,
    most_slices: usize,
}

impl Tables {
    /// No slices yet, and room for `budget` bytes of them.
    pub(super) fn new(geometry: Geometry, budget: u64) -> Self {
        let slice_bytes = geometry.slice_entries() * geometry.entry_size();
        let groups = geometry.slices().div_ceil(GROUP);
        Self {
            geometry,
            groups: (0..groups).map(|_| OnceLock::new()).collect(),
            loads: std::array::from_fn(|_| Mutex::new(())),
            resident: Mutex::default(),
            dirty: Mutex::default(),
            dirty_count: AtomicUsize::new(0),
            most_slices: index(budget / slice_bytes).max(FEWEST_SLICES),
        }
    }

    /// The image is one of `images` in a chain: together they keep at most twice as much as one alone. Returns how many bytes are
    /// this one's.
    pub(super) fn share(&mut self, images: usize) -> u64 {
        self.most_slices = self.most_slices.min(2 * self.most_slices / images.max(1)).max(FEWEST_SLICES);
        length(self.most_slices) * self.geometry.slice_entries() * self.geometry.entry_size()
    }

    /// No slices, and the same room for them: what is in memory says nothing of the file any more.
    pub(super) fn emptied(&self) -> Self {
        Self { most_slices: self.most_slices, ..Self::new(self.geometry, 0) }
    }

    fn slot(&self, slice: u64) -> &Slot {
        let group =
            self.groups[index(slice / GROUP)].get_or_init(|| (0..GROUP).map(|_| Slot::empty()).collect());
        &group[index(slice % GROUP)]
    }

    /// An entry, if its slice is in memory. Takes no lock.
    pub(super) fn entry(&self, slice: u64, entry: usize) -> Option<RawEntry> {
        let guard = self.slot(slice).load();
        let slice = guard.as_ref()?;
        if !slice.used.load(Ordering::Relaxed) {
            slice.used.store(true, Ordering::Relaxed);
        }
        Some(slice.get(entry))
    }

    /// A slice; `load` fills its words when it is not in memory.
    pub(super) fn slice(
        &self,
        number: u64,
        load: impl FnOnce(&mut [u64]) -> Result<()>,
    ) -> Result<Arc<Slice>> {
        let slot = self.slot(number);
        if let Some(slice) = slot.load_full() {
            return Ok(slice);
        }
        // One loader at a time, or a slow one could bring back words that were changed, written and evicted since.
        let guard = self.loads[index(number) % LOAD_LOCKS].lock();
        if let Some(slice) = slot.load_full() {
            return Ok(slice);
        }
        let words_per_entry = index(self.geometry.entry_size() / 8);
        let mut words = vec![0; index(self.geometry.slice_entries()) * words_per_entry];
        load(&mut words)?;
        let slice = Arc::new(Slice::new(number, &words, words_per_entry));
        slot.store(Some(slice.clone()));
        drop(guard);
        self.make_room(number);
        Ok(slice)
    }

    /// Changes an entry. `false`: the slice was evicted meanwhile, and must be looked up again.
    ///
    /// The first change of a slice of zeros, which may be a hole of the file, calls `back` with its bytes as they are:
    /// a full host then fails the change, and not the commit that everybody depends on. `log` is called when nothing can
    /// fail any more.
    pub(super) fn publish(
        &self,
        slice: &Arc<Slice>,
        entry: usize,
        raw: RawEntry,
        back: impl FnOnce(&[u8]) -> Result<()>,
        log: impl FnOnce(),
    ) -> Result<bool> {
        let mut state = slice.state.lock();
        if state.evicted {
            return Ok(false);
        }
        if !state.backed {
            back(&slice.bytes())?;
            state.backed = true;
        }
        log();
        slice.set(entry, raw);
        if !state.dirty {
            state.dirty = true;
            self.push_dirty(slice);
        }
        Ok(true)
    }

    /// Takes the list of dirty slices, for [`Tables::snapshots`].
    pub(super) fn take_dirty(&self) -> Vec<Arc<Slice>> {
        let slices = std::mem::take(&mut *self.dirty.lock());
        self.dirty_count.fetch_sub(slices.len(), Ordering::Relaxed);
        slices
    }

    /// A snapshot of each slice, in the order of the disk. They are held in memory until [`Tables::written`] or
    /// [`Tables::restore`].
    pub(super) fn snapshots(&self, mut slices: Vec<Arc<Slice>>) -> Vec<Snapshot> {
        slices.sort_by_key(|slice| slice.index);
        slices
            .into_iter()
            .map(|slice| {
                let mut state = slice.state.lock();
                state.dirty = false;
                state.writing = true;
                let bytes = slice.bytes();
                drop(state);
                Snapshot { slice, bytes }
            })
            .collect()
    }

    /// The snapshots are durable.
    pub(super) fn written(&self, snapshots: &[Snapshot]) {
        for snapshot in snapshots {
            snapshot.slice.state.lock().writing = false;
        }
    }

    /// The snapshots may not have reached the file: their slices are dirty again.
    pub(super) fn restore(&self, snapshots: &[Snapshot]) {
        for Snapshot { slice, .. } in snapshots {
            let mut state = slice.state.lock();
            state.writing = false;
            if !state.dirty {
                state.dirty = true;
                self.push_dirty(slice);
            }
        }
    }

    fn push_dirty(&self, slice: &Arc<Slice>) {
        self.dirty.lock().push(slice.clone());
        self.dirty_count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether so much is dirty that the budget cannot be kept without a flush.
    pub(super) fn wants_flush(&self) -> bool {
        self.dirty_count.load(Ordering::Relaxed) > self.most_slices / 2
    }

    /// Puts `newest` on the list of slices in memory and evicts clean ones that were not used lately.
    fn make_room(&self, newest: u64) {
        let mut resident = self.resident.lock();
        resident.push_back(newest);
        let mut tries = 2 * resident.len();
        while resident.len() > self.most_slices && tries > 0 {
            tries -= 1;
            if let Some(number) = resident.pop_front()
                && !self.evict(number)
            {
                resident.push_back(number);
            }
        }
    }

    fn evict(&self, number: u64) -> bool {
        let slot = self.slot(number);
        let Some(slice) = slot.load_full() else { return true };
        // Whoever holds it is about to change it: evicting it could make that go on for ever.
        let held = Arc::strong_count(&slice) > 2;
        if slice.used.swap(false, Ordering::Relaxed) || held {
            return false;
        }
        let mut state = slice.state.lock();
        if state.dirty || state.writing {
            return false;
        }
        state.evicted = true;
        slot.store(None);
        true
    }
}
