//! Getting a mount from the kernel and giving it back: as root by system call, else by the helper `fusermount3`.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{getegid, geteuid};

use crate::Options;
use crate::error::{Error, Result};
use crate::mount_table::TYPE;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// How long to wait for users who are just leaving: a loop device lets go of its file a moment after its own unmount.
const LEAVING: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(20);

/// Mounts at `dir` and returns the kernel's end of the conversation.
pub(crate) fn attach(dir: &Path, options: &Options) -> Result<OwnedFd> {
    if geteuid().is_root() {
        match attach_directly(dir, options) {
            // Root without the right to mount, as in some containers.
            Err(Error::Attach { cause, .. }) if cause.raw_os_error() == Some(libc::EPERM) => {}
            result => return result,
        }
    }
    attach_by_helper(dir, options)
}

/// Whether this process may open the FUSE device, as each thread's own descriptor needs.
pub(crate) fn can_open_device() -> bool {
    open_device().is_ok()
}

fn open_device() -> Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|cause| Error::FuseDevice { cause })
}

fn attach_directly(dir: &Path, options: &Options) -> Result<OwnedFd> {
    let device = open_device()?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        geteuid(),
        getegid(),
        if options.allow_other { ",allow_other" } else { "" },
    );
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    if options.read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    nix::mount::mount(Some(options.fs_name.as_str()), dir, Some(TYPE), flags, Some(data.as_str()))
        .map_err(|code| Error::Attach { dir: dir.to_owned(), cause: code.into() })?;
    Ok(device.into())
}

/// The helper mounts with root's rights and sends the descriptor over a socket, which it finds as its standard input.
fn attach_by_helper(dir: &Path, options: &Options) -> Result<OwnedFd> {
    let subtype = TYPE.trim_start_matches("fuse.");
    let mut list = format!("default_permissions,noatime,fsname={},subtype={subtype}", options.fs_name);
    if options.allow_other {
        list.push_str(",allow_other");
    }
    if options.read_only {
        list.push_str(",ro");
    }
    let failed = |cause| Error::Attach { dir: dir.to_owned(), cause };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = helper();
    command.arg("-o").arg(list).arg("--").arg(dir);
    command.env("_FUSE_COMMFD", "0").stdin(Stdio::from(OwnedFd::from(theirs)));
    let output = command.output().map_err(|cause| Error::NoHelper { cause })?;
    // The command keeps its copy of the socket, and we would wait for ever for a helper that sent nothing.
    drop(command);
    if !output.status.success() {
        return Err(Error::Helper { dir: dir.to_owned(), message: message_of(&output) });
    }
    receive_descriptor(&ours).map_err(failed)
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let [descriptor] = descriptors[..]
        {
            // SAFETY: the kernel has just made this descriptor for us and nothing else knows its number.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    Err(io::Error::other(format!("{HELPER} sent no descriptor")))
}

/// Takes the mount at `dir` away; `lazy` also when it is in use (right only when its server is gone). Else it waits a second
/// for users who are just leaving.
pub(crate) fn detach(dir: &Path, lazy: bool) -> Result<()> {
    let until = Instant::now() + LEAVING;
    loop {
        match detach_now(dir, lazy) {
            Err(Error::Busy { .. }) if Instant::now() < until => thread::sleep(TICK),
            result => return result,
        }
    }
}

fn detach_now(dir: &Path, lazy: bool) -> Result<()> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match nix::mount::umount2(dir, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(Error::Busy { dir: dir.to_owned() }),
        Err(Errno::EPERM) => detach_by_helper(dir, lazy),
        Err(code) => Err(Error::Detach { dir: dir.to_owned(), cause: code.into() }),
    }
}

fn detach_by_helper(dir: &Path, lazy: bool) -> Result<()> {
    let mut command = helper();
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(dir).stdin(Stdio::null());
    let output = command.output().map_err(|cause| Error::NoHelper { cause })?;
    let message = message_of(&output);
    match output.status.success() {
        true => Ok(()),
        false if message.contains("busy") => Err(Error::Busy { dir: dir.to_owned() }),
        false => Err(Error::Helper { dir: dir.to_owned(), message }),
    }
}

fn helper() -> Command {
    let mut command = Command::new(HELPER);
    command.env("LC_ALL", "C");
    command
}

fn message_of(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().trim_start_matches(HELPER).trim_start_matches(": ");
    if text.is_empty() { output.status.to_string() } else { text.to_owned() }
}
