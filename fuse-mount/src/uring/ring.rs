//! One ring of one thread, with the entry through which the kernel hands it requests. All that is unsafe about it is here.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::thread;
use std::time::Duration;

use fuser::Errno;
use io_uring::{IoUring, SubmissionQueue, squeue, types};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use super::abi::{COMMIT_AND_FETCH, Command, FIXED_FILE, OUT_HEADER, REGISTER, URING_COMMAND, header};
use super::fields::Fields;
use super::front::Request;

/// Room for the header: a page, so that the payload behind it is aligned.
const PAGE: usize = 4096;
/// What of a payload stays in memory while nothing happens, in bytes.
const KEPT: usize = 64 << 10;
/// How long an entry that carried more than that is kept for the next such request.
const IDLE: Duration = Duration::from_secs(1);
/// Pause after a call that the kernel had no memory for.
const TICK: Duration = Duration::from_millis(1);

/// A ring and its entry. It lives in the thread that made it, as the kernel demands.
pub(super) struct Ring {
    // Closed before the entry's buffers go.
    ring: IoUring<squeue::Entry128>,
    entry: Entry,
}

/// Buffers for one request at a time.
struct Entry {
    memory: Memory,
    /// Header and payload, as the kernel wants to be told of them.
    parts: Box<[libc::iovec; 2]>,
    /// The kernel's queue that it belongs to: that of one processor.
    queue: u16,
    /// Which command the kernel has of it.
    command: u32,
    commit_id: u64,
    /// More than [`KEPT`] bytes of the payload may be in memory.
    large: bool,
}

impl Ring {
    /// A ring for requests of `queue` that arrive over `device`, which the kernel does not know of yet.
    pub(super) fn new(device: impl AsFd, queue: u16, payload: usize) -> io::Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(1)?;
        ring.submitter().register_files(&[device.as_fd().as_raw_fd()])?;
        Ok(Ring { ring, entry: Entry::new(queue, payload)? })
    }

    /// Gives the entry to the kernel; an error says that it did not take it.
    pub(super) fn register(&mut self) -> io::Result<()> {
        self.entry.push(&mut self.ring.submission(), REGISTER)?;
        // It is looked at within the call, and refused there, if at all; a request comes in a later one.
        self.ring.submit()?;
        match self.ring.completion().next() {
            Some(refused) => Err(io::Error::from_raw_os_error(-refused.result())),
            None => Ok(()),
        }
    }

    /// Answers requests until the connection has ended. Every request is committed, whatever `answer` says of it.
    pub(super) fn serve(
        mut self,
        mut answer: impl FnMut(Request<'_>) -> Result<usize, Errno>,
    ) -> io::Result<()> {
        let (mut submitter, mut commands, mut said) = self.ring.split();
        // Only makes calls shorter.
        let _ = submitter.register_ring_fd();
        let limit = types::Timespec::from(IDLE);
        let limit = types::SubmitArgs::new().timespec(&limit);
        loop {
            let waited = match self.entry.large {
                true => submitter.submit_with_args(1, &limit),
                false => submitter.submit_and_wait(1),
            };
            let timed_out = match waited.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) | Err((Some(libc::EINTR), _)) => false,
                Err((Some(libc::ETIME), _)) => true,
                Err((Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM), _)) => {
                    thread::sleep(TICK);
                    false
                }
                Err((_, error)) => return Err(error),
            };
            said.sync();
            let Some(code) = said.next().map(|one| -one.result()) else {
                // Never with a request in there: its data may lie in what would go.
                if timed_out {
                    self.entry.shrink();
                }
                continue;
            };
            let command = match (code, self.entry.command) {
                (..=0, _) => {
                    let result = answer(self.entry.request());
                    self.entry.reply(result);
                    COMMIT_AND_FETCH
                }
                (libc::EINTR | libc::EAGAIN, command) => command,
                // The connection has ended, and what was under way with it.
                (libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED, _) => return Ok(()),
                (code, REGISTER) => return Err(io::Error::from_raw_os_error(code)),
                // The request is over for the kernel, and this entry with it: a queue must not run out of them.
                _ => REGISTER,
            };
            self.entry.push(&mut commands, command)?;
        }
    }
}

