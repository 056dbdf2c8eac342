//! A FAT filesystem, everything in it, and a change of it.
#![no_main]

#[global_allocator]
static ALLOCATOR: cowshed_fuzz::Counting = cowshed_fuzz::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cowshed_fuzz::bounded(cowshed_fuzz::fat, data));
