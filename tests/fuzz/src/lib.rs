//! What the fuzz targets do with an input: plain functions, shared by libFuzzer and by the ordinary test that replays
//! the corpus.
//!
//! Each function panics when a promise is broken: a panic or a wrong byte of the engine, more operations on the file
//! than its size allows, more memory than 256 MiB, a sentence that is none.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../common/bounded.rs"]
mod memory;

mod builder;
mod ext4;
mod fat;
mod free;
mod header;
mod image;
mod input;
mod metered;
mod nbd;
mod partitions;
mod qemu;
mod texts;
mod virtio;

pub use ext4::{encode_ext4, ext4};
pub use fat::fat;
pub use free::free;
pub use header::header;
pub use image::image;
pub use memory::Counting;
pub use nbd::{nbd, nbd_corpus};
pub use partitions::partitions;
pub use qemu::qemu;
pub use texts::texts;
pub use virtio::{virtio, virtio_corpus};

/// The most memory that looking at one image may take.
pub const MEMORY: usize = 256 << 20;

/// What a fuzzer calls with each input.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 10] = [
    ("ext4", ext4),
    ("fat", fat),
    ("free", free),
    ("header", header),
    ("image", image),
    ("nbd", nbd),
    ("partitions", partitions),
    ("texts", texts),
    ("virtio", virtio),
    ("qemu", qemu),
];

/// Runs one input and asserts how much memory it took.
pub fn bounded(target: fn(&[u8]), data: &[u8]) {
    memory::reset_peak();
    let before = memory::peak();
    target(data);
    let used = memory::peak() - before;
    assert!(used <= MEMORY, "the input took {} MiB of memory", used >> 20);
}

/// An error is one sentence for people, whatever was in the input.
pub fn is_sentence(text: &str) {
    assert!(text.len() >= 10 && text.len() < 6000, "not a sentence: {text:?}");
    assert!(!text.chars().any(char::is_control), "control characters in {text:?}");
}
