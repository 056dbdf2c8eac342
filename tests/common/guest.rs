//! The bootable system that `tests/tools/guest-image.sh` builds; `COWSHED_GUEST` names its folder if it is not in the default
//! cache.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Its folder.
pub fn guest() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
    let folder = std::env::var_os("COWSHED_GUEST").map_or_else(|| cache.join("cowshed/guest"), PathBuf::from);
    let missing = format!("there is no guest image in {}: run tests/tools/guest-image.sh", folder.display());
    assert!(folder.join("disk.raw").exists(), "{missing}");
    folder
}

/// The kernel's command line by which it does `job` and powers off.
pub fn append(folder: &Path, job: &str) -> String {
    let own = fs::read_to_string(folder.join("cmdline")).unwrap();
    format!("{} cowshed.run={}", own.trim(), base64(job))
}

fn base64(text: &str) -> String {
    let mut encoder =
        Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    encoder.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(encoder.wait_with_output().unwrap().stdout).unwrap()
}
