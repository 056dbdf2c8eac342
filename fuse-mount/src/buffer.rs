//! One buffer for each serving thread, so that a read allocates nothing.

use std::cell::RefCell;

/// Alignment of the buffers handed to [`crate::Device::read`], in bytes.
pub(crate) const ALIGNMENT: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` bytes at an address that is a multiple of [`ALIGNMENT`]; their content is left over from before.
pub(crate) fn with_buffer<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len + ALIGNMENT {
            *buffer = vec![0; len.next_power_of_two() + ALIGNMENT];
        }
        let skip = buffer.as_ptr().align_offset(ALIGNMENT);
        f(&mut buffer[skip..skip + len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_exact_and_reused() {
        let first = with_buffer(1 << 20, |b| (b.as_ptr().addr(), b.len()));
        let second = with_buffer(5, |b| (b.as_ptr().addr(), b.len()));
        assert_eq!(first.0 % ALIGNMENT, 0);
        assert_eq!((first.1, second.1), (1 << 20, 5));
        assert_eq!(first.0, second.0, "a smaller request must not allocate again");
    }
}
