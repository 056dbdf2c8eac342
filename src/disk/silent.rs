//! What was found of the layers under the top one: which of them say nothing of a place, so that a read need not ask them.
//!
//! They do not change while the disk is open, so what was found holds as long. There is a fixed number of words. Each is whole by
//! itself: readers share it without a lock, and what is found last takes the place of what was there.

use super::Layer;
use crate::error::Result;
use crate::qcow2::Source;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{OnceLock, size};
use crate::units::{GuestOffset, KIB, index, length};

/// Bytes of the disk that one word is about, and of each part of them that has a bit.
const SPAN: u64 = if cfg!(cowshed_model) { 16 * KIB } else { 128 * KIB };
const PART: u64 = SPAN / u32::BITS as u64;
/// Words that come together, when the first of them is needed.
const GROUP: u64 = length(size(512, 2));
/// Layers that a word can count.
const MOST_LAYERS: usize = 1 << DEPTH_BITS;
const DEPTH_BITS: u32 = 6;
/// A word: from its low end a bit for each part, two depths, and which one of the spans that share its place it is about, from 1 on.
const FIRST_SHIFT: u32 = u32::BITS + DEPTH_BITS;
const TURN_SHIFT: u32 = FIRST_SHIFT + DEPTH_BITS;

/// The words of one disk.
#[derive(Debug)]
pub(super) struct Silent {
    /// So many that their number is a power of two.
    groups: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

/// What is known of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    /// The parts of which none of the layers that were asked says anything.
    silent: u32,
    /// How many layers were asked, from the first one on. The last one is not: it is where a read ends anyway.
    asked: usize,
    /// The first layer that says something of any other part.
    first: usize,
}

impl Silent {
    /// Nothing is known yet of the layers `below` the top, and there is room for `budget` bytes of words; `None` where they save
    /// nothing, or cannot be relied on.
    pub(super) fn new(below: &[Layer], budget: u64) -> Option<Self> {
        let fixed = below.iter().all(|layer| !layer.is_writable());
        if below.len() < 2 || below.len() > MOST_LAYERS || !fixed {
            return None;
        }
        let spans = below[0].size().div_ceil(SPAN);
        let affordable = (budget / (8 * GROUP)).checked_ilog2().map_or(1, |bits| 1 << bits);
        let groups = spans.div_ceil(GROUP).next_power_of_two().min(affordable);
        Some(Self { groups: (0..groups).map(|_| OnceLock::new()).collect() })
    }

    /// Which of the layers `below` to begin with for a read of `len` bytes at `at`, and for how many of them that holds.
    pub(super) fn begin(&self, below: &[Layer], at: GuestOffset, len: u64) -> (usize, u64) {
        let (layer, mut run) = self.begin_in_span(below, at, len);
        while run < len {
            let (next, more) = self.begin_in_span(below, at + run, len - run);
            if next != layer {
                break;
            }
            run += more;
        }
        (layer, run)
    }

    fn begin_in_span(&self, below: &[Layer], at: GuestOffset, len: u64) -> (usize, u64) {
        let (span, within) = (at.0 / SPAN, at.0 % SPAN);
        let part = within / PART;
        let Some(found) = self.found(below, span, part) else { return (0, len.min(SPAN - within)) };
        let rest = found.silent >> part;
        let (layer, parts) = match rest & 1 {
            0 => (found.first, rest.trailing_zeros()),
            _ => (found.asked, rest.trailing_ones()),
        };
        (layer, len.min(((part + u64::from(parts)) * PART).min(SPAN) - within))
    }

    /// What is known of a span, when the layers were asked as far as a read of one of its parts would ask them; `None` when that cannot
    /// be told.
    fn found(&self, below: &[Layer], span: u64, part: u64) -> Option<Found> {
        let words = length(self.groups.len()) * GROUP;
        let (place, turn) = (span & (words - 1), (span >> words.trailing_zeros()) + 1);
        if turn >> (u64::BITS - TURN_SHIFT) != 0 {
            return None;
        }
        let group =
            self.groups[index(place / GROUP)].get_or_init(|| (0..GROUP).map(|_| AtomicU64::new(0)).collect());
        let word = &group[index(place % GROUP)];
        let known = word.load(Ordering::Relaxed);
        let mut found = if known >> TURN_SHIFT == turn { Found::decode(known) } else { Found::NOTHING };
        if found.asks(below, part) {
            // A table that cannot be read is told of by a read that needs it.
            found.ask(below, span * SPAN, part).ok()?;
            word.store(turn << TURN_SHIFT | found.encode(), Ordering::Relaxed);
        }
        Some(found)
    }
}

