//! From I/O errors and panics to the code that the kernel hands to the caller.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fuser::Errno;

/// The kernel takes codes below this one only, and leaves a request unanswered for any other.
const FIRST_INTERNAL_CODE: i32 = 512;

/// The error code for `error`. Never `ENOSYS`: the kernel would stop asking for the whole mount.
pub(crate) fn errno(error: &io::Error) -> Errno {
    let code = error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::NotFound => libc::ENOENT,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        io::ErrorKind::AlreadyExists => libc::EEXIST,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::ResourceBusy => libc::EBUSY,
        io::ErrorKind::ReadOnlyFilesystem => libc::EROFS,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::FileTooLarge => libc::EFBIG,
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::Unsupported => libc::EOPNOTSUPP,
        io::ErrorKind::StaleNetworkFileHandle => libc::ESTALE,
        _ => libc::EIO,
    });
    match code {
        libc::ENOSYS => Errno::EOPNOTSUPP,
        1..FIRST_INTERNAL_CODE => Errno::from_i32(code),
        _ => Errno::EIO,
    }
}

/// Runs foreign code: its error as a code, its panic as `EIO`. A panic ends one request, never a serving thread.
pub(crate) fn guarded<T>(call: impl FnOnce() -> io::Result<T>) -> Result<T, Errno> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| errno(&error)),
        Err(_) => Err(Errno::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_pass_through_and_codes_the_kernel_would_misread_do_not() {
        let code = |raw| errno(&io::Error::from_raw_os_error(raw)).code();
        assert_eq!(code(libc::EBUSY), libc::EBUSY);
        assert_eq!(code(libc::ENOSYS), libc::EOPNOTSUPP);
        assert_eq!([code(0), code(-5), code(512), code(70_000)], [libc::EIO; 4]);
        assert_eq!(errno(&io::Error::other("x")).code(), libc::EIO);
        assert_eq!(errno(&io::ErrorKind::NotFound.into()).code(), libc::ENOENT);
    }

    #[test]
    fn a_panic_becomes_eio() {
        let result: Result<(), _> = guarded(|| panic!("on purpose"));
        assert_eq!(result.map_err(Errno::code), Err(libc::EIO));
    }
}
