//! The least that serves a file over FUSE: FOLDER/disk.raw is FILE, one pread or pwrite for each request. It is the limit that
//! a view is held against: whoever serves a disk over the same transport does at least this.
//!
//!   bare FILE FOLDER THREADS [uring]
//!
//! It ends when FOLDER is unmounted.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "bare_ring.rs"]
mod ring;

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, Session, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const FOLDER: INodeNo = INodeNo(1);
const DISK: INodeNo = INodeNo(2);
const LONG: Duration = Duration::from_secs(3600);
const MOST: u32 = 1 << 20;

thread_local!(static BUF: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });

struct Bare {
    file: File,
    size: u64,
}

impl Bare {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let folder = inode == FOLDER;
        FileAttr {
            ino: inode,
            size: if folder { 0 } else { self.size },
            blocks: self.size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o755 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// The least over /dev/fuse; beside rings, what is left for it.
struct Front {
    bare: Arc<Bare>,
    rings: bool,
}

impl Filesystem for Front {
    fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> std::io::Result<()> {
        let _ = kernel.set_max_write(MOST);
        let _ = kernel.set_max_background(64);
        let rings = if self.rings { InitFlags::FUSE_OVER_IO_URING } else { InitFlags::empty() };
        let asked = kernel.add_capabilities(InitFlags::FUSE_ASYNC_DIO | rings);
        asked.map_err(|lacks| std::io::Error::other(format!("the kernel lacks {lacks:?}")))
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("disk.raw") => reply.entry(&LONG, &self.bare.attributes(DISK), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &self.bare.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let direct = flags.0 & libc::O_DIRECT != 0;
        let answer = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(1), if direct { answer } else { FopenFlags::empty() });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUF.with_borrow_mut(|buf| {
            buf.resize(MOST as usize, 0);
            match self.bare.file.read_at(&mut buf[..len as usize], at) {
                Ok(done) => reply.data(&buf[..done]),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.bare.file.write_all_at(data, at) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.bare.file.sync_data() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let file = OpenOptions::new().read(true).write(true).open(&words[0]).unwrap();
    let size = file.metadata().unwrap().len();
    let rings = words.get(3).is_some_and(|word| word == "uring");
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("bare".into())];
    config.n_threads = Some(if rings { 1 } else { words[2].parse().unwrap() });
    config.clone_fd = !rings;
    let bare = Arc::new(Bare { file, size });
    let session = Session::new(Front { bare: bare.clone(), rings }, &words[1], &config).unwrap();
    if rings {
        ring::start(&bare, session.as_fd().as_raw_fd());
    }
    session.run().unwrap();
}
