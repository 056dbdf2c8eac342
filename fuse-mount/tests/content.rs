//! Reading, writing, discarding, seeking, resizing, mapping.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

mod common;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use common::memory::{CHUNK, Op};
use common::{TestView, code, pattern};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

const SIZE: u64 = 4 << 20;

fn punch(file: &File, flags: FallocateFlags, at: u64, len: u64) -> nix::Result<()> {
    fallocate(file, flags, at as i64, len as i64)
}

#[test]
fn what_is_written_is_read_back_buffered_and_direct() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", SIZE);
    let mut at = 0;
    for (file, len) in [(view.writable("clones/a.raw"), 1_500_000), (view.direct("clones/a.raw"), 2 << 20)] {
        let data = pattern(len, at as u8);
        file.write_all_at(&data, at).unwrap();
        assert_eq!(disk.get(at, len), data);
        let mut back = vec![0; len];
        file.read_exact_at(&mut back, at).unwrap();
        assert_eq!(back, data);
        at += 4096 * 367;
    }
}

#[test]
fn reading_ends_at_the_end_of_a_disk_of_odd_size() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 5000);
    disk.put(0, &pattern(5000, 3));
    for file in [view.read_only("clones/a.raw"), view.direct("clones/a.raw")] {
        let mut buffer = [0; 4096];
        assert_eq!(file.read_at(&mut buffer, 4000).unwrap(), 1000);
        assert_eq!(buffer[..1000], pattern(5000, 3)[4000..]);
        assert_eq!(file.read_at(&mut buffer, 5000).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
    }
}

#[test]
fn writing_across_the_end_is_short_and_past_it_is_refused() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 8192);
    for file in [view.writable("clones/a.raw"), view.direct("clones/a.raw")] {
        assert_eq!(file.write_at(&[7; 4096], 6144).unwrap(), 2048);
        assert_eq!(code(file.write_at(&[7; 512], 8192)), libc::ENOSPC);
        assert_eq!(code(file.write_at(&[7; 512], 1 << 40)), libc::ENOSPC);
        assert_eq!(file.metadata().unwrap().len(), 8192);
    }
    assert_eq!(disk.get(6144, 2048), [7; 2048]);
}

#[test]
fn a_disk_is_never_emptied_or_resized() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 8192);
    disk.put(0, &pattern(8192, 1));
    let path = view.path("clones/a.raw");
    let shell = std::process::Command::new("sh").arg("-c").arg(": > \"$0\"").arg(&path).status().unwrap();
    assert!(!shell.success());
    assert_eq!(code(OpenOptions::new().write(true).truncate(true).open(&path)), libc::EPERM);
    assert_eq!(code(File::create(&path)), libc::EPERM);
    assert!(view.memory.openers.lock().unwrap().is_empty(), "refused before the source is asked");
    let file = view.writable("clones/a.raw");
    assert_eq!(code(file.set_len(0)), libc::EPERM);
    assert_eq!(code(file.set_len(16384)), libc::EPERM);
    file.set_len(8192).unwrap();
    assert_eq!(disk.get(0, 8192), pattern(8192, 1));
    assert_eq!(file.metadata().unwrap().len(), 8192);
}

#[test]
fn times_may_be_set_without_effect_and_modes_may_not() {
    let view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    let file = view.writable("clones/a.raw");
    let before = file.metadata().unwrap().modified().unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), before);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    assert_eq!(code(file.set_permissions(mode)), libc::EPERM);
    assert_eq!(code(std::os::unix::fs::fchown(&file, Some(1), None)), libc::EPERM);
}

#[test]
fn punching_discards_and_zero_range_writes_zeros_inside_the_disk_only() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", SIZE);
    disk.put(0, &pattern(SIZE as usize, 9));
    let file = view.writable("clones/a.raw");
    let mut whole = vec![0; SIZE as usize];
    file.read_exact_at(&mut whole, 0).unwrap();
    let log = disk.log();
    let (hole, zero, keep) = (
        FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
        FallocateFlags::FALLOC_FL_KEEP_SIZE,
    );
    punch(&file, hole | keep, CHUNK, CHUNK).unwrap();
    punch(&file, zero | keep, 3 * CHUNK, 1000).unwrap();
    punch(&file, zero, 4 * CHUNK, 1000).unwrap();
    punch(&file, hole | keep, SIZE - 1000, 50_000).unwrap();
    punch(&file, hole | keep, SIZE + 5, 50_000).unwrap();
    assert_eq!(punch(&file, zero, SIZE - 1000, 50_000), Err(nix::errno::Errno::ENOSPC));
    let ops: Vec<Op> = log.lock().unwrap().iter().copied().filter(|op| *op != Op::Stat).collect();
    let expected = [
        Op::Discard { at: CHUNK, len: CHUNK },
        Op::Zero { at: 3 * CHUNK, len: 1000 },
        Op::Zero { at: 4 * CHUNK, len: 1000 },
        Op::Discard { at: SIZE - 1000, len: 1000 },
    ];
    assert_eq!(ops, expected);
    for (at, len) in [(CHUNK, CHUNK), (3 * CHUNK, 1000), (4 * CHUNK, 1000), (SIZE - 1000, 1000)] {
        whole[at as usize..(at + len) as usize].fill(0);
    }
    let mut now = vec![1; SIZE as usize];
    file.read_exact_at(&mut now, 0).unwrap();
    assert!(now == whole, "pages cached before the discard must not be shown");
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    assert_eq!(file.metadata().unwrap().blocks_in_chunks(), SIZE / CHUNK - 1);
}

