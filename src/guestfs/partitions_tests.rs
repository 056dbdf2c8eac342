#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

const DISK: u64 = 64 << 20;

fn made_by(size: u64, program: &str, arguments: &[&str], input: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(file.path()).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
    std::fs::read(file.path()).unwrap()
}

fn gpt_disk() -> Vec<u8> {
    made_by(DISK, "sgdisk", &["-n1:2048:+8M", "-t1:ef00", "-n2:0:+16M", "-n7:0:0", "-t7:8200"], "")
}

fn mbr_disk() -> Vec<u8> {
    let table = "label: dos\n\
        start=2048, size=8192, type=83\n\
        start=12288, size=81920, type=5\n\
        start=94208, size=8192, type=c\n\
        start=14336, size=8192, type=82\n\
        start=26624, size=16384, type=83\n\
        start=47104, size=4096, type=83\n";
    // sfdisk numbers the first four lines 1 to 4 unless told otherwise.
    let numbered = table
        .replace("start=2048,", "disk1 : start=2048,")
        .replace("start=12288,", "disk2 : start=12288,")
        .replace("start=94208,", "disk3 : start=94208,")
        .replace("start=14336,", "disk5 : start=14336,")
        .replace("start=26624,", "disk6 : start=26624,")
        .replace("start=47104,", "disk7 : start=47104,");
    made_by(DISK, "sfdisk", &["--quiet"], &numbered)
}

fn sectors(found: &[Partition]) -> Vec<(u32, u64, u64)> {
    found.iter().map(|p| (p.number, p.start.0 / 512, p.len / 512)).collect()
}

/// Reads the table and asserts what must hold for any bytes at all.
fn sane(disk: &Vec<u8>) -> Vec<Partition> {
    let found = partitions(disk).unwrap();
    for (at, one) in found.iter().enumerate() {
        assert!(one.len >= 512 && one.end().0 <= disk.len() as u64, "{one:?}");
        assert!(
            found[..at].iter().all(|other| !other.overlaps(one) && other.number < one.number),
            "{found:?}"
        );
    }
    found
}

