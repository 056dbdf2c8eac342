//! NBD clients whose disk is slow or fails: who waits for whom, and what is said in the middle of an answer.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "common/nbd.rs"]
mod nbd;

use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::serve::nbd::{Address, Options, Server};
use cowshed::serve::{Export, Idle, Stopper};
use cowshed::storage::{Memory, Run, Storage};
use cowshed::units::HostOffset;
use nbd::{DF, Message, Nbd, READ, WRITE};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SIZE: u64 = 64 << 20;
/// Reads and writes from here on wait until the gate is open.
const SLOW: u64 = 32 << 20;
/// Reads of this place fail.
const BAD: u64 = 20 << 20;

/// A file whose second half is slow, and which has one bad place.
#[derive(Debug)]
struct Gate {
    file: Memory,
    /// Whether the gate is open, and how many wait at it.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self, at: HostOffset) {
        if at.0 < SLOW {
            return;
        }
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        while !state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1 -= 1;
    }

    fn open(&self) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_all();
    }

    /// Waits until `count` requests wait.
    fn await_waiting(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let limit = Duration::from_secs(20);
        let waited = self.changed.wait_timeout_while(state, limit, |state| state.1 < count).unwrap();
        assert!(!waited.1.timed_out(), "nobody waits for the slow disk");
    }
}

