//! The FUSE protocol: each request of the kernel, turned into a call of [`View`] and its answer.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::Source;
use crate::buffer::with_buffer;
use crate::errno::guarded;
use crate::handles::OpenFile;
use crate::transfer;
use crate::view::{NAME_MAX, View};

/// Most bytes in one request.
const MAX_TRANSFER: u32 = 1 << 20;
/// Most requests that the kernel keeps under way for readahead, asynchronous and large direct I/O.
const MAX_BACKGROUND: u16 = 64;
/// Size of a file-system block in `statfs`, in bytes.
const BLOCK_SIZE: u32 = 4096;

/// The side of a [`View`] that the kernel sees.
pub(crate) struct Front<S>(pub(crate) Arc<View<S>>);

impl<S: Source> Front<S> {
    fn file(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        self.0.handles.get(handle.0).ok_or(Errno::EBADF)
    }

    /// Makes durable what was written through any open file of this inode: `sync FILE` opens it for reading only.
    fn sync(&self, handle: FileHandle) -> Result<(), Errno> {
        let file = self.file(handle)?;
        let others = if file.write { Vec::new() } else { self.0.handles.writers_of(file.ino) };
        guarded(|| {
            others.iter().try_for_each(|other| other.device.flush())?;
            file.device.flush()
        })
    }

    fn close(&self, handle: FileHandle) -> Result<(), Errno> {
        let file = self.file(handle)?;
        if !file.write {
            return Ok(());
        }
        let closed = guarded(|| file.device.close());
        file.set_closing();
        closed
    }

    fn resize(&self, ino: INodeNo, size: u64) -> Result<(), Errno> {
        let (attr, _) = self.0.getattr(ino.0)?;
        if attr.kind == FileType::RegularFile && attr.size == size {
            return Ok(());
        }
        let writer = self.0.handles.writers_of(ino.0).into_iter().next().ok_or(Errno::EPERM)?;
        guarded(|| writer.device.set_len(size))
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn answer_attr(result: Result<crate::view::Shown, Errno>, reply: ReplyAttr) {
    match result {
        Ok((attr, ttl)) => reply.attr(&ttl, &attr),
        Err(error) => reply.error(error),
    }
}

impl<S: Source> Filesystem for Front<S> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The setters refuse only values out of the kernel's range; then its own default stays.
        let _ = config.set_max_write(MAX_TRANSFER);
        let _ = config.set_max_background(MAX_BACKGROUND);
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ] {
            // An older kernel lacks some; each is an optimisation or has a second line of defence.
            let _ = config.add_capabilities(wanted);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.lookup(parent.0, name.to_str()) {
            Ok((attr, ttl)) => reply.entry(&ttl, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.0.forget(ino.0, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attr(self.0.getattr(ino.0), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Times are the disk's own: setting them is accepted, since tools do it in passing, and changes nothing.
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        let resized = size.map_or(Ok(()), |size| self.resize(ino, size));
        answer_attr(resized.and_then(|()| self.0.getattr(ino.0)), reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.0.open(ino.0, flags.0, request.pid(), request.uid()) {
            Ok((handle, flags)) => reply.opened(FileHandle(handle), flags),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        at: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        with_buffer(size as usize, |buffer| match transfer::read(&file, buffer, at) {
            Ok(n) => reply.data(&buffer[..n]),
            Err(error) => reply.error(error),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.file(handle).and_then(|file| transfer::write(&file, data, at));
        match written.map(u32::try_from) {
            Ok(Ok(n)) => reply.written(n),
            Ok(Err(_)) => reply.error(Errno::EIO),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer(self.close(handle), reply);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.handles.release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.sync(handle), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        at: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer(self.file(handle).and_then(|file| transfer::allocate(&file, at, len, mode)), reply);
    }

    fn lseek(&self, _: &Request, _: INodeNo, handle: FileHandle, from: i64, whence: i32, reply: ReplyLseek) {
        match self.file(handle).and_then(|file| transfer::seek(&file, from, whence)) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(error),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.0.handles.fresh()), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, from: u64, mut reply: ReplyDirectory) {
        let listing = match self.0.listing(ino.0, handle.0, from == 0) {
            Ok(listing) => listing,
            Err(error) => return reply.error(error),
        };
        let dots = [".", ".."].map(|name| (ino.0, name, FileType::Directory));
        let kind = if ino == INodeNo::ROOT { FileType::Directory } else { FileType::RegularFile };
        let names = listing.iter().map(|(number, name)| (*number, name.as_str(), kind));
        // An entry's offset is the number of entries up to and with it.
        let skipped = usize::try_from(from).unwrap_or(usize::MAX);
        for (next, (number, name, kind)) in (1u64..).zip(dots.into_iter().chain(names)).skip(skipped) {
            if reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.handles.release_folder(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // No numbers of its own: free space is the store's matter. A total of 0 keeps `df` from listing it.
        let name_max = u32::try_from(NAME_MAX).unwrap_or(u32::MAX);
        reply.statfs(0, 0, 0, 0, 0, BLOCK_SIZE, name_max, BLOCK_SIZE);
    }

    // Files come and go with the source, never through the view.

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    // ENOSYS tells the kernel to stop asking: no attribute is ever fetched before a write.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