#[test]
fn a_gpt_made_by_sgdisk_is_read_with_its_numbers_and_types() {
    let found = sane(&gpt_disk());
    assert_eq!(sectors(&found)[..2], [(1, 2048, 16384), (2, 18432, 32768)]);
    let last_usable = DISK / 512 - 34;
    assert_eq!((found[2].number, found[2].start.0), (7, 51200 * 512));
    assert!((last_usable - 2048..=last_usable + 1).contains(&(found[2].end().0 / 512)));
    assert_eq!(found[0].kind.to_string(), "C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
    assert_eq!(found[1].kind.to_string(), "0FC63DAF-8483-4772-8E79-3D69D8477DE4");
}

#[test]
fn a_gpt_for_4096_byte_sectors_is_read() {
    let narrow = sane(&gpt_disk());
    let mut disk = vec![0; DISK as usize];
    let old = gpt_disk();
    disk[..512].copy_from_slice(&old[..512]);
    disk[8192..8192 + 16384].copy_from_slice(&old[1024..1024 + 16384]);
    disk[4096..4096 + 512].copy_from_slice(&old[512..1024]);
    // Only the first two partitions, whose sector numbers still fit a disk of eight times fewer sectors.
    disk[8192 + 256..8192 + 16384].fill(0);
    for (place, value) in [(32, 18432_u64), (40, 18433)] {
        disk[8192 + 128 + place..8192 + 136 + place].copy_from_slice(&value.to_le_bytes());
    }
    for (place, value) in [(32, 8_u64), (40, 15)] {
        disk[8192 + place..8200 + place].copy_from_slice(&value.to_le_bytes());
    }
    disk[4096 + 40..4096 + 48].copy_from_slice(&6_u64.to_le_bytes());
    reseal(&mut disk, 4096, 8192);
    assert_eq!(narrow.len(), 3);
    let found = sane(&disk);
    assert_eq!(found.len(), 1, "the second lies outside of the disk");
    assert_eq!((found[0].start.0, found[0].len), (8 * 4096, 8 * 4096));
}

/// Makes the checksums of the header at `header` right again for the array of 16 KiB at `array`.
fn reseal(disk: &mut [u8], header: usize, array: usize) {
    let crc = crc32fast::hash(&disk[array..array + 16384]);
    disk[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
    disk[header + 16..header + 20].fill(0);
    let crc = crc32fast::hash(&disk[header..header + 92]);
    disk[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn each_flipped_byte_of_the_primary_gpt_header_falls_back_to_the_same_backup() {
    let mut disk = gpt_disk();
    let expected = sane(&disk);
    for at in 512..512 + 92 {
        disk[at] ^= 0xff;
        assert_eq!(sane(&disk), expected, "byte {at}");
        disk[at] ^= 0xff;
    }
}

#[test]
fn each_flipped_byte_of_both_gpt_headers_leaves_no_partition() {
    let mut disk = gpt_disk();
    let backup = disk.len() - 512;
    for at in 0..92 {
        for header in [512, backup] {
            disk[header + at] ^= 0xff;
        }
        assert_eq!(sane(&disk), [], "byte {at}");
        for header in [512, backup] {
            disk[header + at] ^= 0xff;
        }
    }
}

#[test]
fn hostile_gpt_fields_with_right_checksums_neither_panic_nor_allocate() {
    let mut disk = gpt_disk();
    let end = disk.len();
    disk[end - 512..].fill(0);
    for (place, width) in [(12, 4), (24, 8), (32, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4)] {
        let good = disk[512..1024].to_vec();
        for value in [0, 1, 2, 127, 129, 1 << 20, u64::from(u32::MAX), 1 << 40, u64::MAX / 512, u64::MAX] {
            disk[512 + place..512 + place + width].copy_from_slice(&value.to_le_bytes()[..width]);
            reseal(&mut disk, 512, 1024);
            sane(&disk);
        }
        disk[512..1024].copy_from_slice(&good);
    }
}

#[test]
fn gpt_entries_outside_of_the_disk_or_over_another_one_are_left_out() {
    let mut disk = gpt_disk();
    let set = |disk: &mut Vec<u8>, number: usize, first: u64, last: u64| {
        let entry = 1024 + (number - 1) * 128;
        disk[entry + 32..entry + 40].copy_from_slice(&first.to_le_bytes());
        disk[entry + 40..entry + 48].copy_from_slice(&last.to_le_bytes());
        reseal(disk, 512, 1024);
    };
    set(&mut disk, 2, 2048, 4095);
    assert_eq!(sane(&disk).iter().map(|p| p.number).collect::<Vec<_>>(), [1, 7]);
    for (first, last) in
        [(0, 4095), (1, 1), (40000, 39999), (51200, u64::MAX), (u64::MAX, u64::MAX), (51200, DISK / 512)]
    {
        set(&mut disk, 7, first, last);
        assert_eq!(sane(&disk).iter().map(|p| p.number).collect::<Vec<_>>(), [1], "{first}..={last}");
    }
}

#[test]
fn an_mbr_made_by_sfdisk_is_read_with_its_logical_partitions() {
    let found = sane(&mbr_disk());
    let expected = [(1, 2048, 8192), (3, 94208, 8192), (5, 14336, 8192), (6, 26624, 16384), (7, 47104, 4096)];
    assert_eq!(sectors(&found), expected);
    assert_eq!(found[1].kind, PartitionKind::Mbr(0x0c));
    assert_eq!(found[1].kind.to_string(), "0x0c");
}

#[test]
fn each_flipped_byte_of_an_mbr_or_a_first_extended_record_never_panics() {
    let mut disk = mbr_disk();
    for base in [0, 12288 * 512] {
        for at in base + 446..base + 512 {
            for flip in [0xff, 0x80, 0x01] {
                disk[at] ^= flip;
                sane(&disk);
                disk[at] ^= flip;
            }
        }
    }
}

#[test]
fn a_chain_of_extended_records_that_loops_ends() {
    let mut disk = mbr_disk();
    let second = usize::try_from(sectors(&sane(&disk))[3].1 - 2048).unwrap() * 512;
    let entry = 446 + 16;
    // The second record links to itself, relative to the extended partition.
    let own = (second as u64 / 512 - 12288) as u32;
    disk[second + entry + 4] = 5;
    disk[second + entry + 8..second + entry + 12].copy_from_slice(&own.to_le_bytes());
    disk[second + entry + 12..second + entry + 16].copy_from_slice(&4096_u32.to_le_bytes());
    disk[second + 510..second + 512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(sane(&disk).iter().map(|p| p.number).collect::<Vec<_>>(), [1, 3, 5, 6]);
}

#[test]
fn disks_without_a_table_have_no_partition() {
    for size in [0, 1, 511, 512, 513, 1024, 4096, 34 * 512] {
        for byte in [0, 0x55, 0xff] {
            let mut disk = vec![byte; size];
            assert_eq!(sane(&disk), []);
            if size >= 512 {
                disk[510..512].copy_from_slice(&[0x55, 0xaa]);
                disk[446] = 0x80;
                sane(&disk);
            }
        }
    }
}

#[test]
fn random_bytes_behind_valid_signatures_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..2000 {
        let mut disk = vec![0; 64 * 512];
        for byte in &mut disk {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        for entry in 0..4 {
            disk[446 + entry * 16] &= 0x80;
            if round % 2 == 0 {
                disk[450 + entry * 16] = [5, 0xee, 0x83, 0x0f][entry];
            }
        }
        sane(&disk);
    }
}
