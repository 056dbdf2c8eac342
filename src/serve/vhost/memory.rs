//! A guest's memory: copied from, filled, never borrowed, for the guest changes it at any time.

use crate::units::{index, length};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// The memory that a front end shares.
pub type Memory = GuestMemoryMmap<()>;

/// A run of guest memory as a descriptor names it; nothing says that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts, as the guest counts.
    pub at: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A request names memory that the guest does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside;

/// Whether the guest has all the memory of `segments`.
#[must_use]
pub fn is_there(memory: &Memory, segments: &[Segment]) -> bool {
    let inside = |segment: &Segment| memory.check_range(segment.at, index(u64::from(segment.len)));
    segments.iter().all(|segment| segment.len == 0 || inside(segment))
}

/// Bytes of all `segments` together.
#[must_use]
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// A place in a list of segments, from which bytes are taken or to which they are put.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are done.
    done: u64,
}

impl<'a> Cursor<'a> {
    /// The start of `segments`.
    #[must_use]
    pub fn new(segments: &'a [Segment]) -> Self {
        Self { segments, done: 0 }
    }

    /// The next run of at most `len` bytes that lies in one segment; `None` at the end.
    fn next(&mut self, len: u64) -> Option<(GuestAddress, u64)> {
        loop {
            let (segment, rest) = self.segments.split_first()?;
            let left = u64::from(segment.len) - self.done;
            if left == 0 {
                (self.segments, self.done) = (rest, 0);
                continue;
            }
            let at = segment.at.0.checked_add(self.done)?;
            let len = left.min(len);
            self.done += len;
            return Some((GuestAddress(at), len));
        }
    }

    /// Goes on by `len` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn skip(&mut self, mut len: u64) -> Result<(), Outside> {
        while len > 0 {
            len -= self.next(len).ok_or(Outside)?.1;
        }
        Ok(())
    }

    /// Fills `buf` with the next bytes.
    ///
    /// # Errors
    /// When there are fewer, or the guest has no such memory; `buf` then holds anything.
    pub fn read(&mut self, memory: &Memory, mut buf: &mut [u8]) -> Result<(), Outside> {
        while !buf.is_empty() {
            let (at, len) = self.next(length(buf.len())).ok_or(Outside)?;
            let (now, later) = buf.split_at_mut(index(len));
            memory.read_slice(now, at).map_err(|_| Outside)?;
            buf = later;
        }
        Ok(())
    }

    /// The next `len` bytes as runs of memory to be filled.
    ///
    /// # Errors
    /// When there are fewer, or the guest has no such memory.
    pub fn runs<'m>(&mut self, memory: &'m Memory, mut len: u64) -> Result<Vec<VolatileSlice<'m>>, Outside> {
        let mut runs = Vec::new();
        while len > 0 {
            let (at, part) = self.next(len).ok_or(Outside)?;
            for run in GuestMemoryBackend::get_slices(memory, at, index(part)) {
                runs.push(run.map_err(|_| Outside)?);
            }
            len -= part;
        }
        Ok(runs)
    }

    /// Puts `data` into the next bytes.
    ///
    /// # Errors
    /// When there are fewer, or the guest has no such memory; any part of `data` may be there then.
    pub fn write(&mut self, memory: &Memory, mut data: &[u8]) -> Result<(), Outside> {
        while !data.is_empty() {
            let (at, len) = self.next(length(data.len())).ok_or(Outside)?;
            let (now, later) = data.split_at(index(len));
            memory.write_slice(now, at).map_err(|_| Outside)?;
            data = later;
        }
        Ok(())
    }
}
