//! Memory that the host copies into and out of at its full speed.

use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;

/// Bytes from the start of a page on. A long vector begins 16 bytes behind one, where a `pread` of 1 MiB takes twice as long
/// from the page cache, and a `pwrite` half as long again.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Pages {
    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Self {
        let mut pages = Self::default();
        pages.resize(len);
        pages
    }

    /// From now on `len` bytes; their content is left over from before, or zeros when there were never as many.
    pub(crate) fn resize(&mut self, len: usize) {
        if self.bytes.len() < len + PAGE {
            self.bytes = vec![0; len + PAGE];
            self.start = self.bytes.as_ptr().align_offset(PAGE);
        }
        self.len = len;
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_begin_at_a_page_and_are_kept() {
        let mut pages = Pages::default();
        assert!(pages.is_empty());
        for len in [1, 100_000, 1 << 20, 5, 1 << 20] {
            pages.resize(len);
            assert_eq!((pages.len(), pages.as_ptr().addr() % PAGE), (len, 0));
            pages.fill(7);
        }
        let place = pages.as_ptr();
        pages.resize(5);
        assert_eq!((pages.as_ptr(), &pages[..]), (place, &[7; 5][..]), "a shorter one takes no other memory");
    }
}
