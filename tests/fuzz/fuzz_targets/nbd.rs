//! A client's side of an NBD session, as a hostile one says it.
#![no_main]

#[global_allocator]
static ALLOCATOR: cowshed_fuzz::Counting = cowshed_fuzz::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cowshed_fuzz::bounded(cowshed_fuzz::nbd, data));
