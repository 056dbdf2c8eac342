//! A type for every unit that could be mistaken for another one.
//!
//! Places are newtypes: [`GuestOffset`] is a byte of the virtual disk, [`HostOffset`] a byte of an image file,
//! [`GuestCluster`] and [`HostCluster`] count whole clusters in either. A bare `u64` or `usize` is always a length
//! in bytes, unless its name says that it is a count.

use std::fmt;
use std::ops::{Add, Sub};

macro_rules! place {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, len: u64) -> Self {
                Self(self.0 + len)
            }
        }

        impl Sub for $name {
            type Output = u64;
            fn sub(self, start: Self) -> u64 {
                self.0 - start.0
            }
        }
    };
}

place!(
    /// A byte of the virtual disk, as the guest counts it.
    GuestOffset,
    "guest "
);
place!(
    /// A byte of a file on the host.
    HostOffset,
    "host "
);
place!(
    /// A cluster of the virtual disk: guest offset divided by the cluster size.
    GuestCluster,
    "guest cluster "
);
place!(
    /// A cluster of an image file: host offset divided by the cluster size.
    HostCluster,
    "host cluster "
);

/// Bytes in one KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in one GiB.
pub const GIB: u64 = 1 << 30;
/// The unit in which a disk's size is counted and in which a device tears a write, in bytes.
pub const SECTOR: u64 = 512;

/// `len` as an index into memory.
///
/// # Panics
/// Never on the 64-bit hosts that this crate builds for; the build fails on others.
#[must_use]
pub const fn index(len: u64) -> usize {
    const { assert!(usize::BITS == 64, "cowshed needs a 64-bit host") };
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, checked above")]
    {
        len as usize
    }
}

/// The length of something in memory, as bytes of a file are counted.
#[must_use]
pub const fn length(len: usize) -> u64 {
    len as u64
}
