//! Nobody writes to a frozen layer who opened it by the clone's path before the checkpoint was made.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::storage::{ImageLock, Role};
use cowshed::store::Target;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_clone_that_is_open_for_writing_without_locks_is_not_frozen() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let disk = temp.store.path(&Target::Clone(name("a"))).unwrap();
    let writer = open(&disk);
    let error = temp.store.checkpoint(&name("a"), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(error.to_string().contains("clone a is open for writing"), "{error}");
    drop(writer);
    let reader = File::open(&disk).unwrap();
    temp.store.checkpoint(&name("a"), None).unwrap();
    let writer = open(&disk);
    assert_eq!(temp.store.restore(&name("a"), 1, false).unwrap_err().kind(), Kind::Busy);
    drop((writer, reader));
    temp.store.restore(&name("a"), 1, false).unwrap();
}

/// Opens the clone's file as QEMU does, takes its time, and takes the locks. Whether it then has a file that the path does
/// not name any more.
fn comes_late(disk: &Path, pause: Duration) -> bool {
    let file = open(disk);
    thread::sleep(pause);
    let Ok(_lock) = ImageLock::take(&file, Role::Writer) else { return false };
    let (ours, named) = (file.metadata().unwrap(), disk.metadata().unwrap());
    (ours.dev(), ours.ino()) != (named.dev(), named.ino())
}

#[test]
fn who_opened_a_clone_before_it_was_frozen_gets_no_lock_on_the_frozen_file() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let disk = temp.store.path(&Target::Clone(name("a"))).unwrap();
    let (stop, tries, late) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let mut made = 0;
    thread::scope(|scope| {
        for pause in [2, 25] {
            let (disk, stop, tries, late) = (&disk, &stop, &tries, &late);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    tries.fetch_add(1, Ordering::Relaxed);
                    late.fetch_add(
                        u32::from(comes_late(disk, Duration::from_millis(pause))),
                        Ordering::Relaxed,
                    );
                    thread::sleep(Duration::from_millis(5 * pause));
                }
            });
        }
        for _ in 0..20 {
            match temp.store.checkpoint(&name("a"), None) {
                Ok(_) => made += 1,
                Err(error) => assert_eq!(error.kind(), Kind::Busy, "{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{made} checkpoints beside {} openers", tries.load(Ordering::Relaxed));
    assert!(made >= 3, "only {made} checkpoints were made");
    assert_eq!(late.load(Ordering::Relaxed), 0, "openers that got a frozen file with its locks");
}
