//! Partition tables: what is found lies inside the disk, in order, without overlaps.

use cowshed::guestfs::partitions::{Bytes, partitions as find};
use cowshed::units::GuestOffset;
use std::cell::Cell;

/// A disk whose first bytes and whose last ones are the input's, with zeros between.
struct Disk<'a> {
    head: &'a [u8],
    tail: &'a [u8],
    size: u64,
    reads: Cell<u32>,
}

impl Bytes for Disk<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> cowshed::Result<()> {
        self.reads.set(self.reads.get() + 1);
        assert!(at.0 + buf.len() as u64 <= self.size, "a read past the end of the disk");
        assert!(buf.len() <= 2 << 20, "{} bytes are read for a table", buf.len());
        let tail = self.size - self.tail.len() as u64;
        for (at, byte) in (at.0..).zip(buf) {
            *byte = match at {
                at if at < self.head.len() as u64 => self.head[at as usize],
                at if at >= tail => self.tail[(at - tail) as usize],
                _ => 0,
            };
        }
        Ok(())
    }
}

/// The first two bytes: how long the disk is, and how much of the input is its end; the checksums of a GPT are made
/// right where the third byte says so.
pub fn partitions(data: &[u8]) {
    let [size, split, seal, rest @ ..] = data else { return };
    let mut rest = rest.to_vec();
    let split = rest.len() - rest.len() * usize::from(*split) / 256;
    if seal & 1 != 0 {
        seal_header(&mut rest, usize::from(seal >> 1) * 512);
    }
    let (head, tail) = rest.split_at(split);
    let size = rest.len() as u64 + (1 << (size % 45)) - 1;
    let disk = Disk { head, tail, size, reads: Cell::new(0) };
    let found = find(&disk).unwrap();
    assert!(disk.reads.get() < 300, "{} reads", disk.reads.get());
    assert!(found.len() <= 256);
    for partition in &found {
        assert!(partition.len >= 512 && partition.number > 0);
        assert!(partition.start.0.checked_add(partition.len).is_some_and(|end| end <= size), "{partition:?}");
        assert!(partition.kind.to_string().is_ascii());
    }
    for (number, one) in found.iter().enumerate() {
        for other in &found[number + 1..] {
            assert!(one.number < other.number, "{found:?}");
            assert!(one.end() <= other.start || other.end() <= one.start, "{found:?}");
        }
    }
}

/// Gives the GPT header at `at` the checksums of what is there.
fn seal_header(disk: &mut [u8], at: usize) {
    let number = |disk: &[u8], at: usize| {
        disk.get(at..at + 4).map_or(0, |field| u32::from_le_bytes(field.try_into().unwrap()) as usize)
    };
    let (array, len) =
        (number(disk, at + 72) * 512, number(disk, at + 80).saturating_mul(number(disk, at + 84)));
    let put = |disk: &mut [u8], at: usize, value: u32| {
        if let Some(field) = disk.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    };
    if let Some(crc) = disk.get(array..array.saturating_add(len)).map(crc) {
        put(disk, at + 88, crc);
    }
    put(disk, at + 16, 0);
    let size = number(disk, at + 12);
    if let Some(crc) = disk.get(at..at.saturating_add(size)).map(crc) {
        put(disk, at + 16, crc);
    }
}

/// CRC-32 as zip and GPT have it.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
