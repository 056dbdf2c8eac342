//! Disks through a mounted view: bytes, holes, names, and what stays of them in the store.
#![allow(clippy::unwrap_used, clippy::cast_possible_wrap)]

#[path = "common/cli.rs"]
mod common;

use common::store::{file_digest, must, qemu_check};
use common::{DISK, Shed, noise, until};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

fn read_write(path: &std::path::Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn bases_and_clones_read_as_what_they_are() {
    let shed = Shed::with_base();
    let base = file_digest(&shed.base_disk());
    shed.ok(&["clone", "deb", "web", "db"]);
    let view = shed.mount();
    assert_eq!(view.names(""), ["bases", "clones"]);
    assert_eq!(view.names("bases"), ["deb@1.raw"]);
    let clones = ["db.p1.raw", "db.p2.raw", "db.raw", "web.p1.raw", "web.p2.raw", "web.raw"];
    assert_eq!(view.names("clones"), clones);
    assert_eq!(file_digest(&view.base_file("deb@1")), base);
    assert_eq!(file_digest(&view.clone_file("web")), base);
    let stat = fs::metadata(view.base_file("deb@1")).unwrap();
    let host = fs::metadata(shed.base_disk()).unwrap();
    assert_eq!((stat.size(), stat.blocks(), stat.mode() & 0o777), (DISK as u64, host.blocks(), 0o444));
    assert_eq!(stat.mtime(), host.mtime());
    let stat = fs::metadata(view.clone_file("web")).unwrap();
    let host = fs::metadata(shed.delta("web")).unwrap();
    assert_eq!((stat.size(), stat.blocks(), stat.mode() & 0o777), (DISK as u64, host.blocks(), 0o600));
    let error = File::options().write(true).open(view.base_file("deb@1")).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES)), "{error}");
}

#[test]
fn what_is_written_is_in_the_clone_and_nowhere_else() {
    let shed = Shed::with_base();
    let base = file_digest(&shed.base_disk());
    shed.ok(&["clone", "deb", "web", "db"]);
    let view = shed.mount();
    let mut expected = fs::read(shed.base_disk()).unwrap();
    let file = read_write(&view.clone_file("web"));
    for (at, len, seed) in
        [(0, 512, 1), (4095, 2, 2), (131_071, 300_000, 3), (20 << 20, 4 << 20, 4), (DISK - 1, 1, 5)]
    {
        let data = noise(len, seed);
        file.write_all_at(&data, at as u64).unwrap();
        expected[at..at + len].copy_from_slice(&data);
    }
    file.sync_all().unwrap();
    let mut seen = vec![0; DISK];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected, "the writer sees its writes");
    drop(file);
    view.unmount();
    qemu_check(&shed.delta("web"));
    let raw = shed.path("expected.raw");
    fs::write(&raw, &expected).unwrap();
    let delta = shed.delta("web");
    must(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap(), delta.to_str().unwrap()],
    );
    let (other, disk) = (shed.delta("db"), shed.base_disk());
    must(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", disk.to_str().unwrap(), other.to_str().unwrap()],
    );
    assert_eq!(file_digest(&shed.base_disk()), base);
    assert!(shed.ok(&["verify", "--all"]).contains("intact"));
}

#[test]
fn a_partition_is_a_part_of_the_same_disk() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let (whole, part) = (view.clone_file("web"), view.clone_file("web.p2"));
    assert_eq!(fs::metadata(view.clone_file("web.p1")).unwrap().len(), 16384 * 512);
    let start = 18432 * 512_u64;
    let data = noise(1 << 20, 6);
    let (first, second) = (read_write(&whole), read_write(&part));
    second.write_all_at(&data, 12345).unwrap();
    second.sync_all().unwrap();
    let mut seen = vec![0; data.len()];
    first.read_exact_at(&mut seen, start + 12345).unwrap();
    assert!(seen == data, "the whole disk shows what was written into the partition");
    let end = fs::metadata(&part).unwrap().len();
    assert!(second.write_at(&[1], end).is_err(), "a partition has an end");
    drop((first, second));

    must("mkfs.ext4", &["-q", "-F", part.to_str().unwrap()]);
    must("debugfs", &["-w", "-R", "mkdir /made-here", part.to_str().unwrap()]);
    must("e2fsck", &["-fn", part.to_str().unwrap()]);
    let said = must("debugfs", &["-R", "ls -p /", &format!("{}?offset={start}", whole.display())]);
    assert!(said.contains("made-here"), "{said}");
    view.unmount();
    qemu_check(&shed.delta("web"));
}

