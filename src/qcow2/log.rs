//! The log: changes of entries that are in memory only, kept beside the image so that the end of the process loses none.
//!
//! An entry may not be written into the image before what it points to is durable, so until the next commit it is in memory
//! alone. A killed process would lose it, although its write was acknowledged; guest data are safe, for they are in the
//! host's memory. So each change of an entry is also written to the log, never synced: it lives as long as the host's memory
//! of the image does ([`Session`]), and after a power cut it counts for nothing. Who opens the image next replays it.
//!
//! The log belongs to the image whose header holds its nonce, in autoclear bits: a program that does not know them clears
//! them when it opens the image for writing, and by that the log is void. A change that cannot be logged (a full host) makes
//! its operation end with a commit instead.

use super::entry::RawEntry;
use super::layout::{LOG_FIRST_FIELD, LOG_MAGIC, LOG_RECORDS, RawLogHead, RawLogRecord};
use crate::storage::{Session, Storage};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, size};
use crate::units::{GuestCluster, HostOffset, index, length};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Records that a log holds at most: 10 MiB. A commit is due when half of them are in use.
const CAPACITY: u64 = length(size(1 << 18, 8));
const RECORD: u64 = length(RawLogRecord::SIZE);
/// Bytes that the sum of a head and of a record covers.
const HEAD_SUMMED: usize = 44;
const RECORD_SUMMED: usize = 36;
/// Kinds of records.
const ENTRY: u32 = 1;
const TABLE: u32 = 2;

/// Where the log of one image is kept.
pub trait LogPlace: Send + Sync + fmt::Debug {
    /// How long the host's memory of the image lasts.
    ///
    /// # Errors
    /// The host's; there is no log then.
    fn session(&self) -> io::Result<Session>;

    /// The log that is there, if there is one.
    ///
    /// # Errors
    /// The host's.
    fn open(&self, writable: bool) -> io::Result<Option<Arc<dyn Storage>>>;

    /// A new, empty log in the place of any other one.
    ///
    /// # Errors
    /// The host's.
    fn create(&self) -> io::Result<Arc<dyn Storage>>;

    /// Takes the log away.
    ///
    /// # Errors
    /// The host's.
    fn remove(&self) -> io::Result<()>;
}

/// A change of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A guest cluster's L2 entry.
    Entry(GuestCluster, RawEntry),
    /// An L1 entry: index and word.
    Table(usize, u64),
}

/// What a log held when a commit began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    number: u64,
    unlogged: u64,
}

/// The log of an open image. Nothing is written before the first change.
#[derive(Debug)]
pub(super) struct Log {
    place: Arc<dyn LogPlace>,
    /// Shared by those who change an entry and exclusive for a commit's mark, so that each change is in the log and in memory
    /// before the mark or neither.
    gate: RwLock<Option<Live>>,
    /// Number of the next record. Numbers never repeat within one opening.
    next: AtomicU64,
    /// No change before this number is needed.
    first: AtomicU64,
    /// Changes that could not be logged, and how many of them a commit has made durable.
    unlogged: AtomicU64,
    settled: AtomicU64,
}

/// A log that the image's header points to.
#[derive(Debug)]
struct Live {
    storage: Arc<dyn Storage>,
    /// The number whose record lies in the first place.
    origin: u64,
}

/// The gate, entered for a change.
#[must_use = "a change belongs to the log while this is held"]
pub(super) struct Entered<'a> {
    log: &'a Log,
    live: RwLockReadGuard<'a, Option<Live>>,
}

impl Entered<'_> {
    /// Logs a change that is about to be made in memory.
    pub(super) fn append(&self, change: Change) {
        if self.try_append(change).is_none() {
            self.log.unlogged.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn try_append(&self, change: Change) -> Option<()> {
        let live = self.live.as_ref()?;
        let number = self.log.next.fetch_add(1, Ordering::AcqRel);
        if number - self.log.first.load(Ordering::Acquire) >= CAPACITY {
            return None;
        }
        let at = LOG_RECORDS + number.wrapping_sub(live.origin) % CAPACITY * RECORD;
        live.storage.write_at(&encode(number, change), at).ok()
    }
}

/// The gate, closed for a commit's mark.
pub(super) struct Closed<'a> {
    log: &'a Log,
    _live: RwLockWriteGuard<'a, Option<Live>>,
}

impl Closed<'_> {
    /// Everything that is logged by now.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            number: self.log.next.load(Ordering::Acquire),
            unlogged: self.log.unlogged.load(Ordering::Acquire),
        }
    }
}

impl Log {
    pub(super) fn new(place: Arc<dyn LogPlace>) -> Self {
        Self {
            place,
            gate: RwLock::new(None),
            next: AtomicU64::new(0),
            first: AtomicU64::new(0),
            unlogged: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        }
    }

