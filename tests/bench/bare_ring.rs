//! The bare server's other transport: rings of `io_uring`, two for each processor, with one entry each.

use super::{Bare, DISK, LONG};
use io_uring::{IoUring, opcode, squeue::Entry128, types::Fd};
use std::alloc::{Layout, alloc_zeroed};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const PAYLOAD: usize = 1 << 20;
/// Length of the kernel's header of a request, and places in it.
const HEADER: usize = 288;
const ARGUMENTS: usize = 128;
const COMMIT_ID: usize = 264;
const PAYLOAD_LEN: usize = 272;
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, word: &[u8]) {
    bytes[at..at + word.len()].copy_from_slice(word);
}

/// Starts the threads; they end with the mount.
pub(super) fn start(bare: &Arc<Bare>, device: RawFd) {
    let processors = std::thread::available_parallelism().unwrap().get();
    for queue in (0..processors).chain(0..processors) {
        let bare = bare.clone();
        std::thread::spawn(move || serve(&bare, device, u16::try_from(queue).unwrap()));
    }
}

fn serve(bare: &Bare, device: RawFd, queue: u16) {
    let mut only = nix::sched::CpuSet::new();
    only.set(queue.into()).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).unwrap();
    let mut ring: IoUring<Entry128> =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(1).unwrap();
    // SAFETY: the layout is not empty; what is made here is never freed, so that these are the only references to it. The
    // kernel writes there while this thread is in a call of the ring, when neither of them is used.
    let (header, payload) = unsafe {
        let made =
            [HEADER, PAYLOAD].map(|len| (alloc_zeroed(Layout::from_size_align(len, 4096).unwrap()), len));
        let [header, payload] = made.map(|(start, len)| std::slice::from_raw_parts_mut(start, len));
        (header, payload)
    };
    let parts = [
        libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER },
        libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: PAYLOAD },
    ];
    let mut command = REGISTER;
    loop {
        let mut words = [0; 80];
        put(&mut words, 8, &u64_at(header, COMMIT_ID).to_ne_bytes());
        put(&mut words, 16, &queue.to_ne_bytes());
        let entry =
            opcode::UringCmd80::new(Fd(device), command).cmd(words).addr(Some(parts.as_ptr().addr() as u64));
        let mut entry = entry.build();
        // SAFETY: an entry is the kernel's `io_uring_sqe`, which has its `len` 24 bytes from its start.
        unsafe { (&raw mut entry).cast::<u32>().add(6).write(2) };
        // SAFETY: the device stays open, and the buffers stay where they are, as long as this thread lives.
        unsafe { ring.submission().push(&entry).unwrap() };
        while ring.submit_and_wait(1).is_err() {}
        if ring.completion().next().is_none_or(|said| said.result() < 0) {
            return;
        }
        let (len, error) = match answer(bare, header, payload) {
            Ok(len) => (u32::try_from(len).unwrap(), 0),
            Err(code) => (0, -code),
        };
        put(header, 0, &(16 + len).to_ne_bytes());
        put(header, 4, &error.to_ne_bytes());
        put(header, PAYLOAD_LEN, &len.to_ne_bytes());
        command = COMMIT_AND_FETCH;
    }
}

/// The numbers are those of `include/uapi/linux/fuse.h`.
fn answer(bare: &Bare, header: &[u8], payload: &mut [u8]) -> Result<usize, i32> {
    let (node, at, size) =
        (u64_at(header, 16), u64_at(header, ARGUMENTS + 8), u32_at(header, ARGUMENTS + 16));
    let code = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    match u32_at(header, 4) {
        1 if payload.starts_with(b"disk.raw\0") => {
            payload[..40].fill(0);
            put(payload, 0, &DISK.0.to_ne_bytes());
            put(payload, 16, &LONG.as_secs().to_ne_bytes());
            put(payload, 24, &LONG.as_secs().to_ne_bytes());
            attributes(bare, DISK.0, &mut payload[40..]);
            Ok(128)
        }
        1 => Err(libc::ENOENT),
        3 => {
            payload[..16].fill(0);
            put(payload, 0, &LONG.as_secs().to_ne_bytes());
            attributes(bare, node, &mut payload[16..]);
            Ok(104)
        }
        14 => {
            let direct = u32_at(header, ARGUMENTS).cast_signed() & libc::O_DIRECT != 0;
            put(payload, 0, &1u64.to_ne_bytes());
            put(payload, 8, &(if direct { 1u64 | 1 << 6 } else { 0 }).to_ne_bytes());
            Ok(16)
        }
        15 => bare.file.read_at(&mut payload[..size as usize], at).map_err(code),
        16 => {
            bare.file.write_all_at(&payload[..size as usize], at).map_err(code)?;
            put(payload, 0, &u64::from(size).to_ne_bytes());
            Ok(8)
        }
        20 => bare.file.sync_data().map(|()| 0).map_err(code),
        18 | 25 => Ok(0),
        _ => Err(libc::ENOSYS),
    }
}

fn attributes(bare: &Bare, node: u64, room: &mut [u8]) {
    let attr = bare.attributes(fuser::INodeNo(node));
    let mode = u32::from(attr.perm) | if node == DISK.0 { libc::S_IFREG } else { libc::S_IFDIR };
    room[..88].fill(0);
    put(room, 0, &node.to_ne_bytes());
    put(room, 8, &attr.size.to_ne_bytes());
    put(room, 16, &attr.blocks.to_ne_bytes());
    put(room, 60, &mode.to_ne_bytes());
    put(room, 64, &attr.nlink.to_ne_bytes());
    put(room, 80, &attr.blksize.to_ne_bytes());
}
