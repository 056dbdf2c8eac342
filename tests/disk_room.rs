//! A log that is half full: one writer makes room by a commit, the others go on beside it, and wait only when the log is full.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod mortal;
}

use common::mortal::{Host, Life, MortalLog};
use cowshed::disk::{Disk, Layer};
use cowshed::qcow2::{CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::{Memory, Run, Storage};
use cowshed::units::{GuestOffset, HostOffset};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{scope, sleep};
use std::time::Duration;

const CLUSTER: usize = 64 << 10;
/// Bytes of a subcluster.
const PART: usize = CLUSTER / 32;
/// Bytes of the half of the disk that each guest writes.
const HALF: usize = 32 * CLUSTER;
/// Bytes of a log that has no room left: a page for its head, and 40 for each record.
const FULL: u64 = 4096 + (1 << 18) * 40;
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file whose syncs wait until they are let go.
#[derive(Debug)]
struct Slow {
    file: Arc<Memory>,
    open: Mutex<bool>,
    opened: Condvar,
    /// Told of each sync that begins.
    begun: Mutex<Sender<()>>,
}

impl Slow {
    fn new(file: Arc<Memory>) -> (Arc<Self>, Receiver<()>) {
        let (begun, heard) = channel();
        let slow = Self { file, open: Mutex::new(false), opened: Condvar::new(), begun: Mutex::new(begun) };
        (Arc::new(slow), heard)
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn is_open(&self) -> bool {
        *self.open.lock().unwrap()
    }
}

impl Storage for Slow {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.file.read_at(buf, at)
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.file.write_at(data, at)
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.file.punch(at, len)
    }

    fn sync(&self) -> io::Result<()> {
        let _ = self.begun.lock().unwrap().send(());
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        self.file.run_at(at)
    }
}

/// Who writes subclusters of half the disk, discards them, and so on: each step changes an entry. The first one of each cluster
/// stays, so that no cluster is freed: a file that grows has more to sync than the log.
struct Guest<'a> {
    disk: &'a Disk,
    start: usize,
    steps: usize,
    model: Vec<u8>,
}

impl<'a> Guest<'a> {
    fn new(disk: &'a Disk, start: usize) -> Self {
        let mut model = vec![0; HALF];
        for (number, cluster) in model.chunks_mut(CLUSTER).enumerate() {
            cluster[..PART].fill(7);
            disk.write(&cluster[..PART], GuestOffset((start + number * CLUSTER) as u64)).unwrap();
        }
        Self { disk, start, steps: 0, model }
    }

    fn step(&mut self) {
        let parts = HALF / CLUSTER * 31;
        let (pass, part) = (self.steps / parts, self.steps % parts);
        let from = part / 31 * CLUSTER + (1 + part % 31) * PART;
        let (own, at) = (&mut self.model[from..from + PART], GuestOffset((self.start + from) as u64));
        if pass % 2 == 0 {
            own.fill((self.steps % 251 + 1) as u8);
            self.disk.write(own, at).unwrap();
        } else {
            own.fill(0);
            self.disk.discard(at, PART as u64).unwrap();
        }
        self.steps += 1;
    }
}

fn open(host: &Arc<Host>, file: Arc<dyn Storage>) -> Disk {
    let options = OpenOptions { writable: true, metadata_cache: 64 << 20 };
    let image = Image::open_logged(file, options, MortalLog::new(host.clone(), Life::endless())).unwrap();
    Disk::new(vec![Layer::qcow2(image)]).unwrap()
}

fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.size() as usize];
    disk.read(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

/// Lets everybody go at the end, however it ends.
struct Open<'a>(&'a Slow);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[test]
fn who_makes_room_in_the_log_has_nobody_wait_before_it_is_full() {
    let image = Memory::new();
    let size = 2 * HALF as u64;
    create(&image, &CreateOptions { cluster_bits: 16, extended_l2: true, ..CreateOptions::new(size) })
        .unwrap();
    let host = Host::new(&image.bytes());
    let (slow, begun) = Slow::new(host.image.clone());
    let disk = open(&host, slow.clone());
    let log_len = || host.log.lock().unwrap().as_ref().map_or(0, |log| log.len().unwrap());
    let (mut first, mut second) = (Guest::new(&disk, 0), Guest::new(&disk, HALF));
    let (tell, told) = channel();
    let (go_on, going_on) = channel();

    let (model, after) = scope(|scope| {
        // Dropped on a failure, so that nobody waits any more.
        let (end, go_on) = (Open(&slow), go_on);
        let first = &mut first;
        // Works until one of its steps has to make room.
        scope.spawn(|| {
            while !slow.is_open() {
                first.step();
            }
        });
        begun.recv_timeout(PATIENCE).expect("nobody made room");
        assert!(log_len() < FULL / 2 + 4096, "it was made late");

        let (second, slow, log_len) = (&mut second, &slow, &log_len);
        scope.spawn(move || {
            (0..5000).for_each(|_| second.step());
            tell.send(second.model.clone()).unwrap();
            going_on.recv().unwrap();
            while log_len() < FULL {
                second.step();
            }
            tell.send(Vec::new()).unwrap();
            second.step();
            assert!(slow.is_open(), "a change that is neither logged nor durable was acknowledged");
        });
        let model = told.recv_timeout(PATIENCE).expect("a step waited although there was room");
        let killed = host.copy();
        go_on.send(()).unwrap();
        told.recv_timeout(PATIENCE).expect("a step waited although the log was not full");
        sleep(Duration::from_millis(100));
        drop(end);
        (model, contents(&open(&killed, killed.image.clone())))
    });
    assert!(after[HALF..] == model, "who is killed meanwhile loses what was acknowledged");

    disk.close().unwrap();
    assert!(contents(&disk) == [first.model, second.model].concat());
    drop(disk);
    let report = check(host.image.clone()).unwrap();
    assert!(report.error_count == 0 && report.leaks == 0, "{report:?}");
}
