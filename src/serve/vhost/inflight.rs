//! Which requests are being worked on, in memory that the front end keeps for the next server.
//!
//! The layout is that of the vhost-user protocol, "Inflight I/O tracking", for split virtqueues. A killed server's
//! successor does again what was taken and not given back, in the order in which it was taken. What is in the
//! memory is not trusted.

use super::ring::{MOST_ENTRIES, Nonsense};
use crate::units::{index, length};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Bytes before the entries of a queue, and of each entry.
const HEADER: usize = 16;
const ENTRY: usize = 16;
/// Places in the header.
const VERSION: usize = 8;
const ENTRIES: usize = 10;
const LAST: usize = 12;
const USED: usize = 14;
/// Places in an entry.
const TAKEN: usize = 0;
const PREVIOUS: usize = 6;
const ORDER: usize = 8;
/// Each queue's part starts on a cache line of its own.
const ALIGN: usize = 64;

/// The memory of all queues.
#[derive(Debug)]
pub struct Area {
    region: MmapRegion<()>,
    queues: u16,
    entries: u16,
}

/// Bytes of one queue's part.
fn part(entries: u16) -> usize {
    (HEADER + ENTRY * usize::from(entries)).next_multiple_of(ALIGN)
}

/// Makes the memory for `queues` queues of `entries` entries; its file and its size.
///
/// # Errors
/// `InvalidInput` for more than a queue can have; the host's.
pub fn create(queues: u16, entries: u16) -> io::Result<(File, u64)> {
    if entries > MOST_ENTRIES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let size = length(part(entries) * usize::from(queues));
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("inflight", flags)?);
    file.set_len(size)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok((file, size))
}

impl Area {
    /// The memory in `file`, as the front end describes it.
    ///
    /// # Errors
    /// `InvalidInput` when the queues do not fit; the host's.
    pub fn map(file: File, offset: u64, size: u64, queues: u16, entries: u16) -> io::Result<Self> {
        let needed = length(part(entries) * usize::from(queues));
        if entries > MOST_ENTRIES || size < needed {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let region =
            MmapRegion::from_file(FileOffset::new(file, offset), index(needed)).map_err(io::Error::other)?;
        Ok(Self { region, queues, entries })
    }
}

/// One queue's part.
#[derive(Debug)]
pub struct Inflight {
    area: Arc<Area>,
    start: usize,
    order: u64,
}

fn gone<T>(_: T) -> Nonsense {
    Nonsense("its memory for requests in flight is too short")
}

impl Inflight {
    /// The part of queue `number`; `None` when there is none.
    #[must_use]
    pub fn of(area: &Arc<Area>, number: u16) -> Option<Self> {
        let start = part(area.entries) * usize::from(number);
        (number < area.queues).then(|| Self { area: area.clone(), start, order: 0 })
    }

    fn load<T: vm_memory::AtomicAccess>(&self, at: usize) -> Result<T, Nonsense> {
        self.area.region.as_volatile_slice().load(self.start + at, Ordering::Acquire).map_err(gone)
    }

    fn store<T: vm_memory::AtomicAccess>(&self, value: T, at: usize) -> Result<(), Nonsense> {
        self.area.region.as_volatile_slice().store(value, self.start + at, Ordering::Release).map_err(gone)
    }

    /// What was taken and not given back, the last first; `used` is the position of the next answer in the queue's
    /// ring, which has `size` entries.
    pub(super) fn recover(&mut self, size: u16, used: u16) -> Result<Vec<u16>, Nonsense> {
        if size > self.area.entries {
            return Err(gone(()));
        }
        if self.load::<u16>(VERSION)? == 0 {
            // New memory, all zeros: nobody has used it.
            self.store(1_u16, VERSION)?;
            self.store(size, ENTRIES)?;
            self.store(used, USED)?;
            return Ok(Vec::new());
        }
        if self.load::<u16>(USED)? != used {
            // The last answer was given, and its mark not yet taken away.
            let last: u16 = self.load(LAST)?;
            if last < size {
                self.store(0_u8, entry(last) + TAKEN)?;
            }
            self.store(used, USED)?;
        }
        let mut taken = Vec::new();
        for head in 0..size {
            if self.load::<u8>(entry(head) + TAKEN)? != 0 {
                taken.push((self.load::<u64>(entry(head) + ORDER)?, head));
            }
        }
        taken.sort_unstable_by(|one, other| other.cmp(one));
        self.order = taken.first().map_or(0, |(order, _)| order.wrapping_add(1));
        Ok(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// The marks are those of a queue that is no more.
    pub(super) fn forget(&mut self, heads: &[u16]) -> Result<(), Nonsense> {
        heads.iter().try_for_each(|head| self.store(0_u8, entry(*head) + TAKEN))
    }

    /// The chain `head` is taken. Said before anything is done for it.
    pub(super) fn begin(&mut self, head: u16) -> Result<(), Nonsense> {
        self.store(self.order, entry(head) + ORDER)?;
        self.order = self.order.wrapping_add(1);
        self.store(1_u8, entry(head) + TAKEN)
    }

    /// The chain `head` is about to be given back. Said before the driver can see it.
    pub(super) fn finish(&mut self, head: u16) -> Result<(), Nonsense> {
        let last: u16 = self.load(LAST)?;
        self.store(last, entry(head) + PREVIOUS)?;
        self.store(head, LAST)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// The chain `head` was given back, and `used` is the position of the next answer.
    pub(super) fn finished(&mut self, head: u16, used: u16) -> Result<(), Nonsense> {
        fence(Ordering::SeqCst);
        self.store(0_u8, entry(head) + TAKEN)?;
        fence(Ordering::SeqCst);
        self.store(used, USED)
    }
}

fn entry(head: u16) -> usize {
    HEADER + ENTRY * usize::from(head)
}
