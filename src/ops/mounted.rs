//! Whether a block device is written to by the host itself: then no copy of it is one moment's state.

use crate::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Holds the block device `file`, opened at `path`, against being mounted as long as the answer lives.
///
/// A device, or a part of it, that is mounted read-only is let through, unheld.
///
/// # Errors
/// `Busy` when it is mounted writable, or used as swap, by LVM or by a RAID; the host's.
pub(super) fn hold(file: &File, path: &Path) -> Result<Option<File>> {
    let cannot = |error| Error::io(format!("cannot open {}", path.display()), error);
    let device = file.metadata().map_err(cannot)?.rdev();
    // On a block device this means: nobody else in the kernel uses it, nor any partition of it.
    match File::options().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path) {
        Ok(held) if held.metadata().map_err(cannot)?.rdev() == device => return Ok(Some(held)),
        Ok(_) => return Err(Error::new(Kind::Changed, format!("{} became another device", path.display()))),
        Err(error) if error.raw_os_error() != Some(libc::EBUSY) => return Err(cannot(error)),
        Err(_) => {}
    }
    let mounts =
        mounts_of(device).map_err(|error| Error::io("cannot read the host's table of mounts", error))?;
    let shown = path.display();
    if let Some(mount) = mounts.iter().find(|mount| mount.writable) {
        return Err(Error::new(
            Kind::Busy,
            format!(
                "{shown} is mounted writable at {}; unmount it or remount it read-only, or a copy of it would be torn",
                mount.dir.display()
            ),
        ));
    }
    if mounts.is_empty() {
        return Err(Error::new(
            Kind::Busy,
            format!("{shown} is in use by the host (swap, LVM, a RAID or another program); end that first"),
        ));
    }
    Ok(None)
}

/// A mounted file system that lies on the device or on a part of it.
struct Mount {
    dir: PathBuf,
    writable: bool,
}

fn mounts_of(device: u64) -> io::Result<Vec<Mount>> {
    let folder = |number: &str| fs::canonicalize(format!("/sys/dev/block/{number}"));
    let whole = folder(&format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device)))?;
    let table = fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            // The third field is the device, the fifth the place, the last the options of the file system itself.
            let own = folder(std::str::from_utf8(fields.get(2)?).ok()?).ok()?;
            let options = fields.last()?.split(|byte| *byte == b',').next()?;
            let dir = PathBuf::from(OsStr::from_bytes(fields.get(4)?));
            own.starts_with(&whole).then(|| Mount { dir, writable: options == b"rw" })
        })
        .collect())
}
