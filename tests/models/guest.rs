//! A guest of several threads, and what each sector may hold by what they did.
//!
//! A sector is written by one thread only, so that what was written last is known; everybody may read it.

use crate::medium::{Medium, Sealed};
use crate::rng::Rng;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, LogPlace, OpenOptions, check, create};
use cowshed::storage::{Session, Storage};
use cowshed::units::GuestOffset;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

pub const SECTOR: u64 = 512;

/// The image that a model starts with.
#[derive(Clone)]
pub struct Start {
    pub image: Vec<u8>,
    pub base: Arc<[u8]>,
}

impl Start {
    /// A fresh clone with clusters of `1 << cluster_bits` bytes over a base of stamps.
    pub fn clone_of(clusters: u64, cluster_bits: u32, extended_l2: bool) -> Self {
        let size = clusters << cluster_bits;
        let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
        let options = CreateOptions { cluster_bits, extended_l2, backing, ..CreateOptions::new(size) };
        let medium = Medium::quiet(Vec::new());
        create(&*medium, &options).unwrap();
        Self { image: medium.bytes(), base: base(size).into() }
    }

    /// The usual one: 12 clusters of 16 KiB with subclusters of a sector, in three slices of the table.
    pub fn usual() -> Self {
        Self::clone_of(12, 14, true)
    }
}

/// Stamps over a whole disk.
pub fn base(size: u64) -> Vec<u8> {
    (0..size / SECTOR).flat_map(|sector| sector_of(BASE | sector)).collect()
}

const BASE: u64 = 0xba5e << 48;

fn sector_of(word: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    bytes.as_chunks_mut::<8>().0.fill(word.to_le_bytes());
    bytes
}

/// One change of one sector.
#[derive(Clone, Copy, Debug)]
struct Change {
    word: u64,
    begin: u64,
    /// Never, for one that failed: it may have happened.
    end: Option<u64>,
}

#[derive(Debug, Default)]
struct Log {
    clock: u64,
    changes: BTreeMap<u64, Vec<Change>>,
    /// Begin and end of the flushes that succeeded.
    flushes: Vec<(u64, u64)>,
}

impl Log {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Asserts that `bytes`, from sector `first` on, are what was there once everything had ended that ended before
    /// `certain`, or what began by `possible` and came after.
    fn assert_legal(&self, first: u64, bytes: &[u8], certain: u64, possible: u64, what: &str) {
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
            let mut legal = vec![BASE | sector];
            for change in self.changes.get(&sector).into_iter().flatten() {
                if change.end.is_some_and(|end| end < certain) {
                    legal.clear();
                }
                if change.begin <= possible {
                    legal.push(change.word);
                }
            }
            let word = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            let whole = bytes == sector_of(word);
            assert!(
                whole && legal.contains(&word),
                "{what}: sector {sector} holds {word:#x} (whole: {whole}), legal are {legal:#x?}"
            );
        }
    }
}

/// The disk under the guest.
pub struct Guest {
    pub disk: Disk,
    pub medium: Arc<Medium>,
    base: Arc<[u8]>,
    place: Option<Arc<Place>>,
    /// What cuts right behind flushes leave, in schedules that are checked.
    cuts: Mutex<Vec<Cut>>,
    /// Whether this schedule's images are checked: one of eight, for a check costs more than all the rest.
    checked: bool,
    /// Never waited for: no other thread runs while it is held.
    log: Mutex<Log>,
}

/// What a power cut left, and when it was.
pub struct Cut {
    bytes: Vec<u8>,
    at: u64,
}

/// What a process that was killed left: image and log as they were.
pub struct Killed {
    bytes: Vec<u8>,
    log: Option<Vec<u8>>,
    at: u64,
}

/// Where the log of an image is kept.
#[derive(Debug, Default)]
pub struct Place(Mutex<Option<Arc<Medium>>>);

impl LogPlace for Place {
    fn session(&self) -> io::Result<Session> {
        Ok(Session([7; 32]))
    }

