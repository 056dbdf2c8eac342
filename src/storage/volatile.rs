//! Memory that somebody else changes at any time, such as a guest's: the host fills or reads it, and nobody borrows it as bytes.

use super::Storage;
use crate::units::{HostOffset, index, length};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use vm_memory::VolatileSlice;

/// Runs of memory that one call takes, at most: the kernel's own limit.
const MOST: usize = 1024;
/// Bytes that are copied at once.
const COPIED: usize = 65536;

/// `preadv` or `pwritev`.
type Call = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// Fills `to` from `at` on, straight from the file. Bytes past its end are zeros.
pub(super) fn read(file: &File, to: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
    transfer(libc::preadv, file, to, at, zero)
}

/// Writes `from` to the file, from `at` on.
pub(super) fn write(file: &File, from: &[VolatileSlice<'_>], at: HostOffset) -> io::Result<()> {
    transfer(libc::pwritev, file, from, at, |_| Err(io::ErrorKind::WriteZero.into()))
}

/// Moves bytes between the file and `memory` by `call`; `end` says what to do with the rest when that moves none.
fn transfer(
    call: Call,
    file: &File,
    memory: &[VolatileSlice<'_>],
    at: HostOffset,
    end: impl FnOnce(&[VolatileSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let mut left: Vec<VolatileSlice<'_>> = memory.iter().filter(|run| !run.is_empty()).copied().collect();
    let (mut first, mut at) = (0, at.0);
    while first < left.len() {
        let runs = &left[first..left.len().min(first + MOST)];
        let guards: Vec<_> = runs.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let vectors: Vec<libc::iovec> = guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
            .collect();
        let count = i32::try_from(vectors.len()).map_err(io::Error::other)?;
        let offset = i64::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: each vector is a run of mapped memory that `memory` keeps for the length of the call, and that no
        // reference points to; that others write to it meanwhile is what a `VolatileSlice` is for. The kernel touches
        // these runs only, and answers with EFAULT where a mapping has lost its file.
        let done = unsafe { call(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
        match usize::try_from(done) {
            Ok(0) => return end(&left[first..]),
            Ok(done) => {
                at += length(done);
                first += advance(&mut left[first..], done)?;
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Takes `done` bytes off the front of `runs`; how many of them are done with.
fn advance(runs: &mut [VolatileSlice<'_>], mut done: usize) -> io::Result<usize> {
    for (number, run) in runs.iter_mut().enumerate() {
        if done < run.len() {
            *run = run.offset(done).map_err(io::Error::other)?;
            return Ok(number);
        }
        done -= run.len();
    }
    Ok(runs.len())
}

/// Fills `to` through a buffer, from a storage that knows no other way.
pub(super) fn copy(
    storage: &(impl Storage + ?Sized),
    to: &[VolatileSlice<'_>],
    mut at: HostOffset,
) -> io::Result<()> {
    let longest = to.iter().map(VolatileSlice::len).max().unwrap_or(0);
    let mut buffer = vec![0; longest.min(COPIED)];
    for run in to {
        let mut done = 0;
        while done < run.len() {
            let part = run.offset(done).map_err(io::Error::other)?;
            let len = part.len().min(buffer.len());
            storage.read_at(&mut buffer[..len], at)?;
            part.copy_from(&buffer[..len]);
            (done, at) = (done + len, at + length(len));
        }
    }
    Ok(())
}

/// Writes `from` through a buffer, to a storage that knows no other way.
pub(super) fn copy_to(
    storage: &(impl Storage + ?Sized),
    from: &[VolatileSlice<'_>],
    mut at: HostOffset,
) -> io::Result<()> {
    let longest = from.iter().map(VolatileSlice::len).max().unwrap_or(0);
    let mut buffer = vec![0; longest.min(COPIED)];
    for run in from {
        let mut done = 0;
        while done < run.len() {
            let part = run.offset(done).map_err(io::Error::other)?;
            let len = part.len().min(buffer.len());
            part.copy_to(&mut buffer[..len]);
            storage.write_at(&buffer[..len], at)?;
            (done, at) = (done + len, at + length(len));
        }
    }
    Ok(())
}

/// Fills memory with zeros.
///
/// # Errors
/// Never; it can stand where reading stands.
pub fn zero(to: &[VolatileSlice<'_>]) -> io::Result<()> {
    static ZEROS: [u8; COPIED] = [0; COPIED];
    for run in to {
        let mut done = 0;
        while done < run.len() {
            let part = run.offset(done).map_err(io::Error::other)?;
            done += part.len().min(COPIED);
            part.copy_from(&ZEROS[..index(length(part.len()).min(length(COPIED)))]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::{HostFile, Memory};
    use std::io::Write;

    /// Runs of odd lengths, an empty one among them, from an odd place past the end of the file.
    fn fills(storage: &dyn Storage, content: &[u8]) {
        for (start, lens) in [(0, vec![1, 0, 4096, 70_000]), (77, vec![5; 3000]), (99_000, vec![500, 2000])] {
            let mut memory: Vec<Vec<u8>> = lens.iter().map(|len| vec![0xee; *len]).collect();
            let runs: Vec<_> = memory.iter_mut().map(|run| VolatileSlice::from(&mut run[..])).collect();
            storage.read_volatile(&runs, HostOffset(length(start))).unwrap();
            let got = memory.concat();
            let mut wanted = content[start..].to_vec();
            wanted.resize(got.len(), 0);
            assert!(got == wanted, "{start}");
        }
    }

    /// Writes runs of odd lengths, an empty one and more than one call takes among them, also past the end of the file.
    fn writes(storage: &dyn Storage, content: &[u8]) {
        let mut wanted = content.to_vec();
        for (start, lens) in [(0, vec![1, 0, 4096, 70_000]), (77, vec![5; 3000]), (99_000, vec![500, 2000])] {
            let mut memory: Vec<Vec<u8>> =
                (1_u32..).zip(&lens).map(|(byte, len)| vec![byte.to_le_bytes()[0]; *len]).collect();
            wanted.resize(wanted.len().max(start + lens.iter().sum::<usize>()), 0);
            wanted[start..start + lens.iter().sum::<usize>()].copy_from_slice(&memory.concat());
            let runs: Vec<_> = memory.iter_mut().map(|run| VolatileSlice::from(&mut run[..])).collect();
            storage.write_volatile(&runs, HostOffset(length(start))).unwrap();
            let mut got = vec![0; wanted.len()];
            storage.read_at(&mut got, HostOffset(0)).unwrap();
            assert!(got == wanted && storage.len().unwrap() == length(wanted.len()), "{start}");
        }
    }

    #[test]
    fn memory_of_others_is_filled_and_written_as_a_buffer_is() {
        let content: Vec<u8> =
            (0..100_000_u32).flat_map(|number| number.to_le_bytes()).take(100_000).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let file = HostFile::new(file);
        fills(&file, &content);
        writes(&file, &content);
        let memory = Memory::from_bytes(&content);
        fills(&memory, &content);
        writes(&memory, &content);
    }
}
