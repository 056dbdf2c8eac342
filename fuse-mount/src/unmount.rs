//! Unmounting a view that another process serves.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::attach::detach;
use crate::error::{Error, Result};
use crate::mount::lock_within;
use crate::mount_table;

/// How long to wait for the server to write its disks back.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// Unmounts the view at `dir` as root or, by `fusermount3`, as the user who mounted it. Returns when its server has made
/// every disk durable and dropped it, as far as the directory can be opened to tell. The mount of a server that died is
/// taken away.
///
/// # Errors
/// [`Error::NotMounted`] when no view is mounted there, [`Error::Busy`] when it stays in use for a second (then nothing
/// has happened), [`Error::StillServing`] when the server is not done within a minute.
pub fn unmount(dir: &Path) -> Result<()> {
    let path = mount_table::resolve(dir).map_err(|_| Error::NotMounted { dir: dir.to_owned() })?;
    let top = mount_table::top_at(&path)?.filter(mount_table::Entry::is_ours);
    let Some(entry) = top else { return Err(Error::NotMounted { dir: path }) };
    if entry.is_dead() {
        return detach(&path, true);
    }
    detach(&path, false)?;
    if mount_table::top_at(&path)?.is_some() {
        // Something else is seen there now, and the server's directory cannot be reached.
        return Ok(());
    }
    match File::open(&path) {
        Ok(folder) => lock_within(folder, SERVER_TIMEOUT, &path).map(drop),
        Err(_) => Ok(()),
    }
}
