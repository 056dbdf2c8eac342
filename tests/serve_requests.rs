//! vhost-user-blk against a front end in this process: every kind of request, on one queue and on several.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/front.rs"]
mod front;
#[path = "common/play.rs"]
mod play;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/store.rs"]
mod store;

use cowshed::serve::vhost::block::{self, feature};
use cowshed::serve::vhost::{Connection, Options};
use cowshed::serve::{Export, Idle};
use cowshed::store::{Access, OpenDisk, Target};
use cowshed::units::GuestOffset;
use front::{DISCARD, Driver, FLUSH, Front, ID, Request, SLOTS, WRITE_ZEROES, Wish, descriptor};
use play::play;
use rng::{Rng, seed_from_environment};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use store::{TempStore, base_ref, name, qemu_check};

const SIZE: usize = 16 << 20;

/// A clone, or its base, that is served in this process.
struct Served {
    store: TempStore,
    disk: Arc<OpenDisk>,
    idle: Idle,
    export: Arc<Export>,
    options: Options,
    connection: Option<Connection>,
}

impl Served {
    fn new(read_only: bool) -> Self {
        let (store, _) = TempStore::with_base(SIZE);
        store.clones(&["web"]);
        let target = if read_only { Target::Base(base_ref("base@1")) } else { Target::Clone(name("web")) };
        let access = if read_only { Access::Read } else { Access::Write };
        let disk = Arc::new(store.store.open_target(&target, access).unwrap());
        let idle = Idle::start().unwrap();
        let export = Export::new(disk.clone(), "web", read_only, &idle);
        Self { store, disk, idle, export, options: Options { queues: 4, threads: 3 }, connection: None }
    }

    fn front(&mut self, wish: Wish) -> (Front, Vec<Driver>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connection = Some(Connection::start(theirs, self.export.clone(), self.options).unwrap());
        Front::new(ours, wish)
    }

    /// Hangs up, and gives the disk's content.
    fn end(mut self) -> Vec<u8> {
        self.connection = None;
        drop((self.export, self.idle));
        let mut content = vec![0; SIZE];
        self.disk.disk.read(&mut content, GuestOffset(0)).unwrap();
        let clone = self.disk.is_writable();
        Arc::into_inner(self.disk).unwrap().close().unwrap();
        if clone {
            qemu_check(&self.store.store.path(&Target::Clone(name("web"))).unwrap());
            assert_eq!(self.store.content(&Target::Clone(name("web"))), content);
        }
        content
    }
}

fn requests_do_what_a_vector_does(wish: Wish) {
    let first = seed_from_environment().unwrap_or(1);
    println!("seed {first}");
    let mut served = Served::new(false);
    let mut model = served.store.content(&Target::Base(base_ref("base@1")));
    let (_front, mut drivers) = served.front(wish);
    let each = SIZE / 512 / usize::from(wish.queues);
    std::thread::scope(|scope| {
        let parts = model.chunks_mut(each * 512).enumerate();
        for (driver, (number, model)) in drivers.iter_mut().zip(parts) {
            scope.spawn(move || play(driver, model, (number * each, each), first + number as u64, 60));
        }
    });
    drop(drivers);
    assert!(served.end() == model, "seed {first}: the disk");
}

#[test]
fn requests_on_one_queue_do_what_a_vector_does() {
    requests_do_what_a_vector_does(Wish::queues(1));
}

#[test]
fn requests_on_four_queues_do_what_a_vector_does() {
    requests_do_what_a_vector_does(Wish::queues(4));
}

#[test]
fn a_plain_driver_is_served_as_well() {
    for bits in 0..3 {
        let (event_index, indirect) = (bits & 1 != 0, bits & 2 != 0);
        requests_do_what_a_vector_does(Wish { event_index, indirect, inflight: false, queues: 2 });
    }
}

#[test]
fn the_configuration_tells_size_queues_and_limits() {
    let mut served = Served::new(false);
    let (mut front, mut drivers) = served.front(Wish::queues(1));
    let config = front.config();
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(config[..8], (SIZE as u64 / 512).to_le_bytes());
    assert_eq!((word(20), word(12)), (512, 254));
    assert_eq!((config[24], config[34], config[35]), (3, 4, 0));
    // Discard: sectors, ranges, alignment; write-zeroes: sectors, ranges, and that it may free.
    assert_eq!((word(36), word(40), word(44)), (1 << 21, 64, 8));
    assert_eq!((word(48), word(52), config[56]), (1 << 21, 64, 1));
    let wanted = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES | feature::QUEUES;
    assert_eq!(front.features & (wanted | feature::READ_ONLY), wanted);
    let id = drivers[0].ask(&Request { wanted: block::ID, ..Request::new(ID, 0) });
    assert_eq!((id.status, &id.data[..4]), (0, &b"web\0"[..]));
    served.end();
}

