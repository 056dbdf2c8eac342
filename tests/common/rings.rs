//! What the kernel tells of a process's `io_uring`s.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::fs::{self, DirEntry};

/// Completions that the kernel has counted in each ring of a process.
pub fn completions(process: u32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap().map(Result::unwrap);
    let rings = entries.filter(|entry| {
        fs::read_link(entry.path()).is_ok_and(|path| path.as_os_str() == "anon_inode:[io_uring]")
    });
    let count = |ring: DirEntry| {
        let path = format!("/proc/{process}/fdinfo/{}", ring.file_name().to_str().unwrap());
        let text = fs::read_to_string(path).unwrap();
        let tail = text.lines().find_map(|line| line.strip_prefix("CqTail:")).unwrap();
        tail.trim().parse().unwrap()
    };
    rings.map(count).collect()
}
