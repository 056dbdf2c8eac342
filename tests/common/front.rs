//! A front end of vhost-user with a guest's driver for a virtio block device, without a guest.
#![allow(dead_code, clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub, missing_docs)]

use cowshed::serve::vhost::block::{self, feature};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of each queue.
pub const ENTRIES: u16 = 256;
/// Requests that a queue may have at once, and descriptors that each may have.
pub const SLOTS: usize = 16;
const DESCRIPTORS: usize = 16;
/// Bytes of data that a request may have.
pub const DATA: usize = 1 << 20;
/// Where a queue's memory starts, and what is where in it.
const QUEUE: u64 = 32 << 20;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const TABLES: u64 = 0x1_0000;
const HEADERS: u64 = 0x2_0000;
const BUFFERS: u64 = 0x10_0000;
/// The guest's memory starts here.
pub const START: u64 = 0x4000_0000;
/// Longer than any request takes on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const FLUSH: u32 = 4;
pub const ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

/// What a front end asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub queues: u16,
    pub event_index: bool,
    pub indirect: bool,
    pub inflight: bool,
}

impl Wish {
    pub fn queues(queues: u16) -> Self {
        Self { queues, event_index: true, indirect: true, inflight: true }
    }
}

pub struct Front {
    pub frontend: Frontend,
    pub features: u64,
    wish: Wish,
    memory: Arc<GuestMemoryMmap>,
    file: Arc<File>,
    inflight: Option<(VhostUserInflight, File)>,
    ends: Vec<Ends>,
}

/// The event descriptors of a queue.
#[derive(Clone)]
struct Ends {
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
    error: Arc<EventFd>,
}

impl Front {
    /// A front end with memory of its own, not yet connected to a device; and the drivers of its queues.
    pub fn new(stream: UnixStream, wish: Wish) -> (Self, Vec<Driver>) {
        let size = QUEUE * u64::from(wish.queues);
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = Arc::new(File::from(nix::sys::memfd::memfd_create("guest", flags).unwrap()));
        file.set_len(size).unwrap();
        let range = (GuestAddress(START), size as usize, Some(FileOffset::from_arc(file.clone(), 0)));
        let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap());
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let ends: Vec<Ends> =
            (0..wish.queues).map(|_| Ends { kick: event(), call: event(), error: event() }).collect();
        let drivers = (0..wish.queues)
            .map(|number| Driver::new(number, wish, memory.clone(), ends[usize::from(number)].clone()))
            .collect();
        let frontend = Frontend::from_stream(stream, u64::from(wish.queues));
        let mut front = Self { frontend, features: 0, wish, memory, file, inflight: None, ends };
        front.set_up();
        (front, drivers)
    }

    /// Goes on with a new server, as QEMU does: each queue from its last answer on.
    pub fn reconnect(&mut self, stream: UnixStream) {
        self.frontend = Frontend::from_stream(stream, u64::from(self.wish.queues));
        self.set_up();
    }

    fn set_up(&mut self) {
        let wanted = Protocol::MQ | Protocol::CONFIG | Protocol::REPLY_ACK;
        let wanted = if self.wish.inflight { wanted | Protocol::INFLIGHT_SHMFD } else { wanted };
        let userspace_addr = self.front_address(0);
        let front = &mut self.frontend;
        front.set_owner().unwrap();
        self.features = front.get_features().unwrap();
        assert_ne!(self.features & feature::PROTOCOL, 0);
        let offered = front.get_protocol_features().unwrap();
        assert!(offered.contains(wanted), "{offered:?}");
        front.set_protocol_features(wanted).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert!(front.get_queue_num().unwrap() >= u64::from(self.wish.queues));
        let without = (if self.wish.event_index { 0 } else { feature::EVENT_INDEX })
            | (if self.wish.indirect { 0 } else { feature::INDIRECT });
        front.set_features(self.features & !without).unwrap();
        if self.wish.inflight {
            if self.inflight.is_none() {
                let asked = VhostUserInflight::new(0, 0, self.wish.queues, ENTRIES);
                self.inflight = Some(front.get_inflight_fd(&asked).unwrap());
            }
            let (told, file) = self.inflight.as_ref().unwrap();
            front.set_inflight_fd(told, file.as_raw_fd()).unwrap();
        }
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: START,
            memory_size: QUEUE * u64::from(self.wish.queues),
            userspace_addr,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        front.set_mem_table(&[region]).unwrap();
        for number in 0..self.wish.queues {
            self.start(number);
        }
    }

    fn front_address(&self, at: u64) -> u64 {
        self.memory.get_host_address(GuestAddress(START + at)).unwrap() as u64
    }

    /// Sets a queue up, from its last answer on.
    pub fn start(&mut self, number: u16) {
        let start = QUEUE * u64::from(number);
        let used: u16 = self.memory.load(GuestAddress(START + start + USED + 2), Ordering::Acquire).unwrap();
        let number = usize::from(number);
        let data = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: self.front_address(start),
            avail_ring_addr: self.front_address(start + AVAILABLE),
            used_ring_addr: self.front_address(start + USED),
            log_addr: None,
        };
        let ends = self.ends[number].clone();
        let front = &mut self.frontend;
        front.set_vring_num(number, ENTRIES).unwrap();
        front.set_vring_base(number, used).unwrap();
        front.set_vring_addr(number, &data).unwrap();
        front.set_vring_err(number, &ends.error).unwrap();
        front.set_vring_call(number, &ends.call).unwrap();
        front.set_vring_kick(number, &ends.kick).unwrap();
        front.set_vring_enable(number, true).unwrap();
    }

    /// Stops a queue; the position of the next request.
    pub fn stop(&mut self, number: u16) -> u32 {
        self.frontend.get_vring_base(usize::from(number)).unwrap()
    }

    pub fn config(&mut self) -> Vec<u8> {
        let empty = [0; block::CONFIG];
        let flags = VhostUserConfigFlags::empty();
        self.frontend.get_config(0, block::CONFIG as u32, flags, &empty).unwrap().1
    }
}

