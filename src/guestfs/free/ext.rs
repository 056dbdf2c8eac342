//! Free blocks of ext2, ext3 and ext4, after what the guest's own replay of the journal will do.

use super::ranges::Ranges;
use super::source::Watched;
use super::{Found, left};
use crate::error::{Error, Kind, Result};
use crate::guestfs::ext4::{Ext4, Replayed, State};
use crate::guestfs::partitions::Bytes;
use crate::guestfs::swap::sleeper;

/// What is free of the filesystem in `bytes`.
pub(super) fn free<B: Bytes>(bytes: &B, mut ranges: Ranges) -> Result<Found> {
    let watched = Watched::new(bytes);
    let replayed = Replayed::open(&watched)?;
    let filesystem = Ext4::open(&replayed)?;
    check(filesystem.state())?;
    // Orphans are in use until the guest deletes or cuts them; a list that breaks its format is damage.
    filesystem.orphans()?;
    let block = filesystem.superblock().block_size;
    filesystem.free(|run| {
        ranges.add(run.start.0 * block, run.end().0 * block);
        Ok(())
    })?;
    for extent in filesystem.idle_journal()? {
        watched.note(extent.physical.0 * block, (extent.physical.0 + extent.blocks) * block);
    }
    let free = ranges.finish();
    if let Some(byte) = watched.read_in(&free) {
        return left(format!(
            "the ext4 filesystem is damaged: it calls block {} free, which a mount needs; mend it with e2fsck in its guest",
            byte / block
        ));
    }
    // Only who was not shut down can be asleep.
    if replayed.written().next().is_some() && sleeper(&filesystem)?.is_some() {
        return Ok(Found::Asleep);
    }
    Ok(Found::Free(free))
}

/// The state of a filesystem after its replay.
fn check(state: State) -> Result<()> {
    if state.errors {
        return Err(Error::corrupt(
            "its kernel noted errors of the filesystem; run e2fsck in the guest first",
        ));
    }
    if !state.valid || state.needs_recovery {
        return Err(Error::new(
            Kind::Busy,
            "the filesystem was not unmounted and has no journal to replay; run e2fsck in the guest first",
        ));
    }
    Ok(())
}
