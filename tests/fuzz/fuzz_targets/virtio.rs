//! Queues and requests of a virtio block device, as a hostile guest writes them.
#![no_main]

#[global_allocator]
static ALLOCATOR: cowshed_fuzz::Counting = cowshed_fuzz::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cowshed_fuzz::bounded(cowshed_fuzz::virtio, data));