impl Found {
    const NOTHING: Self = Self { silent: u32::MAX, asked: 0, first: 0 };

    fn decode(word: u64) -> Self {
        let depth = |shift: u32| index(word >> shift & (length(MOST_LAYERS) - 1));
        #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
        Self { silent: word as u32, asked: depth(u32::BITS), first: depth(FIRST_SHIFT) }
    }

    fn encode(self) -> u64 {
        length(self.first) << FIRST_SHIFT | length(self.asked) << u32::BITS | u64::from(self.silent)
    }

    /// Whether a read of a part would go on to a layer that was not asked.
    fn asks(self, below: &[Layer], part: u64) -> bool {
        self.silent >> part & 1 != 0 && self.asked + 1 < below.len()
    }

    fn ask(&mut self, below: &[Layer], start: u64, part: u64) -> Result<()> {
        while self.asks(below, part) {
            let said = said(&below[self.asked], start)?;
            if self.silent == u32::MAX {
                self.first = self.asked;
            }
            self.silent &= !said;
            self.asked += 1;
        }
        Ok(())
    }
}

/// The parts of the span from `start` on of which a layer says something. Past its end all read as zeros, by its word.
fn said(layer: &Layer, start: u64) -> Result<u32> {
    let inside = layer.size().saturating_sub(start).min(SPAN);
    let mut said = touched(inside, SPAN);
    let mut done = 0;
    while done < inside {
        let (len, source) = layer.extent(GuestOffset(start + done), inside - done)?;
        let end = done.saturating_add(len).min(inside);
        if source != Source::Below {
            said |= touched(done, end);
        }
        done = end;
    }
    Ok(said)
}

/// The parts that a range of a span touches.
fn touched(from: u64, to: u64) -> u32 {
    let lowest = |parts: u64| u32::try_from((1_u64 << parts) - 1).unwrap_or(u32::MAX);
    if from < to { lowest(to.div_ceil(PART)) & !lowest(from / PART) } else { 0 }
}

