//! A virtio block device under a hostile driver: whatever is in the rings, each request that is taken is answered once,
//! the device writes where the chain lets it and nowhere else, and a disk that is read-only stays what it is.
//!
//! The first byte has the options, the second one where the rings stand; then come steps of the driver, and runs of the
//! device between them.

use super::input::Input;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::serve::vhost::chain::Chain;
use cowshed::serve::vhost::inflight::{self, Area, Inflight};
use cowshed::serve::vhost::memory::{Memory as Guest, Segment};
use cowshed::serve::vhost::request::Worker;
use cowshed::serve::vhost::ring::{Nonsense, Places, Ring};
use cowshed::serve::{Export, Idle};
use cowshed::storage::Memory;
use std::sync::{Arc, OnceLock};
use vm_memory::{Bytes, GuestAddress};

const SIZE: usize = 1 << 20;
/// The guest's memory has a hole between two parts.
const LOW: usize = 0x1_8000;
const HIGH: u64 = 0x2_0000;
const HIGH_LEN: usize = 0x4000;
/// What is where: the table of descriptors is at 0.
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x4000;
const HEADERS: u64 = 0x6000;
const TABLES: u64 = 0x7000;
const DATA: u64 = 0x8000;
/// The device runs no more often than this, and takes no more requests in one run.
const RUNS: usize = 24;

const EVENT_INDEX: u8 = 1;
const READ_ONLY: u8 = 2;
const TRACKED: u8 = 4;

struct Machine {
    memory: Guest,
    places: Places,
    options: u8,
    area: Option<Arc<Area>>,
    ring: Option<Ring>,
    offered: u16,
    runs: usize,
}

pub fn virtio(data: &[u8]) {
    let mut input = Input(data);
    let options = input.byte();
    let start = u16::from(input.byte()) * 257;
    let storage = Arc::new(Memory::from_bytes(&vec![0x5a; SIZE]));
    let raw = RawLayer::new(storage.clone(), options & READ_ONLY == 0).unwrap();
    let disk: Arc<Disk> = Arc::new(Disk::new(vec![Layer::Raw(raw)]).unwrap());
    static IDLE: OnceLock<Idle> = OnceLock::new();
    let idle = IDLE.get_or_init(|| Idle::start().unwrap());
    let export = Export::new(disk, "fuzz", options & READ_ONLY != 0, idle);
    let mut worker = Worker::new(&export);
    let mut machine = Machine::new(options, start);
    while !input.is_empty() && machine.runs < RUNS {
        if input.byte() % 8 < 6 {
            machine.drive(&mut input);
        } else {
            machine.run(&mut worker);
        }
    }
    machine.run(&mut worker);
    drop(machine);
    if options & READ_ONLY != 0 {
        assert!(storage.bytes() == vec![0x5a; SIZE], "a disk that is read-only was changed");
    }
    assert_eq!(export.size(), SIZE as u64);
}

impl Machine {
    fn new(options: u8, start: u16) -> Self {
        let ranges = [(GuestAddress(0), LOW), (GuestAddress(HIGH), HIGH_LEN)];
        let memory = Guest::from_ranges(&ranges).unwrap();
        let size = 1 << (options >> 3).min(9);
        let area = (options & TRACKED != 0).then(|| {
            let (file, len) = inflight::create(1, 512).unwrap();
            Arc::new(Area::map(file, 0, len, 1, 512).unwrap())
        });
        let [table, available, used] = [0, AVAILABLE, USED].map(GuestAddress);
        let places = Places { size, table, available, used };
        let mut machine = Self { memory, places, options, area, ring: None, offered: start, runs: 0 };
        machine.put(AVAILABLE + 2, &start.to_le_bytes());
        machine.put(USED + 2, &start.to_le_bytes());
        machine.start();
        machine
    }

