//! Free space: whatever a disk says of itself, the areas are the whole disk, and what is free lies inside of them.

use super::ext4::decoded;
use super::is_sentence;
use cowshed::guestfs::free::{Free, survey};
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most reads that a survey of a disk of at most 4 MiB takes.
const READS: u64 = 500_000;

struct Disk {
    bytes: Vec<u8>,
    reads: AtomicU64,
}

impl Bytes for Disk {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> cowshed::Result<()> {
        assert!(self.reads.fetch_add(1, Ordering::Relaxed) < READS, "more than {READS} reads");
        let end = usize::try_from(at.0).unwrap().checked_add(buf.len()).unwrap();
        assert!(end <= self.bytes.len(), "a read past the end of the disk");
        buf.copy_from_slice(&self.bytes[end - buf.len()..end]);
        Ok(())
    }
}

/// Inputs are those of the target `ext4`; bit 8 of the first byte makes right the checksums of a physical volume of
/// LVM2, bit 16 those of a GPT.
pub fn free(data: &[u8]) {
    let Some((seal, mut bytes)) = decoded(data) else { return };
    if seal & 8 != 0 {
        seal_lvm(&mut bytes);
    }
    if seal & 16 != 0 {
        seal_gpt(&mut bytes);
    }
    let disk = Disk { bytes, reads: AtomicU64::new(0) };
    let areas = survey(&disk).unwrap();
    let mut at = 0;
    for area in &areas {
        assert!(area.start.0 == at && area.len > 0, "{area:?} is not at {at}");
        assert!(!area.what.to_string().is_empty());
        let mut behind = at;
        at += area.len;
        match &area.free {
            Free::Known(ranges) => {
                for (number, range) in ranges.iter().enumerate() {
                    assert!(range.start > behind || number == 0 && range.start == behind, "{ranges:?}");
                    assert!(range.start < range.end && range.end <= at, "{ranges:?}");
                    behind = range.end;
                }
            }
            Free::Left(reason) => is_sentence(reason),
        }
    }
    assert_eq!(at, disk.size());
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at.saturating_add(value.len())) {
        field.copy_from_slice(value);
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes.get(at..at + len).unwrap_or(&[]).iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// CRC-32, from `start`, not inverted at the end.
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0xedb8_8320 };
    bytes.iter().fold(start, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

/// The label in the second sector, and an area of metadata at 4096.
fn seal_lvm(bytes: &mut [u8]) {
    const START: u32 = 0xf597_a6cf;
    if bytes.len() < 8192 {
        return;
    }
    let label = sum(START, &bytes[512 + 20..1024]).to_le_bytes();
    put(bytes, 512 + 16, &label);
    let (start, len) = (number(bytes, 4096 + 40, 8), number(bytes, 4096 + 48, 8));
    let text = start.checked_add(4096).and_then(|start| bytes.get(start..start.checked_add(len)?));
    let text = text.map(|text| sum(START, text).to_le_bytes());
    if let Some(text) = text {
        put(bytes, 4096 + 56, &text);
    }
    let header = sum(START, &bytes[4096 + 4..4096 + 512]).to_le_bytes();
    put(bytes, 4096, &header);
}

/// Both headers of a GPT of sectors of 512 bytes, with 128 entries of 128 bytes.
fn seal_gpt(bytes: &mut [u8]) {
    let end = bytes.len();
    for (header, array) in [(512, 1024), (end - 512, end - 33 * 512)] {
        let entries = bytes.get(array..array + 16384).map(|entries| (!sum(!0, entries)).to_le_bytes());
        if let Some(entries) = entries {
            put(bytes, header + 88, &entries);
        }
        put(bytes, header + 16, &[0; 4]);
        let sum = (!sum(!0, &bytes[header..header + 92])).to_le_bytes();
        put(bytes, header + 16, &sum);
    }
}
