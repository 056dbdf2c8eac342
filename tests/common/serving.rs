//! `cowshed serve` in the background.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use super::common::{Shed, until};
use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A store with a clone `web` of the base `deb`.
pub fn shed() -> Shed {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    shed
}

/// All bytes of a disk.
pub fn content(shed: &Shed, what: &str) -> Vec<u8> {
    let out = shed.path("out.raw");
    shed.ok(&["export", what, out.to_str().unwrap(), "--format", "raw", "--force"]);
    fs::read(out).unwrap()
}

/// What `protocol` does with something that is at its socket's path already; `goes_on` asserts that a server in use does.
pub fn only_a_stale_socket_is_replaced(protocol: &str, goes_on: impl FnOnce(&Server)) {
    let shed = shed();
    let path = shed.path("socket");
    let refused = |disk: &str, at: &Path| shed.fails(1, &["serve", disk, protocol, at.to_str().unwrap()]);
    drop(UnixListener::bind(&path).unwrap());
    Server::start(&shed, protocol, &["web"]).kill();
    assert!(path.exists());
    let server = Server::start(&shed, protocol, &["web"]);
    let said = refused("deb", &path);
    assert!(said.contains("somebody else listens"), "{said}");
    goes_on(&server);
    server.end("-TERM");
    fs::write(&path, "a file").unwrap();
    let said = refused("web", &path);
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    let said = refused("web", &shed.path(&"x".repeat(120)));
    assert!(said.contains("too long for a socket"), "{said}");
    let said = refused("web", &shed.path("no/socket"));
    assert!(said.contains("cannot listen at"), "{said}");
}

/// `cowshed serve`; killed when dropped.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Serves by `protocol` (an option that takes an address) at the socket of the shed.
    pub fn start(shed: &Shed, protocol: &str, arguments: &[&str]) -> Self {
        let socket = shed.path("socket");
        Self::start_at(shed, &[arguments, &[protocol, socket.to_str().unwrap()]].concat())
    }

    /// Serves where the arguments say.
    pub fn start_at(shed: &Shed, arguments: &[&str]) -> Self {
        let (socket, log) = (shed.path("socket"), shed.path("log"));
        let child = shed
            .command(&[&["serve"], arguments].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut server = Self { child, socket, log };
        until("the server is ready", || {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", server.said());
            server.said().contains(" is served at ")
        });
        server
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The address that it said.
    pub fn address(&self) -> String {
        let said = self.said();
        let line = said.lines().next().unwrap();
        line.split_once(" is served at ").unwrap().1.to_owned()
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    /// A value of `/proc/PID/status`, in KiB when it is memory.
    pub fn status(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Ends it in order; all that it said.
    pub fn end(mut self, signal: &str) -> String {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
        assert!(!self.socket.exists(), "the socket is left");
        self.said()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
