//! A front end's messages (vhost-user): the device's side of the protocol.

use super::block::{self, feature};
use super::export::Export;
use super::inflight::{self, Area, Inflight};
use super::memory::Memory;
use super::queue::{Parts, Queue, Shared, Signal, signal};
use super::ring::{MOST_ENTRIES, Nonsense, Places, Ring};
use crate::sync::RwLock;
use crate::units::{index, length};
use std::fs::File;
use std::io;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vm_memory::{GuestAddress, GuestRegionMmap};

/// Regions of memory that a front end may share.
const MOST_REGIONS: usize = 509;

/// A region of the guest's memory, as front end and guest count.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    front: u64,
    guest: u64,
    len: u64,
}

/// A queue as the front end has set it up so far.
#[derive(Debug, Default)]
struct Setup {
    size: u16,
    /// Table, driver's ring and device's ring, as the front end counts.
    places: Option<[u64; 3]>,
    next: u16,
    kick: Option<File>,
    call: Signal,
    error: Signal,
    enabled: bool,
    running: Option<Queue>,
}

/// One front end.
#[derive(Debug)]
pub(super) struct Session {
    export: Arc<Export>,
    threads: usize,
    features: u64,
    protocol: u64,
    memory: Shared,
    mappings: Vec<Mapping>,
    inflight: Option<Arc<Area>>,
    queues: Vec<Setup>,
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl Session {
    /// A front end of `export`, which has `queues` queues, each with up to `threads` threads.
    pub(super) fn new(export: Arc<Export>, queues: u16, threads: usize) -> Self {
        Self {
            export,
            threads,
            features: 0,
            protocol: 0,
            memory: Arc::new(RwLock::new(Memory::new())),
            mappings: Vec::new(),
            inflight: None,
            queues: (0..queues).map(|_| Setup::default()).collect(),
        }
    }

    fn count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn offered(&self) -> u64 {
        block::features(self.export.is_read_only())
    }

    fn queue(&mut self, number: u32) -> Result<&mut Setup> {
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
    fn start(&mut self, number: usize) -> Result<()> {
        let setup = &self.queues[number];
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
        let number16 = u16::try_from(number).map_err(refused)?;
        let inflight = self.inflight.as_ref().and_then(|area| Inflight::of(area, number16));
        // A killed server's successor knows what was answered out of order from this memory only.
        let threads = if inflight.is_some() { self.threads } else { 1 };
        let event_index = self.features & feature::EVENT_INDEX != 0;
        let ring = Ring::new(places, &self.memory.read(), event_index, setup.next, inflight)
            .map_err(|Nonsense(why)| refused(format!("queue {number}: {why}")))?;
        let parts = Parts {
            number: number16,
            ring,
            memory: self.memory.clone(),
            export: self.export.clone(),
            call: setup.call.clone(),
            error: setup.error.clone(),
        };
        let running = Queue::start(parts, kick, threads).map_err(Error::ReqHandlerError)?;
        self.queues[number].running = Some(running);
        Ok(())
    }

    /// Stops a queue after the requests that it is at.
    fn stop(setup: &mut Setup) {
        if let Some(mut running) = setup.running.take() {
            setup.next = running.stop();
        }
    }

    /// Stops all queues.
    pub(super) fn stop_all(&mut self) {
        self.queues.iter_mut().for_each(Self::stop);
    }

    fn add(&mut self, region: &VhostUserMemoryRegion, file: File, to: &Memory) -> Result<Memory> {
        let (guest, front, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let mapped = GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(guest));
        let mapped =
            mapped.ok_or_else(|| refused("a region of memory reaches past the end of the addresses"))?;
        let memory = to.insert_region(Arc::new(mapped)).map_err(refused)?;
        self.mappings.push(Mapping { front, guest, len });
        Ok(memory)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.features = 0;
        self.queues.iter_mut().for_each(|setup| *setup = Setup::default());
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.features = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.mappings.clear();
        let mut memory = Memory::new();
        for (region, file) in regions.iter().zip(files) {
            memory = self.add(region, file, &memory)?;
        }
        *self.memory.write() = memory;
        Ok(None)
    }

    fn set_vring_num(&mut self, number: u32, size: u32) -> Result<()> {
        let size = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= MOST_ENTRIES);
        self.queue(number)?.size = size.ok_or(Error::InvalidParam)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        number: u32,
        _: VhostUserVringAddrFlags,
        table: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        self.queue(number)?.places = Some([table, available, used]);
        self.start(index(u64::from(number)))
    }

    fn set_vring_base(&mut self, number: u32, next: u32) -> Result<()> {
        self.queue(number)?.next = u16::try_from(next).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn get_vring_base(&mut self, number: u32) -> Result<VhostUserVringState> {
        let setup = self.queue(number)?;
        Self::stop(setup);
        setup.kick = None;
        Ok(VhostUserVringState::new(number, u32::from(setup.next)))
    }

    fn set_vring_kick(&mut self, number: u8, kick: Option<File>) -> Result<()> {
        let setup = self.queue(u32::from(number))?;
        Self::stop(setup);
        setup.kick = Some(kick.ok_or_else(|| refused("a queue without kicks is not served"))?);
        self.start(usize::from(number))
    }

    fn set_vring_call(&mut self, number: u8, call: Option<File>) -> Result<()> {
        let setup = self.queue(u32::from(number))?;
        *setup.call.lock() = call;
        // What was said through the former one may not have been heard.
        signal(&setup.call);
        Ok(())
    }

    fn set_vring_err(&mut self, number: u8, error: Option<File>) -> Result<()> {
        *self.queue(u32::from(number))?.error.lock() = error;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<Protocol> {
        Ok(Protocol::MQ | Protocol::CONFIG | Protocol::INFLIGHT_SHMFD | Protocol::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(length(self.queues.len()))
    }

    fn set_vring_enable(&mut self, number: u32, enable: bool) -> Result<()> {
        let setup = self.queue(number)?;
        setup.enabled = enable;
        if enable {
            return self.start(index(u64::from(number)));
        }
        Self::stop(setup);
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = block::config(self.export.size(), self.count(), self.export.is_read_only());
        // A front end that knows of later fields gets zeros for them.
        let bytes = config.into_iter().chain(std::iter::repeat(0));
        Ok(bytes.skip(index(u64::from(offset))).take(index(u64::from(size))).collect())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        // Nothing in it can be set; a guest that writes to it is no reason to hang up.
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no display"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("a disk shares no objects"))
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        if asked.num_queues > self.count() {
            return Err(Error::InvalidParam);
        }
        let (file, size) =
            inflight::create(asked.num_queues, asked.queue_size).map_err(Error::ReqHandlerError)?;
        Ok((VhostUserInflight::new(size, 0, asked.num_queues, asked.queue_size), file))
    }

    fn set_inflight_fd(&mut self, told: &VhostUserInflight, file: File) -> Result<()> {
        let area = Area::map(file, told.mmap_offset, told.mmap_size, told.num_queues, told.queue_size);
        self.inflight = Some(Arc::new(area.map_err(Error::ReqHandlerError)?));
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(length(MOST_REGIONS))
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.mappings.len() >= MOST_REGIONS {
            return Err(Error::InvalidParam);
        }
        let shared = self.memory.clone();
        let mut memory = shared.write();
        *memory = self.add(region, file, &memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, front, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let shared = self.memory.clone();
        let mut memory = shared.write();
        *memory = memory.remove_region(GuestAddress(guest), len).map_err(refused)?.0;
        self.mappings.retain(|mapping| (mapping.front, mapping.guest) != (front, guest));
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("a disk has no state to move"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no state to move"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("a disk shares no memory"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("what is written is not logged"))
    }
}

/// A front end that several threads speak for: the protocol's own one, and who ends it.
pub(super) type Handler = std::sync::Mutex<Session>;