#[cfg(all(test, not(cowshed_model)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Chain, Disk, RawLayer, Under};
    use super::*;
    use crate::qcow2::{Below, CreateOptions, Image, OpenOptions, create};
    use crate::storage::{Memory, Storage};
    use crate::units::{HostOffset, MIB};
    use std::sync::Arc;

    /// Bytes that the words of one group are about: spans so far apart share a place.
    const TURN: u64 = GROUP * SPAN;

    /// Numbers that look random, and are the same for the same seed.
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }

        /// A place inside of a few spans that share their words.
        fn place(&mut self) -> u64 {
            self.below(3) * TURN + self.below(4 * SPAN / 512) * 512
        }
    }

    fn open(files: &[Arc<Memory>], writable: bool) -> Vec<Layer> {
        let (raw, images) = files.split_last().unwrap();
        let options = |depth| OpenOptions { writable: writable && depth == 0, metadata_cache: MIB };
        let image = |(depth, file): (usize, &Arc<Memory>)| Image::open(file.clone(), options(depth)).unwrap();
        let mut layers: Vec<_> = images.iter().enumerate().map(image).map(Layer::qcow2).collect();
        layers.push(Layer::Raw(RawLayer::new(raw.clone(), false).unwrap()));
        layers
    }

    /// The files of a chain, the top first: layers of every kind, of which some are shorter than others.
    fn files(draw: &mut Draw, depth: usize) -> Vec<Arc<Memory>> {
        let raw = Arc::new(Memory::default());
        for _ in 0..20 {
            raw.write_at(&[1; 9000], HostOffset(draw.place())).unwrap();
        }
        raw.set_len(2 * TURN + 3 * SPAN + draw.below(SPAN)).unwrap();
        let mut files = vec![raw];
        for number in 0..depth {
            let short = 2 * TURN + draw.below(4 * SPAN / 512) * 512;
            let mut options = CreateOptions::new(if draw.below(3) == 0 { short } else { 3 * TURN });
            let kinds = [(17, true), (17, true), (14, true), (16, false), (12, false)];
            (options.cluster_bits, options.extended_l2) = kinds[index(draw.below(5))];
            files.insert(0, Arc::default());
            create(&*files[0], &options).unwrap();
            let mut disk = Disk::new(open(&files, true)).unwrap();
            let byte = u8::try_from(number + 2).unwrap();
            for _ in 0..12 {
                let (at, len) = (draw.place(), 512 + draw.below(40_000));
                if at + len > disk.size() {
                    continue;
                }
                match draw.below(4) {
                    0 => disk.discard(GuestOffset(at), len).unwrap(),
                    _ => disk.write(&vec![byte; index(len)], GuestOffset(at)).unwrap(),
                }
            }
            if draw.below(3) == 0 {
                disk.pack(&mut |_| true).unwrap();
            }
            disk.close().unwrap();
        }
        files
    }

    fn read(below: &dyn Below, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0xee; index(len)];
        below.read_to(&mut &mut bytes[..], GuestOffset(at), len).unwrap();
        bytes
    }

    #[test]
    fn what_is_known_of_the_layers_changes_nothing_of_what_is_read() {
        for seed in 1..=40 {
            let mut draw = Draw(seed);
            let depth = index(2 + draw.below(9));
            let layers = open(&files(&mut draw, depth), false);
            let silent = Silent::new(&layers, 0).unwrap();
            let all = Chain(&layers);
            let under = Under { chain: Chain(&layers), silent: Some(&silent) };
            for _ in 0..400 {
                let longest = if draw.below(4) == 0 { 600_000 } else { 9000 };
                let (at, len) = (draw.place(), 1 + draw.below(longest));
                assert!(
                    read(&under, at, len) == read(&all, at, len),
                    "seed {seed}, {depth} layers: {len} at {at:#x}"
                );
            }
        }
    }

    /// Layers of nothing over noise, but for one that has 4 KiB in the middle of the second span.
    fn quiet(depth: usize, tells: usize) -> Vec<Layer> {
        let mut files: Vec<Arc<Memory>> = vec![Arc::new(Memory::from_bytes(&vec![7; 1 << 20]))];
        for number in (0..depth).rev() {
            files.insert(0, Arc::default());
            create(&*files[0], &CreateOptions::new(MIB)).unwrap();
            if number == tells {
                let disk = Disk::new(open(&files, true)).unwrap();
                disk.write(&[9; 4096], GuestOffset(SPAN + SPAN / 2)).unwrap();
                disk.close().unwrap();
            }
        }
        open(&files, false)
    }

    #[test]
    fn a_read_begins_at_the_layer_that_says_something() {
        let layers = quiet(15, 6);
        let silent = Silent::new(&layers, 0).unwrap();
        let begin = |at, len| silent.begin(&layers, GuestOffset(at), len);
        assert_eq!(begin(0, 4096), (15, 4096));
        assert_eq!(begin(4000, 300), (15, 300));
        let middle = SPAN + SPAN / 2;
        assert_eq!(begin(middle + 100, 200), (6, 200));
        assert_eq!(begin(0, MIB), (15, middle), "neighbours are one run");
        assert_eq!(begin(middle, MIB / 2), (6, 4096));
        assert_eq!(begin(middle + 4096, 8192), (15, 8192));
    }

    #[test]
    fn a_layer_is_asked_only_when_a_read_would_come_to_it() {
        let layers = quiet(15, 6);
        let silent = Silent::new(&layers, 0).unwrap();
        let known = |part| silent.found(&layers, 1, part).unwrap();
        assert_eq!(known(16), Found { silent: !(1 << 16), asked: 7, first: 6 });
        assert_eq!(known(3), Found { silent: !(1 << 16), asked: 15, first: 6 });
    }

    #[test]
    fn nothing_is_kept_of_layers_that_may_change_or_that_are_few() {
        let mut layers = quiet(2, 0);
        assert!(Silent::new(&layers[1..], 0).is_some());
        assert!(Silent::new(&layers[2..], 0).is_none(), "the only one is asked anyway");
        let file = Arc::new(Memory::default());
        create(&*file, &CreateOptions::new(MIB)).unwrap();
        let options = OpenOptions { writable: true, metadata_cache: MIB };
        layers[1] = Layer::qcow2(Image::open(file, options).unwrap());
        assert!(Silent::new(&layers[1..], 0).is_none());
    }

    #[test]
    fn a_word_holds_what_was_found() {
        let found = Found { silent: 0xdead_beef, asked: MOST_LAYERS - 1, first: 41 };
        assert_eq!(Found::decode(found.encode()), found);
        assert_eq!(Found::decode(5 << TURN_SHIFT | Found::NOTHING.encode()), Found::NOTHING);
        for (from, to, parts) in
            [(0, 1, 1), (0, SPAN, u32::MAX), (4095, 4097, 3), (SPAN - 1, SPAN, 1 << 31), (5, 5, 0)]
        {
            assert_eq!(touched(from, to), parts, "{from}..{to}");
        }
    }
}