    fn open(&self, _: bool) -> io::Result<Option<Arc<dyn Storage>>> {
        Ok(self.0.lock().unwrap().clone().map(|log| log as Arc<dyn Storage>))
    }

    fn create(&self) -> io::Result<Arc<dyn Storage>> {
        let log = Medium::new(Vec::new());
        *self.0.lock().unwrap() = Some(log.clone());
        Ok(log)
    }

    fn remove(&self) -> io::Result<()> {
        *self.0.lock().unwrap() = None;
        Ok(())
    }
}

/// The fewest slices in memory that there may be.
const OPTIONS: OpenOptions = OpenOptions { writable: true, metadata_cache: 0 };

fn disk(top: Image, base: Arc<dyn Storage>) -> Disk {
    Disk::new(vec![Layer::qcow2(top), Layer::Raw(RawLayer::new(base, false).unwrap())]).unwrap()
}

fn open(storage: Arc<dyn Storage>, base: Arc<dyn Storage>) -> Disk {
    disk(Image::open(storage, OPTIONS).unwrap(), base)
}

fn open_logged(storage: Arc<dyn Storage>, base: Arc<dyn Storage>, place: Arc<Place>) -> Disk {
    disk(Image::open_logged(storage, OPTIONS, place).unwrap(), base)
}

/// A number below `end` that belongs to the schedule.
fn chance(end: u64) -> u64 {
    shuttle::rand::Rng::gen_range(&mut shuttle::rand::thread_rng(), 0..end)
}

fn one_of_eight() -> bool {
    chance(8) == 0
}

/// Asserts that a check finds no error, and returns how many leaks it finds.
fn assert_sound(image: &[u8], what: &str) -> u64 {
    let report = check(Medium::quiet(image.to_vec())).unwrap();
    assert_eq!(report.error_count, 0, "{what}: {:?}", report.errors);
    report.leaks
}

impl Guest {
    pub fn new(start: &Start) -> Self {
        let medium = Medium::new(start.image.clone());
        let disk = open(medium.clone(), Sealed::new(start.base.clone()));
        Self::over(start, medium, disk, None)
    }

    /// A guest whose image has a log.
    pub fn logged(start: &Start) -> Self {
        let (medium, place) = (Medium::new(start.image.clone()), Arc::new(Place::default()));
        let disk = open_logged(medium.clone(), Sealed::new(start.base.clone()), place.clone());
        Self::over(start, medium, disk, Some(place))
    }

    /// A guest over two more layers, the lower one of which has `sectors` of the base, and the base has them no more.
    pub fn deep(start: &Start, sectors: &[u64]) -> Self {
        let (lower, mut bottom) = (Medium::quiet(start.image.clone()), start.base.to_vec());
        let writer = open(lower.clone(), Sealed::quiet(start.base.clone()));
        for sector in sectors {
            writer.write(&sector_of(BASE | sector), GuestOffset(sector * SECTOR)).unwrap();
            bottom[(sector * SECTOR) as usize..][..SECTOR as usize].fill(0xee);
        }
        writer.close().unwrap();
        let fixed = |bytes: Vec<u8>| {
            let options = OpenOptions { writable: false, ..OPTIONS };
            Layer::qcow2(Image::open(Sealed::new(bytes.into()), options).unwrap())
        };
        let medium = Medium::new(start.image.clone());
        let chain = vec![
            Layer::qcow2(Image::open(medium.clone(), OPTIONS).unwrap()),
            fixed(start.image.clone()),
            fixed(lower.bytes()),
            Layer::Raw(RawLayer::new(Sealed::new(bottom.into()), false).unwrap()),
        ];
        Self::over(start, medium, Disk::new(chain).unwrap(), None)
    }

    fn over(start: &Start, medium: Arc<Medium>, disk: Disk, place: Option<Arc<Place>>) -> Self {
        let (base, checked) = (start.base.clone(), one_of_eight());
        Self { disk, medium, base, place, cuts: Mutex::default(), checked, log: Mutex::default() }
    }

