//! A clone of 1 TiB with many scattered allocations is there again at once after its server was killed. Needs
//! root, for a filesystem in memory.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/host.rs"]
mod host;
#[path = "common/served.rs"]
mod served;

use common::Shed;
use host::Memory;
use served::Server;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Bytes of the disk.
const SIZE: u64 = 1 << 40;
/// Writes of 4 KiB, each into a cluster of its own: 2.5 GiB of allocated clusters.
const WRITES: u64 = 20_000;
/// Bytes that the opening may read: far more than the tables that it needs, far less than all tables.
const MOST_READ: u64 = 16 << 20;

/// Bytes that a process has read so far, from wherever.
fn bytes_read(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

fn place(number: u64) -> u64 {
    // Odd, so that all places differ: a multiplier over the clusters of the disk.
    (number.wrapping_mul(0x9e37_79b9) % (SIZE >> 17)) << 17
}

#[test]
fn a_clone_of_1_tib_reopens_after_a_kill_without_reading_its_tables() {
    let shed = Shed::new();
    // In memory: some hosts take half a minute to remove a file of so many pieces.
    let _memory = Memory::new(shed.root(), 2 << 30);
    let image = shed.path("big.raw");
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb", "--format", "raw"]);
    shed.ok(&["clone", "deb", "web"]);
    let mut server = Server::start(&shed);
    let file = File::options().read(true).write(true).open(server.clone_file("web")).unwrap();
    for number in 0..WRITES {
        file.write_all_at(&[u8::try_from(number % 251 + 1).unwrap(); 4096], place(number)).unwrap();
    }
    file.sync_all().unwrap();
    for number in 0..50 {
        file.write_all_at(&[0xaa; 4096], place(number) + 8192).unwrap();
    }
    server.kill();
    drop(file);
    drop(server);

    let server = Server::start(&shed);
    fs::metadata(server.clone_file("web")).unwrap();
    let before = bytes_read(server.pid());
    let start = Instant::now();
    let file = File::options().read(true).write(true).open(server.clone_file("web")).unwrap();
    let took = start.elapsed();
    let mut first = [0; 4096];
    file.read_exact_at(&mut first, place(7)).unwrap();
    let read = bytes_read(server.pid()) - before;
    println!("reopened in {took:?}; {read} bytes read");
    assert!(read < MOST_READ, "{read} bytes were read to open the clone");
    assert_eq!(first, [8; 4096]);
    for number in (0..WRITES).step_by(997) {
        file.read_exact_at(&mut first, place(number)).unwrap();
        assert_eq!(first, [u8::try_from(number % 251 + 1).unwrap(); 4096], "write {number}");
    }
    drop(file);
    assert!(server.end(&shed).success());
}