    /// A server begins, the first one or a killed one's successor.
    fn start(&mut self) {
        let inflight = self.area.as_ref().and_then(|area| Inflight::of(area, 0));
        let event_index = self.options & EVENT_INDEX != 0;
        let next = self.memory.load(GuestAddress(USED + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
        self.ring = Ring::new(self.places, &self.memory, event_index, next, inflight).ok();
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // What lies outside is the guest's own loss.
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    /// One step of the driver.
    fn drive(&mut self, input: &mut Input<'_>) {
        match input.byte() % 8 {
            step @ 0..=2 => {
                let table = if step == 2 { TABLES } else { 0 };
                let number = input.below(64);
                self.put(table + number * 16, &descriptor(input));
            }
            3 => {
                let at = HEADERS + input.below(32) * 16;
                let kind = input.byte() % 16;
                let sector = if input.byte() & 1 == 0 { input.below(4096) } else { input.striking(2048) };
                self.put(at, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &sector.to_le_bytes()].concat());
            }
            4 => {
                let at = input.striking(DATA);
                let len = usize::from(input.byte() % 32);
                let bytes = input.bytes(len).to_vec();
                self.put(at, &bytes);
            }
            5 => {
                self.offered = input.number(2) as u16;
                self.put(AVAILABLE + 2, &self.offered.to_le_bytes());
            }
            6 => self.start(),
            _ => {
                let head = input.below(64) as u16;
                let entry = self.offered % self.places.size;
                self.put(AVAILABLE + 4 + u64::from(entry) * 2, &head.to_le_bytes());
                self.offered = self.offered.wrapping_add(1);
                self.put(AVAILABLE + 2, &self.offered.to_le_bytes());
            }
        }
    }

    /// The device does what it is offered; one whose ring makes no sense stops.
    fn run(&mut self, worker: &mut Worker<'_>) {
        self.runs += 1;
        let Some(mut ring) = self.ring.take() else { return };
        if let Ok(true) = self.requests(&mut ring, worker) {
            self.ring = Some(ring);
        }
    }

    /// Whether the ring may be used further.
    fn requests(&self, ring: &mut Ring, worker: &mut Worker<'_>) -> Result<bool, Nonsense> {
        ring.be_busy(&self.memory)?;
        let mut left = 2 * usize::from(self.places.size);
        loop {
            let waiting = ring.waiting(&self.memory)?;
            let Some(head) = ring.pop(&self.memory)? else {
                assert_eq!(waiting, 0, "a request is left lying");
                return ring.rest(&self.memory).map(|more| !more);
            };
            assert!(waiting > 0 && head < self.places.size);
            let before = self.snapshot();
            let mut chain = Chain::default();
            let walked = chain.walk(&self.memory, self.places.table, self.places.size, head);
            let written = worker.handle(&self.memory, self.places.table, self.places.size, head);
            self.check(&before, &chain.writable, written, walked.is_ok());
            ring.push(&self.memory, head, written)?;
            ring.wants_call(&self.memory)?;
            left -= 1;
            if left == 0 {
                // The requests themselves write to the rings, and go on for ever.
                return Ok(true);
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; LOW + HIGH_LEN];
        let (low, high) = bytes.split_at_mut(LOW);
        self.memory.read_slice(low, GuestAddress(0)).unwrap();
        self.memory.read_slice(high, GuestAddress(HIGH)).unwrap();
        bytes
    }

    /// Only what the chain offers was written, and a bad chain got no more than a status.
    fn check(&self, before: &[u8], writable: &[Segment], written: u32, sound: bool) {
        let after = self.snapshot();
        let mut changed = 0;
        for (at, (old, new)) in before.iter().zip(&after).enumerate() {
            if old == new {
                continue;
            }
            changed += 1;
            let at = if at < LOW { at as u64 } else { HIGH + (at - LOW) as u64 };
            let inside = |segment: &Segment| at >= segment.at.0 && at - segment.at.0 < u64::from(segment.len);
            assert!(writable.iter().any(inside), "the device wrote at {at:#x}");
        }
        assert!(sound || (changed <= 1 && written <= 1), "a bad chain was done");
        let room: u64 = writable.iter().map(|segment| u64::from(segment.len)).sum();
        assert!(u64::from(written) <= room);
    }
}

fn descriptor(input: &mut Input<'_>) -> [u8; 16] {
    let at = match input.byte() % 8 {
        0 | 1 => HEADERS + input.below(32) * 16,
        2 | 3 => DATA + input.below(128) * 512,
        4 => TABLES + input.below(64) * 16,
        5 => HEADERS + 0x800 + input.below(256),
        6 => HIGH - 256 + input.below(512),
        _ => input.striking(DATA),
    };
    let len = match input.byte() % 8 {
        0 => 16,
        1 => 1,
        2 => input.below(64) * 16,
        3 | 4 => (input.below(128) + 1) * 512,
        5 => input.below(65536),
        _ => input.striking(512) & 0xffff_ffff,
    };
    let (flags, next) = (input.byte() & 7, input.below(66));
    let bytes =
        [&at.to_le_bytes()[..], &(len as u32).to_le_bytes(), &[flags, 0], &(next as u16).to_le_bytes()];
    bytes.concat().try_into().unwrap()
}

/// Inputs to begin with, by name.
pub fn virtio_corpus() -> Vec<(String, Vec<u8>)> {
    let mut inputs = Vec::new();
    for (name, kind) in
        [("read", 0), ("write", 1), ("flush", 4), ("id", 8), ("discard", 11), ("zeroes", 13), ("unknown", 9)]
    {
        for (suffix, options) in [("", 3 << 3 | EVENT_INDEX), ("-tracked", 8 << 3 | TRACKED)] {
            inputs.push((format!("{name}{suffix}"), request(options, kind, false)));
        }
        inputs.push((format!("{name}-read-only"), request(5 << 3 | READ_ONLY | EVENT_INDEX, kind, true)));
    }
    inputs
}

/// A header, data and a status in three descriptors, sent twice, with a new server between.
fn request(options: u8, kind: u8, indirect: bool) -> Vec<u8> {
    let device = 7;
    let mut bytes = vec![options, 0xff];
    // Step 3, a header: slot 0, the kind, and sector 5.
    bytes.extend([0, 3, 0, kind, 0, 0, 5]);
    let table = if indirect { 2 } else { 0 };
    let data = if kind == 1 || kind > 10 { 0 } else { 2 };
    let len: &[u8] = if kind > 10 { &[2, 1] } else { &[3, 1] };
    // Descriptors: number, place, length, flags, next.
    bytes.extend([0, table, 0, 0, 0, 0, 1, 1]);
    bytes.extend([&[0, table, 1, 2, 3][..], len, &[data | 1, 2]].concat());
    bytes.extend([0, table, 2, 5, 0, 1, 2, 0]);
    if indirect {
        // One descriptor for a table of three.
        bytes.extend([0, 0, 0, 4, 0, 2, 3, 4, 0]);
    }
    if kind > 10 {
        // Step 4: a range of eight sectors from sector 1 on.
        bytes.extend([
            0, 4, 0, 9, 0, 0, 0, 0, 0, 0, 0x86, 0, 16, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0,
        ]);
    }
    bytes.extend([0, 7, 0, device, 0, 7, 0, 0, 6, device]);
    bytes
}
