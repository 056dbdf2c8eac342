//! A view whose server the test can kill at any moment.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

use crate::common::{Shed, is_mounted, until};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A server in the foreground; killed, and its mount taken away, when dropped.
pub struct Server {
    pub dir: PathBuf,
    child: Child,
}

impl Server {
    /// Starts a server; its view may not be up yet. The mount of a dead one is taken over.
    pub fn spawn(shed: &Shed, options: &[&str]) -> Self {
        let dir = shed.path("served");
        if fs::symlink_metadata(&dir).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            fs::create_dir(&dir).unwrap();
        }
        let log = File::options().create(true).append(true).open(log(shed)).unwrap();
        let arguments = [&["mount", "--foreground", dir.to_str().unwrap()], options].concat();
        let child = shed.command(&arguments).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        Self { dir, child }
    }

    /// A view that is up.
    pub fn start(shed: &Shed) -> Self {
        let mut server = Self::spawn(shed, &[]);
        server.wait_until_up(shed);
        server
    }

    pub fn wait_until_up(&mut self, shed: &Shed) {
        until("the view is up", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}\n{}", said(shed));
            is_mounted(&self.dir) && self.dir.join("clones").exists()
        });
    }

    pub fn clone_file(&self, name: &str) -> PathBuf {
        self.dir.join("clones").join(format!("{name}.raw"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and the end of the process.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Unmounts in order; how the server ended.
    pub fn end(mut self, shed: &Shed) -> ExitStatus {
        shed.ok(&["umount", self.dir.to_str().unwrap()]);
        self.child.wait().unwrap()
    }

    /// How a server ended whose mount somebody else has taken away.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        take_away(&self.dir);
    }
}

/// What all servers of a store said on standard error.
pub fn said(shed: &Shed) -> String {
    fs::read_to_string(log(shed)).unwrap_or_default()
}

fn log(shed: &Shed) -> PathBuf {
    shed.path("served.log")
}

fn take_away(dir: &Path) {
    while is_mounted(dir) {
        let done = Command::new("umount").arg("-l").arg(dir).stderr(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) {
            return;
        }
    }
}
