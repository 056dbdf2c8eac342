#![allow(clippy::unwrap_used)]
use super::{Content, Table, Writes};
use crate::error::Result;
use crate::guestfs::partitions::{Bytes, partitions};
use crate::units::{GuestOffset, MIB, index, length};

struct Place(Vec<u8>);

impl Bytes for Place {
    fn size(&self) -> u64 {
        length(self.0.len())
    }
    fn read(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let at = index(at.0);
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

impl Place {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[index(at)..][..bytes.len()].copy_from_slice(bytes);
    }

    fn apply(&mut self, writes: &Writes, size: u64) {
        self.0.resize(index(size.max(self.size())), 0);
        writes.iter().for_each(|(at, bytes)| self.put(at.0, bytes));
        self.0.truncate(index(size));
    }
}

/// A disk with a GPT: partition 2 from 1 to 2 MiB, partition 1 from 2 MiB to `end`.
fn gpt(sector: u64, size: u64, end: u64) -> Place {
    let mut disk = Place(vec![0; index(size)]);
    let total = size / sector;
    disk.put(446, &[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    disk.put(458, &u32::try_from(total - 1).unwrap().to_le_bytes());
    disk.put(510, &[0x55, 0xaa]);
    let mut array = vec![0; 128 * 128];
    for (place, first, last) in [(0, 2 * MIB, end), (1, MIB, 2 * MIB)] {
        array[place * 128..][..16].fill(7);
        array[place * 128 + 32..][..8].copy_from_slice(&(first / sector).to_le_bytes());
        array[place * 128 + 40..][..8].copy_from_slice(&(last / sector - 1).to_le_bytes());
    }
    let sectors = length(array.len()) / sector;
    let mut header = vec![0; index(sector)];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
    header[80..88].copy_from_slice(&[128, 0, 0, 0, 128, 0, 0, 0]);
    header[88..92].copy_from_slice(&crc32fast::hash(&array).to_le_bytes());
    for (own, alternate, at) in [(1, total - 1, 2), (total - 1, 1, total - 1 - sectors)] {
        for (field, value) in
            [(24, own), (32, alternate), (40, 2 + sectors), (48, total - 2 - sectors), (72, at)]
        {
            header[field..field + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[16..20].fill(0);
        let sum = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.put(own * sector, &header);
        disk.put(at * sector, &array);
    }
    disk
}

fn ends(disk: &Place) -> Vec<(u32, u64)> {
    partitions(disk).unwrap().iter().map(|found| (found.number, found.end().0)).collect()
}

#[test]
fn both_copies_of_a_gpt_follow_the_disk_smaller_and_larger_in_either_unit() {
    for sector in [512, 4096] {
        for (size, end) in
            [(4 * MIB, 3 * MIB), (5 * MIB + 4096, 4 * MIB), (8 * MIB, 8 * MIB), (12 * MIB, 11 * MIB)]
        {
            let mut disk = gpt(sector, 8 * MIB, 7 * MIB);
            let table = Table::read(&disk).unwrap();
            let change = (end < size).then_some((1, end));
            let writes = table.rewrite(&disk, size, change).unwrap();
            disk.apply(&writes, size);
            let expected = [(1, if end < size { end } else { 7 * MIB }), (2, 2 * MIB)];
            assert_eq!(ends(&disk), expected, "{sector}, {size}");
            assert!(
                table.room(size) >= expected[0].1 && table.least(expected[0].1) <= size.next_multiple_of(MIB)
            );
            // What counted before counts nowhere any more.
            let headers: Vec<_> = (0..size / sector)
                .filter(|lba| disk.0[index(lba * sector)..].starts_with(b"EFI PART"))
                .collect();
            assert_eq!(headers, [1, size / sector - 1], "{sector}, {size}");
            // The second copy alone says the same.
            disk.put(sector, &[0; 512]);
            assert_eq!(ends(&disk), expected, "{sector}, {size}");
            assert!(Table::read(&disk).is_err());
        }
    }
}

/// Makes the sums of the first copy right again after a change of it.
fn seal(disk: &mut Place) {
    let array = crc32fast::hash(&disk.0[1024..1024 + 128 * 128]);
    disk.put(512 + 88, &array.to_le_bytes());
    disk.put(512 + 16, &[0; 4]);
    let sum = crc32fast::hash(&disk.0[512..512 + 92]);
    disk.put(512 + 16, &sum.to_le_bytes());
}

#[test]
fn a_second_copy_that_lies_in_a_partition_is_left_alone() {
    for (end, is_wiped) in [(7 * MIB, true), (10 * MIB, false)] {
        // The disk was made larger by somebody who moved nothing.
        let mut disk = gpt(512, 8 * MIB, 7 * MIB);
        disk.0.resize(index(16 * MIB), 0);
        disk.put(1024 + 40, &(end / 512 - 1).to_le_bytes());
        seal(&mut disk);
        let writes = Table::read(&disk).unwrap().rewrite(&disk, 32 * MIB, None).unwrap();
        let old = 8 * MIB - 512;
        let touched = writes.iter().any(|(at, bytes)| (at.0..at.0 + length(bytes.len())).contains(&old));
        assert_eq!(touched, is_wiped);
    }
}

#[test]
fn tables_that_contradict_themselves_are_refused_and_none_makes_trouble() {
    let good = gpt(512, 4 * MIB, 3 * MIB);
    let mut state = 1_u64;
    let mut draw = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        index(state >> 33) % below
    };
    for _ in 0..3000 {
        let mut disk = Place(good.0.clone());
        for _ in 0..=draw(4) {
            let at = [446 + draw(66), 512 + draw(92), 1024 + draw(256)][draw(3)];
            disk.0[at] = [0, 1, 0x7f, 0xff, 0xee, 5][draw(6)];
        }
        // What the sums guard is looked at, too.
        seal(&mut disk);
        let Ok(table) = Table::read(&disk) else { continue };
        for size in [512, 4096, MIB, 4 * MIB, 6 * MIB] {
            let _ = (table.room(size), table.least(size), table.last_end(size));
            let _ = table.rewrite(&disk, size, None);
        }
        let slots = table.slots(disk.size());
        assert!(slots.iter().all(|slot| slot.partition.end().0 <= disk.size()));
    }
    for (at, bytes) in [(1024 + 40, 1_u64), (1024 + 40, u64::MAX), (1024 + 32, MIB / 512), (1024 + 32, 0)] {
        let mut disk = Place(good.0.clone());
        disk.put(at, &bytes.to_le_bytes());
        seal(&mut disk);
        let said = Table::read(&disk).unwrap_err().to_string();
        assert!(said.contains("contradicts itself"), "{said}");
    }
}

/// An entry of a boot record.
fn entry(kind: u8, first: u64, count: u64) -> [u8; 16] {
    let mut entry = [0; 16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&u32::try_from(first).unwrap().to_le_bytes());
    entry[12..].copy_from_slice(&u32::try_from(count).unwrap().to_le_bytes());
    entry
}

/// A disk of 8 MiB with a primary partition and, from 2 MiB on, an extended one with two logical ones.
fn logical() -> Place {
    let mut disk = Place(vec![0; index(8 * MIB)]);
    for (sector, entries) in [
        (0, [entry(0x83, 2048, 2048), entry(5, 4096, 12288)]),
        (4096, [entry(0x83, 64, 1984), entry(5, 2048, 10240)]),
        (6144, [entry(0x83, 2048, 8192), [0; 16]]),
    ] {
        disk.put(sector * 512 + 446, &entries.concat());
        disk.put(sector * 512 + 510, &[0x55, 0xaa]);
    }
    disk
}

#[test]
fn a_logical_partition_takes_the_extended_one_along() {
    let count = |disk: &Place, sector: u64, place: u64| {
        crate::guestfs::partitions::u32_at(&disk.0, index(sector * 512 + 446 + place * 16 + 12))
    };
    for (size, end) in [(5 * MIB + 512, 5 * MIB), (8 * MIB, 6 * MIB), (12 * MIB, 12 * MIB)] {
        let mut disk = logical();
        let table = Table::read(&disk).unwrap();
        let numbers: Vec<u32> = table.slots(8 * MIB).iter().map(|slot| slot.partition.number).collect();
        assert_eq!(numbers, [1, 5, 6]);
        let writes = table.rewrite(&disk, size, Some((6, end))).unwrap();
        disk.apply(&writes, size);
        let sectors = u32::try_from(end / 512).unwrap();
        assert_eq!(ends(&disk), [(1, 2 * MIB), (5, 3 * MIB), (6, end)], "{size}");
        // Its own entry, the one that leads to it, and that of the extended one, which keeps room that is left.
        assert_eq!((count(&disk, 6144, 0), count(&disk, 4096, 1)), (sectors - 8192, sectors - 6144));
        assert_eq!(count(&disk, 0, 1), sectors.max(if size == 8 * MIB { 16384 } else { 0 }) - 4096);
        assert_eq!(count(&disk, 4096, 0), 1984);
        Table::read(&disk).unwrap();
    }
    // Room behind it goes without it, as far as it reaches.
    let mut disk = logical();
    disk.put(6144 * 512 + 446 + 12, &6145_u32.to_le_bytes());
    let table = Table::read(&disk).unwrap();
    let writes = table.rewrite(&disk, 7 * MIB + 512, None).unwrap();
    disk.apply(&writes, 7 * MIB + 512);
    assert_eq!((ends(&disk)[2], count(&disk, 0, 1)), ((6, 7 * MIB + 512), 10241));
    Table::read(&disk).unwrap();
}

#[test]
fn boot_records_of_any_bytes_end_in_an_answer_or_a_sentence() {
    let good = logical();
    let mut state = 7_u64;
    let mut draw = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        index(state >> 33) % below
    };
    let mut read = 0;
    for _ in 0..3000 {
        let mut disk = Place(good.0.clone());
        for _ in 0..=draw(3) {
            let at = [0, 4096 * 512, 6144 * 512][draw(3)] + 446 + draw(66);
            disk.0[at] = [0, 1, 5, 0x0f, 0x10, 0x20, 0xff][draw(7)];
        }
        let Ok(table) = Table::read(&disk) else { continue };
        read += 1;
        for size in [512, MIB, 5 * MIB, 8 * MIB, 12 * MIB] {
            for change in table.slots(disk.size()).iter().map(|slot| slot.partition.number) {
                let _ = table.rewrite(&disk, size, Some((change, table.last_end(size)))).unwrap();
            }
            let _ = table.rewrite(&disk, size, None).unwrap();
        }
    }
    assert!(read > 500, "{read}");
}

#[test]
fn two_tables_at_once_are_refused() {
    let mut disk = gpt(512, 4 * MIB, 3 * MIB);
    disk.put(462, &[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    assert!(Table::read(&disk).unwrap_err().to_string().contains("hybrid"));
}

#[test]
fn what_a_partition_holds_is_known_by_its_marks() {
    let ext = |compat: u8, incompat: u8| {
        let mut marks = vec![(1024 + 0x38, vec![0x53, 0xef])];
        marks.extend([(1024 + 0x5c, vec![compat]), (1024 + 0x60, vec![incompat])]);
        marks
    };
    let raid = vec![0xfc, 0x4e, 0x2b, 0xa9];
    let with = |at: u64, mark: &[u8]| [ext(4, 0x40), vec![(at, mark.to_vec())]].concat();
    let cases = [
        (vec![], Content::Unknown),
        (ext(0, 2), Content::Ext("ext2")),
        (ext(4, 2), Content::Ext("ext3")),
        (ext(4, 0x42), Content::Ext("ext4")),
        (vec![(0, b"XFSB".to_vec())], Content::Other("xfs")),
        (vec![(4086, b"SWAPSPACE2".to_vec())], Content::Other("swap")),
        (vec![(4086, b"S1SUSPEND".to_vec())], Content::Hibernated),
        // A mirror's half has the filesystem at its start and the mirror's mark at its end.
        (with(MIB - 65536, &raid), Content::Other("a RAID")),
        (with(MIB - 8192, &raid), Content::Other("a RAID")),
        (with(4096, &raid), Content::Other("a RAID")),
        (with(512, b"LABELONE"), Content::Other("LVM")),
    ];
    for (marks, content) in cases {
        let mut disk = Place(vec![0; index(2 * MIB)]);
        marks.iter().for_each(|(at, mark)| disk.put(MIB + at, mark));
        let kind = crate::guestfs::PartitionKind::Mbr(0x83);
        let partition = crate::guestfs::Partition { number: 1, start: GuestOffset(MIB), len: MIB, kind };
        assert_eq!(Content::of(&disk, &partition).unwrap(), content, "{marks:?}");
    }
    let tiny = Place(vec![0; 512]);
    let partition = Table::None.slots(512)[0].partition;
    assert_eq!(Content::of(&tiny, &partition).unwrap(), Content::Unknown);
}
