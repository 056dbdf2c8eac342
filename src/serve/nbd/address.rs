//! Where clients find a server: a path, or a port.

use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::fmt::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// A port, as HOST:PORT.
    Tcp(String),
}

impl Address {
    /// Reads an address: `unix:PATH`, any path with a slash, or `HOST:PORT`.
    ///
    /// # Errors
    /// A sentence, when it is none of these.
    pub fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        if let Some(path) = bytes.strip_prefix(b"unix:") {
            if path.is_empty() {
                return Err("unix: needs a path behind it".to_owned());
            }
            return Ok(Self::Unix(OsStr::from_bytes(path).into()));
        }
        if bytes.contains(&b'/') {
            return Ok(Self::Unix(text.into()));
        }
        let parts = text.to_str().and_then(|text| text.rsplit_once(':'));
        match parts {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(format!("{host}:{port}")))
            }
            _ => Err("give unix:PATH, a path with a slash, or HOST:PORT".to_owned()),
        }
    }
}

/// What HOST:PORT stands for. Only this host's own programs reach it, unless it may be `anywhere`.
pub(super) fn resolve(text: &str, anywhere: bool) -> Result<Vec<SocketAddr>> {
    let found = text.to_socket_addrs().map_err(|error| Error::io(format!("cannot find {text}"), error))?;
    let found: Vec<_> = found.collect();
    if let Some(other) = found.iter().find(|address| !address.ip().is_loopback() && !anywhere) {
        return Err(Error::invalid(format!(
            "{} can be reached from elsewhere, and NBD has no passwords and no encryption here; listen at 127.0.0.1, \
             or give --listen-anywhere",
            other.ip()
        )));
    }
    Ok(found)
}

/// How clients write the address of a Unix socket.
pub(super) fn uri(path: &Path) -> String {
    let mut uri = "nbd+unix:///?socket=".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_port_and_nothing_else() {
        let parse = |text: &str| Address::parse(OsStr::new(text));
        for (text, path) in
            [("/a/b", "/a/b"), ("./s", "./s"), ("unix:s", "s"), ("unix:/a:1", "/a:1"), ("a:1/b", "a:1/b")]
        {
            assert_eq!(parse(text), Ok(Address::Unix(path.into())), "{text}");
        }
        for text in ["127.0.0.1:0", "localhost:10809", "[::1]:1"] {
            assert_eq!(parse(text), Ok(Address::Tcp(text.to_owned())), "{text}");
        }
        for text in ["", "web.sock", "unix:", ":1", "host:", "host:65536", "host:-1", "host:nbd"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_is_for_this_host_alone_unless_asked_for() {
        for text in ["127.0.0.1:0", "127.9.9.9:5", "[::1]:7"] {
            assert_eq!(resolve(text, false).unwrap().len(), 1, "{text}");
        }
        for text in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "[::ffff:192.0.2.1]:1"] {
            assert!(resolve(text, false).is_err(), "{text}");
            assert_eq!(resolve(text, true).unwrap().len(), 1, "{text}");
        }
    }

    #[test]
    fn a_path_in_an_address_keeps_all_its_bytes() {
        let path = Path::new(OsStr::from_bytes(b"/run/a b&c?\xff"));
        assert_eq!(uri(path), "nbd+unix:///?socket=/run/a%20b%26c%3F%FF");
    }
}