#[test]
fn partitions_come_and_go_with_the_table_and_exact_names_come_first() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let whole = view.clone_file("web");
    must("sgdisk", &["-d", "2", "-n", "5:40960:45055", whole.to_str().unwrap()]);
    until("the new table is shown", || view.names("clones") == ["web.p1.raw", "web.p5.raw", "web.raw"]);
    assert_eq!(fs::metadata(view.clone_file("web.p5")).unwrap().len(), 4096 * 512);
    assert!(!view.clone_file("web.p2").exists());
    must("sgdisk", &["-v", whole.to_str().unwrap()]);

    // A clone that is called like a partition hides it.
    shed.ok(&["clone", "deb", "web.p1"]);
    let names = ["web.p1.p1.raw", "web.p1.p2.raw", "web.p1.raw", "web.p5.raw", "web.raw"];
    assert_eq!(view.names("clones"), names);
    assert_eq!(fs::metadata(view.clone_file("web.p1")).unwrap().len(), DISK as u64);
    shed.ok(&["rm", "web.p1"]);
    assert_eq!(fs::metadata(view.clone_file("web.p1")).unwrap().len(), 16384 * 512);
    for name in ["web.p01", "web.p9", "web.p0", "nobody", "deb@1"] {
        assert!(!view.clone_file(name).exists(), "{name}");
    }
}

#[test]
fn disks_appear_and_vanish_with_the_store() {
    let shed = Shed::with_base();
    let view = shed.mount();
    assert_eq!(view.names("clones"), [""; 0]);
    shed.ok(&["clone", "deb", "web"]);
    assert!(view.clone_file("web").exists());
    shed.ok(&["rename", "web", "db"]);
    assert!(!view.clone_file("web").exists() && view.clone_file("db").exists());
    let image = shed.image("other.raw");
    shed.ok(&["import", image.to_str().unwrap(), "--name", "other"]);
    assert_eq!(view.names("bases"), ["deb@1.raw", "other@1.raw"]);
    shed.ok(&["rm", "db", "other"]);
    assert_eq!(view.names("bases"), ["deb@1.raw"]);
    assert_eq!(view.names("clones"), [""; 0]);
    // A name that comes back stands for the new disk.
    shed.ok(&["clone", "deb", "web"]);
    read_write(&view.clone_file("web")).write_all_at(&noise(4096, 7), 0).unwrap();
    shed.ok(&["rm", "web"]);
    shed.ok(&["clone", "deb", "web"]);
    assert_eq!(file_digest(&view.clone_file("web")), file_digest(&shed.base_disk()));
}

#[test]
fn holes_are_told_punched_and_given_back_to_the_host() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let file = read_write(&view.clone_file("web"));
    let (start, len) = (8_u64 << 20, 8_usize << 20);
    file.write_all_at(&noise(len, 8), start).unwrap();
    file.sync_all().unwrap();
    let full = fs::metadata(shed.delta("web")).unwrap().blocks();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, start as i64, len as i64).unwrap();
    let mut seen = vec![1; len];
    file.read_exact_at(&mut seen, start).unwrap();
    assert!(seen.iter().all(|byte| *byte == 0), "a hole reads as zeros, not as the base");
    assert_eq!(lseek(&file, start as i64, Whence::SeekHole).unwrap(), start as i64);
    let data = lseek(&file, start as i64, Whence::SeekData).unwrap();
    assert!(data >= (start as i64) + len as i64, "{data}");
    // Nobody flushes: the space comes back all the same.
    until("the host has its blocks back", || {
        fs::metadata(shed.delta("web")).unwrap().blocks() < full - (len as u64 / 512) * 9 / 10
    });
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, zero, 100, 5000).unwrap();
    let mut seen = vec![1; 6000];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen[100..5100].iter().all(|byte| *byte == 0));
    drop(file);
    view.unmount();
    qemu_check(&shed.delta("web"));
}

#[test]
fn direct_access_past_the_page_cache_sees_the_same_bytes() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let path = view.clone_file("web");
    let direct = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut memory = vec![0; 12288];
    let skip = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[skip..skip + 4096];
    buffer.copy_from_slice(&noise(4096, 9));
    direct.write_all_at(buffer, 1 << 20).unwrap();
    let expected = buffer.to_vec();
    buffer.fill(0);
    direct.read_exact_at(buffer, 1 << 20).unwrap();
    assert!(*buffer == expected[..]);
    let mut seen = vec![0; 4096];
    File::open(&path).unwrap().read_exact_at(&mut seen, 1 << 20).unwrap();
    assert!(seen == expected);
}

#[test]
fn a_clone_over_a_changed_base_is_shown_but_opens_as_stale() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    common::store::unseal(&shed.base_disk());
    must("touch", &[shed.base_disk().to_str().unwrap()]);
    let view = shed.mount();
    assert_eq!(view.names("clones"), ["web.raw"]);
    assert_eq!(fs::metadata(view.clone_file("web")).unwrap().len(), DISK as u64);
    let error = File::open(view.clone_file("web")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    let logs = fs::read_dir(shed.root().join("run")).unwrap().map(|entry| entry.unwrap().path());
    let log: String = logs
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert!(log.contains("deb@1"), "the server's log names the base: {log}");
}

#[test]
fn a_thousand_clones_are_listed_quickly_the_second_time() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web", "--count", "1000"]);
    let view = shed.mount();
    for _ in 0..2 {
        assert_eq!(view.names("clones").len(), 3000);
    }
    assert_eq!(must("ls", &["-l", view.dir.join("clones").to_str().unwrap()]).lines().count(), 3001);
}