    /// First sector of a cluster of the usual image.
    pub fn cluster(number: u64) -> u64 {
        number << 14 >> 9
    }

    fn change(
        &self,
        sectors: Range<u64>,
        word: fn(u64, u64) -> u64,
        run: impl FnOnce(&[u8], GuestOffset) -> cowshed::Result<()>,
    ) -> cowshed::Result<()> {
        let (begin, words): (u64, Vec<u64>) = {
            let mut log = self.log.lock().unwrap();
            let begin = log.tick();
            (begin, sectors.clone().map(|sector| word(begin, sector)).collect())
        };
        for (sector, word) in sectors.clone().zip(&words) {
            let change = Change { word: *word, begin, end: None };
            self.log.lock().unwrap().changes.entry(sector).or_default().push(change);
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| sector_of(*word)).collect();
        run(&bytes, GuestOffset(sectors.start * SECTOR))?;
        let mut log = self.log.lock().unwrap();
        let end = log.tick();
        for sector in sectors {
            let changes = log.changes.entry(sector).or_default();
            changes
                .iter_mut()
                .filter(|change| change.begin == begin)
                .for_each(|change| change.end = Some(end));
        }
        Ok(())
    }

    pub fn try_write(&self, sector: u64, count: u64) -> cowshed::Result<()> {
        let word = |begin: u64, sector: u64| begin << 32 | sector << 8 | 0x77;
        self.change(sector..sector + count, word, |bytes, at| self.disk.write(bytes, at))
    }

    pub fn write(&self, sector: u64, count: u64) {
        self.try_write(sector, count).unwrap();
    }

    pub fn discard(&self, sector: u64, count: u64) {
        let discard = |bytes: &[u8], at| self.disk.discard(at, bytes.len() as u64);
        self.change(sector..sector + count, |_, _| 0, discard).unwrap();
    }

    /// Lets the base show.
    pub fn uncover(&self, sector: u64, count: u64) {
        let uncover = |bytes: &[u8], at: GuestOffset| {
            self.disk.drop_to_below(std::iter::once(at.0..at.0 + bytes.len() as u64)).map(drop)
        };
        self.change(sector..sector + count, |_, sector| BASE | sector, uncover).unwrap();
    }

    /// Reads, and asserts that each sector is the last one written or one that is being written.
    pub fn read(&self, sector: u64, count: u64) {
        let before = self.log.lock().unwrap().tick();
        let mut bytes = vec![0xee; (count * SECTOR) as usize];
        self.disk.read(&mut bytes, GuestOffset(sector * SECTOR)).unwrap();
        let mut log = self.log.lock().unwrap();
        let after = log.tick();
        log.assert_legal(sector, &bytes, before, after, "read");
    }

    pub fn try_flush(&self) -> cowshed::Result<()> {
        let begin = self.log.lock().unwrap().tick();
        self.disk.flush()?;
        let mut log = self.log.lock().unwrap();
        let end = log.tick();
        log.flushes.push((begin, end));
        drop(log);
        if self.checked {
            let cut = self.cut();
            self.cuts.lock().unwrap().push(cut);
        }
        Ok(())
    }

    pub fn flush(&self) {
        self.try_flush().unwrap();
    }

    /// What a power cut would leave now.
    pub fn cut(&self) -> Cut {
        let seed = chance(u64::MAX);
        let at = self.log.lock().unwrap().tick();
        Cut { bytes: self.medium.cut(Rng::new(seed)), at }
    }

    /// Asserts that what a cut left opens, checks without error, and lost nothing that was flushed.
    pub fn assert_survived(&self, cut: Cut) {
        let log = self.log.lock().unwrap();
        let flushed = log.flushes.iter().filter(|(_, end)| *end < cut.at).map(|(begin, _)| *begin).max();
        if self.checked {
            assert_sound(&cut.bytes, "after a power cut");
        }
        self.assert_image(&log, cut.bytes, flushed.unwrap_or(0), cut.at, "after a power cut");
    }

