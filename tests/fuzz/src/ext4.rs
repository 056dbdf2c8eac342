//! Ext4: what is read lies inside the disk, and everything ends in an answer or a sentence after a bounded number of
//! reads.

use super::is_sentence;
use cowshed::guestfs::ext4::{Ext4, FileKind, Ino, Inode, Replayed};
use cowshed::guestfs::partitions::Bytes;
use cowshed::units::GuestOffset;
use std::cell::Cell;

/// The unit in which an input says what stands where, in bytes.
const UNIT: usize = 64;
/// Most files that are looked at, and most reads that all of this takes.
const FILES: usize = 200;
const READS: u64 = 2_000_000;

struct Disk {
    bytes: Vec<u8>,
    reads: Cell<u64>,
}

impl Bytes for Disk {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> cowshed::Result<()> {
        self.reads.set(self.reads.get() + 1);
        assert!(self.reads.get() < READS, "more than {READS} reads");
        let end = usize::try_from(at.0).unwrap().checked_add(buf.len()).unwrap();
        assert!(end <= self.bytes.len(), "a read past the end of the disk");
        buf.copy_from_slice(&self.bytes[end - buf.len()..end]);
        Ok(())
    }
}

/// The first byte says which checksums are made right, the second how long the disk is. Then come pieces: where in
/// units (two bytes), how many less one (the low seven bits of a byte), and their content, or one byte for all of it.
pub fn ext4(data: &[u8]) {
    let Some((_, bytes)) = decoded(data) else { return };
    let disk = Disk { bytes, reads: Cell::new(0) };
    match Replayed::open(&disk) {
        Ok(replayed) => {
            for (block, content) in replayed.written() {
                assert_eq!(content.len() as u64, replayed.block_size());
                assert!((block.0 + 1) * replayed.block_size() <= disk.size());
            }
            answer(Ext4::open(&replayed)).inspect(look);
        }
        Err(error) => is_sentence(&error.to_string()),
    }
    answer(Ext4::open(&disk)).inspect(look);
}

/// The first byte of an input, and the disk that it stands for.
pub(super) fn decoded(data: &[u8]) -> Option<(u8, Vec<u8>)> {
    let [seal, size, pieces @ ..] = data else { return None };
    let mut bytes = vec![0; (usize::from(*size) % 64 + 1) << 16];
    decode(pieces, &mut bytes);
    seal_all(*seal, &mut bytes);
    Some((*seal, bytes))
}

fn answer<T>(result: cowshed::Result<T>) -> Option<T> {
    result.inspect_err(|error| is_sentence(&error.to_string())).ok()
}

fn look<B: Bytes>(filesystem: &Ext4<B>) {
    let count = filesystem.superblock().block_count;
    let mut behind = 0;
    answer(filesystem.free(|run| {
        assert!(run.start.0 >= behind && run.blocks > 0 && run.end().0 <= count, "{run:?}");
        behind = run.end().0 + 1;
        Ok(())
    }));
    answer(filesystem.orphans());
    let mut last = Ino(0);
    for inode in filesystem.inodes().take(FILES) {
        let Some(inode) = answer(inode) else { break };
        assert!(inode.ino > last, "{} after {last}", inode.ino);
        last = inode.ino;
        file(filesystem, &inode);
    }
    for number in [1, 2, 3, 8, 11, 12, 13, u32::MAX] {
        answer(filesystem.inode(Ino(number))).inspect(|inode| file(filesystem, inode));
    }
}

fn file<B: Bytes>(filesystem: &Ext4<B>, inode: &Inode) {
    if inode.kind == FileKind::Directory
        && let Some(folder) = answer(filesystem.directory(inode))
    {
        for entry in folder.entries {
            assert!((1..256).contains(&entry.name.len()) && !entry.name.contains(&b'/'), "{entry:?}");
            assert!(entry.ino.0 <= filesystem.superblock().inode_count);
        }
    }
    answer(filesystem.xattrs(inode));
    answer(filesystem.link(inode));
    let Some(content) = answer(filesystem.content(inode)) else { return };
    let mut behind = 0;
    let mut buf = vec![0; 8192];
    answer(content.stream(&mut buf, |at, bytes| {
        assert!(at >= behind && !bytes.is_empty());
        behind = at + bytes.len() as u64;
        assert!(behind <= inode.size);
        Ok(())
    }));
    for at in [0, 1, inode.size / 2, inode.size.saturating_sub(3), inode.size, u64::MAX - 9000] {
        if let Some(read) = answer(content.read(at, &mut buf)) {
            assert_eq!(read as u64, inode.size.saturating_sub(at).min(buf.len() as u64));
        }
    }
}