/// A request as a driver sees it.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: u32,
    pub sector: u64,
    /// What is sent behind the header.
    pub sent: Vec<u8>,
    /// Bytes that are wanted before the status.
    pub wanted: usize,
    /// Lengths of the buffers that the data are cut into; the last one takes the rest.
    pub cuts: Vec<usize>,
}

impl Request {
    pub fn new(kind: u32, sector: u64) -> Self {
        Self { kind, sector, sent: Vec::new(), wanted: 0, cuts: Vec::new() }
    }

    pub fn read(sector: u64, len: usize) -> Self {
        Self { wanted: len, ..Self::new(READ, sector) }
    }

    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self { sent: data.to_vec(), ..Self::new(WRITE, sector) }
    }

    /// A discard or write-zeroes of ranges: first sector, number of sectors, flags.
    pub fn ranges(kind: u32, ranges: &[(u64, u32, u32)]) -> Self {
        let bytes = |(sector, count, flags): &(u64, u32, u32)| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        Self { sent: ranges.iter().flat_map(bytes).collect(), ..Self::new(kind, 0) }
    }
}

/// An answer: the request's number, its status, and what it brought.
#[derive(Debug)]
pub struct Done {
    pub number: u64,
    pub status: u8,
    pub data: Vec<u8>,
    pub written: u32,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    number: u64,
    wanted: usize,
}

/// The driver's side of one queue.
pub struct Driver {
    start: u64,
    wish: Wish,
    memory: Arc<GuestMemoryMmap>,
    ends: Ends,
    available: u16,
    used: u16,
    numbers: u64,
    pending: [Option<Pending>; SLOTS],
    done: VecDeque<Done>,
    /// Whether answers bring what was read.
    pub keeps_data: bool,
}

/// A descriptor: place, length, whether the device writes.
pub type Buffer = (u64, u32, bool);

