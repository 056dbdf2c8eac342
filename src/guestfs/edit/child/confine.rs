//! What takes everything from the child but its socket.
//!
//! The child runs C code on bytes that a guest wrote. From here on it can read and write descriptor 0, take and give
//! back memory, tell the time and end; any other system call kills it.

use crate::error::{Error, Result};
use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError};
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;
use std::io;

/// The socket to the parent.
pub(super) const SOCKET: i32 = 0;

/// System calls that are free: memory, threads of one, time, the end.
const FREE: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

type Conditions = std::result::Result<SeccompRule, seccompiler::BackendError>;

/// Only on the socket.
fn on_socket() -> Conditions {
    let value = SOCKET.cast_unsigned().into();
    SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?])
}

/// Memory that is no code.
fn no_code() -> Conditions {
    let code = libc::PROT_EXEC.cast_unsigned().into();
    let masked = SeccompCmpOp::MaskedEq(code);
    SeccompRule::new(vec![SeccompCondition::new(2, SeccompCmpArgLen::Dword, masked, 0)?])
}

fn filter() -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FREE.iter().map(|call| (*call, Vec::new())).collect();
    for call in [libc::SYS_read, libc::SYS_write] {
        rules.insert(call, vec![on_socket()?]);
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![no_code()?]);
    }
    let target = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, target)?.try_into()
}

/// Nothing of any file and no TCP connection, as far as the kernel knows how.
fn landlock() -> std::result::Result<(), RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// Confines this process, which has one thread; it never comes back.
pub(super) fn confine() -> Result<()> {
    let cannot = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::io("cannot confine the child", io::Error::other(error))
    };
    // SAFETY: plain system calls on numbers; nobody uses the descriptors that are closed.
    let failed = unsafe {
        libc::close_range(1, u32::MAX, 0) != 0
            || libc::prctl(libc::PR_SET_DUMPABLE, 0) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
    };
    if failed {
        return Err(Error::io("cannot confine the child", io::Error::last_os_error()));
    }
    let filter = filter().map_err(|error| cannot(error.into()))?;
    landlock().map_err(|error| cannot(error.into()))?;
    for resource in [Resource::RLIMIT_CORE, Resource::RLIMIT_FSIZE, Resource::RLIMIT_NPROC] {
        setrlimit(resource, 0, 0).map_err(|error| cannot(error.into()))?;
    }
    // The socket is open already.
    setrlimit(Resource::RLIMIT_NOFILE, 0, 0).map_err(|error| cannot(error.into()))?;
    seccompiler::apply_filter(&filter).map_err(|error| cannot(error.into()))
}

#[cfg(test)]
#[path = "confine_tests.rs"]
mod tests;
