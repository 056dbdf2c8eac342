//! Whether reads wait for the host's disk, told by how long they take.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// A read of nothing from the page cache takes less than this, also on a busy host.
const QUICK: Duration = Duration::from_micros(50);
/// And it may take longer by its copy, which moves at least so many bytes.
const BYTES_IN_A_NANOSECOND: usize = 4;
/// What one read that took longer counts, to one that did not.
const SLOW: u8 = 4;
/// From here on reads are said to wait: at one slow read of five, or more.
const WAITING: u8 = 16;
const MOST: u8 = 32;

/// The last reads of a mount, counted; a count that is lost now and then does not matter.
#[derive(Default)]
pub(crate) struct Pace(AtomicU8);

impl Pace {
    /// Counts a read of `len` bytes.
    pub(crate) fn took(&self, time: Duration, len: usize) {
        let copied = u64::try_from(len / BYTES_IN_A_NANOSECOND).unwrap_or(u64::MAX);
        let before = self.0.load(Ordering::Relaxed);
        let after = match time > QUICK + Duration::from_nanos(copied) {
            true => (before + SLOW).min(MOST),
            false => before.saturating_sub(1),
        };
        // Where all is quick, nobody writes here.
        if after != before {
            self.0.store(after, Ordering::Relaxed);
        }
    }

    /// The next reads will probably wait.
    pub(crate) fn waits(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= WAITING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_wait_as_long_as_one_of_five_is_slow() {
        let (quick, slow) = (Duration::from_micros(5), Duration::from_micros(90));
        let pace = Pace::default();
        let many = |slow_of_ten: usize| {
            for number in 0..100 {
                pace.took(if number % 10 < slow_of_ten { slow } else { quick }, 4096);
            }
            pace.waits()
        };
        assert_eq!([0, 1, 10, 5, 1, 0].map(many), [false, false, true, true, false, false]);
        pace.took(slow, 4096);
        assert!(!pace.waits(), "one slow read is nothing");
    }

    #[test]
    fn large_reads_may_take_as_long_as_their_copy() {
        let pace = Pace::default();
        (0..100).for_each(|_| pace.took(Duration::from_micros(250), 1 << 20));
        assert!(!pace.waits());
        (0..100).for_each(|_| pace.took(Duration::from_micros(400), 1 << 20));
        assert!(pace.waits());
    }
}
