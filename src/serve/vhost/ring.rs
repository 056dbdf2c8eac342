//! A split virtqueue (virtio 1.2, 2.7) from the device's side: takes what the driver offers, gives back what is done.
//!
//! The driver writes to the rings at any time, and anything: each value is read once, and checked.

use super::chain::DESCRIPTOR;
use super::inflight::Inflight;
use super::memory::Memory;
use crate::units::index;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// The longest queue.
pub const MOST_ENTRIES: u16 = 1024;

/// "No interrupt, please", by the driver.
const NO_INTERRUPT: u16 = 1;
/// "No kick, please", by the device.
const NO_NOTIFY: u16 = 1;

/// A ring that cannot be followed any more: nothing of it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonsense(pub &'static str);

/// Where the parts of a queue are, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Number of entries.
    pub size: u16,
    /// The table of descriptors.
    pub table: GuestAddress,
    /// The driver's ring.
    pub available: GuestAddress,
    /// The device's ring.
    pub used: GuestAddress,
}

/// A queue in use.
#[derive(Debug)]
pub struct Ring {
    places: Places,
    /// Whether both sides tell by index when they want to be woken.
    event_index: bool,
    /// Position of the next request in the driver's ring.
    next: u16,
    /// Position of the next answer in the device's ring.
    used: u16,
    /// The position up to which the driver knows of answers, or was told.
    told: u16,
    /// Whether the driver may be about to kick.
    kicked: bool,
    /// Heads that a killed server had taken, to be done again; the last first.
    again: Vec<u16>,
    inflight: Option<Inflight>,
}

/// No byte is outside of an address space: checked by [`Ring::new`].
fn entry(start: GuestAddress, head: u64, number: u16, len: u64) -> GuestAddress {
    GuestAddress(start.0 + head + u64::from(number) * len)
}

fn gone<T>(_: T) -> Nonsense {
    Nonsense("it lies outside of the guest's memory")
}

impl Places {
    /// # Errors
    /// When the parts are misplaced.
    fn check(&self, memory: &Memory) -> Result<(), Nonsense> {
        let size = u64::from(self.size);
        if !self.size.is_power_of_two() || self.size > MOST_ENTRIES {
            return Err(Nonsense("its length is not a power of two up to 1024"));
        }
        let parts = [
            (self.table, 16, DESCRIPTOR * size),
            (self.available, 2, 6 + 2 * size),
            (self.used, 4, 6 + 8 * size),
        ];
        for (start, align, len) in parts {
            if start.0 % align != 0 {
                return Err(Nonsense("a part of it is not aligned"));
            }
            if !memory.check_range(start, index(len), Permissions::ReadWrite) {
                return Err(gone(()));
            }
        }
        Ok(())
    }

    /// Position of the next answer, as guest memory tells.
    fn used_index(&self, memory: &Memory) -> Result<u16, Nonsense> {
        memory.load(GuestAddress(self.used.0 + 2), Ordering::Acquire).map(u16::from_le).map_err(gone)
    }

    /// Position of the request after the last one that the driver offers.
    pub(super) fn available_index(&self, memory: &Memory) -> Result<u16, Nonsense> {
        memory.load(GuestAddress(self.available.0 + 2), Ordering::Acquire).map(u16::from_le).map_err(gone)
    }
}

impl Ring {
    /// A queue whose next request is at position `next`, or where `inflight` says that a killed server was.
    ///
    /// # Errors
    /// When a part of it is misplaced.
    pub fn new(
        places: Places,
        memory: &Memory,
        event_index: bool,
        next: u16,
        mut inflight: Option<Inflight>,
    ) -> Result<Self, Nonsense> {
        places.check(memory)?;
        let (used, offered) = (places.used_index(memory)?, places.available_index(memory)?);
        let (mut next, mut again) = (next, Vec::new());
        if let Some(inflight) = &mut inflight {
            again = inflight.recover(places.size, used)?;
            let taken = u16::try_from(again.len()).map_err(gone)?;
            if taken <= offered.wrapping_sub(used) {
                next = used.wrapping_add(taken);
            } else {
                // The guest was started anew since: it has not offered as much.
                inflight.forget(&again)?;
                again.clear();
            }
        }
        // The driver was perhaps not told of the last answers: the first one from here on is told.
        let told = used.wrapping_sub(1);
        Ok(Self { places, event_index, next, used, told, kicked: true, again, inflight })
    }