pub(super) fn decode(mut pieces: &[u8], bytes: &mut [u8]) {
    while let [low, high, len, rest @ ..] = pieces {
        let at = usize::from(u16::from_le_bytes([*low, *high])) * UNIT;
        let len_in_bytes = (usize::from(*len & 0x7f) + 1) * UNIT;
        let taken = if *len & 0x80 == 0 { len_in_bytes } else { 1 }.min(rest.len());
        let (content, behind) = rest.split_at(taken);
        let end = bytes.len().min(at + len_in_bytes);
        if let (Some(target), false) = (bytes.get_mut(at..end), content.is_empty()) {
            if *len & 0x80 == 0 {
                let len = target.len().min(content.len());
                target[..len].copy_from_slice(&content[..len]);
            } else {
                target.fill(content[0]);
            }
        }
        pieces = behind;
    }
}

/// The input that stands for the disk `bytes`, at most 4 MiB; with `seal` as its first byte.
pub fn encode_ext4(seal: u8, bytes: &[u8]) -> Vec<u8> {
    let mut input = vec![seal, ((bytes.len() >> 16) - 1) as u8];
    let units: Vec<&[u8]> = bytes.chunks_exact(UNIT).collect();
    let fill = |unit: &[u8]| unit.iter().all(|byte| *byte == unit[0]).then_some(unit[0]);
    let mut at = 0;
    while at < units.len() {
        let kind = fill(units[at]);
        let run = units[at..].iter().take(128).take_while(|unit| fill(unit) == kind).count();
        if kind != Some(0) {
            input.extend((at as u16).to_le_bytes());
            input.push((run - 1) as u8 | if kind.is_some() { 0x80 } else { 0 });
            match kind {
                Some(byte) => input.push(byte),
                None => units[at..at + run].iter().for_each(|unit| input.extend_from_slice(unit)),
            }
        }
        at += run;
    }
    input
}

fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    let field = bytes.get(at..at + len).unwrap_or(&[]);
    field.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

/// CRC-32C as ext4 has it: not inverted.
fn sum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// Makes right the checksums that `seal` asks for: 1 inodes, 2 group descriptors, 4 the superblock. Only the first
/// group's, with what the superblock says.
fn seal_all(seal: u8, bytes: &mut [u8]) {
    let superblock = bytes[1024..2048].to_vec();
    let seed = sum(!0, &superblock[0x68..0x78]);
    let block = 1024 << (superblock[0x18] % 7);
    let wide = superblock[0x60] & 0x80 != 0;
    let (descriptor, len) = ((1024 / block + 1) * block, if wide { 64 } else { 32 });
    if seal & 1 != 0 {
        let (size, count) = (number(&superblock, 0x58, 2).max(128), number(&superblock, 0x28, 4).min(64));
        let table = number(bytes, descriptor + 8, 4).saturating_mul(block);
        for slot in 0..count {
            seal_inode(bytes, seed, table.saturating_add(slot * size), size, slot as u32 + 1);
        }
    }
    if seal & 2 != 0 && bytes.len() >= descriptor + len {
        put(bytes, descriptor + 0x1e, &[0; 2]);
        let sum = sum(sum(seed, &[0; 4]), &bytes[descriptor..descriptor + len]);
        put(bytes, descriptor + 0x1e, &sum.to_le_bytes()[..2]);
    }
    if seal & 4 != 0 {
        let sum = sum(!0, &bytes[1024..2044]);
        put(bytes, 2044, &sum.to_le_bytes());
    }
}

fn seal_inode(bytes: &mut [u8], seed: u32, at: usize, size: usize, ino: u32) {
    let end = at.saturating_add(size);
    if end > bytes.len() {
        return;
    }
    let has_high = size > 128 && number(bytes, at + 0x80, 2) >= 4;
    put(bytes, at + 0x7c, &[0; 2]);
    if has_high {
        put(bytes, at + 0x82, &[0; 2]);
    }
    let seed = sum(sum(seed, &ino.to_le_bytes()), &bytes[at + 0x64..at + 0x68]);
    let sum = sum(seed, &bytes[at..end]).to_le_bytes();
    put(bytes, at + 0x7c, &sum[..2]);
    if has_high {
        put(bytes, at + 0x82, &sum[2..]);
    }
}
