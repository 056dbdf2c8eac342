//! A front end's messages (vhost-user): the device's side of the protocol.

use super::block;
use super::inflight::{self, Area};
use super::memory::Memory;
use super::queue::signal;
use super::ring::MOST_ENTRIES;
use super::session::{Mapping, Session, Setup, refused, with_region};
use crate::units::{index, length};
use std::fs::File;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vm_memory::GuestAddress;

/// Regions of memory that a front end may share.
const MOST_REGIONS: usize = 509;

/// The number of a queue that is there.
fn short(number: u32) -> Result<u16> {
    u16::try_from(number).map_err(|_| Error::InvalidParam)
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
        let (mut memory, mut mappings) = (Memory::new(), Vec::new());
        for (region, file) in regions.iter().zip(files) {
            let (more, mapping) = with_region(&memory, region, file)?;
            memory = more;
            mappings.push(mapping);
        }
        *self.memory.write() = memory;
        self.mappings = mappings;
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
        self.start(short(number)?)
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
        self.start(u16::from(number))
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

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        // The protocol's library asks for those that it needs.
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(length(self.queues.len()))
    }

    fn set_vring_enable(&mut self, number: u32, enable: bool) -> Result<()> {
        let setup = self.queue(number)?;
        setup.enabled = enable;
        if enable {
            return self.start(short(number)?);
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
        self.add(region, file)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, front, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let shared = self.memory.clone();
        let mut memory = shared.write();
        *memory = memory.remove_region(GuestAddress(guest), len).map_err(refused)?.0;
        self.mappings.retain(|mapping: &Mapping| (mapping.front, mapping.guest) != (front, guest));
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