    /// The log that a killed process left, as our own: it goes on where that one stopped.
    pub(super) fn continued(place: Arc<dyn LogPlace>, left: Left) -> Self {
        Self {
            place,
            gate: RwLock::new(Some(left.live)),
            next: AtomicU64::new(left.next),
            first: AtomicU64::new(left.first),
            unlogged: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        }
    }

    /// Enters the gate. The first one makes the log, and has `arm` write its nonce into the image's header.
    pub(super) fn enter(&self, arm: impl FnOnce(u32) -> io::Result<()>) -> Entered<'_> {
        let live = self.gate.read();
        if live.is_some() {
            return Entered { log: self, live };
        }
        drop(live);
        let mut live = self.gate.write();
        if live.is_none() {
            // Without a log each change counts as unlogged, and the next one tries again.
            *live = self.start(arm).ok();
        }
        Entered { log: self, live: RwLockWriteGuard::downgrade(live) }
    }

    fn start(&self, arm: impl FnOnce(u32) -> io::Result<()>) -> io::Result<Live> {
        let storage = self.place.create()?;
        let origin = self.next.load(Ordering::Acquire);
        self.first.store(origin, Ordering::Release);
        let nonce = nonce();
        let mut head = RawLogHead {
            magic: LOG_MAGIC,
            session: self.place.session()?.0,
            nonce,
            sum: 0,
            first_number: origin,
            padding: 0,
        };
        head.sum = crc32fast::hash(&head.encode()[..HEAD_SUMMED]);
        storage.write_at(&head.encode(), HostOffset(0))?;
        arm(nonce)?;
        Ok(Live { storage, origin })
    }

    /// Closes the gate until the result is dropped: no change is half made meanwhile.
    pub(super) fn close_gate(&self) -> Closed<'_> {
        Closed { log: self, _live: self.gate.write() }
    }

    /// Whether a commit is due, to make room.
    pub(super) fn wants_flush(&self) -> bool {
        // In this order: a commit that ends in between must not make the first one overtake the next.
        let first = self.first.load(Ordering::Acquire);
        self.next.load(Ordering::Acquire) - first > CAPACITY / 2
    }

    /// Whether there are changes that are neither logged nor durable: who made one has to wait for a commit.
    pub(super) fn needs_flush(&self) -> bool {
        self.unlogged.load(Ordering::Acquire) > self.settled.load(Ordering::Acquire)
    }

    /// Everything before `mark` is durable. Whether the log has forgotten it: only then may what it names be given to
    /// others.
    pub(super) fn settle(&self, mark: Mark) -> bool {
        self.settled.fetch_max(mark.unlogged, Ordering::AcqRel);
        let mut gate = self.gate.write();
        if let Some(live) = gate.as_mut() {
            if live.storage.write_at(&mark.number.to_be_bytes(), LOG_FIRST_FIELD).is_err() {
                return false;
            }
            if self.next.load(Ordering::Acquire) == mark.number {
                // Nothing is left in it: a log that is settled in time stays short.
                live.origin = mark.number;
            }
        }
        self.first.store(mark.number, Ordering::Release);
        true
    }

    /// Takes the log away if nothing in it is needed any more; `disarm` clears its nonce in the image's header. A change
    /// that comes later makes a new one.
    pub(super) fn retire(&self, disarm: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut gate = self.gate.write();
        if gate.is_none() || self.next.load(Ordering::Acquire) != self.first.load(Ordering::Acquire) {
            return Ok(());
        }
        disarm()?;
        *gate = None;
        // A log whose nonce no image holds says nothing: what stays is debris.
        let _ = self.place.remove();
        Ok(())
    }

    /// Whether there is a log that the image's header points to.
    pub(super) fn is_live(&self) -> bool {
        self.gate.read().is_some()
    }

    /// Removes what is in the log's place and belongs to no image any more.
    pub(super) fn remove_debris(&self) -> io::Result<()> {
        self.place.remove()
    }

    /// A sync of the image failed: what the log points to may be lost, so nothing may be replayed.
    pub(super) fn void(&self) {
        let mut gate = self.gate.write();
        if let Some(live) = gate.take() {
            // Either of the two is enough. If both fail the host has lost more than this.
            let _ = live.storage.write_at(&[0; RawLogHead::SIZE], HostOffset(0));
            let _ = self.place.remove();
        }
    }
}

/// What a process left in the log of an image.
#[derive(Debug)]
pub(super) struct Left {
    live: Live,
    /// Numbers of the first record that is needed and of the next one.
    first: u64,
    next: u64,
    /// In their order.
    pub(super) changes: Vec<Change>,
}

