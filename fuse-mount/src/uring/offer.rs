//! Whether this kernel serves FUSE over `io_uring`, and with how many queues.

use std::fs;
use std::io;

/// The kernel's switch.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// The processors that may ever come up: the kernel has a queue for each.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// How many queues the kernel has, or a sentence that says why there are none and what to do.
pub(crate) fn queues() -> Result<u16, String> {
    match fs::read_to_string(SWITCH) {
        Ok(value) if value.trim() == "Y" => {}
        Ok(_) => {
            return Err(format!(
                "FUSE over io_uring is switched off in this kernel; switch it on as root (echo Y > {SWITCH}), or mount with \
                 --transport dev"
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!(
                "this kernel has no FUSE over io_uring, for there is no {SWITCH}; boot Linux 6.14 or later, built with \
                 CONFIG_FUSE_IO_URING, or mount with --transport dev"
            ));
        }
        Err(error) => return Err(format!("{SWITCH} cannot be read: {error}; mount with --transport dev")),
    }
    let list = fs::read_to_string(POSSIBLE).map_err(|error| format!("{POSSIBLE} cannot be read: {error}"))?;
    count(&list).ok_or_else(|| format!("{POSSIBLE} is no list of processors: {list:?}"))
}

/// How many numbers a list such as `0-3,8` has.
fn count(list: &str) -> Option<u16> {
    list.trim().split(',').try_fold(0u16, |sum, run| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn processors_are_counted_as_the_kernel_counts_its_queues() {
        let counts = ["0\n", "0-1\n", "0-3,8\n", "0-63,128-191\n"].map(super::count);
        assert_eq!(counts, [Some(1), Some(2), Some(5), Some(128)]);
        assert_eq!(["", "a", "3-1", "0-65535", "0-"].map(super::count), [None; 5]);
    }
}
