//! What one front end has set up: its memory, and its queues, which start when they are ready.

use super::block::{self, feature};
use super::inflight::{Area, Inflight};
use super::memory::Memory;
use super::queue::{Parts, Queue, Shared, Signal};
use super::ring::{Nonsense, Places, Ring};
use crate::serve::Export;
use crate::sync::RwLock;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::{GuestAddress, GuestRegionMmap};

/// A region of the guest's memory, as front end and guest count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) front: u64,
    pub(super) guest: u64,
    pub(super) len: u64,
}

/// A queue as the front end has set it up so far.
#[derive(Debug, Default)]
pub(super) struct Setup {
    pub(super) size: u16,
    /// Table, driver's ring and device's ring, as the front end counts.
    pub(super) places: Option<[u64; 3]>,
    pub(super) next: u16,
    pub(super) kick: Option<File>,
    pub(super) call: Signal,
    pub(super) error: Signal,
    pub(super) enabled: bool,
    running: Option<Queue>,
}

/// One front end.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) export: Arc<Export>,
    threads: usize,
    pub(super) features: u64,
    pub(super) memory: Shared,
    pub(super) mappings: Vec<Mapping>,
    pub(super) inflight: Option<Arc<Area>>,
    pub(super) queues: Vec<Setup>,
}

pub(super) fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl Session {
    /// A front end of `export`, which has `queues` queues, each with up to `threads` threads.
    pub(super) fn new(export: Arc<Export>, queues: u16, threads: usize) -> Self {
        Self {
            export,
            threads,
            features: 0,
            memory: Arc::new(RwLock::new(Memory::new())),
            mappings: Vec::new(),
            inflight: None,
            queues: (0..queues).map(|_| Setup::default()).collect(),
        }
    }

    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn offered(&self) -> u64 {
        block::features(self.export.is_read_only())
    }

    pub(super) fn queue(&mut self, number: u32) -> Result<&mut Setup> {
        usize::try_from(number).ok().and_then(|number| self.queues.get_mut(number)).ok_or(Error::InvalidParam)
    }

    /// An address as the guest counts.
    fn guest(&self, front: u64) -> Result<GuestAddress> {
        let inside = |mapping: &&Mapping| front >= mapping.front && front - mapping.front < mapping.len;
        let mapping = self
            .mappings
            .iter()
            .find(inside)
            .ok_or_else(|| refused("a queue lies outside of the memory that the front end shares"))?;
        Ok(GuestAddress(mapping.guest + (front - mapping.front)))
    }

    /// Starts a queue that is ready for it.
    pub(super) fn start(&mut self, number: u16) -> Result<()> {
        let setup = &self.queues[usize::from(number)];
        let (Some([table, available, used]), Some(kick)) = (setup.places, &setup.kick) else { return Ok(()) };
        let enabled = setup.enabled || self.features & feature::PROTOCOL == 0;
        if !enabled || setup.running.is_some() {
            return Ok(());
        }
        let places = Places {
            size: setup.size,
            table: self.guest(table)?,
            available: self.guest(available)?,
            used: self.guest(used)?,
        };
        let inflight = self.inflight.as_ref().and_then(|area| Inflight::of(area, number));
        // A killed server's successor knows what was answered out of order from this memory only.
        let threads = if inflight.is_some() { self.threads } else { 1 };
        let event_index = self.features & feature::EVENT_INDEX != 0;
        let ring = Ring::new(places, &self.memory.read(), event_index, setup.next, inflight)
            .map_err(|Nonsense(why)| refused(format!("queue {number}: {why}")))?;
        let parts = Parts {
            number,
            ring,
            memory: self.memory.clone(),
            export: self.export.clone(),
            call: setup.call.clone(),
            error: setup.error.clone(),
        };
        let running = Queue::start(parts, kick, threads).map_err(Error::ReqHandlerError)?;
        self.queues[usize::from(number)].running = Some(running);
        Ok(())
    }

    /// Stops a queue after the requests that it is at.
    pub(super) fn stop(setup: &mut Setup) {
        if let Some(mut running) = setup.running.take() {
            setup.next = running.stop();
        }
    }

    /// Stops all queues.
    pub(super) fn stop_all(&mut self) {
        self.queues.iter_mut().for_each(Self::stop);
    }

    /// Adds a region to what the queues use already.
    pub(super) fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> Result<()> {
        let shared = self.memory.clone();
        let mut memory = shared.write();
        let (more, mapping) = with_region(&memory, region, file)?;
        *memory = more;
        self.mappings.push(mapping);
        Ok(())
    }
}

/// `memory` with one more region, and where the front end has that region.
pub(super) fn with_region(
    memory: &Memory,
    region: &VhostUserMemoryRegion,
    file: File,
) -> Result<(Memory, Mapping)> {
    let (guest, front, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
    let mapped = GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(guest));
    let mapped = mapped.ok_or_else(|| refused("a region of memory reaches past the end of the addresses"))?;
    let memory = memory.insert_region(Arc::new(mapped)).map_err(refused)?;
    Ok((memory, Mapping { front, guest, len }))
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_all();
    }
}

/// A front end that several threads speak for: the protocol's own one, and who ends it.
pub(super) type Handler = std::sync::Mutex<Session>;
