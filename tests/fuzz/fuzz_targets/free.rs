//! What of a disk is free: tables, ext4, FAT, NTFS, LVM2, swap space.
#![no_main]

#[global_allocator]
static ALLOCATOR: cowshed_fuzz::Counting = cowshed_fuzz::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cowshed_fuzz::bounded(cowshed_fuzz::free, data));