#[test]
fn a_base_can_be_read_and_not_be_written() {
    let mut served = Served::new(true);
    let content = served.store.content(&Target::Base(base_ref("base@1")));
    let (front, mut drivers) = served.front(Wish::queues(1));
    let writing = feature::DISCARD | feature::WRITE_ZEROES;
    assert_eq!(front.features & (feature::READ_ONLY | writing), feature::READ_ONLY);
    let driver = &mut drivers[0];
    let refused = [
        Request::write(0, &[7; 512]),
        Request::ranges(DISCARD, &[(0, 8, 0)]),
        Request::ranges(WRITE_ZEROES, &[(0, 8, 0)]),
    ];
    for request in refused {
        assert_eq!(driver.ask(&request).status, 1);
    }
    assert_eq!(driver.ask(&Request::new(FLUSH, 0)).status, 0);
    let done = driver.ask(&Request::read(0, 1 << 20));
    assert!(done.status == 0 && done.data == content[..1 << 20]);
    assert!(served.end() == content);
}

#[test]
fn a_request_that_makes_no_sense_is_answered_and_harms_no_other() {
    let sectors = SIZE as u64 / 512;
    let many: Vec<_> = (0..65).map(|number| (number, 1, 0)).collect();
    let mut served = Served::new(false);
    let before = served.store.content(&Target::Base(base_ref("base@1")));
    for indirect in [false, true] {
        let wish = Wish { indirect, ..Wish::queues(1) };
        let (_front, mut drivers) = served.front(wish);
        let driver = &mut drivers[0];
        let failed = [
            Request::read(sectors, 512),
            Request::read(sectors - 1, 1024),
            Request::read(u64::MAX, 512),
            Request::read(u64::MAX / 512, 512),
            Request::read(0, 511),
            Request::write(sectors, &[1; 512]),
            Request::write(0, &[1; 513]),
            Request::ranges(DISCARD, &[(sectors, 1, 0)]),
            Request::ranges(DISCARD, &[(0, u32::MAX, 0)]),
            Request::ranges(DISCARD, &many),
            Request::ranges(WRITE_ZEROES, &[(u64::MAX, 1, 0)]),
            Request { sent: vec![0; 15], ..Request::new(DISCARD, 0) },
            Request::new(DISCARD, 0),
        ];
        for request in failed {
            assert_eq!(driver.ask(&request).status, 1, "{request:?}");
        }
        let unknown = [
            Request::new(14, 0),
            Request::new(u32::MAX, 0),
            Request::ranges(DISCARD, &[(0, 8, 1)]),
            Request::ranges(WRITE_ZEROES, &[(0, 8, 2)]),
        ];
        for request in unknown {
            assert_eq!(driver.ask(&request).status, 2, "{request:?}");
        }
        odd_chains(driver);
        let done = driver.ask(&Request::read(8, 4096));
        assert!(done.status == 0 && done.data == before[4096..8192]);
    }
    assert!(served.end() == before, "a bad request changed the disk");
}

/// Chains that no driver makes; each comes back.
fn odd_chains(driver: &mut Driver) {
    let buffer = driver.buffer(0);
    let header = (buffer, 16, false);
    // A write of the first sector, which would show: kind 1, sector 0.
    driver.meddle(0x10_0000, &[&1_u32.to_le_bytes()[..], &[0; 12]].concat());
    let chains: &[&[front::Buffer]] = &[
        &[header],
        &[header, (buffer, 512, false)],
        &[(buffer, 15, false), (buffer, 1, true)],
        &[(buffer, 0, false), (buffer, 0, true)],
        &[(buffer + 512, 1, true), header],
        &[header, (buffer, 512, false), (buffer + 512, 0, true)],
        &[header, (u64::MAX - 10, 512, false), (buffer + 512, 1, true)],
        &[header, (0, 512, false), (buffer + 512, 1, true)],
        &[(u64::MAX, 16, false), (buffer + 512, 1, true)],
        &[header, (buffer, u32::MAX, false), (buffer, u32::MAX, false), (buffer + 512, 1, true)],
        &[header, (buffer, 100, false), (u64::MAX, 1, true)],
    ];
    for chain in chains {
        let number = driver.send_raw(chain);
        let done = driver.wait();
        assert_eq!(done.number, number, "{chain:?}");
        assert!(done.written <= 1, "{chain:?}");
    }
    // A circle, a table in a table, a table of no descriptors, one of half a descriptor, one nowhere.
    let tables = [
        descriptor(buffer, 16, 1, 240),
        descriptor(buffer, 32, 4 | 1, 240),
        descriptor(buffer, 0, 4, 0),
        descriptor(buffer, 24, 4, 0),
        descriptor(u64::MAX - 15, 16, 4, 0),
        descriptor(u64::MAX - 15, 32, 4, 0),
        descriptor(buffer, 16, 1, 256),
        descriptor(buffer, 1, 1, 0xffff),
    ];
    for table in tables {
        driver.meddle(240 * 16, &table);
        driver.offer_slot(240);
        assert_eq!(driver.wait().written, 0);
    }
    driver.meddle(0x10_0000, &descriptor(buffer, 16, 4, 0));
    driver.meddle(240 * 16, &descriptor(buffer, 16, 4, 0));
    driver.offer_slot(240);
    assert_eq!(driver.wait().written, 0);
}

