//! The functions of `shim.c`. What each does with its pointers stands there.

use std::ffi::{c_char, c_int, c_long, c_void};

/// An open filesystem.
#[repr(C)]
pub(super) struct RawFs {
    _opaque: [u8; 0],
}

pub(super) type Read = unsafe extern "C" fn(*mut c_void, u64, u64, *mut u8) -> c_long;
pub(super) type Write = unsafe extern "C" fn(*mut c_void, u64, u64, *const u8) -> c_long;
pub(super) type EmitName = unsafe extern "C" fn(*mut c_void, *const u8, u32, u32, u64);
pub(super) type Emit = unsafe extern "C" fn(*mut c_void, u64, u64) -> c_long;

#[repr(C)]
pub(super) struct Io {
    pub(super) host: *mut c_void,
    pub(super) read: Read,
    pub(super) write: Write,
}

/// What the superblock says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Info {
    pub(super) blocks: u64,
    pub(super) block_size: u32,
    pub(super) inodes: u32,
    pub(super) first_inode: u32,
    pub(super) inode_size: u32,
    pub(super) compat: u32,
    pub(super) incompat: u32,
    pub(super) ro_compat: u32,
    pub(super) state: u32,
    pub(super) last_orphan: u32,
    pub(super) orphan_file: u32,
    pub(super) journal: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawTime {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) present: u32,
}

/// An inode without its map of blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inode {
    pub(super) size: u64,
    pub(super) atime: RawTime,
    pub(super) ctime: RawTime,
    pub(super) mtime: RawTime,
    pub(super) crtime: RawTime,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) flags: u32,
    pub(super) generation: u32,
    pub(super) project: u32,
    pub(super) has_project: u32,
}

unsafe extern "C" {
    pub(super) fn cs_open(io: *const Io, writable: c_int, out: *mut *mut RawFs) -> c_long;
    pub(super) fn cs_flush(fs: *mut RawFs) -> c_long;
    pub(super) fn cs_message(code: c_long) -> *const c_char;
    pub(super) fn cs_class(code: c_long) -> c_int;
    pub(super) fn cs_info(fs: *mut RawFs, out: *mut Info);
    pub(super) fn cs_in_use(fs: *mut RawFs, ino: u32) -> c_int;
    pub(super) fn cs_inode_get(fs: *mut RawFs, ino: u32, out: *mut Inode) -> c_long;
    pub(super) fn cs_inode_put(fs: *mut RawFs, ino: u32, inode: *const Inode) -> c_long;
    pub(super) fn cs_make(
        fs: *mut RawFs,
        mode: u32,
        device: *const [u32; 2],
        generation: u32,
        out: *mut u32,
    ) -> c_long;
    pub(super) fn cs_set_target(fs: *mut RawFs, ino: u32, target: *const u8, len: u32) -> c_long;
    pub(super) fn cs_truncate(fs: *mut RawFs, ino: u32, size: u64) -> c_long;
    pub(super) fn cs_map(
        fs: *mut RawFs,
        ino: u32,
        first: u64,
        count: u32,
        blocks: *mut u64,
        fresh: *mut u8,
    ) -> c_long;
    pub(super) fn cs_free(fs: *mut RawFs, ino: u32) -> c_long;
    pub(super) fn cs_names(fs: *mut RawFs, folder: u32, host: *mut c_void, emit: EmitName) -> c_long;
    pub(super) fn cs_link(
        fs: *mut RawFs,
        folder: u32,
        name: *const c_char,
        ino: u32,
        kind: c_int,
        from: *mut u64,
    ) -> c_long;
    pub(super) fn cs_unlink(fs: *mut RawFs, folder: u32, name: *const c_char, ino: u32, hint: u64) -> c_long;
    pub(super) fn cs_set_parent(fs: *mut RawFs, folder: u32, parent: u32) -> c_long;
    pub(super) fn cs_is_empty(fs: *mut RawFs, folder: u32, empty: *mut c_int) -> c_long;
    pub(super) fn cs_xattr_set(
        fs: *mut RawFs,
        ino: u32,
        name: *const c_char,
        value: *const u8,
        len: u64,
    ) -> c_long;
    pub(super) fn cs_xattr_remove(fs: *mut RawFs, ino: u32, name: *const c_char) -> c_long;
    pub(super) fn cs_scan(fs: *mut RawFs, host: *mut c_void, emit: Emit) -> c_long;
    #[cfg(test)]
    fn cs_sizes() -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_that_the_c_compiler_gives_them() {
        // SAFETY: it takes nothing and gives a number.
        let sizes = unsafe { cs_sizes() };
        let ours = [size_of::<Io>(), size_of::<Info>(), size_of::<Inode>(), size_of::<RawTime>()];
        let theirs = [0, 16, 32, 48].map(|shift| (sizes >> shift & 0xffff) as usize);
        assert_eq!(ours, theirs);
    }
}
