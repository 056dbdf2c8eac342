#![allow(clippy::unwrap_used)]

use super::*;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// How a process ends that is confined, with one end of a socket as its descriptor 0, and then does `attempt`.
fn confined(attempt: fn() -> i64) -> WaitStatus {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // SAFETY: the new process has this thread alone, and ends without a destructor.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            drop(theirs);
            let end = waitpid(child, None).unwrap();
            drop(ours);
            end
        }
        ForkResult::Child => {
            // SAFETY: plain system calls; nothing of the harness is used any more.
            unsafe {
                libc::dup2(theirs.as_raw_fd(), SOCKET);
                let code = if confine().is_err() { 100 } else { i32::from(attempt() < 0) };
                libc::syscall(libc::SYS_exit_group, code);
            }
            unreachable!("the process ended")
        }
    }
}

fn call(number: i64, arguments: [i64; 3]) -> i64 {
    // SAFETY: the calls of these tests take numbers and static strings only.
    unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) }
}

fn name(name: &'static [u8]) -> i64 {
    name.as_ptr().addr().try_into().unwrap()
}

#[test]
fn the_child_is_killed_for_opening_connecting_forking_and_running() {
    type Attempt = fn() -> i64;
    let attempts: [(&str, Attempt); 10] = [
        ("open", || call(libc::SYS_openat, [libc::AT_FDCWD.into(), name(b"/etc/passwd\0"), 0])),
        ("socket", || call(libc::SYS_socket, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0])),
        ("fork", || call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0])),
        ("exec", || call(libc::SYS_execve, [name(b"/bin/true\0"), 0, 0])),
        ("kill", || call(libc::SYS_kill, [1, 0, 0])),
        ("ptrace", || call(libc::SYS_ptrace, [0, 0, 0])),
        ("unlink", || call(libc::SYS_unlinkat, [libc::AT_FDCWD.into(), name(b"/tmp/none\0"), 0])),
        ("dup", || call(libc::SYS_dup, [0, 0, 0])),
        ("write to another descriptor", || call(libc::SYS_write, [1, name(b"x"), 1])),
        ("memory with code", || {
            let rights = i64::from(libc::PROT_READ | libc::PROT_EXEC);
            call(libc::SYS_mmap, [0, 4096, rights])
        }),
    ];
    for (what, attempt) in attempts {
        let end = confined(attempt);
        assert!(matches!(end, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{what}: {end:?}");
    }
}

#[test]
fn the_child_keeps_its_memory_and_its_socket() {
    let end = confined(|| {
        let memory = vec![7_u8; 64 << 20];
        let wrote = call(libc::SYS_write, [SOCKET.into(), name(b"x"), 1]);
        if wrote == 1 && memory.iter().all(|byte| *byte == 7) { 0 } else { -1 }
    });
    assert!(matches!(end, WaitStatus::Exited(_, 0)), "{end:?}");
}