trait Blocks {
    fn blocks_in_chunks(&self) -> u64;
}

impl Blocks for std::fs::Metadata {
    fn blocks_in_chunks(&self) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(self) * 512 / CHUNK
    }
}

#[test]
fn other_ways_to_allocate_are_refused() {
    use nix::errno::Errno::{EBADF, ENOSPC, EOPNOTSUPP};
    let view = TestView::new();
    view.memory.add("clones/a.raw", SIZE);
    let file = view.writable("clones/a.raw");
    let mode = |flags| punch(&file, flags, 0, 4096);
    assert_eq!(mode(FallocateFlags::empty()), Ok(()));
    assert_eq!(punch(&file, FallocateFlags::empty(), SIZE - 1, 2), Err(ENOSPC));
    assert_eq!(mode(FallocateFlags::FALLOC_FL_KEEP_SIZE), Err(EOPNOTSUPP));
    assert_eq!(mode(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE), Err(EOPNOTSUPP));
    assert_eq!(mode(FallocateFlags::FALLOC_FL_INSERT_RANGE), Err(EOPNOTSUPP));
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(punch(&view.read_only("clones/a.raw"), flags, 0, 4096), Err(EBADF));
    assert_eq!(mode(flags), Ok(()), "a refusal must not switch the others off");
}

#[test]
fn data_and_holes_are_told_apart() {
    use nix::errno::Errno::ENXIO;
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 10 * CHUNK - 100);
    disk.put(2 * CHUNK, &vec![1; 3 * CHUNK as usize]);
    let file = view.read_only("clones/a.raw");
    let data = |from: u64| lseek(&file, from as i64, Whence::SeekData).map(i64::cast_unsigned);
    let hole = |from: u64| lseek(&file, from as i64, Whence::SeekHole).map(i64::cast_unsigned);
    let size = 10 * CHUNK - 100;
    assert_eq!((data(0), hole(0)), (Ok(2 * CHUNK), Ok(0)));
    assert_eq!((data(3 * CHUNK + 5), hole(2 * CHUNK)), (Ok(3 * CHUNK + 5), Ok(5 * CHUNK)));
    assert_eq!((data(5 * CHUNK), hole(6 * CHUNK + 1)), (Err(ENXIO), Ok(6 * CHUNK + 1)));
    assert_eq!(
        (data(size), hole(size), data(size + 1), hole(size + 1)),
        (Err(ENXIO), Err(ENXIO), Err(ENXIO), Err(ENXIO))
    );
    disk.put(9 * CHUNK, &[1]);
    assert_eq!((hole(9 * CHUNK), data(size - 1)), (Ok(size), Ok(size - 1)));
    assert_eq!(lseek(&file, 0, Whence::SeekEnd), Ok(size as i64));
}

#[test]
fn fsync_flushes_and_close_of_a_writer_makes_durable() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", SIZE);
    let log = disk.log();
    let count = |wanted: Op| log.lock().unwrap().iter().filter(|op| **op == wanted).count();
    let file = view.writable("clones/a.raw");
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!((count(Op::Flush), count(Op::Close)), (0, 0));
    file.sync_all().unwrap();
    assert_eq!(count(Op::Flush), 1);
    file.sync_data().unwrap();
    assert_eq!(count(Op::Flush), 2);
    let reader = view.read_only("clones/a.raw");
    reader.sync_all().unwrap();
    assert_eq!(count(Op::Flush), 4, "the writer's file is flushed too");
    drop(reader);
    assert_eq!(count(Op::Close), 0, "closing a reader flushes nothing");
    drop(file);
    assert_eq!(count(Op::Close), 1);
    common::eventually("dropping both devices", || count(Op::Drop) == 2);
}

#[test]
fn appending_finds_no_room() {
    let view = TestView::new();
    view.memory.add("clones/a.raw", 4096);
    let mut file = OpenOptions::new().append(true).open(view.path("clones/a.raw")).unwrap();
    assert_eq!(code(io::Write::write(&mut file, b"more")), libc::ENOSPC);
}
