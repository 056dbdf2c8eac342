//! What each request on something open means, apart from the protocol. Every transport calls this.

use std::sync::Arc;
use std::time::Instant;

use fuser::{Errno, FileType};

use crate::errno::guarded;
use crate::handles::OpenFile;
use crate::inodes::ROOT;
use crate::view::{Shown, View};
use crate::{Source, transfer};

/// Most bytes in one request.
pub(crate) const MAX_TRANSFER: u32 = 1 << 20;
/// Size of a file-system block in `statfs`, in bytes. It has no other numbers: free space is the store's matter, and a total
/// of 0 keeps `df` from listing it.
pub(crate) const BLOCK_SIZE: u32 = 4096;

/// Files come and go with the source, never through the view.
pub(crate) const NAMES_ARE_FIXED: Errno = Errno::EROFS;
/// Tells the kernel to stop asking: no attribute is ever fetched before a write.
pub(crate) const NO_ATTRIBUTES: Errno = Errno::ENOSYS;
/// The answer to every `ioctl(2)`.
pub(crate) const NO_COMMANDS: Errno = Errno::ENOTTY;
/// The answer to what the view has never heard of.
pub(crate) const UNKNOWN: Errno = Errno::ENOSYS;

/// What `setattr` is to change. Times are the disk's own: setting them is accepted, since tools do it in passing, and changes
/// nothing.
pub(crate) struct Change {
    /// Mode or owner.
    pub(crate) access: bool,
    pub(crate) size: Option<u64>,
}

impl<S: Source> View<S> {
    fn file(&self, handle: u64) -> Result<Arc<OpenFile>, Errno> {
        self.handles.get(handle).ok_or(Errno::EBADF)
    }

    pub(crate) fn read(&self, handle: u64, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
        let file = self.file(handle)?;
        let start = Instant::now();
        let done = transfer::read(&file, buffer, at);
        self.pace.took(start.elapsed(), buffer.len());
        done
    }

    pub(crate) fn write(&self, handle: u64, data: &[u8], at: u64) -> Result<u32, Errno> {
        let written = transfer::write(&*self.file(handle)?, data, at)?;
        u32::try_from(written).map_err(|_| Errno::EIO)
    }

    pub(crate) fn allocate(&self, handle: u64, at: u64, len: u64, mode: i32) -> Result<(), Errno> {
        transfer::allocate(&*self.file(handle)?, at, len, mode)
    }

    pub(crate) fn seek(&self, handle: u64, from: i64, whence: i32) -> Result<i64, Errno> {
        transfer::seek(&*self.file(handle)?, from, whence)
    }

    /// Makes durable what was written through any open file of this inode: `sync FILE` opens it for reading only.
    pub(crate) fn sync(&self, handle: u64) -> Result<(), Errno> {
        let file = self.file(handle)?;
        let others = if file.write { Vec::new() } else { self.handles.writers_of(file.ino) };
        guarded(|| {
            others.iter().try_for_each(|other| other.device.flush())?;
            file.device.flush()
        })
    }

    /// A `close(2)` of one of the descriptors.
    pub(crate) fn close(&self, handle: u64) -> Result<(), Errno> {
        let file = self.file(handle)?;
        if !file.write {
            return Ok(());
        }
        let closed = guarded(|| file.device.close());
        file.set_closing();
        closed
    }

    pub(crate) fn setattr(&self, ino: u64, change: &Change) -> Result<Shown, Errno> {
        if change.access {
            return Err(Errno::EPERM);
        }
        if let Some(size) = change.size {
            self.resize(ino, size)?;
        }
        self.getattr(ino)
    }

    fn resize(&self, ino: u64, size: u64) -> Result<(), Errno> {
        let (attr, _) = self.getattr(ino)?;
        if attr.kind == FileType::RegularFile && attr.size == size {
            return Ok(());
        }
        let writer = self.handles.writers_of(ino).into_iter().next().ok_or(Errno::EPERM)?;
        guarded(|| writer.device.set_len(size))
    }

    /// Tells `add` the entries of a folder behind the first `from`: number, the number of entries up to and with it, kind,
    /// name; until it answers that there is no more room.
    pub(crate) fn list(
        &self,
        ino: u64,
        handle: u64,
        from: u64,
        mut add: impl FnMut(u64, u64, FileType, &str) -> bool,
    ) -> Result<(), Errno> {
        let listing = self.listing(ino, handle, from == 0)?;
        let dots = [".", ".."].map(|name| (ino, name, FileType::Directory));
        let kind = if ino == ROOT { FileType::Directory } else { FileType::RegularFile };
        let names = listing.iter().map(|(number, name)| (*number, name.as_str(), kind));
        let skipped = usize::try_from(from).unwrap_or(usize::MAX);
        for (next, (number, name, kind)) in (1u64..).zip(dots.into_iter().chain(names)).skip(skipped) {
            if add(number, next, kind, name) {
                break;
            }
        }
        Ok(())
    }
}
