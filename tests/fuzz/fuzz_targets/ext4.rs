//! An ext4 filesystem, its journal, and everything in it.
#![no_main]

#[global_allocator]
static ALLOCATOR: cowshed_fuzz::Counting = cowshed_fuzz::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cowshed_fuzz::bounded(cowshed_fuzz::ext4, data));
