//! Files of the view mapped into memory, by a process that does not serve them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use common::Server;
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

const SIZE: usize = 4 << 20;

fn open(path: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

/// What the disk holds now, past all caches.
fn on_disk(path: &Path, at: u64) -> u8 {
    let mut byte = [0; 4096];
    open(path, libc::O_DIRECT).read_exact_at(&mut byte, at / 4096 * 4096).unwrap();
    byte[(at % 4096) as usize]
}

fn a_shared_mapping_reads_and_writes(flags: i32) {
    let dir = tempfile::tempdir().unwrap();
    let _server = Server::start(dir.path(), &[], &[&SIZE.to_string()]);
    let path = dir.path().join("clones/disk.raw");
    let file = open(&path, flags);
    file.write_all_at(&[5; 4096], 8192).unwrap();
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let length = NonZeroUsize::new(SIZE).unwrap();
    // SAFETY: a fresh mapping at an address that the kernel chooses; unmapped below, not used afterwards.
    let map = unsafe { mmap(None, length, rights, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
    // SAFETY: the mapping is SIZE bytes long and nobody else touches it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.as_ptr().cast::<u8>(), SIZE) };
    assert_eq!((bytes[8191], bytes[8192], bytes[12287]), (0, 5, 5));
    bytes[1_000_000] = 77;
    // SAFETY: the range is the mapping.
    unsafe { msync(map, SIZE, MsFlags::MS_SYNC) }.unwrap();
    assert_eq!(on_disk(&path, 1_000_000), 77);
    bytes[2_000_000] = 78;
    // SAFETY: the range is the mapping, and `bytes` is not used again.
    unsafe { munmap(map, SIZE) }.unwrap();
    drop(file);
    assert_eq!(on_disk(&path, 2_000_000), 78, "unmapping writes the pages back");
    fuse_mount::unmount(dir.path()).unwrap();
}

#[test]
fn a_shared_mapping_of_a_buffered_file_reads_and_writes() {
    a_shared_mapping_reads_and_writes(0);
}

#[test]
fn a_shared_mapping_of_a_direct_file_reads_and_writes() {
    a_shared_mapping_reads_and_writes(libc::O_DIRECT);
}
