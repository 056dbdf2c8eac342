//! Numbers at places in bytes: read from what the kernel wrote, and written for it to read.

use fuser::Errno;

/// Bytes that somebody else wrote. What lies outside of them is an error, `EIO`, and never a panic.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(self, at: usize) -> Result<[u8; N], Errno> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().ok_or(Errno::EIO)
    }

    pub(super) fn u32(self, at: usize) -> Result<u32, Errno> {
        self.take(at).map(u32::from_ne_bytes)
    }

    pub(super) fn i32(self, at: usize) -> Result<i32, Errno> {
        self.take(at).map(i32::from_ne_bytes)
    }

    pub(super) fn u64(self, at: usize) -> Result<u64, Errno> {
        self.take(at).map(u64::from_ne_bytes)
    }

    pub(super) fn i64(self, at: usize) -> Result<i64, Errno> {
        self.take(at).map(i64::from_ne_bytes)
    }

    /// A place in a file, which the kernel counts with a sign.
    pub(super) fn offset(self, at: usize) -> Result<u64, Errno> {
        let offset = self.u64(at)?;
        if i64::try_from(offset).is_ok() { Ok(offset) } else { Err(Errno::EINVAL) }
    }
}

/// An answer that grows in the payload of its request.
pub(super) struct Answer<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl<'a> Answer<'a> {
    pub(super) fn new(room: &'a mut [u8]) -> Self {
        Answer { room, len: 0 }
    }

    /// False when there is no room; then nothing is added.
    #[must_use]
    pub(super) fn put(&mut self, bytes: &[u8]) -> bool {
        let place = self.room.get_mut(self.len..).and_then(|rest| rest.get_mut(..bytes.len()));
        let Some(place) = place else { return false };
        place.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that are free.
    pub(super) fn left(&self) -> usize {
        self.room.len() - self.len
    }

    /// All of `words`, or `EIO`.
    pub(super) fn whole(room: &'a mut [u8], words: &[&[u8]]) -> Result<usize, Errno> {
        let mut answer = Answer::new(room);
        if words.iter().all(|word| answer.put(word)) { Ok(answer.len) } else { Err(Errno::EIO) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_or_written_outside() {
        let bytes = [1u8; 12];
        let fields = Fields(&bytes);
        assert_eq!(fields.u32(8).map_err(Errno::code), Ok(0x0101_0101));
        for at in [5, 12, 13, usize::MAX] {
            assert_eq!(fields.u64(at).map_err(Errno::code), Err(libc::EIO), "{at}");
        }
        assert_eq!(Fields(&[255; 8]).offset(0).map_err(Errno::code), Err(libc::EINVAL));
        let mut room = [0u8; 5];
        let mut answer = Answer::new(&mut room);
        assert!(answer.put(&[7; 4]) && !answer.put(&[8; 2]) && answer.put(&[9]));
        assert_eq!((answer.len(), answer.left()), (5, 0));
        assert_eq!(room, [7, 7, 7, 7, 9]);
        assert_eq!(Answer::whole(&mut room, &[&[1; 4], &[1; 4]]).map_err(Errno::code), Err(libc::EIO));
    }
}