impl Driver {
    fn new(number: u16, wish: Wish, memory: Arc<GuestMemoryMmap>, ends: Ends) -> Self {
        let start = START + QUEUE * u64::from(number);
        let (pending, done) = ([None; SLOTS], VecDeque::new());
        Self { start, wish, memory, ends, available: 0, used: 0, numbers: 0, pending, done, keeps_data: true }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(self.start + at)).unwrap();
    }

    fn get(&self, at: u64) -> u16 {
        self.memory.load::<u16>(GuestAddress(self.start + at), Ordering::Acquire).unwrap()
    }

    /// Writes anything anywhere into the queue's memory: the table is at 0, then come the rings.
    pub fn meddle(&self, at: u64, bytes: &[u8]) {
        self.put(at, bytes);
    }

    pub fn pending(&self) -> usize {
        self.pending.iter().flatten().count()
    }

    pub fn is_full(&self) -> bool {
        self.pending() == SLOTS
    }

    /// The place of a slot's buffer, as the guest counts.
    pub fn buffer(&self, slot: usize) -> u64 {
        self.start + BUFFERS + (slot * DATA) as u64
    }

    /// Sends a request; its number.
    pub fn send(&mut self, request: &Request) -> u64 {
        let slot = self.pending.iter().position(Option::is_none).unwrap();
        let header_at = HEADERS + (slot * 64) as u64;
        let header = [&request.kind.to_le_bytes()[..], &[0; 4], &request.sector.to_le_bytes()].concat();
        self.put(header_at, &header);
        self.put(header_at + 32, &[0xff]);
        let data = BUFFERS + (slot * DATA) as u64;
        self.put(data, &request.sent);
        let mut buffers: Vec<Buffer> = vec![(self.start + header_at, 16, false)];
        let writes = request.sent.is_empty();
        let (mut at, mut left) =
            (self.start + data, if writes { request.wanted } else { request.sent.len() });
        assert!(left <= DATA);
        for cut in &request.cuts {
            if *cut >= left || buffers.len() == DESCRIPTORS - 2 {
                break;
            }
            buffers.push((at, *cut as u32, writes));
            (at, left) = (at + *cut as u64, left - cut);
        }
        if left > 0 {
            buffers.push((at, left as u32, writes));
        }
        buffers.push((self.start + header_at + 32, 1, true));
        let number = self.numbers;
        self.send_buffers(slot, &buffers, Pending { number, wanted: request.wanted });
        number
    }

    /// Sends a chain of any buffers from a free slot; its number.
    pub fn send_raw(&mut self, buffers: &[Buffer]) -> u64 {
        let slot = self.pending.iter().position(Option::is_none).unwrap();
        let number = self.numbers;
        self.send_buffers(slot, buffers, Pending { number, wanted: 0 });
        number
    }

    fn send_buffers(&mut self, slot: usize, buffers: &[Buffer], pending: Pending) {
        let head = slot * DESCRIPTORS;
        let table = if self.wish.indirect {
            let table = TABLES + (slot * DESCRIPTORS * 16) as u64;
            let len = (buffers.len() * 16) as u32;
            self.put((head * 16) as u64, &descriptor(self.start + table, len, 4, 0));
            table
        } else {
            (head * 16) as u64
        };
        let first = if self.wish.indirect { 0 } else { head };
        for (number, (at, len, write)) in buffers.iter().enumerate() {
            let more = number + 1 < buffers.len();
            let flags = u16::from(more) | if *write { 2 } else { 0 };
            let next = if more { first + number + 1 } else { 0 };
            self.put(table + (number * 16) as u64, &descriptor(*at, *len, flags, next as u16));
        }
        self.pending[slot] = Some(pending);
        self.numbers += 1;
        self.offer(head as u16);
    }

    /// Offers the chain that starts with descriptor `head`, which no slot has now.
    pub fn offer_slot(&mut self, head: u16) {
        self.pending[usize::from(head) / DESCRIPTORS] = Some(Pending { number: self.numbers, wanted: 0 });
        self.numbers += 1;
        self.offer(head);
    }

    /// Position of the next request.
    pub fn position(&self) -> u16 {
        self.available
    }

    /// Offers the chain `head`, and kicks the device if it wants that.
    pub fn offer(&mut self, head: u16) {
        self.put(AVAILABLE + 4 + u64::from(self.available % ENTRIES) * 2, &head.to_le_bytes());
        let old = self.available;
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
        fence(Ordering::SeqCst);
        let wanted = if self.wish.event_index {
            self.get(USED + 4 + 8 * u64::from(ENTRIES)) == old
        } else {
            self.get(USED) & 1 == 0
        };
        if wanted {
            self.kick();
        }
    }

    pub fn set_available(&self, index: u16) {
        let at = GuestAddress(self.start + AVAILABLE + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    pub fn kick(&self) {
        self.ends.kick.write(1).unwrap();
    }

    /// Whether the device has said that the ring makes no sense.
    pub fn is_broken(&self) -> bool {
        self.ends.error.read().is_ok()
    }

    /// Takes the answers that are there.
    fn collect(&mut self) {
        while self.used != self.get(USED + 2) {
            let at = USED + 4 + u64::from(self.used % ENTRIES) * 8;
            let mut element = [0; 8];
            self.memory.read_slice(&mut element, GuestAddress(self.start + at)).unwrap();
            let head = u32::from_le_bytes(element[..4].try_into().unwrap()) as usize;
            let written = u32::from_le_bytes(element[4..].try_into().unwrap());
            self.used = self.used.wrapping_add(1);
            let slot = head / DESCRIPTORS;
            let Some(pending) = self.pending[slot].take() else { panic!("an answer to nothing: {head}") };
            assert_eq!(head % DESCRIPTORS, 0);
            let mut status = [0];
            let at = self.start + HEADERS + (slot * 64) as u64 + 32;
            self.memory.read_slice(&mut status, GuestAddress(at)).unwrap();
            let mut data = vec![0; if self.keeps_data { pending.wanted } else { 0 }];
            self.memory.read_slice(&mut data, GuestAddress(self.buffer(slot))).unwrap();
            self.done.push_back(Done { number: pending.number, status: status[0], data, written });
        }
    }

    /// The next answer; `None` when none comes within `limit`.
    pub fn wait_within(&mut self, limit: Duration) -> Option<Done> {
        let until = Instant::now() + limit;
        loop {
            self.collect();
            if let Some(done) = self.done.pop_front() {
                return Some(done);
            }
            if self.wish.event_index {
                self.put(AVAILABLE + 4 + 2 * u64::from(ENTRIES), &self.used.to_le_bytes());
                fence(Ordering::SeqCst);
                if self.used != self.get(USED + 2) {
                    continue;
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.wait_for_call(left);
        }
    }

    /// Only a call wakes: a device that forgets to call is found out.
    fn wait_for_call(&self, limit: Duration) {
        let fd = self.ends.call.as_raw_fd();
        // SAFETY: the descriptor is open as long as `self`.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
        let limit = nix::poll::PollTimeout::try_from(limit).unwrap();
        if nix::poll::poll(&mut poll, limit).is_ok_and(|ready| ready > 0) {
            let _ = self.ends.call.read();
        }
    }

    pub fn wait(&mut self) -> Done {
        let pending = self.pending();
        self.wait_within(PATIENCE).unwrap_or_else(|| panic!("no answer; {pending} requests wait"))
    }

    /// Sends a request and waits for its answer, with no other one under way.
    pub fn ask(&mut self, request: &Request) -> Done {
        assert_eq!(self.pending(), 0);
        let number = self.send(request);
        let done = self.wait();
        assert_eq!(done.number, number);
        done
    }
}

pub fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let bytes =
        [&at.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
    bytes.try_into().unwrap()
}
