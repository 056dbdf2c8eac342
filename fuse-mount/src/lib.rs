//! Disks as files: a FUSE filesystem over a small trait.
