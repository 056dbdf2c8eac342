//! The kernel's numbers and layouts, of `include/uapi/linux/fuse.h` and `io_uring.h`.

/// What a request asks for.
pub(super) mod op {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const SYMLINK: u32 = 6;
    pub(in super::super) const MKNOD: u32 = 8;
    pub(in super::super) const MKDIR: u32 = 9;
    pub(in super::super) const UNLINK: u32 = 10;
    pub(in super::super) const RMDIR: u32 = 11;
    pub(in super::super) const RENAME: u32 = 12;
    pub(in super::super) const LINK: u32 = 13;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const FSYNC: u32 = 20;
    pub(in super::super) const SETXATTR: u32 = 21;
    pub(in super::super) const GETXATTR: u32 = 22;
    pub(in super::super) const LISTXATTR: u32 = 23;
    pub(in super::super) const REMOVEXATTR: u32 = 24;
    pub(in super::super) const FLUSH: u32 = 25;
    pub(in super::super) const OPENDIR: u32 = 27;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const RELEASEDIR: u32 = 29;
    pub(in super::super) const FSYNCDIR: u32 = 30;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const IOCTL: u32 = 39;
    pub(in super::super) const FALLOCATE: u32 = 43;
    pub(in super::super) const RENAME2: u32 = 45;
    pub(in super::super) const LSEEK: u32 = 46;
}

/// Bits of `valid` in a `SETATTR`.
pub(super) mod setattr {
    /// Mode, user or group.
    pub(in super::super) const ACCESS: u32 = 1 | 2 | 4;
    pub(in super::super) const SIZE: u32 = 8;
}

/// Bytes of `struct fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of `struct fuse_out_header`.
pub(super) const OUT_HEADER: u32 = 16;

/// Where things lie in `struct fuse_uring_req_header`, which is in front of each request's payload, and how long it is.
pub(super) mod header {
    pub(in super::super) const LEN: usize = 0;
    /// In the answer: the negated error code.
    pub(in super::super) const ERROR: usize = 4;
    pub(in super::super) const OPCODE: usize = 4;
    pub(in super::super) const NODE: usize = 16;
    pub(in super::super) const UID: usize = 24;
    pub(in super::super) const TID: usize = 32;
    /// What is particular to the kind of request.
    pub(in super::super) const ARGUMENTS: usize = 128;
    pub(in super::super) const ENTRY: usize = 256;
    pub(in super::super) const COMMIT_ID: usize = ENTRY + 8;
    /// Bytes of the payload, in both directions.
    pub(in super::super) const PAYLOAD_LEN: usize = ENTRY + 16;
    pub(in super::super) const SIZE: usize = 288;
}

/// `IORING_OP_URING_CMD`.
pub(super) const URING_COMMAND: u8 = 46;
/// `IOSQE_FIXED_FILE`: the descriptor is an index of the ring's own table.
pub(super) const FIXED_FILE: u8 = 1;
/// Gives an entry to the kernel, which fills it with a request.
pub(super) const REGISTER: u32 = 1;
/// Hands an answer over, and gives the entry back for the next request.
pub(super) const COMMIT_AND_FETCH: u32 = 2;

/// `struct io_uring_sqe` of 128 bytes, with `struct fuse_uring_cmd_req` in it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Command {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    pub(super) priority: u16,
    pub(super) descriptor: i32,
    pub(super) command: u32,
    pub(super) unused: u32,
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) command_flags: u32,
    pub(super) user_data: u64,
    pub(super) buffer: u16,
    pub(super) personality: u16,
    pub(super) file_index: u32,
    pub(super) fuse_flags: u64,
    pub(super) commit_id: u64,
    pub(super) queue: u16,
    pub(super) padding: [u16; 3],
    pub(super) rest: [u64; 7],
}

const _: () = assert!(size_of::<Command>() == 128 && size_of::<io_uring::squeue::Entry128>() == 128);
