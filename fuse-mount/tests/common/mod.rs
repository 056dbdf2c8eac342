//! A mounted view of disks in memory, and what the tests do with it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

pub mod memory;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use fuse_mount::{Mount, Options};
use memory::Memory;
pub use memory::options;
use tempfile::TempDir;

/// A mount that goes away with the test, also when the test fails with files open.
pub struct TestView {
    pub mount: Option<Mount>,
    pub memory: Memory,
    dir: TempDir,
}

impl TestView {
    pub fn new() -> Self {
        Self::with(options())
    }

    pub fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::default();
        let mount = Some(fuse_mount::mount(memory.clone(), dir.path(), options).unwrap());
        TestView { mount, memory, dir }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn read_only(&self, path: &str) -> File {
        File::open(self.path(path)).unwrap()
    }

    pub fn writable(&self, path: &str) -> File {
        OpenOptions::new().read(true).write(true).open(self.path(path)).unwrap()
    }

    pub fn direct(&self, path: &str) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        options.open(self.path(path)).unwrap()
    }
}

impl Drop for TestView {
    fn drop(&mut self) {
        drop(self.mount.take());
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// What a server prints, line by line.
pub struct ServerLines(BufReader<ChildStdout>);

impl ServerLines {
    pub fn get_ref(&self) -> &ChildStdout {
        self.0.get_ref()
    }
}

impl Iterator for ServerLines {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            result => Some(result.map(|_| line.trim_end().to_owned())),
        }
    }
}

/// The example `memory`, as built with the tests.
pub fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples/memory");
    assert!(program.exists(), "{} is missing: cargo build --examples -p fuse-mount", program.display());
    program
}

/// The example `memory`, serving in a process of its own. Killed at the end, unmounted or not.
pub struct Server {
    pub child: Child,
    pub lines: ServerLines,
    pub dir: PathBuf,
}

impl Server {
    /// Starts `memory DIR arguments..`, by way of `prefix` (for instance `setpriv`), and waits until it has mounted.
    pub fn start(dir: &Path, prefix: &[&str], arguments: &[&str]) -> Self {
        Self::start_program(&example(), dir, prefix, arguments)
    }

    pub fn start_program(program: &Path, dir: &Path, prefix: &[&str], arguments: &[&str]) -> Self {
        let mut words: Vec<&OsStr> = prefix.iter().map(OsStr::new).collect();
        words.extend([program.as_os_str(), dir.as_os_str()]);
        words.extend(arguments.iter().map(OsStr::new));
        let mut command = Command::new(words[0]);
        let mut child = command.args(&words[1..]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = ServerLines(BufReader::new(child.stdout.take().unwrap()));
        let first = lines.next().expect("the server ends without a word").unwrap();
        assert!(first.starts_with("mounted at "), "{first}");
        Server { child, lines, dir: dir.to_owned() }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The OS error code of a result that must be an error.
pub fn code<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

/// Waits for something that another thread or process brings about.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}
