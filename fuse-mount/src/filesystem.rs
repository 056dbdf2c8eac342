//! The view over `/dev/fuse`: each request as `fuser` hands it over, turned into a call of [`View`] and its answer.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::Source;
use crate::buffer::with_buffer;
use crate::helpers::Helpers;
use crate::requests::{BLOCK_SIZE, Change, MAX_TRANSFER, NAMES_ARE_FIXED, NO_ATTRIBUTES, NO_COMMANDS};
use crate::view::{NAME_MAX, View};

/// Most requests that the kernel keeps under way for readahead, asynchronous and large direct I/O.
const MAX_BACKGROUND: u16 = 64;

/// The side of a [`View`] that the kernel sees.
pub(crate) struct Front<S> {
    pub(crate) view: Arc<View<S>>,
    /// Greets the kernel for rings, which then get nearly everything; a kernel without them is an error.
    pub(crate) rings: bool,
    /// For reads that wait, so that the threads here can take the next requests.
    helpers: Helpers,
    /// Reads under way at times when they wait.
    waiting: Arc<AtomicUsize>,
    /// How many of them the threads do that take requests: some are always left to take the next.
    wait_here: usize,
}

impl<S: Source> Front<S> {
    pub(crate) fn new(view: Arc<View<S>>, rings: bool, threads: usize) -> Self {
        Front { view, rings, helpers: Helpers::default(), waiting: Arc::default(), wait_here: threads / 2 }
    }
}

fn answer_read<S: Source>(view: &View<S>, handle: u64, at: u64, size: u32, reply: ReplyData) {
    with_buffer(size as usize, |buffer| match view.read(handle, buffer, at) {
        Ok(n) => reply.data(&buffer[..n]),
        Err(error) => reply.error(error),
    });
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
        if self.rings && config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.view.lookup(parent.0, name.to_str()) {
            Ok((attr, ttl)) => reply.entry(&ttl, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.view.forget(ino.0, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attr(self.view.getattr(ino.0), reply);
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
        let change = Change { access: mode.is_some() || uid.is_some() || gid.is_some(), size };
        answer_attr(self.view.setattr(ino.0, &change), reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.view.open(ino.0, flags.0, request.pid(), request.uid()) {
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
        if !self.view.pace.waits() {
            return answer_read(&self.view, handle.0, at, size, reply);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let (view, waiting) = (self.view.clone(), self.waiting.clone());
        let read = move || {
            answer_read(&view, handle.0, at, size, reply);
            waiting.fetch_sub(1, Ordering::Relaxed);
        };
        if before < self.wait_here {
            read();
        } else if let Err(read) = self.helpers.give(read) {
            read();
        }
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
        match self.view.write(handle.0, data, at) {
            Ok(n) => reply.written(n),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer(self.view.close(handle.0), reply);
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
        self.view.handles.release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.view.sync(handle.0), reply);
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
        answer(self.view.allocate(handle.0, at, len, mode), reply);
    }

    fn lseek(&self, _: &Request, _: INodeNo, handle: FileHandle, from: i64, whence: i32, reply: ReplyLseek) {
        match self.view.seek(handle.0, from, whence) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(error),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.view.handles.fresh()), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, from: u64, mut reply: ReplyDirectory) {
        let listed = self.view.list(ino.0, handle.0, from, |number, next, kind, name| {
            reply.add(INodeNo(number), next, kind, name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.view.handles.release_folder(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let name_max = u32::try_from(NAME_MAX).unwrap_or(u32::MAX);
        reply.statfs(0, 0, 0, 0, 0, BLOCK_SIZE, name_max, BLOCK_SIZE);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(NAMES_ARE_FIXED);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(NAMES_ARE_FIXED);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(NAMES_ARE_FIXED);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(NAMES_ARE_FIXED);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(NAMES_ARE_FIXED);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(NAMES_ARE_FIXED);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(NAMES_ARE_FIXED);
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
        reply.error(NAMES_ARE_FIXED);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(NO_ATTRIBUTES);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(NO_ATTRIBUTES);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(NO_ATTRIBUTES);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(NO_ATTRIBUTES);
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
        reply.error(NO_COMMANDS);
    }
}
