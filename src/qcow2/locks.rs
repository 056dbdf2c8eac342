//! Striped reader/writer locks over the virtual disk.
//!
//! Who reads or writes bytes of an allocated subcluster holds its stripe shared; who changes an entry holds it
//! exclusive. A freed host cluster thus cannot be given to somebody else under a read that still goes on.

use super::geometry::Geometry;
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, size};
use crate::units::{GuestCluster, GuestOffset};

const STRIPES: usize = size(512, 4);
/// Stripes that one request holds at once.
const BATCH: usize = size(16, 3);
/// A stripe covers at least 128 KiB, so that a request on an image of small clusters needs few of them.
const LEAST_UNIT_BITS: u32 = if cfg!(cowshed_model) { 14 } else { 17 };

#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(RwLock<()>);

/// The locks of one image.
#[derive(Debug)]
pub(super) struct Locks {
    stripes: Box<[Stripe]>,
    unit_bits: u32,
}

/// Shared locks of a part of the disk.
#[must_use = "the bytes are safe only while the locks are held"]
pub(super) struct Shared<'a> {
    _guards: [Option<RwLockReadGuard<'a, ()>>; BATCH],
}

/// The exclusive lock of a guest cluster, and proof of it for what changes entries.
#[must_use = "an entry may be changed only while the lock is held"]
pub(super) struct Exclusive<'a> {
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Locks {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            unit_bits: geometry.cluster_bits.max(LEAST_UNIT_BITS),
        }
    }

    fn stripe(&self, unit: u64) -> usize {
        crate::units::index(unit) % STRIPES
    }

    /// How many of `len` bytes from `at` on one batch of locks covers; at least 1.
    pub(super) fn batch(&self, at: GuestOffset, len: u64) -> u64 {
        let unit = 1 << self.unit_bits;
        let end = (at.0 / unit + BATCH as u64) * unit;
        len.min(end - at.0)
    }

    /// Locks `len` bytes, at most [`Locks::batch`], for use of allocated bytes.
    ///
    /// Stripes are taken in the order of their number, so that two requests never wait for each other.
    pub(super) fn share(&self, at: GuestOffset, len: u64) -> Shared<'_> {
        let first = at.0 >> self.unit_bits;
        let last = (at.0 + len.max(1) - 1) >> self.unit_bits;
        let wrap = (first..=last).find(|unit| self.stripe(*unit) == 0).unwrap_or(first);
        let mut guards = [const { None }; BATCH];
        for (guard, unit) in guards.iter_mut().zip((wrap..=last).chain(first..wrap)) {
            *guard = Some(self.stripes[self.stripe(unit)].0.read());
        }
        Shared { _guards: guards }
    }

    /// Locks a guest cluster for a change of its entry.
    pub(super) fn exclude(&self, cluster: GuestCluster, geometry: &Geometry) -> Exclusive<'_> {
        let unit = geometry.start_of(cluster).0 >> self.unit_bits;
        Exclusive { _guard: self.stripes[self.stripe(unit)].0.write() }
    }
}

#[cfg(all(test, not(cowshed_model)))]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_every_stripe_once_and_in_order_across_the_wrap() {
        let geometry = Geometry::new(17, true, 1 << 40);
        let locks = Locks::new(geometry);
        let at = GuestOffset((STRIPES as u64 - 3) << 17);
        let len = locks.batch(at, u64::MAX >> 8);
        assert_eq!(len, 16 << 17);
        let shared = locks.share(at, len);
        assert_eq!(shared._guards.iter().flatten().count(), BATCH);
        assert!(locks.stripes[STRIPES - 3].0.try_write().is_none());
        assert!(locks.stripes[12].0.try_write().is_none());
        assert!(locks.stripes[13].0.try_write().is_some());
    }
}
