//! A block device of the host, to be read.

use super::{HostFile, Run, Storage};
use crate::units::HostOffset;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};

/// A block device: a file whose length is found by seeking, and that is data throughout.
#[derive(Debug)]
pub struct Device {
    file: HostFile,
    len: u64,
}

impl Device {
    /// Takes over an open device.
    ///
    /// # Errors
    /// The host's.
    pub fn new(mut file: File) -> io::Result<Self> {
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file: HostFile::new(file), len })
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::EROFS))
}

impl Storage for Device {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.file.read_at(buf, at)
    }

    fn write_at(&self, _: &[u8], _: HostOffset) -> io::Result<()> {
        read_only()
    }

    fn punch(&self, _: HostOffset, _: u64) -> io::Result<()> {
        read_only()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        read_only()
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        if at.0 >= self.len {
            return Ok(Run { len: u64::MAX - at.0, data: false });
        }
        Ok(Run { len: self.len - at.0, data: true })
    }
}
