//! Answers as the kernel reads them, by `include/uapi/linux/fuse.h`.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType};

use super::fields::Answer;
use crate::requests::BLOCK_SIZE;
use crate::view::{NAME_MAX, Shown};

/// `struct fuse_entry_out`. Numbers are never used again, so the generation is always 0.
pub(super) fn entry(room: &mut [u8], (attr, ttl): &Shown) -> Result<usize, Errno> {
    let (seconds, nanoseconds) = (ttl.as_secs().to_ne_bytes(), ttl.subsec_nanos().to_ne_bytes());
    let generation = [0; 8];
    let number = attr.ino.0.to_ne_bytes();
    let words: [&[u8]; 7] =
        [&number, &generation, &seconds, &seconds, &nanoseconds, &nanoseconds, &attribute_words(attr)];
    Answer::whole(room, &words)
}

/// `struct fuse_attr_out`.
pub(super) fn attributes(room: &mut [u8], (attr, ttl): &Shown) -> Result<usize, Errno> {
    let (seconds, nanoseconds) = (ttl.as_secs().to_ne_bytes(), ttl.subsec_nanos().to_ne_bytes());
    Answer::whole(room, &[&seconds, &nanoseconds, &[0; 4], &attribute_words(attr)])
}

/// `struct fuse_attr`.
fn attribute_words(attr: &FileAttr) -> [u8; 88] {
    let times = [attr.atime, attr.mtime, attr.ctime].map(since_epoch);
    let kind = if attr.kind == FileType::Directory { libc::S_IFDIR } else { libc::S_IFREG };
    let mode = kind | u32::from(attr.perm);
    let long = [attr.ino.0, attr.size, attr.blocks, times[0].0, times[1].0, times[2].0];
    let nanoseconds = times.map(|time| time.1);
    let short = [mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0];
    let mut bytes = [0; 88];
    let (front, back) = bytes.split_at_mut(48);
    for (place, word) in front.chunks_exact_mut(8).zip(long) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    for (place, word) in back.chunks_exact_mut(4).zip(nanoseconds.into_iter().chain(short)) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Seconds, as the kernel keeps them (negative ones in two's complement), and nanoseconds from there on.
fn since_epoch(time: SystemTime) -> (u64, u32) {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (after.as_secs(), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let whole = before.as_secs() + u64::from(before.subsec_nanos() > 0);
            let rest = Duration::from_secs(whole) - before;
            (whole.wrapping_neg(), rest.subsec_nanos())
        }
    }
}

/// `struct fuse_open_out`.
pub(super) fn opened(room: &mut [u8], handle: u64, flags: u32) -> Result<usize, Errno> {
    Answer::whole(room, &[&handle.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]])
}

/// `struct fuse_statfs_out`.
pub(super) fn statistics(room: &mut [u8]) -> Result<usize, Errno> {
    let name_max = u32::try_from(NAME_MAX).unwrap_or(u32::MAX).to_ne_bytes();
    let block = BLOCK_SIZE.to_ne_bytes();
    Answer::whole(room, &[&[0; 40], &block, &name_max, &block, &[0; 28]])
}

/// Bytes of `struct fuse_dirent` in front of its name.
const DIRENT: usize = 24;

/// Adds a `struct fuse_dirent`, up to a multiple of 8 bytes; false when there is no room for it.
pub(super) fn listed(answer: &mut Answer<'_>, number: u64, next: u64, kind: FileType, name: &str) -> bool {
    let padding = &[0; 8][..name.len().next_multiple_of(8) - name.len()];
    let kind = u32::from(if kind == FileType::Directory { libc::DT_DIR } else { libc::DT_REG });
    let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
    if answer.left() < DIRENT + name.len() + padding.len() {
        return false;
    }
    let words: [&[u8]; 6] = [
        &number.to_ne_bytes(),
        &next.to_ne_bytes(),
        &len.to_ne_bytes(),
        &kind.to_ne_bytes(),
        name.as_bytes(),
        padding,
    ];
    words.iter().all(|word| answer.put(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_kernels_also_before_its_first() {
        let at = |seconds: i64, nanoseconds: u32| {
            let whole = Duration::from_secs(seconds.unsigned_abs());
            let base = SystemTime::UNIX_EPOCH;
            let base = if seconds < 0 { base - whole } else { base + whole };
            since_epoch(base + Duration::from_nanos(nanoseconds.into()))
        };
        assert_eq!(at(5, 7), (5, 7));
        assert_eq!(at(-5, 7), (5u64.wrapping_neg(), 7));
        assert_eq!(at(-5, 0), (5u64.wrapping_neg(), 0));
    }
}
