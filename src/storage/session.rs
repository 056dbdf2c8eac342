//! How long the host's memory of a file lasts.

use nix::sys::stat::fstat;
use std::fs::{self, File};
use std::io;

/// Names the span of time in which nothing that was written to a file gets lost, synced or not: until the host is started
/// anew, or the device under the file goes away and comes back. Another file has another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(pub [u8; 32]);

impl Session {
    /// The present session of an open file.
    ///
    /// # Errors
    /// The host's; when the host does not tell its boot apart from others.
    pub fn of(file: &File) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let stat = fstat(file)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(boot.trim().as_bytes());
        hasher.update(&stat.st_dev.to_le_bytes());
        hasher.update(&stat.st_ino.to_le_bytes());
        hasher.update(&disk_sequence(stat.st_dev).to_le_bytes());
        Ok(Self(hasher.finalize().into()))
    }
}

/// The kernel's number for a block device, another one each time a device appears; 0 where there is none to be had: a
/// filesystem without a single device, or a kernel before 5.15.
fn disk_sequence(device: libc::dev_t) -> u64 {
    let folder = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    // A partition's folder lies in the one of its disk.
    let read = |file: String| fs::read_to_string(file).ok()?.trim().parse().ok();
    read(format!("{folder}/diskseq")).or_else(|| read(format!("{folder}/../diskseq"))).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_session_and_another_one_has_another() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        assert_eq!(Session::of(&one).unwrap(), Session::of(&one.try_clone().unwrap()).unwrap());
        assert_ne!(Session::of(&one).unwrap(), Session::of(&other).unwrap());
    }
}
