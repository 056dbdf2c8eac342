//! A load of several threads on one disk file, and what the disk may hold when its server is killed meanwhile.
#![allow(dead_code, clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub, missing_docs)]

use crate::rng::Rng;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SECTOR: usize = 512;
/// Sectors of a region; within one, all pieces are of the same length.
const REGION: usize = 2048;
/// Lengths of the pieces that belong to one thread, in sectors: from many threads in a subcluster to one in a cluster.
const PIECES: [usize; 6] = [1, 3, 8, 20, 64, 256];

/// What was done to a run of sectors.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    first: usize,
    count: usize,
    /// Stamp of the operation, or 0 for zeros.
    stamp: u64,
    acknowledged: bool,
}

/// What a thread did, in its order.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Change(Done),
    Flushed,
    /// The error number of what came before.
    Failed(i32),
}

/// A disk of which it is known what each sector may hold.
pub struct Model {
    /// What was acknowledged last, or was read.
    sure: Vec<u8>,
    /// Stamps of operations without an answer.
    maybe: HashMap<usize, Vec<u64>>,
    /// Stamps that were acknowledged and not flushed, when those may be lost.
    unflushed: HashMap<usize, Vec<u64>>,
    stamps: AtomicU64,
}

impl Model {
    pub fn new(content: Vec<u8>) -> Self {
        Self { sure: content, maybe: HashMap::new(), unflushed: HashMap::new(), stamps: AtomicU64::new(0) }
    }