impl Left {
    /// Reads the log of the image with `nonce` in its header; `None` when what is there is no log, another image's, or of
    /// another session.
    pub(super) fn read(place: &dyn LogPlace, nonce: u32, writable: bool) -> io::Result<Option<Self>> {
        // The header is read anyway; a file beside the image is looked for only when it says that there is one.
        if nonce == 0 {
            return Ok(None);
        }
        let Some(storage) = place.open(writable)? else { return Ok(None) };
        let mut head = [0; RawLogHead::SIZE];
        storage.read_at(&mut head, HostOffset(0))?;
        let sum = crc32fast::hash(&head[..HEAD_SUMMED]);
        let head = RawLogHead::decode(&head);
        let known = head.magic == LOG_MAGIC && head.sum == sum && head.nonce == nonce;
        if !known || head.session != place.session()?.0 {
            return Ok(None);
        }
        let len = storage.len()?.saturating_sub(LOG_RECORDS.0).min(CAPACITY * RECORD);
        let mut bytes = vec![0; index(len)];
        storage.read_at(&mut bytes, LOG_RECORDS)?;
        let records = (0..).zip(bytes.chunks_exact(RawLogRecord::SIZE));
        let mut needed: Vec<(u64, u64, Change)> = records
            .filter_map(|(slot, bytes)| decode(bytes).map(|(number, change)| (number, slot, change)))
            .filter(|(number, ..)| *number >= head.first_number)
            .collect();
        needed.sort_unstable_by_key(|(number, ..)| *number);
        // Numbers and places rise together, so the next record goes behind the last one.
        let (next, slot) =
            needed.last().map_or((head.first_number, 0), |(number, slot, _)| (number + 1, slot + 1));
        let live = Live { storage, origin: next.wrapping_sub(slot) };
        let changes = needed.into_iter().map(|(.., change)| change).collect();
        Ok(Some(Self { live, first: head.first_number, next, changes }))
    }
}

fn encode(number: u64, change: Change) -> [u8; RawLogRecord::SIZE] {
    let (kind, place, raw) = match change {
        Change::Entry(cluster, raw) => (ENTRY, cluster.0, raw),
        Change::Table(l1_index, word) => (TABLE, length(l1_index), RawEntry { word, bitmap: 0 }),
    };
    let RawEntry { word, bitmap } = raw;
    let mut record = RawLogRecord { number, place, word, bitmap, kind, sum: 0 };
    record.sum = crc32fast::hash(&record.encode()[..RECORD_SUMMED]);
    record.encode()
}

/// A record, unless its place was never written, or only in part.
fn decode(bytes: &[u8]) -> Option<(u64, Change)> {
    let record = RawLogRecord::decode(bytes);
    if record.sum != crc32fast::hash(&bytes[..RECORD_SUMMED]) {
        return None;
    }
    let raw = RawEntry { word: record.word, bitmap: record.bitmap };
    match record.kind {
        ENTRY => Some((record.number, Change::Entry(GuestCluster(record.place), raw))),
        TABLE => Some((record.number, Change::Table(index(record.place), record.word))),
        _ => None,
    }
}

/// A number that no earlier log of the image had, by chance; never 0.
fn nonce() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's source of random numbers, seeded by the host.
    let [a, b, c, d, ..] = RandomState::new().hash_one(std::process::id()).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).max(1)
}

#[cfg(all(test, not(cowshed_model)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::storage::Memory;

    /// A log in memory.
    #[derive(Debug)]
    struct Place;

    impl LogPlace for Place {
        fn session(&self) -> io::Result<Session> {
            Ok(Session([1; 32]))
        }

        fn open(&self, _: bool) -> io::Result<Option<Arc<dyn Storage>>> {
            Ok(None)
        }

        fn create(&self) -> io::Result<Arc<dyn Storage>> {
            Ok(Arc::new(Memory::new()))
        }

        fn remove(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_asks_for_room_when_it_is_half_full_and_has_everybody_wait_only_when_it_is_full() {
        let log = Log::new(Arc::new(Place));
        let append = |changes| {
            let logged = log.enter(|_| Ok(()));
            (0..changes).for_each(|place| logged.append(Change::Table(index(place), 0)));
        };
        for (changes, wants, needs) in
            [(CAPACITY / 2, false, false), (1, true, false), (CAPACITY / 2 - 1, true, false)]
        {
            append(changes);
            assert_eq!((log.wants_flush(), log.needs_flush()), (wants, needs), "{changes} more");
        }
        let mark = log.close_gate().mark();
        append(1);
        assert!(log.needs_flush(), "one more than it has room for");
        assert!(log.settle(mark));
        assert!(log.needs_flush(), "that one is after the mark");
        let mark = log.close_gate().mark();
        assert!(log.settle(mark));
        assert!(!log.wants_flush() && !log.needs_flush());
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_not_when_a_byte_differs() {
        for change in [
            Change::Entry(GuestCluster(77), RawEntry { word: 1 << 63 | 0x10000, bitmap: 5 }),
            Change::Table(3, 1 << 63 | 0x20000),
        ] {
            let bytes = encode(9, change);
            assert_eq!(decode(&bytes), Some((9, change)));
            for at in 0..bytes.len() {
                let mut damaged = bytes;
                damaged[at] ^= 0x10;
                assert_eq!(decode(&damaged), None, "byte {at}");
            }
        }
        assert_eq!(decode(&[0; RawLogRecord::SIZE]), None);
    }
}
