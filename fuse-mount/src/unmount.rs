//! Unmounting a view that another process serves.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::attach::detach;
use crate::error::{Error, Result};
use crate::mount::lock_within;
use crate::mount_table;

/// How long to wait for the server to write its disks back.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to wait for users who are just leaving: a loop device lets go of its file a moment after its own unmount.
const LEAVING: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(20);

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
    detach_within(LEAVING, &path)?;
    if mount_table::top_at(&path)?.is_some() {
        // Something else is seen there now, and the server's directory cannot be reached.
        return Ok(());
    }
    match File::open(&path) {
        Ok(folder) => lock_within(folder, SERVER_TIMEOUT, &path).map(drop),
        Err(_) => Ok(()),
    }
}

fn detach_within(patience: Duration, path: &Path) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        match detach(path, false) {
            Err(Error::Busy { .. }) if Instant::now() < until => thread::sleep(TICK),
            result => return result,
        }
    }
}
