//! Copy-on-write linked clones of disk images.

pub mod vm;
