//! An open file of the view: a range of a shared disk.

use super::shared::Shared;
use super::stat_of;
use crate::error::Result;
use crate::units::{GuestOffset, index, length};
use fuse_mount::{Device, Extent, Opener, Stat};
use std::io;
use std::sync::Arc;

/// A user of a shared disk that sees `len` bytes of it from `start` on.
#[derive(Debug)]
pub(super) struct Window {
    shared: Arc<Shared>,
    start: u64,
    len: u64,
    partial: bool,
    write: bool,
}

impl Window {
    /// The whole disk.
    pub(super) fn whole(shared: Arc<Shared>, opener: Opener) -> io::Result<Self> {
        let mut window = Self::join(shared, opener)?;
        window.len = window.shared.with(|disk| Ok(disk.size()))?;
        Ok(window)
    }

    /// A part of the disk, cut at its end.
    pub(super) fn part(shared: Arc<Shared>, opener: Opener, start: u64, len: u64) -> io::Result<Self> {
        let mut window = Self::join(shared, opener)?;
        let size = window.shared.with(|disk| Ok(disk.size()))?;
        window.start = start.min(size);
        window.len = len.min(size - window.start);
        window.partial = true;
        Ok(window)
    }

    fn join(shared: Arc<Shared>, opener: Opener) -> Result<Self> {
        shared.join(opener)?;
        Ok(Self { shared, start: 0, len: 0, partial: false, write: opener.write })
    }

    /// Place on the disk and length of what lies inside the window of `len` bytes at `at`.
    fn inside(&self, at: u64, len: u64) -> (GuestOffset, u64) {
        let at = at.min(self.len);
        (GuestOffset(self.start + at), len.min(self.len - at))
    }

    fn writable(&self) -> io::Result<()> {
        if self.write { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EBADF)) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.shared.leave(self.write);
    }
}

impl Device for Window {
    fn stat(&self) -> io::Result<Stat> {
        let metadata = self.shared.path().metadata()?;
        stat_of(&metadata, self.len, (!self.shared.is_base()).then_some(self.partial))
    }

    fn read(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let (at, len) = self.inside(at, length(buf.len()));
        let Some(buf) = buf.get_mut(..index(len)).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        self.shared.with(|disk| disk.read(buf, at))?;
        Ok(buf.len())
    }

    fn write(&self, data: &[u8], at: u64) -> io::Result<usize> {
        self.writable()?;
        let (at, len) = self.inside(at, length(data.len()));
        let data = data.get(..index(len)).unwrap_or_default();
        if data.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.shared.change(|disk| disk.write(data, at))?;
        Ok(data.len())
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        let (at, len) = self.inside(at, len);
        if len == 0 { Ok(()) } else { self.shared.change(|disk| disk.discard(at, len)) }
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        let (at, len) = self.inside(at, len);
        if len == 0 { Ok(()) } else { self.shared.change(|disk| disk.write_zeroes(at, len)) }
    }

    fn flush(&self) -> io::Result<()> {
        if self.write { self.shared.flush() } else { Ok(()) }
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let (place, left) = self.inside(at, u64::MAX);
        if left == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        let extent = self.shared.with(|disk| disk.extent(place))?;
        Ok(Extent { len: extent.len.min(left), data: extent.data })
    }
}
