//! What the kernel keeps and what it asks for again.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use common::memory::Op;
use common::{TestView, pattern};

fn reads(log: &Arc<Mutex<Vec<Op>>>) -> usize {
    log.lock().unwrap().iter().filter(|op| matches!(op, Op::Read { .. })).count()
}

#[test]
fn an_immutable_file_is_read_once() {
    let view = TestView::new();
    let disk = view.memory.add("bases/b@1.raw", 1 << 20);
    disk.put(0, &pattern(1 << 20, 1));
    let log = disk.log();
    let first = std::fs::read(view.path("bases/b@1.raw")).unwrap();
    let asked = reads(&log);
    assert!(asked > 0 && first == pattern(1 << 20, 1));
    assert!(std::fs::read(view.path("bases/b@1.raw")).unwrap() == first);
    let mut direct = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut direct, libc::O_DIRECT).read(true);
    drop(direct.open(view.path("bases/b@1.raw")).unwrap());
    assert!(std::fs::read(view.path("bases/b@1.raw")).unwrap() == first);
    assert_eq!(reads(&log), asked, "the page cache outlives the open file");
}

#[test]
fn another_base_of_the_same_name_is_not_read_from_the_cache_of_the_old_one() {
    let view = TestView::new();
    view.memory.add("bases/b@1.raw", 8192).put(0, &[1; 8192]);
    assert_eq!(std::fs::read(view.path("bases/b@1.raw")).unwrap(), [1; 8192]);
    view.memory.remove("bases/b@1.raw");
    view.memory.add("bases/b@1.raw", 8192).put(0, &[2; 8192]);
    assert_eq!(std::fs::read(view.path("bases/b@1.raw")).unwrap(), [2; 8192]);
}

#[test]
fn a_writable_file_is_cached_while_open_and_read_anew_when_opened_again() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 8192);
    let log = disk.log();
    let file = view.read_only("clones/a.raw");
    let mut buffer = [0; 8192];
    file.read_exact_at(&mut buffer, 0).unwrap();
    let asked = reads(&log);
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(reads(&log), asked);
    disk.put(0, &[9; 8192]);
    view.read_only("clones/a.raw").read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(buffer, [9; 8192]);
}

#[test]
fn a_file_over_the_same_disk_sees_what_was_written_before_it_was_opened() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 1 << 20);
    view.memory.show("clones/a.p1.raw", &disk, 65536, 131_072);
    let mut buffer = [0; 4096];
    view.read_only("clones/a.p1.raw").read_exact_at(&mut buffer, 4096).unwrap();
    view.writable("clones/a.raw").write_all_at(&[1; 4096], 65536 + 4096).unwrap();
    let part = view.writable("clones/a.p1.raw");
    part.read_exact_at(&mut buffer, 4096).unwrap();
    assert_eq!(buffer, [1; 4096]);
    part.write_all_at(&[2; 4096], 8192).unwrap();
    view.read_only("clones/a.raw").read_exact_at(&mut buffer, 65536 + 8192).unwrap();
    assert_eq!(buffer, [2; 4096]);
    assert_eq!(part.metadata().unwrap().len(), 131_072);
}

#[test]
fn direct_reading_passes_the_cache_by_and_direct_writing_reaches_buffered_readers() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 8192);
    let (buffered, direct) = (view.read_only("clones/a.raw"), view.direct("clones/a.raw"));
    let mut buffer = [0; 8192];
    buffered.read_exact_at(&mut buffer, 0).unwrap();
    disk.put(0, &[3; 8192]);
    direct.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(buffer, [3; 8192]);
    direct.write_all_at(&[4; 8192], 0).unwrap();
    buffered.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(buffer, [4; 8192]);
}

#[test]
fn buffered_writes_reach_the_disk_before_write_returns() {
    let view = TestView::new();
    let disk = view.memory.add("clones/a.raw", 8192);
    let file = view.writable("clones/a.raw");
    file.write_all_at(&[5; 100], 4000).unwrap();
    assert_eq!(disk.get(4000, 100), [5; 100]);
}
