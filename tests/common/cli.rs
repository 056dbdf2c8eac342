//! The built `cowshed` program on a store in a temporary folder.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

#[path = "store.rs"]
pub mod store;

use serde_json::Value;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use store::Scrap;

/// Size of the disks that tests make, in bytes.
pub const DISK: usize = 32 << 20;

/// A store, and the program that works on it.
pub struct Shed {
    pub dir: Scrap,
}

impl Shed {
    pub fn new() -> Self {
        Self { dir: Scrap::new() }
    }

    /// A store with the base `deb@1`: noise, holes, and two GPT partitions from sector 2048 and 18432 on.
    pub fn with_base() -> Self {
        let shed = Self::new();
        let image = shed.image("deb.raw");
        shed.ok(&["import", image.to_str().unwrap(), "--name", "deb"]);
        shed
    }

    /// A raw image with two partitions.
    pub fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut bytes = store::sample(DISK);
        bytes[..1 << 20].fill(0);
        bytes[DISK - (1 << 20)..].fill(0);
        fs::write(&path, &bytes).unwrap();
        let image = path.to_str().unwrap();
        store::must("sgdisk", &["-n1:2048:18431", "-n2:18432:0", image]);
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("store")
    }

    pub fn delta(&self, clone: &str) -> PathBuf {
        self.root().join("clones").join(clone).join("disk.qcow2")
    }

    pub fn base_disk(&self) -> PathBuf {
        self.root().join("bases/deb/1/disk.raw")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.arg("--store").arg(self.root()).args(arguments);
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed without a word on standard error; what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must end with `code` and one line on standard error; that line.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        one_line(&self.output(arguments), code, arguments)
    }

    /// Runs a command with `--json` that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{text}"))
    }

    /// Starts a command, and after a while stops it as Ctrl-C does (`gently`), or kills it; whether that came while it was at
    /// work, with something staged.
    pub fn cut_short(&self, arguments: &[&str], after: Duration, gently: bool) -> bool {
        let mut command = self.command(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(after);
        if gently {
            let process = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
            let code = child.wait().unwrap().code();
            // None: it came before it was waited for.
            assert!(matches!(code, Some(130 | 0) | None), "{code:?}");
            return code == Some(130);
        }
        child.kill().unwrap();
        let killed = child.wait().unwrap().signal() == Some(libc::SIGKILL);
        killed && fs::read_dir(self.root().join("tmp")).unwrap().count() > 0
    }

    /// Starts a view in the background.
    pub fn mount(&self) -> View<'_> {
        let dir = self.path("view");
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(self.ok(&["mount", dir.to_str().unwrap()]), "");
        View { shed: self, dir }
    }
}

/// The program without any store in its environment.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowshed"));
    command.env_remove("COWSHED_STORE").env_remove("XDG_RUNTIME_DIR").env_remove("XDG_DATA_HOME");
    command
}

/// Asserts an exit code and one line that begins with the program's name.
pub fn one_line(output: &Output, code: i32, what: &[&str]) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{what:?}: {said}");
    let line = said.strip_suffix('\n').unwrap_or_else(|| panic!("{what:?} said {said:?}"));
    assert!(line.starts_with("cowshed: ") && !line.chars().any(char::is_control), "{what:?} said {said:?}");
    line.to_owned()
}

/// A mounted view; unmounted when dropped.
pub struct View<'a> {
    pub shed: &'a Shed,
    pub dir: PathBuf,
}

impl View<'_> {
    pub fn clone_file(&self, name: &str) -> PathBuf {
        self.dir.join("clones").join(format!("{name}.raw"))
    }

    pub fn base_file(&self, name: &str) -> PathBuf {
        self.dir.join("bases").join(format!("{name}.raw"))
    }

    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn unmount(self) {
        self.shed.ok(&["umount", self.dir.to_str().unwrap()]);
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            let _ = self.shed.output(&["umount", self.dir.to_str().unwrap()]);
        }
        if is_mounted(&self.dir) {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).stderr(Stdio::null()).status();
        }
    }
}

pub fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

/// Waits until `done`, at most ten seconds.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `len` bytes that differ by `seed`.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