    /// Threads that change the disk file at `path` until its server is gone, or until `stop`; calls `meanwhile` beside
    /// them.
    pub fn load(
        &mut self,
        path: &Path,
        rng: &mut Rng,
        threads: usize,
        stop: &AtomicBool,
        meanwhile: impl FnOnce(),
    ) -> Vec<Vec<Event>> {
        let files: Vec<File> = (0..threads).map(|thread| open(path, thread % 2 == 1)).collect();
        let sectors = self.sure.len() / SECTOR;
        let stamps = &self.stamps;
        std::thread::scope(|scope| {
            let running: Vec<_> = files
                .into_iter()
                .enumerate()
                .map(|(thread, file)| {
                    let mut rng = Rng::new(rng.bits());
                    scope.spawn(move || {
                        let mut events = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            let (first, count) = piece(&mut rng, sectors, (thread, threads));
                            if let Err(error) = one(&file, &mut rng, (first, count), stamps, &mut events) {
                                events.push(Event::Failed(error));
                                if matches!(error, libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED) {
                                    break;
                                }
                            }
                        }
                        events
                    })
                })
                .collect();
            meanwhile();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Remembers what the threads did. What was acknowledged must stay.
    pub fn keep(&mut self, threads: &[Vec<Event>]) {
        self.apply(threads, true);
    }

    /// Remembers what the threads did, where only what was flushed must stay: somebody else wrote to the image since.
    pub fn keep_flushed(&mut self, threads: &[Vec<Event>]) {
        self.apply(threads, false);
    }

    fn apply(&mut self, threads: &[Vec<Event>], all: bool) {
        for events in threads {
            let flushed = events.iter().rposition(|event| matches!(event, Event::Flushed)).unwrap_or(0);
            for (number, event) in events.iter().enumerate() {
                let Event::Change(done) = event else { continue };
                for sector in done.first..done.first + done.count {
                    if !done.acknowledged {
                        self.maybe.entry(sector).or_default().push(done.stamp);
                    } else if all || number < flushed {
                        self.maybe.remove(&sector);
                        self.unflushed.remove(&sector);
                        self.sure[sector * SECTOR..][..SECTOR].copy_from_slice(&stamped(done.stamp, sector));
                    } else {
                        self.unflushed.entry(sector).or_default().push(done.stamp);
                    }
                }
            }
        }
    }

    /// The numbers of the errors, and how many operations were answered without.
    pub fn answers(threads: &[Vec<Event>]) -> (Vec<i32>, usize) {
        let events = || threads.iter().flatten();
        let failed = |event: &Event| if let Event::Failed(error) = event { Some(*error) } else { None };
        let well = events().filter(|event| {
            matches!(event, Event::Flushed | Event::Change(Done { count: 1.., acknowledged: true, .. }))
        });
        (events().filter_map(failed).collect(), well.count())
    }

    /// Sectors whose content is not sure.
    pub fn open_questions(&self) -> usize {
        self.maybe.len() + self.unflushed.len()
    }

    /// Somebody else wrote `byte` to whole sectors.
    pub fn overwritten(&mut self, at: usize, len: usize, byte: u8) {
        self.sure[at..at + len].fill(byte);
        for sector in at / SECTOR..(at + len) / SECTOR {
            self.maybe.remove(&sector);
            self.unflushed.remove(&sector);
        }
    }

    /// Asserts that each sector holds what it may hold; from here on it holds that.
    pub fn settle(&mut self, got: Vec<u8>, what: &str) {
        assert_eq!(got.len(), self.sure.len(), "{what}: size");
        let mut wrong = Vec::new();
        for (sector, (is, sure)) in got.chunks(SECTOR).zip(self.sure.chunks(SECTOR)).enumerate() {
            let other =
                [&self.maybe, &self.unflushed].into_iter().filter_map(|map| map.get(&sector)).flatten();
            if is != sure && !other.into_iter().any(|stamp| is == stamped(*stamp, sector)) {
                wrong.push(format!("sector {sector} holds {}, not {}", name(is), name(sure)));
            }
        }
        let shown = wrong.iter().take(8).cloned().collect::<Vec<_>>().join("\n  ");
        assert!(wrong.is_empty(), "{what}: {} sectors are wrong:\n  {shown}", wrong.len());
        self.sure = got;
        self.maybe.clear();
        self.unflushed.clear();
    }

    /// What the disk holds, when nothing is open.
    pub fn content(&self) -> &[u8] {
        assert_eq!(self.open_questions(), 0);
        &self.sure
    }
}

fn open(path: &Path, direct: bool) -> File {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let opened = File::options().read(true).write(true).custom_flags(flags).open(path);
    opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A run of sectors that belongs to `thread` of `threads`.
fn piece(rng: &mut Rng, sectors: usize, (thread, threads): (usize, usize)) -> (usize, usize) {
    let regions = sectors / REGION;
    // A few regions are hot, so that most operations meet others.
    let region =
        if rng.chance(70) { rng.below(PIECES.len() as u64) } else { rng.below(regions as u64) } as usize;
    let len = PIECES[region % PIECES.len()];
    let all = REGION / len;
    let mine = rng.below((all / threads) as u64) as usize * threads + thread;
    let skip = rng.below(len as u64) as usize;
    let count = rng.between(1, (len - skip) as u64) as usize;
    (region * REGION + mine * len + skip, count)
}

/// One operation; the number of its error.
fn one(
    file: &File,
    rng: &mut Rng,
    (first, count): (usize, usize),
    stamps: &AtomicU64,
    events: &mut Vec<Event>,
) -> Result<(), i32> {
    let (at, len) = (first * SECTOR, count * SECTOR);
    let write = |data: &[u8]| file.write_at(data, at as u64).map_err(|error| error.raw_os_error().unwrap());
    let (stamp, done) = match rng.below(100) {
        0..=2 => {
            file.sync_data().map_err(|error| error.raw_os_error().unwrap())?;
            events.push(Event::Flushed);
            return Ok(());
        }
        3..=14 => (0, zero(file, at, len, FallocateFlags::FALLOC_FL_PUNCH_HOLE)),
        15..=22 => (0, zero(file, at, len, FallocateFlags::FALLOC_FL_ZERO_RANGE)),
        23..=26 => (0, write(&vec![0; len])),
        _ => {
            let stamp = stamps.fetch_add(1, Ordering::Relaxed) + 1;
            let data: Vec<u8> = (first..first + count).flat_map(|sector| stamped(stamp, sector)).collect();
            (stamp, write(&data))
        }
    };
    let answered = done.unwrap_or(0) / SECTOR;
    events.push(Event::Change(Done { first, count: answered, stamp, acknowledged: true }));
    let (first, count) = (first + answered, count - answered);
    events.push(Event::Change(Done { first, count, stamp, acknowledged: false }));
    done.map(|_| ())
}

fn zero(file: &File, at: usize, len: usize, how: FallocateFlags) -> Result<usize, i32> {
    let mode = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, at.cast_signed() as i64, len.cast_signed() as i64)
        .map(|()| len)
        .map_err(|error| error as i32)
}

/// A sector as the operation with this stamp leaves it.
fn stamped(stamp: u64, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if stamp != 0 {
        let word = stamp << 24 | sector as u64;
        bytes.as_chunks_mut::<8>().0.fill(word.to_le_bytes());
    }
    bytes
}

fn name(bytes: &[u8]) -> String {
    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    if bytes.iter().all(|byte| *byte == 0) {
        "zeros".into()
    } else if bytes.chunks(8).all(|other| other == word.to_le_bytes()) {
        format!("stamp {} of sector {}", word >> 24, word & 0xff_ffff)
    } else {
        format!("{:02x?}..", &bytes[..8])
    }
}