impl Storage for Gate {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.pass(at);
        if (at.0..at.0 + buf.len() as u64).contains(&BAD) {
            return Err(io::Error::other("a bad place"));
        }
        self.file.read_at(buf, at)
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.pass(at);
        self.file.write_at(data, at)
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.file.punch(at, len)
    }

    fn sync(&self) -> io::Result<()> {
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

/// A server in this process.
struct Served {
    gate: Arc<Gate>,
    stopper: Stopper,
    thread: Option<JoinHandle<cowshed::Result<()>>>,
    dir: tempfile::TempDir,
    _idle: Idle,
}

impl Served {
    fn new(options: Options) -> Self {
        let file = Memory::from_bytes(&vec![7; SIZE as usize]);
        let gate = Arc::new(Gate { file, state: Mutex::new((false, 0)), changed: Condvar::new() });
        let layer = RawLayer::new(gate.clone(), true).unwrap();
        let disk: Arc<Disk> = Arc::new(Disk::new(vec![Layer::Raw(layer)]).unwrap());
        let (idle, stopper) = (Idle::start().unwrap(), Stopper::new().unwrap());
        let export = Export::new(disk, "slow", false, &idle);
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("socket"));
        let server = Server::bind(&address, export, "slow", options, &stopper).unwrap();
        let thread = Some(thread::spawn(|| server.run()));
        Self { gate, stopper, thread, dir, _idle: idle }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("socket")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn client(&self, structured: bool) -> Nbd<UnixStream> {
        Nbd::new(self.connect(), "slow", structured).unwrap()
    }

    fn end(mut self) {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn options() -> Options {
    Options { threads: 3, ..Options::default() }
}

#[test]
fn a_slow_request_holds_up_no_other_one_of_its_client() {
    let served = Served::new(options());
    let mut client = served.client(true);
    let slow = client.send(READ, 0, SLOW, 4 << 20, &[]).unwrap();
    let write = client.send(WRITE, 0, SLOW + (8 << 20), 512, &[1; 512]).unwrap();
    served.gate.await_waiting(2);
    for at in 0..20 {
        let quick = client.send(READ, 0, at * 4096, 4096, &[]).unwrap();
        assert_eq!(client.answer(true, at * 4096, 4096).unwrap().cookie, quick);
    }
    served.gate.open();
    let mut left = vec![slow, write];
    while let Some(last) = left.last() {
        let (cookie, done) = match nbd::message(&mut client.stream).unwrap() {
            Message::Simple { cookie, errno } => {
                assert_eq!((cookie, errno), (write, 0));
                (cookie, true)
            }
            Message::Chunk { cookie, done, .. } => (cookie, done),
        };
        assert!(left.contains(&cookie), "{cookie}, not {last}");
        left.retain(|other| !done || *other != cookie);
    }
    served.end();
}

#[test]
fn a_client_that_takes_no_answers_holds_up_no_other_one_nor_the_end() {
    let served = Served::new(options());
    let mut deaf = served.client(false);
    for _ in 0..3 {
        deaf.send(READ, 0, 0, 16 << 20, &[]).unwrap();
    }
    // One that is silent, and one whose requests are all slow.
    let _silent = served.connect();
    let mut slow = served.client(true);
    for n in 0..3 {
        slow.send(READ, 0, SLOW + n, 1, &[]).unwrap();
    }
    served.gate.await_waiting(3);
    let mut client = served.client(true);
    assert_eq!(client.read(0, 8 << 20), vec![7; 8 << 20]);
    served.gate.open();
    let start = Instant::now();
    served.end();
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn what_is_under_way_at_the_end_is_answered() {
    let served = Served::new(options());
    let mut client = served.client(true);
    let write = client.send(WRITE, 0, SLOW, 512, &[9; 512]).unwrap();
    served.gate.await_waiting(1);
    served.stopper.stop();
    thread::sleep(Duration::from_millis(100));
    served.gate.open();
    let answer = client.answer(false, 0, 0).unwrap();
    assert_eq!((answer.cookie, answer.errno), (write, 0));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "it is hung up on");
    let mut written = [0; 512];
    served.gate.file.read_at(&mut written, HostOffset(SLOW)).unwrap();
    assert_eq!(written, [9; 512]);
    served.end();
}

#[test]
fn what_comes_after_the_end_is_told_so() {
    let served = Served::new(Options { threads: 1, ..options() });
    let mut client = served.client(true);
    let slow = client.send(READ, 0, SLOW, 512, &[]).unwrap();
    served.gate.await_waiting(1);
    let late = client.send(READ, 0, 0, 512, &[]).unwrap();
    served.stopper.stop();
    thread::sleep(Duration::from_millis(100));
    served.gate.open();
    let answer = client.answer(true, SLOW, 512).unwrap();
    assert_eq!((answer.cookie, answer.errno), (slow, 0));
    let answer = client.answer(true, 0, 512).unwrap();
    assert_eq!((answer.cookie, answer.errno), (late, 108));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "it is hung up on");
    served.end();
}

#[test]
fn a_disk_that_fails_in_the_middle_of_an_answer_is_told_where_that_can_be() {
    let served = Served::new(options());
    let at = BAD - (3 << 20);
    for flags in [0, DF] {
        let mut client = served.client(true);
        let answer = client.ask(READ, flags, at, 8 << 20, &[]).unwrap();
        assert_eq!(answer.errno, 5, "flags {flags}");
        assert_eq!(client.read(0, 4096), [7; 4096], "and it goes on");
    }
    let mut client = served.client(false);
    assert_eq!(client.ask(READ, 0, BAD, 512, &[]).unwrap().errno, 5);
    assert_eq!(client.read(0, 4096), [7; 4096], "and it goes on");
    // Here the answer has begun already: all that is left is to hang up.
    assert!(client.ask(READ, 0, at, 8 << 20, &[]).is_err());
    served.end();
}

#[test]
fn who_does_not_choose_in_time_is_hung_up_on() {
    let served = Served::new(Options { handshake: Duration::from_millis(300), ..options() });
    let mut silent = served.connect();
    let mut all = Vec::new();
    silent.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 18, "the greeting and nothing else");
    // One that drips, too.
    let mut slow = served.connect();
    let start = Instant::now();
    let mut drops = [3_u32.to_be_bytes().to_vec(), nbd::option(99, &[0; 60_000])].concat().into_iter();
    while slow.write_all(&[drops.next().unwrap()]).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "it may go on for ever");
        thread::sleep(Duration::from_millis(20));
    }
    // Who has chosen has all the time.
    let mut client = served.client(true);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(client.read(0, 512), [7; 512]);
    served.end();
}

#[test]
fn more_clients_than_may_be_are_turned_away_until_one_goes() {
    let served = Served::new(Options { clients: 3, ..options() });
    let mut clients: Vec<_> = (0..3).map(|_| served.client(true)).collect();
    assert_eq!(served.connect().read(&mut [0]).unwrap(), 0);
    assert_eq!(clients[0].read(0, 512), [7; 512]);
    drop(clients.pop());
    let start = Instant::now();
    while Nbd::new(served.connect(), "", true).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "nobody else is let in");
    }
    served.end();
}