    /// Where the queue's parts are.
    #[must_use]
    pub fn places(&self) -> Places {
        self.places
    }

    /// Position of the next request.
    #[must_use]
    pub fn next(&self) -> u16 {
        self.next
    }

    /// How many requests wait.
    ///
    /// # Errors
    /// When the driver claims more than the queue can hold.
    pub fn waiting(&self, memory: &Memory) -> Result<usize, Nonsense> {
        let new = self.places.available_index(memory)?.wrapping_sub(self.next);
        if new > self.places.size {
            return Err(Nonsense("the driver offers more requests than it can hold"));
        }
        Ok(self.again.len() + usize::from(new))
    }

    /// Takes the next request: the head of its chain.
    ///
    /// # Errors
    /// As [`Ring::waiting`]; when the driver names a descriptor that is not there.
    pub fn pop(&mut self, memory: &Memory) -> Result<Option<u16>, Nonsense> {
        if let Some(head) = self.again.pop() {
            return Ok(Some(head));
        }
        if self.waiting(memory)? == 0 {
            return Ok(None);
        }
        let at = entry(self.places.available, 4, self.next % self.places.size, 2);
        let head: u16 = memory.load(at, Ordering::Relaxed).map(u16::from_le).map_err(gone)?;
        if head >= self.places.size {
            return Err(Nonsense("the driver names a descriptor past the end of the table"));
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.begin(head)?;
        }
        self.next = self.next.wrapping_add(1);
        Ok(Some(head))
    }

    /// Gives the chain `head` back, with `len` bytes written.
    ///
    /// # Errors
    /// When the ring is gone.
    pub fn push(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), Nonsense> {
        if let Some(inflight) = &mut self.inflight {
            inflight.finish(head)?;
        }
        let at = entry(self.places.used, 4, self.used % self.places.size, 8);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        memory.write_slice(&element, at).map_err(gone)?;
        self.used = self.used.wrapping_add(1);
        let at = GuestAddress(self.places.used.0 + 2);
        memory.store(self.used.to_le(), at, Ordering::Release).map_err(gone)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.finished(head, self.used)?;
        }
        Ok(())
    }

    /// Whether the driver wants to be told of what was given back since it was told last.
    ///
    /// # Errors
    /// When the ring is gone.
    pub fn wants_call(&mut self, memory: &Memory) -> Result<bool, Nonsense> {
        // The answers are visible before what the driver asks for is read.
        fence(Ordering::SeqCst);
        if !self.event_index {
            let flags: u16 =
                memory.load(self.places.available, Ordering::Relaxed).map(u16::from_le).map_err(gone)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        let at = entry(self.places.available, 4, self.places.size, 2);
        let wanted: u16 = memory.load(at, Ordering::Relaxed).map(u16::from_le).map_err(gone)?;
        let new = self.used.wrapping_sub(self.told);
        self.told = self.used;
        Ok(self.used.wrapping_sub(wanted).wrapping_sub(1) < new)
    }

    /// Where the driver is told by index at which request to kick.
    fn kick_index(&self) -> GuestAddress {
        entry(self.places.used, 4, self.places.size, 8)
    }

    /// Asks the driver for no kicks: all requests are looked for anyway.
    ///
    /// # Errors
    /// When the ring is gone.
    pub fn be_busy(&mut self, memory: &Memory) -> Result<(), Nonsense> {
        if !self.kicked {
            return Ok(());
        }
        self.kicked = false;
        // By index, a kick at a request that has come already is asked for.
        let (at, value) = if self.event_index {
            (self.kick_index(), self.next.wrapping_sub(1))
        } else {
            (self.places.used, NO_NOTIFY)
        };
        memory.store(value.to_le(), at, Ordering::Relaxed).map_err(gone)
    }

    /// Asks the driver for a kick at its next request; whether one came just before.
    ///
    /// # Errors
    /// As [`Ring::waiting`].
    pub fn rest(&mut self, memory: &Memory) -> Result<bool, Nonsense> {
        self.kicked = true;
        let (at, value) =
            if self.event_index { (self.kick_index(), self.next) } else { (self.places.used, 0) };
        memory.store(value.to_le(), at, Ordering::Relaxed).map_err(gone)?;
        // The wish is visible before the driver's ring is looked at for the last time.
        fence(Ordering::SeqCst);
        Ok(self.waiting(memory)? > 0)
    }
}