    /// What is left when the process dies now.
    pub fn kill(&self) -> Killed {
        let at = self.log.lock().unwrap().tick();
        let place = self.place.as_ref().and_then(|place| place.0.lock().unwrap().clone());
        Killed { bytes: self.medium.bytes(), log: place.map(|log| log.bytes()), at }
    }

    /// Asserts that whoever opens what a killed process left finds everything that was acknowledged, and an image
    /// without error once it is closed.
    pub fn assert_reopened(&self, killed: Killed) {
        let log = self.log.lock().unwrap();
        let place = Arc::new(Place(Mutex::new(killed.log.map(Medium::quiet))));
        let medium = Medium::quiet(killed.bytes);
        let disk = open_logged(medium.clone(), Sealed::quiet(self.base.clone()), place);
        let mut got = vec![0xee; disk.size() as usize];
        disk.read(&mut got, GuestOffset(0)).unwrap();
        log.assert_legal(0, &got, killed.at, killed.at, "after a kill");
        disk.close().unwrap();
        if self.checked {
            assert_sound(&medium.bytes(), "after a kill");
        }
    }

    /// Opens the image and compares it.
    fn assert_image(&self, log: &Log, bytes: Vec<u8>, certain: u64, possible: u64, what: &str) {
        let disk = open(Medium::quiet(bytes), Sealed::quiet(self.base.clone()));
        let mut got = vec![0xee; disk.size() as usize];
        disk.read(&mut got, GuestOffset(0)).unwrap();
        log.assert_legal(0, &got, certain, possible, what);
    }

    /// Asserts that the disk holds what was written last, that the image is clean once it is closed, and then holds it still.
    pub fn finish(self) {
        let cuts = std::mem::take(&mut *self.cuts.lock().unwrap());
        cuts.into_iter().for_each(|cut| self.assert_survived(cut));
        let log = self.log.lock().unwrap();
        let mut bytes = vec![0xee; self.disk.size() as usize];
        self.disk.read(&mut bytes, GuestOffset(0)).unwrap();
        log.assert_legal(0, &bytes, u64::MAX, u64::MAX, "at the end");
        self.disk.close().unwrap();
        // Closing makes durable: a cut afterwards changes nothing.
        let left = self.medium.cut(Rng::new(log.clock));
        if self.checked {
            assert_eq!(assert_sound(&left, "after closing"), 0, "leaks after closing");
        }
        self.assert_image(&log, left, u64::MAX, u64::MAX, "after closing");
    }
}

/// What one thread of a guest does.
pub type Part<'a> = &'a (dyn Fn(&Guest) + Sync);

/// Runs the parts as threads at once, and a cut of the power beside them.
pub fn at_once(start: &Start, parts: &[Part<'_>]) {
    after(start, &|_| (), parts);
}

/// The same after `first`, which has the disk for itself.
pub fn after(start: &Start, first: Part<'_>, parts: &[Part<'_>]) {
    let guest = Guest::new(start);
    first(&guest);
    cut_beside(guest, parts);
}

/// Runs the parts on a disk of its own as threads at once, and a cut of the power beside them.
pub fn cut_beside(guest: Guest, parts: &[Part<'_>]) {
    let cut = beside(&guest, parts, Guest::cut);
    guest.assert_survived(cut);
    guest.finish();
}

/// Runs the parts with a log, and lets the process die beside them.
pub fn until_killed(start: &Start, first: Part<'_>, parts: &[Part<'_>]) {
    let guest = Guest::logged(start);
    first(&guest);
    let killed = beside(&guest, parts, Guest::kill);
    guest.assert_reopened(killed);
    let killed = guest.kill();
    guest.assert_reopened(killed);
    guest.finish();
}

fn beside<T: Send + 'static>(guest: &Guest, parts: &[Part<'_>], end: fn(&Guest) -> T) -> T {
    shuttle::thread::scope(|scope| {
        for part in parts {
            scope.spawn(move || part(guest));
        }
        let end = scope.spawn(move || end(guest));
        end.join().unwrap()
    })
}
