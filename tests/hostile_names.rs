//! No name in a header leads anywhere: whatever a guest or a user writes there, nothing outside is opened, and every
//! command ends.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/cli.rs"]
mod common;

use common::Shed;
use common::store::{must, unseal};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What must never be read.
const CANARY: &[u8] = b"a secret of the host, and not of any guest";

/// A folder with something of every kind that a name could lead to.
struct Trap {
    dir: PathBuf,
    canary: PathBuf,
    port: TcpListener,
    _socket: UnixListener,
}

impl Trap {
    fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let canary = dir.join("canary");
        fs::write(&canary, [CANARY, &[0; 1 << 16]].concat()).unwrap();
        symlink("canary", dir.join("link")).unwrap();
        must("mkfifo", &[dir.join("fifo").to_str().unwrap()]);
        must("mknod", &[dir.join("zero").to_str().unwrap(), "c", "1", "5"]);
        let socket = UnixListener::bind(dir.join("socket")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        port.set_nonblocking(true).unwrap();
        let this = Self { dir: dir.to_owned(), canary, port, _socket: socket };
        this.wind();
        this
    }

    /// Makes the next read of the canary show in its time of access.
    fn wind(&self) {
        must("touch", &["-a", "-d", "2001-01-01", self.canary.to_str().unwrap()]);
    }

    fn was_read(&self) -> bool {
        fs::metadata(&self.canary).unwrap().atime() > 1_000_000_000
    }

    /// The names, as seen from a file that is `up` folders away from this one's parent.
    fn names(&self, own: &str) -> Vec<Vec<u8>> {
        let dir = self.dir.to_str().unwrap();
        let port = self.port.local_addr().unwrap().port();
        let mut names: Vec<Vec<u8>> = [
            format!("{dir}/canary"),
            format!("{dir}/fifo"),
            format!("{dir}/link"),
            format!("file:{dir}/canary"),
            format!(
                "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{dir}/canary\"}}}}"
            ),
            format!("nbd://127.0.0.1:{port}/x"),
            format!("nbd:127.0.0.1:{port}"),
            format!("http://127.0.0.1:{port}/x"),
            "/dev/zero".to_owned(),
            "/proc/self/fd/0".to_owned(),
            "/proc/self/environ".to_owned(),
            "../trap/canary".to_owned(),
            "../../../trap/canary".to_owned(),
            "../../../../../../../../../../dev/zero".to_owned(),
            format!("./{own}"),
            own.to_owned(),
            "canary".to_owned(),
            "link".to_owned(),
            "fifo".to_owned(),
            "zero".to_owned(),
            "socket".to_owned(),
            ".".to_owned(),
            "..".to_owned(),
            "/".to_owned(),
            "a".repeat(1023),
        ]
        .map(String::into_bytes)
        .to_vec();
        names.extend(
            [&b"can\0ary"[..], b"canary\0", b"\0", b"can\nary", b"\x1b[2Jcanary", b"\xff\xfe", b" canary "]
                .map(<[u8]>::to_vec),
        );
        names
    }

    fn assert_untouched(&self, what: &str, output: &Output) {
        let seen = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|part| part == CANARY);
        assert!(!self.was_read(), "{what}: the canary was opened");
        assert!(!seen(&output.stdout) && !seen(&output.stderr), "{what}: the canary is shown");
        assert!(self.port.accept().is_err(), "{what}: somebody connected");
    }
}

/// Writes a backing file's name and format into a header.
fn set_backing(image: &Path, name: &[u8], format: &str) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut head = vec![0; 4096];
    file.read_exact_at(&mut head, 0).unwrap();
    let put = |bytes: &[u8], at: u64| file.write_all_at(bytes, at).unwrap();
    let known = head.windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    let mut field = [0; 12];
    field[..4].copy_from_slice(&u32::try_from(format.len()).unwrap().to_be_bytes());
    field[4..4 + format.len()].copy_from_slice(format.as_bytes());
    put(&field, u64::try_from(known).unwrap() + 4);
    put(name, 2048);
    put(&2048_u64.to_be_bytes(), 8);
    put(&u32::try_from(name.len()).unwrap().to_be_bytes(), 16);
}

/// Runs a command that must end by itself.
fn ends(shed: &Shed, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command
        .args(["-s", "KILL", "20", env!("CARGO_BIN_EXE_cowshed"), "--store"])
        .arg(shed.root())
        .args(arguments);
    command.env_remove("COWSHED_STORE").env_remove("XDG_RUNTIME_DIR");
    let output = command.output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 100), "{arguments:?}: {output:?}");
    output
}

fn refused(shed: &Shed, trap: &Trap, what: &str, arguments: &[&str]) {
    let output = ends(shed, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{what}: {arguments:?} succeeds");
    assert!(!said.contains("panick") && said.lines().count() <= 1, "{what}: {arguments:?}: {said}");
    trap.assert_untouched(&format!("{what}: {arguments:?}"), &output);
}

fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string().chars().take(60).collect()
}