#[test]
fn a_ring_that_makes_no_sense_is_stopped_alone_and_works_again_when_set_up_anew() {
    let mut served = Served::new(false);
    let (mut front, mut drivers) = served.front(Wish::queues(2));
    let [first, second] = &mut drivers[..] else { panic!() };
    assert_eq!(first.ask(&Request::read(0, 512)).status, 0);
    // More than a queue can hold.
    first.set_available(first.position().wrapping_add(300));
    first.kick();
    wait_until(|| first.is_broken());
    assert!(first.wait_within(Duration::from_millis(50)).is_none());
    assert_eq!(second.ask(&Request::write(0, &[9; 512])).status, 0);
    first.set_available(first.position());
    front.stop(0);
    front.start(0);
    let done = first.ask(&Request::read(0, 512));
    assert_eq!((done.status, done.data), (0, vec![9; 512]));
    // A chain that cannot be.
    first.meddle(0x4004 + u64::from(first.position() % 256) * 2, &300_u16.to_le_bytes());
    first.set_available(first.position().wrapping_add(1));
    first.kick();
    wait_until(|| first.is_broken());
    assert_eq!(second.ask(&Request::read(0, 512)).data, vec![9; 512]);
    served.end();
}

fn wait_until(mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within ten seconds");
}

#[test]
fn a_queue_that_is_stopped_has_answered_what_it_took() {
    let mut served = Served::new(false);
    let (mut front, mut drivers) = served.front(Wish::queues(1));
    let driver = &mut drivers[0];
    for round in 0..50_u16 {
        for _ in 0..8 {
            driver.send(&Request::write(u64::from(round), &[round as u8; 512]));
        }
        let next = front.stop(0);
        front.start(0);
        for _ in 0..8 {
            assert_eq!(driver.wait().status, 0, "round {round}, stopped at {next}");
        }
    }
    served.end();
}

#[test]
fn random_bytes_in_descriptors_and_rings_never_end_the_server() {
    let first = seed_from_environment().unwrap_or(1);
    println!("seed {first}");
    let mut served = Served::new(false);
    for seed in first..first + 300 {
        let mut rng = Rng::new(seed);
        let wish = Wish { event_index: rng.chance(50), ..Wish::queues(2) };
        let (mut front, mut drivers) = served.front(wish);
        for driver in &mut drivers {
            for _ in 0..rng.between(1, 12) {
                let at = *rng.pick(&[0, 0x4000, 0x4004, 0x8000, 0x1_0000, 0x2_0000]) + rng.below(256) * 4;
                let bytes = rng.bytes(8);
                driver.meddle(at, &bytes);
                let target = driver.buffer(rng.below(SLOTS as u64) as usize);
                let len = *rng.pick(&[0, 1, 15, 16, 17, 512, 4096, u32::MAX]);
                let entry = descriptor(target, len, rng.below(8) as u16, rng.below(300) as u16);
                driver.meddle(rng.below(256) * 16, &entry);
                driver.set_available(rng.below(300) as u16);
                driver.kick();
            }
        }
        std::thread::sleep(Duration::from_millis(rng.below(4)));
        for number in 0..2 {
            front.stop(number);
        }
    }
    let (_front, mut drivers) = served.front(Wish::queues(1));
    assert_eq!(drivers[0].ask(&Request::write(0, &[3; 512])).status, 0);
    assert_eq!(drivers[0].ask(&Request::read(0, 512)).data, vec![3; 512]);
    drop(drivers);
    served.end();
}