impl Entry {
    fn new(queue: u16, payload: usize) -> io::Result<Self> {
        let memory = Memory::new(PAGE + payload)?;
        let start = memory.start.cast();
        // SAFETY: the page and the payload behind it are one piece.
        let behind = unsafe { start.byte_add(PAGE) };
        let parts = Box::new([
            libc::iovec { iov_base: start.as_ptr(), iov_len: header::SIZE },
            libc::iovec { iov_base: behind.as_ptr(), iov_len: payload },
        ]);
        Ok(Entry { memory, parts, queue, command: REGISTER, commit_id: 0, large: false })
    }

    /// Prepares a command for the ring's next call.
    fn push(&mut self, to: &mut SubmissionQueue<'_, squeue::Entry128>, command: u32) -> io::Result<()> {
        self.command = command;
        let mut sqe = Command {
            opcode: URING_COMMAND,
            flags: FIXED_FILE,
            command,
            commit_id: self.commit_id,
            queue: self.queue,
            ..Command::default()
        };
        if command == REGISTER {
            sqe.address = self.parts.as_ptr().expose_provenance() as u64;
            sqe.len = 2;
        }
        // SAFETY: both are the kernel's `struct io_uring_sqe` of 128 bytes, which are numbers only and have no gaps.
        let sqe = unsafe { std::mem::transmute::<Command, squeue::Entry128>(sqe) };
        // What the kernel has taken makes room.
        to.sync();
        // SAFETY: descriptor 0 is in the ring's own table. What the address leads to, and the buffers named there, are the
        // entry's, which never moves them and goes after the ring. The kernel touches them only while the ring's thread is in
        // a call of the ring, and no reference into them lives through one.
        let pushed = unsafe { to.push(&sqe) };
        to.sync();
        // There is room for one command, and never more than one is on its way.
        pushed.map_err(io::Error::other)
    }

    fn request(&mut self) -> Request<'_> {
        let (header, payload) = self.memory.bytes().split_at_mut(PAGE);
        Request { header: &header[..header::SIZE], payload }
    }

    /// Writes the header of the answer, which lies in the payload already.
    fn reply(&mut self, result: Result<usize, Errno>) {
        let (header, payload) = self.memory.bytes().split_at_mut(PAGE);
        // The header is always long enough, and the number of the request is where the answer's is to be.
        let (came, id) = (Fields(header).u32(header::PAYLOAD_LEN), Fields(header).u64(header::COMMIT_ID));
        let (len, code) = match result.map(|len| u32::try_from(len.min(payload.len()))) {
            Ok(len) => (len.unwrap_or(0), 0),
            Err(error) => (0, -error.code()),
        };
        let mut put = |at: usize, word: u32| header[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        put(header::LEN, OUT_HEADER + len);
        put(header::ERROR, code.cast_unsigned());
        put(header::PAYLOAD_LEN, len);
        self.commit_id = id.unwrap_or(0);
        self.large |= len.max(came.unwrap_or(0)) as usize > KEPT;
    }

    /// Gives back the memory that only large requests need.
    fn shrink(&mut self) {
        self.large = false;
        self.memory.give_back(PAGE + KEPT);
    }
}

/// Memory of its own, in whole pages that come when they are used.
struct Memory {
    start: NonNull<u8>,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe { mmap_anonymous(None, size, rights, flags) }?.cast();
        let memory = Memory { start, len };
        // SAFETY: the range is this mapping; the advice, which not every kernel takes, changes nothing that can be seen.
        let _ = unsafe { madvise(start.cast(), len, MmapAdvise::MADV_NOHUGEPAGE) };
        Ok(memory)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` bytes long, readable, writable, zeroed by the kernel and nobody else's while it is
        // borrowed: the kernel writes to it only while this thread is in a call of the ring, which is not borrowed then.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Lets go of the pages from `from` on: they are zeros when they are used again.
    fn give_back(&mut self, from: usize) {
        let Some(rest) = self.bytes().get_mut(from..) else { return };
        // SAFETY: the range is the end of this mapping, of which nothing else is borrowed; zeros are bytes, too. Where the
        // kernel refuses, the pages stay.
        let _ = unsafe { madvise(NonNull::from(&mut *rest).cast(), rest.len(), MmapAdvise::MADV_DONTNEED) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