#[test]
fn the_time_of_access_tells_that_the_canary_was_read() {
    let shed = Shed::new();
    let trap = Trap::new(&shed.path("trap"));
    assert!(!trap.was_read());
    fs::read(&trap.canary).unwrap();
    assert!(trap.was_read(), "this file system keeps no times of access: the tests here need one that does");
}

#[test]
fn an_import_follows_no_name_that_leads_elsewhere() {
    let shed = Shed::new();
    let trap = Trap::new(&shed.path("trap"));
    let image = trap.dir.join("own.qcow2");
    let path = image.to_str().unwrap();
    must("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-b", "x", "-F", "raw", path, "1M"]);
    for name in trap.names("own.qcow2") {
        for format in ["raw", "qcow2"] {
            // A plain name of a file beside the image is what --follow-backing is for.
            let plain = name == b"canary";
            set_backing(&image, &name, format);
            let what = format!("{} as {format}", shown(&name));
            refused(&shed, &trap, &what, &["import", path, "--name", "x"]);
            if !(plain && format == "raw") {
                trap.wind();
                let output = ends(&shed, &["import", path, "--name", "x", "--follow-backing"]);
                assert!(!output.status.success(), "{what} is followed");
                assert!(plain || !trap.was_read(), "{what}: the canary was opened");
                assert!(trap.port.accept().is_err(), "{what}: somebody connected");
                trap.wind();
            }
        }
    }
    assert!(shed.json(&["list"])["bases"].as_array().unwrap().is_empty());
}

#[test]
fn a_data_file_of_its_own_is_refused() {
    let shed = Shed::new();
    let trap = Trap::new(&shed.path("trap"));
    let image = trap.dir.join("own.qcow2");
    let path = image.to_str().unwrap();
    let options = format!("data_file={},data_file_raw=on", trap.dir.join("data").display());
    must("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, path, "64k"]);
    fs::remove_file(trap.dir.join("data")).unwrap();
    symlink("canary", trap.dir.join("data")).unwrap();
    refused(&shed, &trap, "a data file", &["import", path, "--name", "x"]);
    refused(&shed, &trap, "a data file", &["import", path, "--name", "x", "--follow-backing"]);
}

#[test]
fn a_chain_of_a_thousand_images_is_refused_after_a_few() {
    let shed = Shed::new();
    let trap = Trap::new(&shed.path("trap"));
    let image = |number: usize| trap.dir.join(format!("{number}.qcow2"));
    let first = image(0);
    must(
        "qemu-img",
        &["create", "-q", "-u", "-f", "qcow2", "-b", "x", "-F", "qcow2", first.to_str().unwrap(), "1M"],
    );
    for number in 1..1000 {
        fs::copy(&first, image(number)).unwrap();
        set_backing(&image(number), format!("{}.qcow2", number - 1).as_bytes(), "qcow2");
    }
    let top = image(999);
    refused(
        &shed,
        &trap,
        "a deep chain",
        &["import", top.to_str().unwrap(), "--name", "x", "--follow-backing"],
    );
    // 64 files that each claim the largest table there is take no more memory than is allowed.
    for number in 0..1000 {
        let file = File::options().write(true).open(image(number)).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&(4_u32 << 20).to_be_bytes(), 36).unwrap();
        file.write_all_at(&(16_u64 << 20).to_be_bytes(), 40).unwrap();
    }
    let output = ends(&shed, &["import", top.to_str().unwrap(), "--name", "x", "--follow-backing"]);
    assert!(!output.status.success());
}

#[test]
fn a_layer_of_the_store_whose_header_was_changed_leads_nowhere() {
    let shed = Shed::with_base();
    let trap = Trap::new(&shed.path("trap"));
    let export = shed.path("out.raw");
    let out = export.to_str().unwrap();
    shed.ok(&["clone", "deb", "web"]);
    shed.ok(&["checkpoint", "web"]);
    for layer in ["disk.qcow2", "checkpoint-1.qcow2"] {
        let path = shed.root().join("clones/web").join(layer);
        unseal(&path);
        for name in trap.names(layer) {
            let what = format!("{layer}: {}", shown(&name));
            set_backing(&path, &name, if layer == "disk.qcow2" { "qcow2" } else { "raw" });
            for arguments in [
                &["export", "web", out, "--format", "raw"][..],
                &["map", "web"],
                &["check", "web"],
                &["check", "web", "--repair"],
                &["checkpoint", "web"],
                &["restore", "web", "1"],
                &["check", "web", "--reseal"],
            ] {
                let output = ends(&shed, arguments);
                trap.assert_untouched(&format!("{what}: {arguments:?}"), &output);
                let told = matches!(arguments, ["check", "web", ..]);
                assert!(!output.status.success() || told, "{what}: {arguments:?} succeeds");
                assert!(!export.exists());
            }
            let output = ends(&shed, &["info", "web"]);
            trap.assert_untouched(&format!("{what}: info"), &output);
        }
        // What comes next is looked at with this layer as it was.
        let (name, format) = match layer {
            "disk.qcow2" => ("checkpoint-1.qcow2", "qcow2"),
            _ => ("../../bases/deb/1/disk.raw", "raw"),
        };
        set_backing(&path, name.as_bytes(), format);
    }
}
