//! The kernel's table of mounts: what is mounted where, and whether it is ours and alive.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};

/// File-system type of our mounts: how we know them from other people's.
pub(crate) const TYPE: &str = "fuse.cowshed";

/// One mount, as a line of `/proc/self/mountinfo` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Number of the mount, unique while it lasts.
    pub(crate) id: u64,
    pub(crate) dir: PathBuf,
    pub(crate) kind: String,
}

impl Entry {
    pub(crate) fn is_ours(&self) -> bool {
        self.kind == TYPE
    }

    /// True when its server is gone without unmounting. Asks the server something, so it waits for a busy one.
    pub(crate) fn is_dead(&self) -> bool {
        nix::sys::statfs::statfs(&self.dir).is_err_and(says_dead)
    }
}

/// What the kernel says of a server that has gone; while its rings go, it says that their requests were cancelled.
fn says_dead(code: Errno) -> bool {
    matches!(code, Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ECANCELED)
}

/// Every mount at `dir`, bottom first: a path leads to the last one.
pub(crate) fn mounts_at(dir: &Path) -> Result<Vec<Entry>> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(|cause| Error::MountTable { cause })?;
    Ok(table.split(|&byte| byte == b'\n').filter_map(parse).filter(|entry| entry.dir == dir).collect())
}

/// The mount that is seen at `dir`.
pub(crate) fn top_at(dir: &Path) -> Result<Option<Entry>> {
    Ok(mounts_at(dir)?.pop())
}

/// `dir` without symbolic links, also when a dead mount is there, which cannot be entered.
pub(crate) fn resolve(dir: &Path) -> io::Result<PathBuf> {
    let error = match dir.canonicalize() {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    let dead = error.raw_os_error().map(Errno::from_raw);
    let dead = dead.is_some_and(|code| says_dead(code) || code == Errno::EACCES);
    match (dead, dir.file_name()) {
        (true, Some(name)) => {
            let parent = match dir.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => Err(error),
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let id = text(fields.next()?)?.parse().ok()?;
    let _parent = fields.next()?;
    let _device = fields.next()?;
    let _root = fields.next()?;
    let dir = PathBuf::from(unescape(fields.next()?));
    // Any number of optional fields, ended by a dash; then the type.
    fields.find(|field| *field == b"-")?;
    let kind = text(fields.next()?)?;
    Some(Entry { id, dir, kind })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, value) {
            (b'\\', Some(value)) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Checks that the options of a mount can carry `value`, or says what is wrong with it.
pub(crate) fn check_option(value: &str) -> std::result::Result<(), String> {
    let bad = |c: char| c == ',' || c == '\\' || c.is_control();
    match value.chars().find(|&c| bad(c)) {
        Some(c) => Err(format!("{c:?} is not allowed in it")),
        None if OsStr::new(value).as_bytes().is_empty() => Err("it is empty".to_owned()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table_is_read_whole() {
        let line =
            br"98 29 0:52 / /mnt/a\040b\134c rw,nosuid shared:7 master:1 - fuse.cowshed cowshed rw,user_id=0";
        let entry = parse(line).expect("valid line");
        let expected = Entry { id: 98, dir: PathBuf::from(r"/mnt/a b\c"), kind: TYPE.into() };
        assert_eq!(entry, expected);
        assert!(entry.is_ours());
        assert_eq!(parse(b"98 29 0:52 / /mnt"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_root_file_system_is_in_the_table_and_not_ours() {
        let root = top_at(Path::new("/")).expect("table").expect("root is mounted");
        assert!(!root.is_ours() && !root.is_dead());
    }

    #[test]
    fn options_that_would_split_are_refused() {
        assert!(check_option("disks").is_ok());
        assert!(check_option("a,allow_other").is_err() && check_option("").is_err());
        assert!(check_option("a\nb").is_err() && check_option(r"a\").is_err());
    }
}
