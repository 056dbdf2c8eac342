//! The disk of a run: a file in a view that is there or in a mount of its own, or a socket.

mod served;

use crate::cli::mount_log::runtime_dir;
use crate::error::Kind;
use crate::store::{Access, Name, Scratch, Store, Target};
use crate::view::Single;
use crate::vm::Drive;
use anyhow::{Context as _, anyhow};
use fuse_mount::{Error, Mount, Options, Transport};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use served::Served;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long somebody else may still use what is to be closed.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(20);

/// How QEMU gets at a disk.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As a file of a mount.
    View,
    /// By vhost-user-blk, through memory that guest and server share.
    VhostUser,
}

/// A disk to run, with what keeps it there.
pub(super) enum Disk {
    /// A file.
    File { path: PathBuf, private: Option<PrivateMount> },
    /// Served in this process.
    Served(Served),
}

pub(super) struct PrivateMount {
    mount: Mount,
    // After the mount, so that it is empty when it is removed.
    dir: EmptyDir,
}

/// A folder that is removed when it is empty, and never with what is in it: that may be a disk.
struct EmptyDir(PathBuf);

impl Drop for EmptyDir {
    fn drop(&mut self) {
        // One that is still in use is a mount, or somebody's file: neither is to be removed.
        let _ = fs::remove_dir(&self.0);
    }
}

impl Disk {
    /// The file of the clone `name` in the view at `dir`, which must be free to be written.
    pub(super) fn in_view(store: &Store, dir: &Path, name: &Name) -> anyhow::Result<Self> {
        let path = std::path::absolute(dir)?.join(crate::view::CLONES).join(format!("{name}.raw"));
        let found = path.symlink_metadata();
        found.with_context(|| format!("{} is no file of a mounted view", path.display()))?;
        let opened = File::options().read(true).write(true).open(&path);
        drop(opened.map_err(|error| refusal(&path, name, error))?);
        // The view closes the disk after this process has closed its file: wait until it has.
        let until = Instant::now() + PATIENCE;
        while is_busy(store, name) && Instant::now() < until {
            thread::sleep(TICK);
        }
        Ok(Self::File { path, private: None })
    }

    /// The clone `name`, for this run alone.
    pub(super) fn of_clone(
        store: &Store,
        name: &Name,
        way: Way,
        transport: Transport,
    ) -> anyhow::Result<Self> {
        match way {
            Way::View => {
                try_writing(store, name)?;
                Self::mount_privately(Single::of_clone(store, name)?, transport)
            }
            Way::VhostUser => {
                let opened = store.open_clone(name, Access::Write)?;
                Ok(Self::Served(Served::of_clone(opened, name)?))
            }
        }
    }

    /// A throw-away layer, under the name `name`.
    pub(super) fn of_scratch(
        scratch: Arc<Scratch>,
        name: &Name,
        way: Way,
        transport: Transport,
    ) -> anyhow::Result<Self> {
        match way {
            Way::View => Self::mount_privately(Single::of_scratch(scratch, name)?, transport),
            Way::VhostUser => Ok(Self::Served(Served::of_scratch(scratch, name)?)),
        }
    }

    /// Calls `run` with what QEMU is to use.
    pub(super) fn with_drive<T>(&self, run: impl FnOnce(&Drive<'_>) -> T) -> T {
        match self {
            Self::File { path, .. } => run(&Drive::File(path)),
            Self::Served(served) => {
                run(&Drive::VhostUser { connect: &|| served.connect(), queues: served.queues() })
            }
        }
    }

    /// Shows `source` in a mount that lasts as long as the value.
    fn mount_privately(source: Single, transport: Transport) -> anyhow::Result<Self> {
        let parent = runtime_dir().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("cowshed-run-").tempdir_in(&parent);
        let dir = dir.with_context(|| format!("no folder can be made in {}", parent.display()))?;
        let dir = EmptyDir(dir.keep());
        let path = dir.0.join(source.file());
        let mount = fuse_mount::mount(source, &dir.0, Options { transport, ..Options::default() })?;
        Ok(Self::File { path, private: Some(PrivateMount { mount, dir }) })
    }

    /// Ends a private mount or a server; all that was written is durable then.
    pub(super) fn end(self) -> anyhow::Result<()> {
        let (path, private) = match self {
            Self::File { path, private } => (path, private),
            Self::Served(served) => return served.end(),
        };
        let Some(PrivateMount { mount, dir }) = private else { return Ok(()) };
        let until = Instant::now() + PATIENCE;
        loop {
            match mount.unmount() {
                Err(Error::Busy { .. }) if Instant::now() < until => thread::sleep(TICK),
                Err(Error::Busy { .. }) => return take_away(mount, &dir, &path),
                result => return Ok(result?),
            }
        }
    }
}

/// Opens the clone for writing once, for the sentence that QEMU could not give.
pub(super) fn try_writing(store: &Store, name: &Name) -> anyhow::Result<()> {
    Ok(store.open_target(&Target::Clone(name.clone()), Access::Write)?.close()?)
}

fn is_busy(store: &Store, name: &Name) -> bool {
    let opened = store.open_target(&Target::Clone(name.clone()), Access::Write);
    opened.is_err_and(|error| error.kind() == Kind::Busy)
}

fn refusal(path: &Path, name: &Name, error: std::io::Error) -> anyhow::Error {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            anyhow!("{name} is in use: another process writes to it; end that one first, then run it again")
        }
        Some(libc::EROFS) => {
            anyhow!("{path} is in a view that was mounted with --read-only; run {name} without --view")
        }
        Some(libc::ESTALE) => {
            anyhow!("the base of {name} is not what it was when it was sealed; see `cowshed verify`")
        }
        _ => anyhow::Error::new(error).context(format!("{path} cannot be opened for writing")),
    }
}

/// Takes a mount away that somebody still uses, so that no dead one stays when this process ends.
fn take_away(mount: Mount, dir: &EmptyDir, file: &Path) -> anyhow::Result<()> {
    // A writer's flush is the disk's; the machine's own file is closed, and flushed with it, by now.
    let flushed = File::options().read(true).write(true).open(file).and_then(|file| file.sync_all());
    let connection = dir.0.metadata().map(|metadata| nix::sys::stat::minor(metadata.dev()));
    // Cuts the users off, where this process may: the server then closes all disks and ends.
    let _ = umount2(&dir.0, MntFlags::MNT_FORCE);
    // The server may be first, then nothing is mounted here any more.
    if umount2(&dir.0, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) == Err(Errno::EPERM) {
        let mut helper = Command::new("fusermount3");
        helper.args(["-u", "-z", "--"]).arg(&dir.0);
        let _ = helper.stdin(Stdio::null()).stderr(Stdio::null()).status();
    }
    if let Ok(number) = connection {
        // Only there where the control files are mounted.
        let _ = fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1");
    }
    // In a thread: a mount that could not be cut off lasts as long as its users.
    let (done, end) = mpsc::channel();
    thread::Builder::new().name("view-end".to_owned()).spawn(move || done.send(mount.wait()))?;
    match end.recv_timeout(PATIENCE) {
        Ok(Err(error @ Error::Flush { .. })) => Err(error.into()),
        // All is flushed and closed; that the connection was cut is no news.
        Ok(_) => Ok(()),
        Err(_) => flushed.with_context(|| format!("{} could not be made durable", file.display())),
    }
}
