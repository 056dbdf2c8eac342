//! Reading, writing, discarding and seeking in one open file.

use std::io;

use fuser::Errno;

use crate::Device;
use crate::errno::guarded;
use crate::handles::OpenFile;

/// Fills `buffer` from `at`; fewer bytes only at the end of the disk. (The kernel takes a short answer for the end of
/// the file and shows zeros for the rest, so a device that returns early must be asked again.)
pub(crate) fn read(file: &OpenFile, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    file.set_used();
    guarded(|| {
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            let room = rest.len();
            match file.device.read(rest, at + done as u64)? {
                0 => break,
                n if n > room => return Err(io::Error::other("more bytes read than asked for")),
                n => done += n,
            }
            if done < buffer.len() && at + done as u64 >= file.refresh_size()? {
                break;
            }
        }
        Ok(done)
    })
}

/// Writes `data` at `at`: less of it across the end of the disk, `ENOSPC` past it. Returns the bytes written.
pub(crate) fn write(file: &OpenFile, data: &[u8], at: u64) -> Result<usize, Errno> {
    file.set_used();
    check_writable(file)?;
    guarded(|| {
        let end = at.saturating_add(data.len() as u64);
        // The size is asked for again only where it matters.
        let size = if end <= file.last_size() { end } else { file.refresh_size()? };
        let room = size.saturating_sub(at);
        if room == 0 && !data.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let data = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let mut done = 0;
        while done < data.len() {
            match file.device.write(&data[done..], at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done = (done + n).min(data.len()),
                // The caller learns of the bytes written now, and of the error when it goes on.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    })
}

/// `fallocate(2)`: punching and zeroing inside the disk; mode 0 inside it reserves nothing and succeeds.
pub(crate) fn allocate(file: &OpenFile, at: u64, len: u64, mode: i32) -> Result<(), Errno> {
    file.set_used();
    check_writable(file)?;
    let size = guarded(|| file.device.stat())?.size;
    let end = at.checked_add(len).ok_or(Errno::EFBIG)?;
    let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    let inside = end.min(size).saturating_sub(at);
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        libc::FALLOC_FL_PUNCH_HOLE if keeps_size => in_range(inside, || file.device.discard(at, inside)),
        libc::FALLOC_FL_ZERO_RANGE if keeps_size || end <= size => {
            in_range(inside, || file.device.write_zeroes(at, inside))
        }
        0 if !keeps_size && end <= size => Ok(()),
        libc::FALLOC_FL_ZERO_RANGE => Err(Errno::ENOSPC),
        0 if !keeps_size => Err(Errno::ENOSPC),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn in_range(len: u64, call: impl FnOnce() -> io::Result<()>) -> Result<(), Errno> {
    if len == 0 { Ok(()) } else { guarded(call) }
}

/// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`. The end of the disk counts as a hole.
pub(crate) fn seek(file: &OpenFile, from: i64, whence: i32) -> Result<i64, Errno> {
    file.set_used();
    let want_data = match whence {
        libc::SEEK_DATA => true,
        libc::SEEK_HOLE => false,
        _ => return Err(Errno::EINVAL),
    };
    let from = u64::try_from(from).map_err(|_| Errno::ENXIO)?;
    let found = guarded(|| find_run(&*file.device, from, want_data))?;
    i64::try_from(found.ok_or(Errno::ENXIO)?).map_err(|_| Errno::EOVERFLOW)
}

fn find_run(device: &dyn Device, from: u64, want_data: bool) -> io::Result<Option<u64>> {
    let size = device.stat()?.size;
    if from >= size {
        return Ok(None);
    }
    let mut at = from;
    while at < size {
        let run = device.extent(at)?;
        if run.data == want_data {
            return Ok(Some(at));
        }
        if run.len == 0 {
            return Err(io::Error::other("an extent of no length"));
        }
        at = at.saturating_add(run.len);
    }
    Ok((!want_data).then_some(size))
}

fn check_writable(file: &OpenFile) -> Result<(), Errno> {
    if file.write { Ok(()) } else { Err(Errno::EBADF) }
}
